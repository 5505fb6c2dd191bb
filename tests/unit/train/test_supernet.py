from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from elastic_export.config.recipe import TrainConfig
from elastic_export.data import ArraySplit, top1
from elastic_export.elastic.supernet import Supernet
from elastic_export.errors import CheckFailed
from elastic_export.train import train_supernet

Tiny = Callable[..., Supernet]
Stripes = Callable[..., ArraySplit]

# What differs from the default is what resuming could forget.
FULL = TrainConfig(
    steps=26,
    batch_size=20,
    lr=3e-3,
    warmup_steps=5,
    ema_decay=0.9,
    augment="shift",
    label_smoothing=0.1,
    checkpoint_every=7,
)


def weights(net: Supernet) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def test_every_size_learns(tiny: Tiny, stripes: Stripes, tmp_path: Path) -> None:
    net, steps = tiny(), 150
    config = TrainConfig(steps=steps, batch_size=30, lr=5e-3, warmup_steps=10)
    report = train_supernet(net, stripes(240), config, seed=0, work=tmp_path)
    test = stripes(120, seed=1)
    for spec in (net.space.max(), net.space.min(), net.space.sample(np.random.default_rng(0))):
        assert top1(lambda x, spec=spec: net.forward(spec, x), test) > 90
    assert not net.training
    assert report.steps == steps
    assert [entry["step"] for entry in report.history][-1] == steps - 1
    assert report.history[-1]["loss"] < 0.5 * report.history[0]["loss"]
    assert report.seconds > 0


def test_one_step_is_the_sandwich_of_the_paper(
    tiny: Tiny, stripes: Stripes, tmp_path: Path
) -> None:
    """All losses in one graph, torch's plain AdamW: another way to the same weights."""
    split = stripes(40)
    config = TrainConfig(
        steps=1, batch_size=40, lr=1e-2, warmup_steps=1, random_specs=0, label_smoothing=0.2
    )
    net, reference = tiny(), tiny()
    train_supernet(net, split, config, seed=0, work=tmp_path)

    reference.train()
    teacher = reference.forward(reference.space.max(), split.x)
    student = reference.forward(reference.space.min(), split.x)
    taught = -(teacher.detach().softmax(1) * student.log_softmax(1)).sum(1).mean()
    loss = F.cross_entropy(teacher, split.y, label_smoothing=0.2) + taught
    loss.backward()
    named = dict(reference.named_parameters())
    spared = [p for n, p in named.items() if p.ndim == 1 or n in ("pos_embed", "cls_token")]
    decayed = [p for p in named.values() if not any(p is q for q in spared)]
    torch.nn.utils.clip_grad_norm_(list(named.values()), 1.0)
    groups = [{"params": spared, "weight_decay": 0.0}, {"params": decayed}]
    torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.05, foreach=False).step()
    for name, value in weights(reference).items():
        torch.testing.assert_close(weights(net)[name], value, rtol=1e-5, atol=1e-5)


