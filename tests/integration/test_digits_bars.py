"""The shipped recipe reaches the accuracy it promises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from elastic_export.checkpoints import load_supernet
from elastic_export.config.loader import load_recipe
from elastic_export.data import load_dataset, top1

pytestmark = pytest.mark.slow


def test_the_largest_and_the_smallest_descendant(run: Callable[..., Any], tmp_path: Path) -> None:
    answer = run("build", "--only", "train", "--json")
    assert answer.code == 0, answer.err
    net = load_supernet(next(tmp_path.glob("store/artifacts/train-*/supernet.safetensors")))
    data = load_dataset(load_recipe(None, []).data)
    assert top1(lambda x: net(net.space.max(), x), data.test) >= 96
    assert top1(lambda x: net(net.space.min(), x), data.test) >= 90
