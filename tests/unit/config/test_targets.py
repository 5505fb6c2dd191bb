"""Targets: identities, refusals before any work, and peaks against published figures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from elastic_export import resources
from elastic_export.config.loader import check_target, load_recipe, load_target
from elastic_export.config.peaks import figure, peak_rates
from elastic_export.errors import UserError


@pytest.mark.parametrize("name", resources.names("targets"))
def test_every_shipped_profile_is_valid_and_takes_the_default_recipe(name: str) -> None:
    target = load_target(name)
    assert target.target.name == name
    check_target(load_recipe(), target)
    for source in [s.source for s in target.target.software] + [
        peak.source for peak in target.target.peaks.values()
    ]:
        assert len(source) > 10


def test_the_targets_of_the_default_recipe_are_all_the_shipped_ones() -> None:
    assert set(load_recipe().targets) == set(resources.names("targets"))
    assert set(resources.names("targets")) >= {
        "a10",
        "a100",
        "host-cpu",
        "orin-nano-8gb",
        "rtx-a6000",
    }


@pytest.mark.parametrize(
    ("asked", "full"),
    [
        ("orin-nano-8gb", "orin-nano-8gb@jp6.2:15W"),
        ("orin-nano-8gb@jp6.2:15W", "orin-nano-8gb@jp6.2:15W"),
        ("orin-nano-8gb@jp6.1", "orin-nano-8gb@jp6.1:15W"),
        ("orin-nano-8gb@:7W", "orin-nano-8gb@jp6.2:7W"),
        ("host-cpu", "host-cpu@ort"),
        ("a10", "a10@rtx"),
    ],
)
def test_parts_default_to_the_first(asked: str, full: str) -> None:
    assert load_target(asked).identity == full
    assert load_target(full).identity == full


@pytest.mark.parametrize(
    ("asked", "what", "fix"),
    [
        ("nano", "may mean two devices", "orin-nano-8gb"),
        ("jetson-nano", "may mean two devices", "neither INT8 nor 2:4"),
        ("orin-nano", 'no target "orin-nano"', 'mean "orin-nano-8gb"?'),
        ("zebra", 'no target "zebra"', "Known: a10, a100, host-cpu"),
        ("orin-nano-8gb@jp4.6", 'no software "jp4.6"', "jp6.2"),
        ("orin-nano-8gb@jp6.2:16W", 'no power mode "16W"', '"15W"'),
        ("a10@rtx:15W", 'no power mode "15W"', "only one"),
        ("orin-nano-8gb:15W", "does not name a target", "orin-nano-8gb@jp6.2:15W"),
        ("a10@rtx@15W", "does not name a target", "@"),
        ("@jp6.2", "does not name a target", "@"),
        ("", "does not name a target", "@"),
        ("mine/board.yaml", "does not exist", "a10"),
    ],
)
def test_unknown_parts_name_the_known(asked: str, what: str, fix: str) -> None:
    with pytest.raises(UserError) as caught:
        load_target(asked)
    assert what in caught.value.what
    assert fix in caught.value.fix


def _own(path: Path, **changes: object) -> str:
    values = yaml.safe_load((resources.shipped("targets") / "orin-nano-8gb.yaml").read_text())
    path.write_text(yaml.safe_dump({**values, **changes}))
    return str(path)


def test_a_profile_of_ones_own(tmp_path: Path) -> None:
    path = _own(tmp_path / "mine.yaml", name="mine", sm=53, sparse_2_4=False)
    assert load_target(path).identity == "mine@jp6.2:15W"
    assert load_target(f"{path}@jp6.1:7W").identity == "mine@jp6.1:7W"
    bad = _own(tmp_path / "bad.yaml", sparse24=True)
    with pytest.raises(UserError, match=r'bad.yaml, the key "sparse24" is unknown.*"sparse_2_4"'):
        load_target(bad)
    without = _own(tmp_path / "without.yaml", sm=None)
    with pytest.raises(UserError, match="needs sm"):
        load_target(without)


def test_a_device_without_int8_is_refused_before_any_work(tmp_path: Path) -> None:
    path = _own(tmp_path / "old.yaml", flavours={"fp32": "plain", "fp16": "trt-strong"})
    with pytest.raises(UserError, match="cannot run INT8") as caught:
        check_target(load_recipe(), load_target(path))
    assert "fp16, fp32" in caught.value.fix
    check_target(load_recipe(None, ["quantize=null"]), load_target(path))


def test_a_device_without_sparse_cores_is_refused_but_a_host_is_not(tmp_path: Path) -> None:
    path = _own(tmp_path / "old.yaml", sparse_2_4=False)
    with pytest.raises(UserError, match="no sparse tensor cores") as caught:
        check_target(load_recipe(), load_target(path))
    assert "sparsify=null" in caught.value.fix
    check_target(load_recipe(None, ["sparsify=null"]), load_target(path))
    assert not load_target("host-cpu").target.sparse_2_4


def test_software_that_reads_no_opset_we_write_is_refused(tmp_path: Path) -> None:
    values = yaml.safe_load((resources.shipped("targets") / "orin-nano-8gb.yaml").read_text())
    software = {**values["software"][0], "name": "jp5.1", "max_opset": 17}
    path = _own(tmp_path / "old.yaml", software=[software])
    with pytest.raises(UserError, match=r"up to opset 17, but INT8.*needs 19"):
        check_target(load_recipe(), load_target(path))


@pytest.mark.parametrize(
    ("name", "mode", "published"),
    [
        # NVIDIA's data sheets: dense and sparse INT8 TOPS, dense FP16 TFLOPS, FP32 TFLOPS.
        ("a100", None, {"int8": 624, "int8 2:4": 1248, "fp16": 312, "fp32": 19.5}),
        ("a10", None, {"int8": 250, "int8 2:4": 500, "fp16": 125, "fp32": 31.2}),
        ("rtx-a6000", None, {"int8": 309.7, "int8 2:4": 619.3, "fp32": 38.7}),
        ("orin-nano-8gb", "15W", {"int8 2:4": 40}),
        ("orin-nano-8gb", "MAXN_SUPER", {"int8 2:4": 67}),
    ],
)
def test_the_formula_gives_the_published_peaks(
    name: str, mode: str | None, published: dict[str, float]
) -> None:
    rates = peak_rates(load_target(name).target, mode)
    for what, expected in published.items():
        assert rates[what] == pytest.approx(expected, rel=0.025)


def test_figures_follow_the_power_mode() -> None:
    target = load_target("orin-nano-8gb").target
    assert figure(target, "bandwidth_gbs", "15W") == 68
    assert figure(target, "bandwidth_gbs", "25W") == 102
    assert figure(target, "nothing") is None
    modes = {name.partition("@")[2] for name in target.peaks} - {""}
    assert modes <= set(target.power_modes)
    assert peak_rates(load_target("host-cpu").target) == {}


def test_the_readme_explains_every_key_of_a_profile() -> None:
    text = (resources.shipped("targets") / "README.md").read_text()
    fields = set(re.findall(r"`(\w+)` \|", text))
    assert {"kind", "sm", "software", "flavours", "sparse_2_4", "build_on", "peaks"} <= fields
