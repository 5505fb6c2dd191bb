"""The DLA in a target's identity: how it is written, and every refusal before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from elastic_export import resources
from elastic_export.config.dla import (
    core_of,
    dla_cores,
    has_dla,
    software_with_dla,
    without_dla,
)
from elastic_export.config.loader import check_target, load_recipe, load_target
from elastic_export.errors import UserError

PLAIN = ["quantize=null", "sparsify=null"]


@pytest.fixture(autouse=True)
def own_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Profiles of whoever runs the tests play no part."""
    monkeypatch.setenv("ELASTIC_EXPORT_TARGETS", str(tmp_path / "own"))


@pytest.mark.parametrize(
    ("asked", "full", "core"),
    [
        ("agx-orin-64gb+dla", "agx-orin-64gb+dla@jp6.2:MAXN", 0),
        ("agx-orin-64gb+dla0@jp6.1", "agx-orin-64gb+dla@jp6.1:MAXN", 0),
        ("agx-orin-64gb+dla1@jp5.1:30W", "agx-orin-64gb+dla1@jp5.1:MODE_30W", 1),
        ("Jetson AGX Orin 64GB+DLA@JP6.2:maxn", "agx-orin-64gb+dla@jp6.2:MAXN", 0),
        ("p3701-0005+dla1", "agx-orin-64gb+dla1@jp6.2:MAXN", 1),
        ("orin-nx-8gb+dla@:15W", "orin-nx-8gb+dla@jp6.2:15W", 0),
        ("agx-xavier+dla1@jp4.6", "agx-xavier+dla1@jp4.6:MAXN", 1),
    ],
)
def test_identities_round_trip(asked: str, full: str, core: int) -> None:
    found = load_target(asked)
    assert (found.identity, found.dla) == (full, core)
    assert load_target(full) == found
    assert core_of(full) == core
    on_gpu = load_target(without_dla(full))
    assert (on_gpu.dla, core_of(on_gpu.identity)) == (None, None)
    assert on_gpu.identity == full.replace("+dla1", "").replace("+dla", "")


def test_it_computes_fp16_from_the_plain_file_and_skips_no_zeros() -> None:
    for software in ("jp6.2", "jp6.0"):
        gpu, dla = (load_target(f"orin-nx-16gb{part}@{software}") for part in ("", "+dla"))
        assert "int8" in gpu.flavours
        assert gpu.target.sparse_2_4
        assert dla.flavours == {"fp16": "plain"}
        assert not dla.target.sparse_2_4
        assert dla.target.static_shapes
        assert dla.software.max_opset == gpu.software.max_opset
        assert dla.power_modes == gpu.power_modes
        check_target(load_recipe(None, PLAIN), dla)


def test_every_device_has_a_dla_where_its_profile_and_its_tensorrt_say_so() -> None:
    having = {}
    for name in resources.names("targets"):
        profile = load_target(name).target
        having[name] = (dla_cores(profile), software_with_dla(profile))
        for entry in profile.software:
            for core in range(3):
                identity = f"{name}+dla{core}@{entry.name}"
                if core < having[name][0] and entry.name in having[name][1]:
                    assert load_target(identity).dla == core
                else:
                    with pytest.raises(UserError, match="DLA"):
                        load_target(identity)
    orin = ["jp6.2", "jp6.1", "jp6.0", "jp5.1"]
    assert {name: found for name, found in having.items() if found[0]} == {
        "agx-orin-32gb": (2, orin),
        "agx-orin-64gb": (2, orin),
        "agx-xavier": (2, ["jp5.1", "jp4.6"]),
        "orin-nx-16gb": (2, orin),
        "orin-nx-8gb": (1, orin),
        "xavier-nx": (2, ["jp5.1", "jp4.6"]),
    }
    assert all(not found[1] for found in having.values() if not found[0])


