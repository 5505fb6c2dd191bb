"""The supernet with rules that copy: what training writes to a buffer is written back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from elastic_export.elastic import Dim, Supernet, extract
from elastic_export.elastic.rules import Constant
from elastic_export.elastic.skeleton import on_meta
from elastic_export.errors import CheckFailed, UserError
from elastic_export.families.base import ImageConfig, ImageFamily
from elastic_export.space import Axis, Costs, Space, Spec


class _Net(nn.Module):
    """A convolution whose channels come in two groups, each with its own prefix."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2 * width, 1, bias=False)
        self.norm = nn.BatchNorm2d(2 * width)
        self.register_buffer("table", torch.arange(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).mean((2, 3))[:, self.get_buffer("table") * 0]


class _Grouped(ImageFamily):
    name = "grouped"
    Config = ImageConfig
    marks = ()

    def space(self, config: ImageConfig) -> Space:
        return Space([Axis("width", (2, 4))])

    def skeleton(self, config: ImageConfig, spec: Spec) -> nn.Module:
        with on_meta():
            return _Net(int(spec["width"])).eval()

    def layout(self, config: ImageConfig) -> dict[str, Any]:
        group = Dim("channels", blocks=2)
        norm = {f"norm.{n}": (group,) for n in ("weight", "bias", "running_mean", "running_var")}
        return {
            "conv.weight": (group, None, None, None),
            "table": (None,),
            "norm.num_batches_tracked": (),
            **norm,
        }

    def patterns(self, config: ImageConfig, spec: Spec) -> dict[str, str]:
        return {}

    def costs(self, config: ImageConfig, space: Space, genes: np.ndarray) -> Costs:
        width = space.values(genes, "width")
        macs = 2 * width * config.image_size**2
        return Costs(macs, macs, macs, 6 * width)

    def initialise(
        self, config: ImageConfig, module: nn.Module, generator: torch.Generator
    ) -> None:
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if name == "table":
                tensor.copy_(torch.arange(3))
            elif tensor.is_floating_point():
                tensor.data.uniform_(0.5, 1.5, generator=generator)
            else:
                tensor.zero_()


@pytest.fixture
def net() -> Supernet:
    return Supernet.create(_Grouped(), ImageConfig(image_size=4, in_chans=1), seed=0)  # type: ignore[arg-type]


def test_statistics_of_a_copying_rule_land_in_the_store(net: Supernet) -> None:
    spec = net.space.min()
    before = net.store.buffers["norm.running_mean"].clone()
    module = extract(net, spec).module.train()
    x = torch.randn(3, 1, 4, 4)
    module(x)
    net.train()(spec, x)
    after = net.store.buffers["norm.running_mean"]
    assert torch.allclose(after[[0, 1, 4, 5]], module.get_buffer("norm.running_mean"))
    assert not torch.equal(after[[0, 1, 4, 5]], before[[0, 1, 4, 5]])
    assert torch.equal(after[[2, 3, 6, 7]], before[[2, 3, 6, 7]])


def test_eval_writes_nothing(net: Supernet) -> None:
    before = {name: t.clone() for name, t in net.store.buffers.items()}
    net.eval()(net.space.min(), torch.randn(3, 1, 4, 4))
    assert all(torch.equal(net.store.buffers[name], t) for name, t in before.items())


def test_statistics_that_could_not_be_written_back_are_an_error(net: Supernet) -> None:
    spec = net.space.min()
    active = net.activate(spec)
    table, mean = Constant(torch.arange(3)), Constant(torch.zeros(4))
    # An index table may be a constant: training does not write it.
    rules = {**active.rules, "table": table}
    net._cache[spec] = type(active)(active.skeleton, rules, active.written)
    net.train()(spec, torch.randn(3, 1, 4, 4))
    net._cache[spec] = type(active)(
        active.skeleton, {**rules, "norm.running_mean": mean}, active.written
    )
    with pytest.raises(TypeError, match="constant cannot be written"):
        net.train()(spec, torch.randn(3, 1, 4, 4))


@pytest.mark.parametrize("what", ["macs", "params"])
def test_a_closed_form_that_lies_is_found_at_extraction(what: str) -> None:
    class Lying(_Grouped):
        def costs(self, config: ImageConfig, space: Space, genes: np.ndarray) -> Costs:
            found = super().costs(config, space, genes)
            return replace(found, **{what: getattr(found, what) + 1})

    net = Supernet.create(Lying(), ImageConfig(image_size=4, in_chans=1), seed=0)  # type: ignore[arg-type]
    with pytest.raises(CheckFailed, match="but its space says"):
        extract(net, net.space.min())


def test_the_cache_of_skeletons_is_bounded(net: Supernet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elastic_export.elastic.supernet._CACHED_SPECS", 1)
    for spec in (net.space.min(), net.space.max(), net.space.min()):
        net.activate(spec)
        assert list(net._cache) == [spec]


def test_a_state_of_other_shapes_changes_nothing(net: Supernet) -> None:
    state = {name: t.clone() for name, t in net.state_dict().items()}
    wrong = {**state, "conv.weight": torch.zeros(6, 1, 1, 1)}
    with pytest.raises(UserError, match=r"conv\.weight has shape \(6, 1, 1, 1\)"):
        net.load_state_dict(wrong)
    assert all(torch.equal(net.state_dict()[name], t) for name, t in state.items())
