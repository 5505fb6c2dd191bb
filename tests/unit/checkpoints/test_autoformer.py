"""AutoFormer files: what the tensors, args, YAML and settings tell, and where they disagree."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from elastic_export.checkpoints import import_supernet
from elastic_export.checkpoints.reader import Imported
from elastic_export.elastic import Supernet, extract
from elastic_export.errors import UserError
from elastic_export.families.autoformer import AutoFormer, AutoFormerConfig

CONFIG = AutoFormerConfig(
    image_size=20,
    patch_size=4,
    num_classes=5,
    super_width=144,
    super_depth=3,
    super_heads=2,
    super_mlp_ratio=3.3,
    width=(24, 40),
    depth=(1, 2),
    heads=(1, 2),
    mlp_ratio=(1.0, 2.0),
    max_relative_position=3,
)
YAML = {
    "SUPERNET": {"MLP_RATIO": 3.3, "NUM_HEADS": 2, "EMBED_DIM": 144, "DEPTH": 3},
    "SEARCH_SPACE": {
        "MLP_RATIO": [2.0, "1.0"],
        "NUM_HEADS": [1, 2],
        "DEPTH": [1, 2],
        "EMBED_DIM": [40, 24],
    },
}
RETRAIN = {"MLP_RATIO": [2.0, 1.5, 3], "NUM_HEADS": [2, 1, 2], "DEPTH": 3, "EMBED_DIM": 100}
ARGS = {
    "cfg": "x.yaml",
    "mode": "super",
    "input_size": 20,
    "patch_size": 4,
    "nb_classes": 5,
    "max_relative_position": 3,
    "gp": True,
    "change_qkv": True,
    "relative_position": True,
    "no_abs_pos": False,
}


def state(config: AutoFormerConfig = CONFIG) -> dict[str, Tensor]:
    tensors = Supernet.create(AutoFormer(), config, seed=1).state_dict()
    return {k.replace("patch_embed.", "patch_embed_super."): v.clone() for k, v in tensors.items()}


def write(folder: Path, args: dict[str, Any] | None = ARGS, **content: Any) -> Path:
    path = folder / "checkpoint.pth"
    found = {"model": state(), "optimizer": {}, "epoch": 3, "scaler": {}, **content}
    if args is not None:
        found["args"] = Namespace(**args)
    torch.save(found, path)
    return path


def read(path: Path, **config: Any) -> Imported:
    return import_supernet(path, config={**YAML, **config})


def refused(path: Path, **config: Any) -> UserError:
    with pytest.raises(UserError) as found:
        import_supernet(path, config={**YAML, **config})
    return found.value


def test_a_checkpoint_tells_all_but_its_space(tmp_path: Path) -> None:
    found = read(write(tmp_path))
    assert found.format == "autoformer"
    assert found.supernet.config == CONFIG
    assert (found.stored, found.used) == (("model",), "model")
    assert found.ignored["args"] == "settings of the training; its flags were read"
    assert found.official is not None
    spec = found.supernet.space.min()
    module = extract(found.supernet, spec).module
    assert found.official(spec)["params"] == sum(p.numel() for p in module.parameters())


def test_retrain_becomes_a_spec_and_its_values_choices(tmp_path: Path) -> None:
    found = read(write(tmp_path), RETRAIN=RETRAIN)
    config = found.supernet.config
    assert (config.width, config.depth) == ((24, 40, 100), (1, 2, 3))
    assert config.mlp_ratio == (1.0, 1.5, 2.0, 3.0)
    spec = found.supernet.spec("retrain")
    assert (spec["width"], spec["blocks.1.heads"], spec["blocks.2.mlp_ratio"]) == (100, 1, 3.0)
    assert any("RETRAIN" in note for note in found.notes)


def test_settings_widen_the_choices(tmp_path: Path) -> None:
    found = read(write(tmp_path), width=[24, 40, 144])
    assert found.supernet.space.max()["width"] == 144


def test_without_args_the_two_flags_that_leave_no_trace_are_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, args=None)
    error = refused(path)
    assert "gp and change_qkv" in error.what
    assert "--set gp=true --set change_qkv=true" in error.fix
    error = refused(path, gp=False)
    assert "with change_qkv:" in error.what
    assert read(path, gp=True, change_qkv=True).supernet.config == CONFIG


def test_a_bare_state_dict_with_a_prefix_is_read(tmp_path: Path) -> None:
    path = tmp_path / "bare.pth"
    torch.save({f"module.{name}": tensor for name, tensor in state().items()}, path)
    assert read(path, gp=True, change_qkv=True).supernet.config == CONFIG


def test_without_tables_and_yaml_the_heads_are_asked_for(tmp_path: Path) -> None:
    flags = {"relative_position": False}
    plain = CONFIG.model_copy(update=flags)
    path = write(tmp_path, {**ARGS, **flags}, model=state(plain))
    lists = {"width": [24], "depth": [2], "heads": [1, 2], "mlp_ratio": [2.0]}
    with pytest.raises(UserError, match="does not tell super_heads"):
        import_supernet(path, config=lists)
    config = import_supernet(path, config={**lists, "super_heads": 2}).supernet.config
    assert not config.relative_position
    # Without SUPERNET a ratio that gives the stored hidden width is as good as the true one.
    assert config.hidden(144, config.super_mlp_ratio) == 475


def test_without_positions_the_image_size_is_asked_for(tmp_path: Path) -> None:
    blind = CONFIG.model_copy(update={"no_abs_pos": True})
    args = {k: v for k, v in ARGS.items() if k != "input_size"} | {"no_abs_pos": True}
    path = write(tmp_path, args, model=state(blind))
    assert "image_size" in refused(path).what
    assert read(path, image_size=20).supernet.config == blind


def test_the_space_must_be_given_for_sizes_nobody_published(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="width, depth, heads, mlp_ratio") as found:
        import_supernet(write(tmp_path), config={})
    assert "SEARCH_SPACE" in found.value.fix


def test_published_sizes_bring_their_space_and_subnet(tmp_path: Path) -> None:
    config = AutoFormerConfig(image_size=32, num_classes=2)
    args = {"gp": True, "change_qkv": True}
    found = import_supernet(write(tmp_path, args, model=state(config)), config={})
    assert found.supernet.config.mlp_ratio == (3.0, 3.5, 4.0)
    assert found.supernet.spec("autoformer_tiny")["depth"] == 13
    assert any("supernet tiny" in note for note in found.notes)


def test_a_retrained_file_without_its_yaml_is_pointed_out(tmp_path: Path) -> None:
    found = read(write(tmp_path, {**ARGS, "mode": "retrain"}))
    assert any("mode retrain" in note for note in found.notes)


@pytest.mark.parametrize(
    ("args", "config", "said"),
    [
        ({"gp": False}, {"gp": True}, "gp is True by the settings, but False by the args"),
        ({"relative_position": False}, {}, "relative_position is False by the args"),
        ({"no_abs_pos": True}, {}, "no_abs_pos is True by the args"),
        ({"input_size": 24}, {}, "image_size is 24 by the args"),
        ({"max_relative_position": 4}, {}, "max_relative_position is 4"),
        ({}, {"image_size": 24}, "image_size is 24 by the settings, but 20 by the tensors"),
        ({}, {"SUPERNET": {**YAML["SUPERNET"], "EMBED_DIM": 148}}, "super_width is 148"),
        ({}, {"SUPERNET": {**YAML["SUPERNET"], "DEPTH": 4}}, "super_depth is 4 by SUPERNET"),
        ({}, {"SUPERNET": {**YAML["SUPERNET"], "MLP_RATIO": 3.5}}, "super_mlp_ratio is 3.5"),
        ({}, {"SUPERNET": {**YAML["SUPERNET"], "NUM_HEADS": 3}}, "super_heads is 3 by SUPERNET"),
        ({}, {"super_heads": "two"}, "super_heads is two"),
        ({}, {"RETRAIN": {**RETRAIN, "EMBED_DIM": 145}}, "width 145 is larger"),
        ({}, {"RETRAIN": {**RETRAIN, "NUM_HEADS": [2, 1]}}, "2 values of heads for a depth of 3"),
        ({}, {"RETRAIN": {**RETRAIN, "DEPTH": "deep"}}, "RETRAIN.DEPTH holds 'deep'"),
        ({}, {"SEARCH_SPACE": {"DEPTH": [1]}}, "SEARCH_SPACE must give EMBED_DIM"),
        ({}, {"SEARCH_SPACE": {**YAML["SEARCH_SPACE"], "DEPTH": []}}, "not a list of numbers"),
        ({}, {"SEARCH_SPACE": {**YAML["SEARCH_SPACE"], "EMBED_DIM": [24, -1]}}, "holds -1"),
        ({}, {"SEARCH_SPACE": 7}, "SEARCH_SPACE must give"),
        ({}, {"widht": [24]}, "widht"),
        ({}, {"width": ["a"], "RETRAIN": RETRAIN}, "width"),
        ({}, {"specs": [1]}, "specs"),
        ({}, {"specs": {"odd": {"width": 41}}}, "width cannot be 41"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, args: dict[str, Any], config: dict[str, Any], said: str
) -> None:
    error = refused(write(tmp_path, {**ARGS, **args}), **config)
    assert said in error.what
    assert error.fix


def test_damaged_tensors_are_refused(tmp_path: Path) -> None:
    tensors = state()
    for name, change, said in (
        ("blocks.1.fc1.weight", tensors["blocks.1.fc1.weight"][:-1], "fc1.weight has shape"),
        ("pos_embed", tensors["pos_embed"][:, :-1], "not a square grid"),
        ("head.weight", tensors["head.weight"][0], "2 dimensions"),
        ("surplus", torch.ones(1), "surplus"),
        ("blocks.7.fc1.bias", torch.ones(1), "all blocks from 0 on"),
    ):
        path = write(tmp_path, model={**tensors, name: change})
        assert said in refused(path).what
    del tensors["blocks.2.attn.rel_pos_embed_v.embeddings_table_h"]
    assert "rel_pos_embed_v" in refused(write(tmp_path, model=tensors)).what


def test_other_files_are_not_claimed(tmp_path: Path) -> None:
    path = tmp_path / "vit.pth"
    torch.save({"model": {"blocks.0.norm1.weight": torch.ones(3)}, 3: [1]}, path)
    with pytest.raises(UserError) as found:
        import_supernet(path, config={"heads": [3]})
    assert "AutoFormer" not in found.value.what
