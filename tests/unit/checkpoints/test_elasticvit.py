"""Reading ElasticViT checkpoints: every key used or explained, every contradiction told."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from elastic_export.checkpoints import import_supernet
from elastic_export.checkpoints.reader import Imported
from elastic_export.elastic import Supernet
from elastic_export.elastic.rules_windows import relative_position_index
from elastic_export.elastic.store import ParameterStore
from elastic_export.errors import UserError
from elastic_export.families import get_family
from elastic_export.families.elasticvit import ConvStage, ElasticVitConfig, TokenStage

CONFIG = ElasticVitConfig(
    resolution=(64, 96),
    image_size=96,
    num_classes=7,
    stages=(
        ConvStage(depth=(1, 2), channels=(16, 24)),
        ConvStage(depth=(2,), channels=(16, 24, 32), se=True),
        TokenStage(depth=(1, 2), channels=(32, 48), v_scale=(2.0,)),
        TokenStage(depth=(1,), channels=(32, 48), downsample=False),
    ),
    head_expand=4,
    head_hidden=24,
)

ARCH = [64, [16, 16, 16, 32, 32], [1, 1, 2, 1, 1], [1, 3, 3, 3], [3, 3, 3, 3]]
ARCH += [[2, 2], [2, 2], [1, 1], [1, 1], [2, 2]]

YAML: dict[str, Any] = {
    "name": "small",
    "input_size": [3, 96, 96],
    "super_stem_channels": 128,
    "head_type": "mbv3",
    "classifer_head_dim": [960, 24],
    "head_dropout_prob": 0.1,
    "norm_layer": "LN",
    "pre_norm": True,
    "dataloader": {"num_classes": 7, "batch_size": 96},
    "opt": "adamw",
    "search_space": {
        "res": [96, 64],
        "downsampling": [True, True, True, False],
        "se": [False, True, False, False],
        "classifier_mul": 4,
        "stage": ["C", "C", "T", "T"],
        "max_depth": [2, 2, 2, 1],
        "min_depth": [1, 2, 1, 1],
        "max_channels": [24, 32, 48, 48],
        "min_channels": [16, 16, 32, 32],
        "head_dims": 16,
        "conv_ratio": [6, 5, 4, 3],
        "kr_size": [3, 5],
        "mlp_ratio": [5, 4, 3, 2],
        "qk_scale": [[1], [1]],
        "v_scale": [[2], [4, 3, 2]],
        "windows_size": [[1], [1]],
        "num_heads": [[4], [6]],
        "min_archs": {100: ARCH},
    },
}


def official(supernet: Supernet) -> dict[str, Tensor]:
    """The supernet's tensors under the system's names, with its index buffers."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in supernet.state_dict().items():
        new = name.replace("classifier.", "classifer.")
        new = re.sub(r"^stem\.(\d+)\.", r"conv_stem.layers.\1.0.", new)
        if match := re.match(r"stages\.(\d+)\.(\d+)\.(attn|ffn|reduction)\.?(.*)", new):
            stage, block, part, rest = match.groups()
            layer = 2 * int(block) + (part == "ffn")
            rest = f"reduction.{rest}" if part == "reduction" else rest
            rest = re.sub("^norm", "norm1", rest).replace("v_conv", "dw_v_conv")
            rest = rest.replace("bias_table", "attention_bias")
            new = f"feature_exactor.{stage}.layers.{layer}.{rest}"
        else:
            new = re.sub(r"^stages\.(\d+)\.(\d+)\.", r"feature_exactor.\1.layers.\2.0.", new)
        renamed[new] = tensor.clone()
        if new.endswith("attention_bias"):
            side = (round(tensor.shape[0] ** 0.5) + 1) // 2
            index = new.replace("attention_bias", "relative_position_index")
            renamed[index] = relative_position_index(side).clone()
    return renamed


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return official(Supernet.create(get_family("elasticvit"), CONFIG, seed=3))


def saved(folder: Path, content: Any) -> Path:
    path = folder / "small_checkpoint.pth.tar"
    torch.save(content, path)
    return path


