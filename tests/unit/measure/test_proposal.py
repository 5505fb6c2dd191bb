"""What a board says of itself, and the target that is proposed for it."""

from __future__ import annotations

from typing import Any

import pytest

from elastic_export.config.target import Target
from elastic_export.config.targets import load_target
from elastic_export.measure.proposal import propose


def board(**said: Any) -> dict[str, Any]:
    return {"part": None, "jetpack": None, "l4t": None, "power_mode": None, **said}


ORIN_NANO = board(
    model="NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
    part="p3767-0005",
    l4t="36.4.3",
    jetpack="6.2",
    tensorrt="10.3.0.30",
    power_mode="25W",
    python="3.10.12",
)


@pytest.mark.parametrize(
    ("said", "identity"),
    [
        (ORIN_NANO, "orin-nano-8gb@jp6.2:25W"),
        (
            ORIN_NANO | {"jetpack": "6.2.1", "power_mode": "MAXN_SUPER"},
            "orin-nano-8gb@jp6.2:MAXN_SUPER",
        ),
        (
            ORIN_NANO | {"jetpack": "5.1.2", "tensorrt": "8.5.2.2", "power_mode": "7W"},
            "orin-nano-8gb@jp5.1:7W",
        ),
        (board(model="NVIDIA A100-SXM4-80GB", tensorrt="10.16.1"), "a100-sxm-80gb@trt10.16"),
        (board(model="NVIDIA A100-PCIE-40GB", tensorrt="11.1.0"), "a100-pcie-40gb@trt11.1"),
        (board(model="NVIDIA GeForce RTX 3090", tensorrt="11.1.0"), "rtx-3090@trt11.1"),
        (board(model="NVIDIA RTX A6000", tensorrt="11.1.0"), "rtx-a6000@trt11.1"),
        (board(model="NVIDIA A10", tensorrt="10.16.0"), "a10@trt10.16"),
    ],
)
def test_known_devices(said: dict[str, Any], identity: str) -> None:
    found = propose(said)
    assert found.identity == identity
    assert found.notes == ()
    assert load_target(identity).identity == identity


def test_modes_with_and_without_their_prefix() -> None:
    said = board(
        model="NVIDIA Jetson AGX Orin Developer Kit",
        part="p3701-0005",
        jetpack="6.1",
        tensorrt="10.3.0",
        power_mode="30W",
    )
    identity = propose(said).identity
    assert identity is not None
    assert identity.endswith("30W")
    assert load_target(identity).target.name == "agx-orin-64gb"


def test_what_differs_is_told() -> None:
    found = propose(ORIN_NANO | {"tensorrt": "10.7.0", "power_mode": "OEM_12W"})
    assert found.identity == "orin-nano-8gb@jp6.2"
    assert len(found.notes) == 2
    assert "10.7.0" in found.notes[0]
    assert "OEM_12W" in found.notes[1]


def test_a_variant_that_cannot_be_told_apart_is_not_guessed() -> None:
    assert propose(board(model="NVIDIA A100", tensorrt="10.16.0")).identity is None


def test_unknown_software_gives_a_profile_to_complete() -> None:
    found = propose(ORIN_NANO | {"jetpack": "9.9", "tensorrt": "12.0.1"})
    assert found.identity is None
    assert "JetPack 9.9" in found.notes[0]
    profile = Target.model_validate(found.profile)
    assert profile.name == "orin-nano-8gb"
    assert profile.software[0].name == "jp9.9"
    assert not profile.software[0].verified


def test_an_unknown_device_gives_a_profile_to_begin_with() -> None:
    found = propose(board(model="NVIDIA GeForce RTX 5090", compute_capability="12.0"))
    assert found.identity is None
    profile = Target.model_validate(found.profile)
    assert profile.sm == 120
    assert profile.name == "nvidia-geforce-rtx-5090"
