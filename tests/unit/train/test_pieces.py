from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from elastic_export.data import ArraySplit
from elastic_export.train.ema import Ema
from elastic_export.train.losses import distillation_loss, soft_cross_entropy
from elastic_export.train.optimizer import Updater
from elastic_export.train.schedule import learning_rate
from elastic_export.train.stream import step_seed, training_batches

CPU = torch.device("cpu")


@given(steps=st.integers(1, 200), warmup=st.integers(0, 250))
def test_rates_rise_in_a_line_then_fall_and_stay_positive(steps: int, warmup: int) -> None:
    rates = [learning_rate(s, steps=steps, warmup=warmup, peak=2.0) for s in range(steps)]
    rise = min(warmup, steps)
    assert rates[:rise] == pytest.approx([2.0 * (s + 1) / rise for s in range(rise)])
    assert all(a >= b for a, b in zip(rates[rise:-1], rates[rise + 1 :], strict=True))
    assert min(rates) > 0
    assert max(rates) == pytest.approx(2.0)


def test_the_docstring_example_of_the_schedule() -> None:
    rates = [learning_rate(s, steps=10, warmup=2, peak=1.0) for s in range(10)]
    assert [round(r, 2) for r in rates[:5]] == [0.5, 1.0, 1.0, 0.96, 0.85]
    assert round(rates[-1], 2) == 0.04


def test_soft_losses_against_their_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(6, 4, generator=generator, requires_grad=True)
    teacher = torch.randn(6, 4, generator=generator, requires_grad=True)
    y = torch.tensor([0, 1, 2, 3, 0, 1])
    p = teacher.detach().exp() / teacher.detach().exp().sum(1, keepdim=True)
    log_q = student - student.exp().sum(1, keepdim=True).log()
    cross = -(p * log_q).sum(1).mean()
    assert soft_cross_entropy(student, teacher).item() == pytest.approx(cross.item(), rel=1e-5)
    entropy = -(p * p.log()).sum(1).mean()
    labels = -log_q[torch.arange(6), y].mean()
    mixed = distillation_loss(student, y, teacher, 0.0)
    assert mixed.item() == pytest.approx((0.5 * (labels + cross - entropy)).item(), rel=1e-5)
    mixed.backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_ema_follows_the_stated_recurrence() -> None:
    p = nn.Parameter(torch.tensor([1.0]))
    ema = Ema([("p", p)], decay=0.5)
    expected = 1.0
    for step in range(20):
        with torch.no_grad():
            p.fill_(float(step))
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    ema.copy_to_parameters()
    assert p.item() == pytest.approx(expected, rel=1e-6)
    assert math.isclose(float(ema.state_dict()["p"]), expected, rel_tol=1e-6)


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))
        self.pos_embed = nn.Parameter(torch.ones(1, 2, 2))
        self.bias = nn.Parameter(torch.ones(2))
        self.unused = nn.Parameter(torch.ones(2, 2))


def test_decay_spares_positions_vectors_and_what_no_loss_touched() -> None:
    parts = Parts()
    updater = Updater(parts.named_parameters(), weight_decay=0.5, clip_grad_norm=None, device=CPU)
    # A zero gradient leaves Adam's own step at zero, so that only the decay is seen.
    updater.backward(0.0 * (parts.weight.sum() + parts.pos_embed.sum() + parts.bias.sum()))
    updater.step(lr=0.1)
    values = {name: float(p.detach().flatten()[0]) for name, p in parts.named_parameters()}
    assert values == pytest.approx({"weight": 0.95, "pos_embed": 1, "bias": 1, "unused": 1})


def test_the_gradient_norm_is_bounded_over_all_parameters_together() -> None:
    parts = Parts()
    updater = Updater(parts.named_parameters(), weight_decay=0.0, clip_grad_norm=1.0, device=CPU)
    seen: list[torch.Tensor] = []
    updater.backward(30.0 * parts.weight[0, 0] + 40.0 * parts.bias[0])
    original = torch.optim.AdamW.step

    def spy(self: torch.optim.AdamW, closure: None = None) -> None:
        seen.extend(p.grad.clone() for p in (parts.weight, parts.bias) if p.grad is not None)
        original(self, closure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", spy)
        updater.step(lr=0.1)
    assert float(seen[0][0, 0]) == pytest.approx(0.6, rel=1e-4)
    assert float(seen[1][0]) == pytest.approx(0.8, rel=1e-4)


def test_seeds_of_steps_and_purposes_do_not_meet() -> None:
    seeds = {
        step_seed(seed, step, purpose)
        for seed in range(5)
        for step in range(50)
        for purpose in ("shuffle", "augment", "specs", "dropout")
    }
    assert len(seeds) == 5 * 50 * 4
    assert min(seeds) >= 0


@pytest.mark.parametrize("start", [0, 1, 4, 5, 11])
def test_the_stream_goes_on_as_if_never_cut(start: int, stripes: Callable[..., ArraySplit]) -> None:
    def stream(first: int) -> list[tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]]:
        batches = training_batches(
            stripes(90),
            batch_size=20,
            start=first,
            steps=12,
            seed=7,
            augmentation="shift",
            device=CPU,
        )
        return [(step, x, y, torch.rand(3)) for step, x, y in batches]

    whole, late = stream(0), stream(start)
    assert [s for s, *_ in whole] == list(range(12))
    assert [s for s, *_ in late] == list(range(start, 12))
    for a, b in zip(whole[start:], late, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(a[1:], b[1:], strict=True))
    assert not torch.equal(whole[0][1], whole[4][1]), "the next epoch has another order"


def test_an_epoch_shows_each_image_once_and_a_small_split_is_one_batch(
    stripes: Callable[..., ArraySplit],
) -> None:
    split = stripes(40)
    batches = training_batches(
        split, batch_size=20, start=0, steps=2, seed=0, augmentation="none", device=CPU
    )
    seen = torch.cat([x for _, x, _ in batches])
    assert sorted(seen[:, 0, 0, 0].tolist()) == sorted(split.x[:, 0, 0, 0].tolist())
    whole = training_batches(
        split, batch_size=64, start=0, steps=3, seed=0, augmentation="none", device=CPU
    )
    assert [len(y) for _, _, y in whole] == [40, 40, 40]
