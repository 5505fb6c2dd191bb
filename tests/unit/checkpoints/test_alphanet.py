"""AttentiveNAS / AlphaNet files: where the space comes from, and what is left out and why."""

from __future__ import annotations

import copy
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from elastic_export.checkpoints import import_supernet
from elastic_export.elastic import Supernet, extract
from elastic_export.errors import UserError
from elastic_export.families.alphanet import AlphaNet, AlphaNetConfig
from elastic_export.families.alphanet.config import AlphaNetStage


def _mb(**changes: Any) -> dict[str, Any]:
    usual = {"c": [8, 16], "d": [2, 1], "k": [3, 5], "t": [4, 6], "s": 2, "se": True}
    return {**usual, "act_func": "swish", **changes}


SUPERNET = {
    "use_v3_head": True,
    "resolutions": [32, 24],
    "first_conv": {"c": [8, 16], "act_func": "h_swish", "s": 2},
    "mb1": _mb(t=[1], s=1, se=False),
    "mb2": _mb(),
    "last_conv": {"c": 24, "act_func": "relu"},
}
YAML = {
    "supernet_config": SUPERNET,
    "n_classes": 5,
    "bn_eps": "1e-3",
    "arch": "attentive_nas_dynamic_model",
    "sampler": {"method": "bestup"},
    "pareto_models": {
        "supernet_checkpoint_path": "./x",
        "a0": {
            "model": "x",
            "resolution": 24,
            "width": [8, 16, 16, 24],
            "kernel_size": [3, 5],
            "expand_ratio": [1, 6],
            "depth": [1, 2],
        },
    },
}
_STAGE = {"width": (8, 16), "depth": (1, 2), "kernel_size": (3, 5)}
CONFIG = AlphaNetConfig(
    image_size=32,
    resolution=(24, 32),
    num_classes=5,
    stem=(8, 16),
    stem_act="h_swish",
    stages=(
        AlphaNetStage(**_STAGE, expand_ratio=(1,), stride=1),
        AlphaNetStage(**_STAGE, expand_ratio=(4, 6), stride=2, se=True),
    ),
    head=(24,),
    head_act="relu",
    bn_eps=1e-3,
    specs={"a0": {k: v for k, v in YAML["pareto_models"]["a0"].items() if k != "model"}},
)
_NAMES = (
    ("conv_stem.", "first_conv.conv.conv."),
    ("bn_stem.", "first_conv.bn.bn."),
    ("conv_head.", "last_conv.final_expand_layer.conv.conv."),
    ("bn_head.", "last_conv.final_expand_layer.bn.bn."),
    ("conv_mix.", "last_conv.feature_mix_layer.conv.conv."),
    ("classifier.", "classifier.linear.linear."),
    ("conv_pw.", "mobile_inverted_conv.inverted_bottleneck.conv.conv."),
    ("bn1.", "mobile_inverted_conv.inverted_bottleneck.bn.bn."),
    ("conv_dw.", "mobile_inverted_conv.depth_conv.conv.conv."),
    ("bn2.", "mobile_inverted_conv.depth_conv.bn.bn."),
    ("se.conv_", "mobile_inverted_conv.depth_conv.se.fc."),
    ("conv_pwl.", "mobile_inverted_conv.point_linear.conv.conv."),
    ("bn3.", "mobile_inverted_conv.point_linear.bn.bn."),
    ("shortcut.", "shortcut.conv.conv."),
)


def state() -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, tensor in Supernet.create(AlphaNet(), CONFIG, seed=1).state_dict().items():
        place = re.match(r"stages\.(\d+)\.(\d+)\.", name)
        head = "" if place is None else f"blocks.{2 * int(place[1]) + int(place[2])}."
        rest = name if place is None else name[place.end() :]
        ours, theirs = next(pair for pair in _NAMES if rest.startswith(pair[0]))
        tensors[f"module.{head}{theirs}{rest[len(ours) :]}"] = tensor
        if theirs.endswith("bn.bn.") and "running" in rest:
            for i in (0, 1):
                tracked = f"{theirs.removesuffix('bn.')}bn_tracking.{i}.{rest[len(ours) :]}"
                tensors[f"module.{head}{tracked}"] = tensor + 1
    return tensors


def write(folder: Path, **content: Any) -> Path:
    path = folder / "supernet.pth.tar"
    torch.save({"state_dict": state(), **content}, path)
    return path


def refused(path: Path, config: dict[str, Any]) -> UserError:
    with pytest.raises(UserError) as found:
        import_supernet(path, config=config)
    return found.value