def checkpoint(state: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "epoch": 3,
        "state_dict": {k: v + 1 if v.is_floating_point() else v for k, v in state.items()},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]},
        "bank": [[[(64, (16,)), -1.5]]],
        "arch": "supernet",
        "extras": {"top1": 0},
        "model_ema": state,
    }


def read(path: Path, **changes: Any) -> Imported:
    config = copy.deepcopy(YAML)
    for key, value in changes.items():
        where = config["search_space"] if key in config["search_space"] else config
        where[key] = value
        if value is None:
            del where[key]
    return import_supernet(path, config=config)


def test_averaged_weights_are_preferred_and_all_else_explained(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    found = read(saved(tmp_path, checkpoint(state)))
    assert (found.format, found.used) == ("elasticvit", "model_ema")
    assert found.stored == ("state_dict", "model_ema")
    assert found.ignored["bank"] == "subnets that training remembered, with their losses"
    assert "model_ema" in found.ignored["state_dict"]
    assert {"epoch", "optimizer", "arch", "extras"} <= found.ignored.keys()
    assert sum("relative_position_index" in key for key in found.ignored) == 3
    weight = found.supernet.state_dict()["classifier.weight"]
    assert torch.equal(weight, state["classifer.weight"])
    wanted = CONFIG.model_dump() | {"dropout": 0.1}
    got = found.supernet.config.model_dump()
    specs = got.pop("specs")
    assert got == {key: value for key, value in wanted.items() if key != "specs"}
    assert found.supernet.space.canonical(specs["min_100"]) == found.supernet.space.min()
    assert found.notes == ()


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_prefix_and_missing_averages_change_nothing(
    state: dict[str, Tensor], tmp_path: Path, wrapped: bool
) -> None:
    prefixed = {f"module.{key}": value for key, value in state.items()}
    content = {"epoch": 1, "state_dict": prefixed, "model_ema": None} if wrapped else prefixed
    found = read(saved(tmp_path, content))
    assert found.used == ("state_dict" if wrapped else "")
    assert found.ignored.get("model_ema") == ("empty" if wrapped else None)
    found.supernet.eval()(found.supernet.space.min(), torch.zeros(1, 3, 64, 64))


def test_a_subnet_named_in_the_configuration_can_be_used(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    other = [96, *ARCH[1:]]
    found = read(saved(tmp_path, state), elastic_mine=other, elastic_odd=[65, *ARCH[1:]])
    assert found.supernet.spec("elastic_mine")["resolution"] == 96
    (note,) = found.notes
    assert "elastic_odd" in note
    assert found.official is not None
    assert found.official(found.supernet.spec("elastic_mine"))["flops_m"] > 0


def test_shapes_tell_what_the_configuration_leaves_out(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    left_out = ("stage", "max_depth", "max_channels", "se", "head_dims", "qk_scale", "min_archs")
    found = read(
        saved(tmp_path, state),
        **dict.fromkeys((*left_out, "classifier_mul", "classifer_head_dim", "dataloader")),
    )
    assert found.supernet.config.model_dump(exclude={"dropout"}) == CONFIG.model_dump(
        exclude={"dropout"}
    )


def test_our_own_settings_do_as_well(state: dict[str, Tensor], tmp_path: Path) -> None:
    ours = CONFIG.model_dump(mode="json", include={"resolution", "stages"})
    found = import_supernet(saved(tmp_path, state), config=ours)
    assert found.supernet.config.stages == CONFIG.stages
    assert found.supernet.config.image_size == 96


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"res": None}, r"lacks search_space\.res, which"),
        ({"min_depth": None, "v_scale": None}, r"min_depth, search_space\.v_scale"),
        ({"max_channels": [24, 32, 48, 64]}, r"largest channels of stages\[3\] is 64"),
        ({"max_depth": [3, 2, 2, 1]}, r"depth of stages\[0\] is 3, by the file it is 2"),
        ({"conv_ratio": [8, 3]}, r"conv_ratio of stages\[0\] is 8"),
        ({"mlp_ratio": [2, 3]}, r"mlp_ratio of stages\[2\] is 3"),
        ({"v_scale": [[4], [4, 3]]}, r"v_scale of stages\[2\] is 4"),
        ({"se": [True, True, False, False]}, r"se of stages\[0\] is True"),
        ({"res": [96, 128]}, r"map of stages\[2\] at resolution 128 is 8"),
        ({"downsampling": [True, True, True, True]}, r"map of stages\[3\]"),
        ({"stage": ["C", "T", "T", "T"]}, r"search_space\.stage is \['C', 'T'"),
        ({"head_dims": 8}, r"number of heads of stages\[2\] is 6"),
        ({"head_dims": "many"}, "head_dims is 'many'"),
        ({"classifier_mul": 6}, "classifier_mul is 6, by the file it is 4"),
        ({"dataloader": {"num_classes": 10}}, "num_classes is 10, by the file it is 7"),
        ({"classifer_head_dim": [960, 1984]}, "classifer_head_dim is 1984"),
        ({"norm_layer": "BN"}, "norm_layer asks for"),
        ({"head_type": "linear"}, "head_type is 'linear'"),
        ({"pre_norm": False}, "pre_norm asks for"),
        ({"res": "all"}, "res is 'all', where a list of numbers"),
        ({"min_depth": [1, 2]}, "where the file needs a list of 4"),
        ({"min_depth": [1, 2, 1, -1]}, "not positive whole numbers"),
        ({"min_channels": [32, 16, 32, 32]}, "smallest choice of 32 and a largest of 24"),
        ({"search_space": {"max_chanels": 3}}, 'Did you mean "max_channels"'),
        ({"search_space": 3}, "search_space is not a mapping"),
        ({"min_archs": [1]}, "min_archs is not a mapping"),
        ({"stages_of_mine": 3}, "stages_of_mine"),
    ],
)
def test_contradictions_and_gaps_are_told(
    state: dict[str, Tensor], tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        read(saved(tmp_path, state), **changes)


def test_without_a_configuration_only_the_published_sizes_are_known(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="does not tell its resolutions and choices"):
        import_supernet(saved(tmp_path, state), config={})
    family, config = get_family("elasticvit"), ElasticVitConfig(num_classes=7)
    stored = family.stored(config).to_empty(device="cpu")
    for tensor in (*stored.parameters(), *stored.buffers()):
        tensor.detach().zero_()
    net = Supernet(family, config, ParameterStore.of_module(stored))
    found = import_supernet(saved(tmp_path, official(net)), config={})
    assert "the published supernet" in found.notes[0]
    assert found.supernet.config == config


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("feature_exactor.2.layers.0.relative_position_index", lambda t: t.flip(0), "number the"),
        ("feature_exactor.2.layers.0.attention_bias", lambda t: t[:-1], "no square map gives"),
        ("feature_exactor.2.layers.2.qkv.weight", lambda t: t[:-1], r"stages\.2\.1\.attn\.qkv"),
        ("classifer.weight", lambda t: t.reshape(-1)[0], "has the shape"),
        ("feature_exactor.2.layers.1.fc1.weight", None, "has no tensor"),
        ("feature_exactor.0.layers.1.0.dw_bn.bias", None, "1 are missing"),
        ("pre_head_0.bias", lambda t: t / 0, "NaN or infinite"),
    ],
)
def test_damaged_files_are_refused(
    state: dict[str, Tensor], tmp_path: Path, name: str, change: Any, said: str
) -> None:
    broken = dict(state)
    if change is None:
        del broken[name]
    else:
        broken[name] = change(broken[name]).clone()
    with pytest.raises(UserError, match=said):
        read(saved(tmp_path, broken))


def test_unknown_tensors_are_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    extra = {**state, "feature_exactor.2.layers.0.norm2.weight": torch.ones(48)}
    with pytest.raises(UserError, match=r"does not know: feature_exactor\.2\.layers\.0\.norm2"):
        read(saved(tmp_path, extra))
