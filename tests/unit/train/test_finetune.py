from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from elastic_export.config.recipe import FinetuneConfig
from elastic_export.data import ArraySplit, top1
from elastic_export.errors import CheckFailed, UserError
from elastic_export.sparsity import make_masks
from elastic_export.train import finetune

Stripes = Callable[..., ArraySplit]


def network(seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, 32),
            nn.BatchNorm1d(32),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(32, 3),
        ).eval()


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


CONFIG = FinetuneConfig(steps=60, batch_size=30, lr=5e-3, weight_decay=0.05)


def test_a_network_learns_and_keeps_its_mode(stripes: Stripes, steps: Any) -> None:
    net, watched = network(), steps()
    report = finetune(net, stripes(240), CONFIG, seed=0, progress=watched)
    assert top1(net, stripes(120, seed=1)) > 90
    assert not net.training
    assert (report.steps, report.history[-1]["step"]) == (60, 59)
    assert watched.labels == [("fine-tune", 60)]
    assert (watched.steps, watched.finished) == (60, 1)
    training = network().train()
    finetune(training, stripes(60), CONFIG, seed=0)
    assert training.training


def test_the_seed_decides_all(stripes: Stripes) -> None:
    config = CONFIG.model_copy(update={"augment": "shift"})
    nets = [network(dropout=0.3) for _ in range(3)]
    state = torch.get_rng_state()
    for net, seed in zip(nets, (0, 0, 1), strict=True):
        finetune(net, stripes(90), config, seed=seed)
    one, again, other = (weights(net) for net in nets)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["1.weight"], other["1.weight"])
    assert torch.equal(torch.get_rng_state(), state)


def test_masked_weights_are_zero_at_every_step_and_the_others_learn(stripes: Stripes) -> None:
    net = network()
    masks = make_masks(net, "2:4", skip=("5",))
    assert list(masks) == ["1.weight"]
    pattern = masks["1.weight"].clone()
    before = weights(net)
    steps_seen = 0

    def teacher(x: Tensor) -> Tensor:
        nonlocal steps_seen
        steps_seen += 1
        assert (net[1].weight[~pattern] == 0).all()
        return torch.zeros(len(x), 3)

    finetune(net, stripes(90), CONFIG, seed=0, teacher=teacher, masks=masks)
    assert steps_seen == 60
    assert (net[1].weight[~pattern] == 0).all()
    groups = (net[1].weight != 0).reshape(32, 16, 4).sum(2)
    assert (groups == 2).all()
    assert (net[1].weight[pattern] != before["1.weight"][pattern]).all()
    assert not torch.equal(net[5].weight, before["5.weight"])


def test_masks_change_nothing_but_the_masked_weights_role(stripes: Stripes) -> None:
    free, masked = network(), network()
    everything = {name: torch.ones_like(p, dtype=torch.bool) for name, p in free.named_parameters()}
    finetune(free, stripes(90), CONFIG, seed=0)
    finetune(masked, stripes(90), CONFIG, seed=0, masks=everything)
    assert all(torch.equal(a, weights(masked)[n]) for n, a in weights(free).items())


def test_a_teacher_is_followed_only_with_distill(stripes: Stripes) -> None:
    """A teacher that contradicts the labels shows by whom the network was taught."""
    split = stripes(240)

    def teacher(x: Tensor) -> Tensor:
        return 20.0 * nn.functional.one_hot(torch.full((len(x),), 2), 3).float()

    distilled, plain = network(), network()
    finetune(distilled, split, CONFIG, seed=0, teacher=teacher)
    no = CONFIG.model_copy(update={"distill": False})
    finetune(plain, split, no, seed=0, teacher=teacher)
    with torch.no_grad():
        taught, untaught = (
            float(net(split.x).softmax(1)[:, 2].mean()) for net in (distilled, plain)
        )
    assert taught == pytest.approx(2 / 3, abs=0.07), "half labels, half teacher"
    assert untaught == pytest.approx(1 / 3, abs=0.05)


@pytest.mark.parametrize(
    ("masks", "match"),
    [
        ({"1.weigth": torch.ones(32, 64, dtype=torch.bool)}, "1.weigth"),
        ({"1.weight": torch.ones(64, 32, dtype=torch.bool)}, r"\(64, 32\)"),
        ({"1.weight": torch.ones(32, 64)}, "float32"),
    ],
)
def test_masks_of_another_network_are_refused(
    stripes: Stripes, masks: dict[str, Tensor], match: str
) -> None:
    net = network()
    before = weights(net)
    with pytest.raises(UserError, match=match):
        finetune(net, stripes(30), CONFIG, seed=0, masks=masks)
    assert all(torch.equal(before[n], t) for n, t in weights(net).items())


def test_a_diverged_loss_names_the_step(stripes: Stripes) -> None:
    split = stripes(30)
    split.x[0] = float("inf")
    with pytest.raises(CheckFailed, match="at step 0,"):
        finetune(network(), split, CONFIG, seed=0)


def test_parameters_without_gradient_stay(stripes: Stripes) -> None:
    net = network()
    net[1].weight.requires_grad_(False)
    before = weights(net)
    finetune(net, stripes(90), CONFIG, seed=0)
    assert torch.equal(net[1].weight, before["1.weight"])
    assert not torch.equal(net[5].weight, before["5.weight"])