def changed(**changes: Any) -> dict[str, Any]:
    config = copy.deepcopy(YAML)
    for place, value in changes.items():
        *parents, key = place.split("__")
        part: Any = config
        for parent in parents:
            part = part[parent]
        part[key] = value
    return config


def test_the_yaml_describes_the_supernet(tmp_path: Path) -> None:
    found = import_supernet(write(tmp_path), config=YAML)
    assert found.format == "alphanet"
    assert found.supernet.config == CONFIG
    assert set(found.ignored.values()) == {"statistics of two networks, kept for logging"}
    assert len(found.ignored) == 48
    spec = found.supernet.spec("a0")
    assert found.official is not None
    macs = found.supernet.costs([spec]).macs[0]
    assert found.official(spec)["mflops"] == pytest.approx(macs / 1e6)
    assert extract(found.supernet, spec).module.classifier.in_features == 24
    said = " ".join(found.notes)
    assert "CC-BY-NC" in said
    assert "estimate them anew" in said
    assert "Search space: the YAML" in said


def test_args_in_an_old_file_describe_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("easydict")
    module.EasyDict = type("EasyDict", (dict,), {"__module__": "easydict"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "easydict", module)
    path = tmp_path / "old.pth.tar"
    args = module.EasyDict({"supernet_config": SUPERNET, "n_classes": 5, "bn_eps": 1e-3})
    content = {"epoch": 1, "args": args, "state_dict": state(), "optimizer": {}}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    found = import_supernet(path, config={"specs": CONFIG.specs})
    assert found.supernet.config == CONFIG
    assert "Search space: the args in the file." in found.notes
    error = refused(path, changed(supernet_config__resolutions=[24, 40]))
    assert "resolution is [24, 40] by the YAML" in error.what


def test_settings_narrow_the_resolutions(tmp_path: Path) -> None:
    found = import_supernet(
        write(tmp_path), config={**changed(pareto_models=None), "resolution": [16, 20]}
    )
    assert found.supernet.space.max()["resolution"] == 20


def test_without_a_space_only_the_published_supernet_is_known(tmp_path: Path) -> None:
    error = refused(write(tmp_path), {})
    assert "does not say its search space" in error.what
    assert "supernet_config" in error.fix


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (changed(n_classes=7), "num_classes is 5 by the tensors, but 7"),
        (changed(bn_eps="small"), "bn_eps is 'small'"),
        (changed(supernet_config=3), "supernet_config does not give first_conv"),
        (changed(supernet_config__mb1={"c": [8]}), "supernet_config.mb1 does not give d"),
        (changed(supernet_config__mb2__c=["8"]), "mb2.c is ['8']"),
        (changed(supernet_config__mb2__k=[]), "mb2.k is []"),
        (changed(supernet_config__mb2__s=4), "stages.1.stride"),
        (changed(supernet_config__mb2__act_func=None), "stages.1.act"),
        (changed(supernet_config__mb2__d=[3]), "holds 4 blocks, but its supernet_config has 5"),
        (changed(supernet_config__mb2__c=[8, 24]), "has shape"),
        (changed(supernet_config__channels_per_group=2), "channels_per_group is 2"),
        (changed(supernet_config__use_v3_head=False), "conv_"),
        (changed(pareto_models__a0__width=[8, 16, 16, 25]), "cannot be 25"),
        (changed(pareto_models=[1]), "pareto_models is [1]"),
        ({**YAML, "n_clases": 5}, "n_clases"),
        ({**YAML, "resolution": "large"}, "resolution"),
        ({**YAML, "specs": 1}, "specs"),
        ({"supernet_config": {k: v for k, v in SUPERNET.items() if k[:2] != "mb"}}, "stage mb1"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    error = refused(write(tmp_path), config)
    assert said in error.what
    assert error.fix


def test_damaged_tensors_are_refused(tmp_path: Path) -> None:
    tensors = state()
    for name, value, said in (
        ("module.first_conv.conv.conv.weight", torch.ones(3), "first convolution (3,)"),
        ("module.blocks.1.surplus", torch.ones(3), "blocks.1.surplus"),
        ("module.last_conv.conv.conv.weight", torch.ones(3), "conv_head.weight twice"),
    ):
        path = write(tmp_path, state_dict={**tensors, name: value})
        assert said in refused(path, YAML).what
    del tensors["module.blocks.3.shortcut.conv.conv.weight"]
    assert "shortcut" in refused(write(tmp_path, state_dict=tensors), YAML).what
