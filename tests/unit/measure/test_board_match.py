"""What a board has, held against what a target names."""

from __future__ import annotations

from typing import Any

import pytest

from elastic_export.config.target_files import find_target
from elastic_export.config.targets import load_target
from elastic_export.measure.board_device import fits_device
from elastic_export.measure.board_match import Wanted, fits_release, is_surely, mismatches


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
    assert Wanted.of_identity("mine@jp6.2", "tensorrt", "10.3").device is None
    orin = {"l4t": "36.4.3", "part": "p3701-0005"}
    assert mismatches(orin | {"jetpack": "6.2.1", "power_mode": "30W"}, wanted) == []
    assert mismatches(orin | {"jetpack": "5.1.2", "power_mode": "MAXN"}, wanted) == [
        "JetPack 5.1.2",
        "power mode MAXN",
    ]
    # A board that does not say, and a target without modes, differ in nothing.
    assert mismatches(orin, wanted) == []
    assert (
        mismatches({"power_mode": "MAXN"}, Wanted.of_identity("a10@trt11.1", "tensorrt", "11.1"))
        == []
    )
    assert mismatches({"tensorrt": "10.3.0"}, Wanted("trt11.1", "tensorrt", "11.1")) == [
        "TensorRT 10.3.0"
    ]


@pytest.mark.parametrize(
    ("board", "name", "fits"),
    [
        ({"part": "p3767-0003"}, "orin-nano-8gb", True),
        ({"part": "p3767-0005"}, "orin-nano-8gb", True),
        ({"part": "p3767-0004"}, "orin-nano-8gb", False),
        ({"part": "p3701-0005"}, "orin-nano-8gb", False),
        ({"part": "p3448-0002"}, "jetson-nano", True),  # a family number is enough there
        ({"part": None, "l4t": "36.4.3", "model": "NVIDIA Orin Nano"}, "orin-nano-8gb", None),
        ({"part": None, "l4t": None, "model": "x86_64"}, "orin-nano-8gb", False),
        ({"model": "NVIDIA A10", "compute_capability": "8.6"}, "a10", True),
        ({"model": "NVIDIA GeForce RTX 3090", "compute_capability": "8.6"}, "a10", False),
        ({"model": "NVIDIA A10", "compute_capability": "8.0"}, "a10", False),
        ({"model": "NVIDIA A100-SXM4-80GB", "compute_capability": "8.0"}, "a100-sxm-80gb", True),
        ({"model": "NVIDIA A100-SXM4-80GB", "compute_capability": "8.0"}, "a100-sxm-40gb", False),
        ({"model": None}, "a10", None),
        ({"model": "x86_64"}, "host-cpu", None),
    ],
)
def test_the_device_itself_is_compared(board: dict[str, Any], name: str, fits: bool | None) -> None:
    assert fits_device(board, find_target(name)) is fits


def test_a_profile_of_ones_own_for_a_known_card_fits_it() -> None:
    own = find_target("a10").model_copy(update={"name": "our-a10"})
    assert fits_device({"model": "NVIDIA A10", "compute_capability": "8.6"}, own) is True
    assert fits_device({"model": "NVIDIA A40", "compute_capability": "8.6"}, own) is False


def test_a_board_is_surely_a_target_only_where_it_tells_all() -> None:
    wanted = Wanted.of_target(load_target("orin-nano-8gb@jp6.2:15W"))
    told = {"part": "p3767-0003", "jetpack": "6.2", "power_mode": "15W", "model": "Orin Nano"}
    told["l4t"] = "36.4.3"
    assert is_surely(told, wanted)
    for missing in ("part", "jetpack", "power_mode"):
        assert not is_surely(told | {missing: None}, wanted)
        assert mismatches(told | {missing: None}, wanted) == []
    other = told | {"part": "p3701-0005", "model": "NVIDIA Jetson AGX Orin"}
    assert mismatches(other, wanted) == ["another device (NVIDIA Jetson AGX Orin, p3701-0005)"]
    assert not is_surely(other, wanted)