def test_without_distillation_all_learn_from_labels(
    tiny: Tiny, stripes: Stripes, tmp_path: Path
) -> None:
    split = stripes(40)
    base = {"steps": 1, "batch_size": 40, "random_specs": 0}
    net = tiny()
    config = TrainConfig(**base, distill=False)  # type: ignore[arg-type]
    report = train_supernet(net, split, config, seed=0, work=tmp_path)
    fresh = tiny()
    losses = [
        F.cross_entropy(fresh.forward(spec, split.x), split.y).item()
        for spec in (fresh.space.max(), fresh.space.min())
    ]
    assert report.history[0]["loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_random_specs_are_drawn_anew_each_step(
    tiny: Tiny, stripes: Stripes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = tiny()
    ran: list[Any] = []
    forward = Supernet.forward
    monkeypatch.setattr(
        Supernet, "forward", lambda self, spec, x: (ran.append(spec), forward(self, spec, x))[1]
    )
    config = TrainConfig(steps=20, batch_size=20, random_specs=2)
    train_supernet(net, stripes(40), config, seed=0, work=tmp_path)
    assert len(ran) == 80
    assert set(ran[0::4]) == {net.space.max()}
    assert set(ran[1::4]) == {net.space.min()}
    assert len(set(ran[2::4]) | set(ran[3::4])) > 15


@pytest.mark.parametrize("family", ["vit", "resnet"])
@pytest.mark.parametrize("stop_at", [9, 15, 25])
def test_resumed_equals_uninterrupted_bit_for_bit(
    tiny: Tiny, stripes: Stripes, steps: Any, tmp_path: Path, family: str, stop_at: int
) -> None:
    split = stripes(90)
    whole = tiny(family)
    report = train_supernet(whole, split, FULL, seed=3, work=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_supernet(
            tiny(family), split, FULL, seed=3, work=tmp_path / "cut", progress=steps(stop_at)
        )
    resumed = tiny(family, seed=99)
    watched = steps()
    again = train_supernet(resumed, split, FULL, seed=3, work=tmp_path / "cut", progress=watched)
    assert again.resumed_from == (stop_at // 7) * 7
    assert again.history == report.history
    assert again.restarted == ""
    assert_equal(weights(resumed), weights(whole))
    assert (watched.labels, watched.steps) == ([("train supernet", 26)], 26)


def test_a_finished_training_is_only_loaded(tiny: Tiny, stripes: Stripes, tmp_path: Path) -> None:
    split, whole, again = stripes(90), tiny(), tiny(seed=5)
    first = train_supernet(whole, split, FULL, seed=0, work=tmp_path)
    second = train_supernet(again, split, FULL, seed=0, work=tmp_path)
    assert second.resumed_from == 26
    assert second.history == first.history
    assert_equal(weights(again), weights(whole))


def test_seeds_differ_and_the_callers_randomness_is_left_alone(
    tiny: Tiny, stripes: Stripes, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one, other = tiny(), tiny()
    train_supernet(one, stripes(90), FULL, seed=0, work=tmp_path / "0")
    assert torch.equal(torch.get_rng_state(), state)
    train_supernet(other, stripes(90), FULL, seed=1, work=tmp_path / "1")
    assert not torch.equal(weights(one)["head.weight"], weights(other)["head.weight"])


@pytest.mark.parametrize("what", ["damaged", "other seed", "other data", "other config"])
def test_a_state_of_no_use_starts_anew_and_says_so(
    tiny: Tiny, stripes: Stripes, tmp_path: Path, what: str
) -> None:
    split, work = stripes(90), tmp_path / "work"
    config = FULL.model_copy(update={"lr": 1e-3}) if what == "other config" else FULL
    data = stripes(90, seed=1) if what == "other data" else split
    seed = 8 if what == "other seed" else 0
    train_supernet(tiny(), data, config, seed=seed, work=work)
    if what == "damaged":
        (work / "state.pt").write_bytes((work / "state.pt").read_bytes()[:5000])
    net, expected = tiny(), tiny()
    report = train_supernet(net, split, FULL, seed=0, work=work)
    train_supernet(expected, split, FULL, seed=0, work=tmp_path / "fresh")
    assert report.resumed_from == 0
    assert ("damaged" if what == "damaged" else "belongs to another") in report.restarted
    assert_equal(weights(net), weights(expected))


def test_saving_more_often_changes_nothing(tiny: Tiny, stripes: Stripes, tmp_path: Path) -> None:
    often, seldom = tiny(), tiny()
    split = stripes(90)
    train_supernet(often, split, FULL, seed=0, work=tmp_path / "a")
    config = FULL.model_copy(update={"checkpoint_every": 1000})
    train_supernet(seldom, split, config, seed=0, work=tmp_path / "b")
    assert_equal(weights(often), weights(seldom))
    report = train_supernet(tiny(), split, config, seed=0, work=tmp_path / "a")
    assert report.resumed_from == 26


def test_a_diverged_loss_names_the_step_and_saves_nothing_broken(
    tiny: Tiny, stripes: Stripes, tmp_path: Path
) -> None:
    split = stripes(40)
    split.x[33] = float("nan")
    net = tiny()
    config = TrainConfig(steps=40, batch_size=20, checkpoint_every=1, clip_grad_norm=None)
    with pytest.raises(CheckFailed, match=r"at step [01],") as caught:
        train_supernet(net, split, config, seed=0, work=tmp_path)
    assert "lower lr" in caught.value.fix
    assert not net.training


def test_batchnorm_statistics_are_trained(tiny: Tiny, stripes: Stripes, tmp_path: Path) -> None:
    net = tiny("resnet")
    before = weights(net)
    train_supernet(net, stripes(90), FULL, seed=0, work=tmp_path)
    statistics = [name for name in before if name.endswith("running_var")]
    assert statistics
    assert all(not torch.equal(weights(net)[n], before[n]) for n in statistics)
