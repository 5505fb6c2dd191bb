from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from elastic_export.data import ArraySplit
from elastic_export.elastic.supernet import Supernet
from elastic_export.families import get_family
from elastic_export.families.resnet import ResNetConfig, Stage
from elastic_export.families.vit import VitConfig

TINY_VIT = VitConfig(
    image_size=8,
    patch_size=4,
    in_chans=1,
    num_classes=3,
    width=(8, 16),
    depth=(1, 2),
    heads=(1, 2),
    mlp_ratio=(1.0, 2.0),
    head_dim=8,
    pos_std=0.5,
)
TINY_RESNET = ResNetConfig(
    image_size=8,
    in_chans=1,
    num_classes=3,
    stem=(8,),
    stages=(Stage(block="basic", depth=(1, 2), width=(8,), expand=(0.5, 1.0)),),
)


def _tiny(family: str = "vit", seed: int = 0) -> Supernet:
    """A supernet of a few hundred parameters."""
    config = TINY_VIT if family == "vit" else TINY_RESNET
    return Supernet.create(get_family(family), config, seed=seed)


def _stripes(n: int = 90, seed: int = 0) -> ArraySplit:
    """Three classes that a tiny network can learn: rows, columns or neither, with noise."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    wave = torch.cos(torch.arange(8.0) * torch.pi)
    patterns = torch.stack([wave[:, None].expand(8, 8), wave.expand(8, 8), torch.zeros(8, 8)])
    x = patterns[y] + 0.5 * torch.randn(n, 8, 8, generator=generator)
    return ArraySplit("train", x[:, None], y, 3)


class _Steps:
    """A progress that records what it is told, and interrupts after so many steps."""

    def __init__(self, interrupt_after: int = 10**9) -> None:
        self.labels: list[tuple[str, int]] = []
        self.steps = 0
        self.finished = 0
        self.interrupt_after = interrupt_after

    def start(self, label: str, total: int) -> None:
        self.labels.append((label, total))

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.steps += steps
        if self.steps >= self.interrupt_after:
            raise KeyboardInterrupt

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def tiny() -> Callable[..., Supernet]:
    return _tiny


@pytest.fixture
def stripes() -> Callable[..., ArraySplit]:
    return _stripes


@pytest.fixture
def steps() -> type[_Steps]:
    return _Steps


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Several threads spin against each other on a busy machine and gain nothing here."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