@pytest.mark.parametrize(
    ("asked", "what", "fix"),
    [
        ("orin-nano-8gb+dla", "The target orin-nano-8gb (NVIDIA", "as orin-nano-8gb@jp6.2, or a"),
        ("orin-nano-8gb+dla", "has no DLA.", "such as agx-orin-64gb or orin-nx-16gb."),
        ("jetson-nano+dla", "has no DLA.", "jetson-nano@jp4.6"),
        ("a10+dla1@trt11.1", "has no DLA.", "a10@trt11.1"),
        ("host-cpu+dla", "has no DLA.", "host-cpu@ort"),
        ("orin-nx-8gb+dla1", "no DLA core 1: it has 1, counted from 0.", "Write orin-nx-8gb+dla."),
        (
            "agx-orin-64gb+dla2",
            "no DLA core 2: it has 2, counted from 0.",
            "Write agx-orin-64gb+dla or agx-orin-64gb+dla1.",
        ),
        (
            "agx-orin-64gb+dla@jp7.2",
            "with jp7.2: TensorRT 10.7 was the last release with DLA, and this is 10.16.",
            "Use it with jp6.2 or jp6.1 or jp6.0 or jp5.1, or the GPU as agx-orin-64gb@jp7.2.",
        ),
        ("agx-orin-64gb@jp6.2+dla", "does not name a target.", "NAME+dla@SOFTWARE:MODE"),
        ("agx-orin-64gb@jp6.2:MAXN+dla", "does not name a target.", "NAME+dla@SOFTWARE:MODE"),
        ("agx-orin-64gb+npu", 'no target "agx-orin-64gb+npu".', 'Did you mean "agx-orin-64gb"?'),
        ("+dla", 'no target "+dla".', "Known: "),
    ],
)
def test_a_dla_that_is_not_there_is_refused(asked: str, what: str, fix: str) -> None:
    with pytest.raises(UserError) as caught:
        load_target(asked)
    assert what in caught.value.what
    assert fix in caught.value.fix


@pytest.mark.parametrize(
    ("version", "runtime", "why"),
    [
        ("11.4.1", "tensorrt", "was the last release with DLA (11.4.1 has it again"),
        ("10.8", "tensorrt", "10.7 was the last release with DLA, and this is 10.8"),
        ("1.22", "onnxruntime", "only TensorRT builds for it, not onnxruntime"),
    ],
)
def test_software_of_ones_own_without_it(
    tmp_path: Path, version: str, runtime: str, why: str
) -> None:
    values = yaml.safe_load((resources.shipped("targets") / "agx-orin-64gb.yaml").read_text())
    form = "plain" if runtime == "onnxruntime" else "trt-strong"
    software = {
        "name": "mine",
        "runtime": runtime,
        "runtime_version": version,
        "max_opset": 20,
        "flavours": {"fp16": form},
        "source": "nobody",
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**values, "name": "mine", "software": [software]}))
    assert load_target(str(path)).identity == "mine@mine:MAXN"
    with pytest.raises(UserError) as caught:
        load_target(f"{path}+dla")
    assert why in caught.value.what
    assert caught.value.fix == "Use the GPU as mine@mine."


def test_the_last_release_with_it() -> None:
    assert all(has_dla(version) for version in ("8.2", "8.6.2", "10.3.0.30", "10.7", "10.7.2"))
    without = ("10.8", "10.16.1", "11.0", "11.4.1", "11", "newest", "")
    assert not any(has_dla(version) for version in without)


def test_a_recipe_that_it_cannot_serve_is_refused_in_one_go() -> None:
    dla = load_target("agx-orin-64gb+dla1@jp6.1")
    with pytest.raises(UserError) as caught:
        check_target(load_recipe(None, ["measure.batch_size=4097"]), dla)
    what, fix = caught.value.what, caught.value.fix
    assert what.startswith("The DLA of agx-orin-64gb+dla1@jp6.1:MAXN takes INT8 from a calibration")
    assert "not from the Q/DQ" in what
    assert "2:4 sparsity would cost accuracy and save no time in FP16" in what
    assert "takes 4096 images at most, and a batch of 4097 was asked for" in what
    options = "--set quantize=null --set sparsify=null --set measure.batch_size=4096"
    assert fix == f'Run FP16 there with "{options}", or use the GPU as agx-orin-64gb@jp6.1:MAXN.'


@pytest.mark.parametrize(
    ("changes", "said", "unsaid"),
    [
        (["sparsify=null"], "INT8 from a calibration", "2:4"),
        (["quantize=null"], "skips zeros in INT8 alone", "calibration"),
        ([*PLAIN, "measure.batch_size=5000"], "4096 images", "INT8"),
    ],
)
def test_each_reason_stands_alone(changes: list[str], said: str, unsaid: str) -> None:
    with pytest.raises(UserError) as caught:
        check_target(load_recipe(None, changes), load_target("orin-nx-16gb+dla"))
    assert said in caught.value.what
    assert unsaid not in caught.value.what


def test_a_parser_too_old_for_our_graphs_is_refused_on_it_too(tmp_path: Path) -> None:
    values = yaml.safe_load((resources.shipped("targets") / "agx-orin-64gb.yaml").read_text())
    values["software"][0]["max_opset"] = 11
    path = tmp_path / "agx-orin-64gb.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=r"opset 11, but FP16 in the form plain needs 13"):
        check_target(load_recipe(None, PLAIN), load_target(f"{path}+dla"))
