"""Targets: what a name stands for, and refusals before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from elastic_export import resources
from elastic_export.config.loader import check_target, load_recipe, load_target
from elastic_export.config.target_files import all_targets, user_folder
from elastic_export.engine.trtexec import build_arguments
from elastic_export.errors import UserError

WITHOUT_BOTH = {"agx-xavier", "jetson-nano", "xavier-nx"}


@pytest.fixture(autouse=True)
def own_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for profiles of one's own, so that those of whoever runs the tests play no part."""
    folder = tmp_path / "own"
    monkeypatch.setenv("ELASTIC_EXPORT_TARGETS", str(folder))
    return folder


@pytest.mark.parametrize("name", sorted(set(resources.names("targets")) - WITHOUT_BOTH))
def test_every_shipped_profile_with_int8_and_2_4_takes_the_default_recipe(name: str) -> None:
    target = load_target(name)
    assert target.target.name == name
    check_target(load_recipe(), target)


def test_every_release_of_tensorrt_that_a_profile_names_is_known_to_the_builder() -> None:
    for name in all_targets():
        for entry in load_target(name).target.software:
            resolved = load_target(f"{name}@{entry.name}")
            assert resolved.identity.startswith(f"{name}@{entry.name}")
            assert (entry.runtime == "tensorrt") == (resolved.build_on == "device")
            strong = "trt-strong" in resolved.flavours.values()
            if entry.runtime == "tensorrt":
                quantized = "int8" in resolved.flavours
                assert build_arguments(
                    entry.runtime_version,
                    strongly_typed=strong,
                    sparse=resolved.target.sparse_2_4,
                    quantized=quantized,
                    workspace="1024",
                )


def test_names_and_aliases_are_unique_and_plain() -> None:
    names = resources.names("targets")
    aliases = [alias for name in names for alias in load_target(name).target.aliases]
    assert len(set(aliases) | set(names)) == len(aliases) + len(names)
    assert all(alias == alias.lower() for alias in aliases)
    assert set(load_recipe().targets) <= set(names)


@pytest.mark.parametrize(
    ("asked", "full"),
    [
        ("orin-nano-8gb", "orin-nano-8gb@jp6.2:15W"),
        ("orin-nano-8gb@jp6.2:15W", "orin-nano-8gb@jp6.2:15W"),
        ("orin-nano-8gb@jp6.1", "orin-nano-8gb@jp6.1:15W"),
        ("orin-nano-8gb@:7W", "orin-nano-8gb@jp6.2:7W"),
        ("host-cpu", "host-cpu@ort"),
        ("a10", "a10@rtx"),
        ("a10@trt11.1", "a10@trt11.1"),
        ("jetson-nano", "jetson-nano@jp4.6:MAXN"),
        ("h200", "h200@trt10.16"),
        # Case, spaces, the maker's name, module numbers, and nvpmodel's MODE_ do not matter.
        ("NVIDIA Jetson Orin-NX_16GB@JP6.0:maxn", "orin-nx-16gb@jp6.0:MAXN"),
        ("p3767-0003@jp6.2:maxn_super", "orin-nano-8gb@jp6.2:MAXN_SUPER"),
        ("A6000", "rtx-a6000@rtx"),
        ("agx-orin-64gb@:30W", "agx-orin-64gb@jp6.2:MODE_30W"),
    ],
)
def test_parts_default_to_the_first(asked: str, full: str) -> None:
    assert load_target(asked).identity == full
    assert load_target(full).identity == full


