from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from elastic_export.config.calibration import CalibrationRecipe
from elastic_export.data.splits import ArraySplit
from elastic_export.quantize.calibrate import calibrate
from elastic_export.quantize.record import QuantizationRecord, Site

MakeSplit = Callable[..., ArraySplit]


class SmallNet(nn.Module):
    """One of everything the policy knows, at 8 x 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.mid = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.hidden = nn.Linear(32, 32)
        self.narrow = nn.Linear(32, 8)
        self.wide = nn.Linear(8, 32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = self.mid(x).relu()
        x = self.depthwise(x).flatten(2).mT  # hidden runs on tokens, what follows on one position
        x = torch.nn.functional.gelu(self.hidden(x)).mean(1)
        return self.head(self.wide(self.narrow(x)))


@pytest.fixture
def net() -> SmallNet:
    torch.manual_seed(0)
    return SmallNet().eval()


@pytest.fixture
def make_split() -> MakeSplit:
    def make(n: int = 24, channels: int = 3, size: int = 8, scale: float = 1.0) -> ArraySplit:
        x = torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(1)) * scale
        return ArraySplit("calibration", x, torch.arange(n) % 10, 10)

    return make


@pytest.fixture
def recipe() -> CalibrationRecipe:
    return CalibrationRecipe(name="test", images=24, batch_size=10)


@pytest.fixture
def record(net: SmallNet, make_split: MakeSplit, recipe: CalibrationRecipe) -> QuantizationRecord:
    return calibrate(net, make_split(), recipe)


@pytest.fixture
def by_hand() -> QuantizationRecord:
    """A record that needs no calibration: three INT8 layers and one in floating point."""
    sites: dict[tuple[str, str], Site] = {}
    for index, name in enumerate(["a", "b", "c", "d"]):
        policy, reason = ("float", "It is the classifier.") if name == "d" else ("int8", "")
        vector = np.array([1.0, 0.0, 2.0 + index], dtype=np.float32)
        scalar = np.float32(3.0)
        for role, amax in (("input", scalar), ("weight", vector), ("output", scalar)):
            axis = 0 if role == "weight" else None
            sites[(name, role)] = Site(
                name, role, -1.0, 3.0, np.asarray(amax), axis, policy, reason
            )
    return QuantizationRecord(sites, "max", 7, "data", "model")
