"""What a board has, held against what a target names."""

from __future__ import annotations

from typing import Any

import pytest

from elastic_export.config.targets import load_target
from elastic_export.measure.board_match import Wanted, fits_release, mismatches


@pytest.mark.parametrize(
    ("board", "software", "fits"),
    [
        ({"jetpack": "6.2"}, "jp6.2", True),
        ({"jetpack": "6.2.1"}, "jp6.2", True),
        ({"jetpack": "6.0 DP"}, "jp6.0", True),
        ({"jetpack": "6.2"}, "jp6.1", False),
        ({"jetpack": "6.20"}, "jp6.2", False),
        ({"jetpack": None}, "jp6.2", None),
    ],
)
def test_jetpack_decides_where_a_target_names_one(
    board: dict[str, Any], software: str, fits: bool | None
) -> None:
    # The release of TensorRT is not asked then: JetPack brings it.
    assert fits_release({"tensorrt": "1.0"} | board, Wanted(software, "tensorrt", "10.3")) is fits


@pytest.mark.parametrize(
    ("version", "release", "fits"),
    [
        ("10.16.1", "10.16", True),
        ("10.1.6", "10.16", False),
        ("10.16.1", "10.1", False),
        (None, "10.16", None),
    ],
)
def test_elsewhere_it_is_the_release_of_tensorrt(
    version: str | None, release: str, fits: bool | None
) -> None:
    board = {"tensorrt": version, "jetpack": None}
    assert fits_release(board, Wanted(f"trt{release}", "tensorrt", release)) is fits
    assert fits_release(board, Wanted("ort", "onnxruntime", "1.22")) is None


def test_what_differs_is_named() -> None:
    wanted = Wanted.of_target(load_target("agx-orin-64gb@jp6.2:30W"))
    assert wanted == Wanted.of_identity("agx-orin-64gb@jp6.2:MODE_30W", "tensorrt", "10.3")
    assert mismatches({"jetpack": "6.2.1", "power_mode": "30W"}, wanted) == []
    assert mismatches({"jetpack": "5.1.2", "power_mode": "MAXN"}, wanted) == [
        "JetPack 5.1.2",
        "power mode MAXN",
    ]
    # A board that does not say, and a target without modes, differ in nothing.
    assert mismatches({}, wanted) == []
    assert (
        mismatches({"power_mode": "MAXN"}, Wanted.of_identity("a10@trt11.1", "tensorrt", "11.1"))
        == []
    )
    assert mismatches({"tensorrt": "10.3.0"}, Wanted("trt11.1", "tensorrt", "11.1")) == [
        "TensorRT 10.3.0"
    ]