@pytest.mark.parametrize(
    ("asked", "what", "fix"),
    [
        ("nano", "may mean two devices", "orin-nano-8gb or orin-nano-4gb is the Orin Nano"),
        ("nano", "may mean two devices", "jetson-nano is the board of 2019"),
        ("NVIDIA Nano", "may mean two devices", "neither INT8 nor 2:4"),
        ("orin-nano", "2 devices: orin-nano-4gb, orin-nano-8gb.", "Say which"),
        ("jetson orin nx", "2 devices: orin-nx-16gb, orin-nx-8gb.", "Say which"),
        ("orin", "6 devices: agx-orin-32gb, agx-orin-64gb, orin-nano-4gb", "Say which"),
        ("agx", "3 devices: agx-orin-32gb, agx-orin-64gb, agx-xavier.", "Say which"),
        ("a100", "4 devices: a100-pcie-40gb, a100-pcie-80gb, a100-sxm-40gb, a100-s", "Say which"),
        ("a100-80", "2 devices: a100-pcie-80gb, a100-sxm-80gb.", "Say which"),
        ("h100", "2 devices: h100-pcie, h100-sxm.", "Say which"),
        ("jetson", "9 devices: ", "Say which"),
        ("orin-nano-super", "Super is a power mode", "orin-nano-8gb@:MAXN_SUPER"),
        ("orin-nx-16", 'no target "orin-nx-16"', 'mean "orin-nx-16gb"?'),
        ("orin-nano-8bg", 'no target "orin-nano-8bg"', 'mean "orin-nano-8gb"?'),
        ("zebra", 'no target "zebra"', "Known: a10, a100-pcie-40gb"),
        ("orin-nano-8gb@jp4.6", 'no software "jp4.6"', "Choose jp6.2 or jp6.1 or jp6.0"),
        ("orin-nano-8gb@jp6.2:16W", 'no power mode "16W"', "Choose 15W or 7W or 25W"),
        ("a10@rtx:15W", 'no power mode "15W"', "names none"),
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


@pytest.mark.parametrize(
    ("asked", "what", "fix"),
    [
        ("orin-nano-8gb@jp5.1:25W", "25W of orin-nano-8gb does not exist with jp5.1", "jp6.2"),
        ("orin-nano-4gb@jp6.0:MAXN_SUPER", "does not exist with jp6.0", "10W or 7W_AI"),
        ("orin-nx-16gb@jp6.1:40W", "does not exist with jp6.1", "with jp6.2 or jp7.2"),
    ],
)
def test_a_super_mode_needs_the_jetpack_that_has_it(asked: str, what: str, fix: str) -> None:
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
    outside = _own(tmp_path / "outside.yaml", name="../outside")
    with pytest.raises(UserError, match='"name" should match'):
        load_target(outside)
    misspelt = _own(tmp_path / "misspelt.yaml", power_modes=["15W", "7W"])
    with pytest.raises(UserError, match='_gbs@25W", but power_modes does not name it'):
        load_target(misspelt)


def test_a_folder_of_ones_own(own_targets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_targets.mkdir()
    _own(own_targets / "my-board.yaml", name="my-board", aliases=["bench-3"])
    assert load_target("my-board@jp6.0").identity == "my-board@jp6.0:15W"
    assert load_target("Bench_3").identity == "my-board@jp6.2:15W"
    _own(own_targets / "Rack_2.yaml", name="Rack_2")
    assert load_target("Rack_2").identity == "Rack_2@jp6.2:15W"
    _own(own_targets / "a10.yaml", name="a10", title="ours")
    assert load_target("a10").target.title == "ours"
    assert set(all_targets()) == {*resources.names("targets"), "my-board", "Rack_2"}
    with pytest.raises(UserError, match="3 devices: Rack_2, a10, orin-nano-8gb"):
        load_target("p3767-0003")  # copies of a profile that kept its aliases
    _own(own_targets / "other.yaml", name="my-board")
    with pytest.raises(UserError, match='calls itself "my-board"'):
        load_target("other")
    monkeypatch.delenv("ELASTIC_EXPORT_TARGETS")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(own_targets / "config"))
    assert user_folder() == own_targets / "config/elastic-export/targets"


def test_the_nano_of_2019_is_refused_int8_and_2_4_in_one_go() -> None:
    nano = load_target("jetson-nano")
    with pytest.raises(UserError, match="cannot run INT8") as caught:
        check_target(load_recipe(), nano)
    what, fix = caught.value.what, caught.value.fix
    assert "compute capability 5.3; that came with 6.1" in what
    assert "no sparse tensor cores" in what
    assert "fp32, fp16" in fix
    assert "--set quantize=null --set sparsify=null" in fix
    assert "orin-nano-8gb" in fix
    with pytest.raises(UserError) as caught:
        check_target(load_recipe(None, ["sparsify=null"]), nano)
    assert "sparse" not in caught.value.what
    assert "sparsify" not in caught.value.fix
    check_target(load_recipe(None, ["sparsify=null", "quantize=null"]), nano)


@pytest.mark.parametrize("name", ["agx-xavier", "xavier-nx"])
def test_xavier_runs_int8_but_not_2_4(name: str) -> None:
    with pytest.raises(UserError, match="no sparse tensor cores") as caught:
        check_target(load_recipe(), load_target(name))
    assert "INT8" not in caught.value.what
    assert "quantize" not in caught.value.fix
    check_target(load_recipe(None, ["sparsify=null"]), load_target(name))


def test_an_engine_that_no_builder_makes_is_refused(tmp_path: Path) -> None:
    rtx = {
        "name": "rtx",
        "runtime": "tensorrt-rtx",
        "runtime_version": "1.7",
        "max_opset": 20,
        "source": "nobody",
    }
    for sm in (87, 90):
        path = _own(tmp_path / "rtx.yaml", name="rtx", software=[rtx], sm=sm, build_on="anywhere")
        with pytest.raises(UserError, match=rf"8.0, 8.6, 8.9, 12.0 and not for {sm / 10}"):
            load_target(path)
    old = rtx | {"name": "old", "runtime": "tensorrt", "runtime_version": "8.6"}
    with pytest.raises(UserError, match=r"trt-strong for TensorRT 8\.6"):
        load_target(_own(tmp_path / "old.yaml", software=[old]))
    new = old | {"runtime_version": "11.1", "flavours": {"int8": "trt-weak"}}
    with pytest.raises(UserError, match=r"trt-weak for TensorRT 11\.1"):
        load_target(_own(tmp_path / "new.yaml", software=[new]))


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
