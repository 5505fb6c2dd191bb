"""Hugging Face transformers: folders, files with and without config.json, both naming styles."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from plain_networks import same_in_onnx, same_logits, shaken

from elastic_export.checkpoints import import_supernet
from elastic_export.errors import UserError

transformers = pytest.importorskip("transformers")

_VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 4,
    "num_labels": 5,
}
_SWIN = {"image_size": 32, "embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4}
_RESNET = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 2]}
_CONVNEXT = {"hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2, "image_size": 32}
NETWORKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViT", "ViTForImageClassification", {**_VIT, "layer_norm_eps": 1e-3}),
    "vit-without-bias": ("ViT", "ViTForImageClassification", {**_VIT, "qkv_bias": False}),
    "deit": ("DeiT", "DeiTForImageClassification", _VIT),
    "deit-distilled": ("DeiT", "DeiTForImageClassificationWithTeacher", _VIT),
    "swin": ("Swin", "SwinForImageClassification", {**_SWIN, "use_absolute_embeddings": True}),
    "resnet": ("ResNet", "ResNetForImageClassification", _RESNET),
    "resnet-basic": (
        "ResNet",
        "ResNetForImageClassification",
        {**_RESNET, "hidden_sizes": [8, 16], "layer_type": "basic"},
    ),
    "convnext": ("ConvNext", "ConvNextForImageClassification", _CONVNEXT),
    "convnext-v2": ("ConvNextV2", "ConvNextV2ForImageClassification", _CONVNEXT),
}


def make(name: str, **changes: Any) -> nn.Module:
    config, model, settings = NETWORKS[name]
    made = getattr(transformers, f"{config}Config")(**{**settings, **changes})
    return shaken(getattr(transformers, model)(made))


def given(name: str) -> dict[str, Any]:
    return {"image_size": 64} if name.startswith("resnet") else {}


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    net = make(name)
    net.save_pretrained(tmp_path)  # names as before version 5
    torch.save(net.state_dict(), tmp_path / "net.bin")  # names as they are now
    for path in (tmp_path, tmp_path / "model.safetensors", tmp_path / "net.bin"):
        found = same_logits(net, path, given(name))
        assert (found.format, found.notes) == ("huggingface", ())
    if name == "convnext-v2":
        same_in_onnx(found, tmp_path / "net.onnx")


def test_a_file_alone_has_the_usual_eps_and_needs_its_heads(tmp_path: Path) -> None:
    net = make("vit", layer_norm_eps=1e-12)
    path = tmp_path / "net.pth"
    torch.save({"state_dict": net.state_dict()}, path)
    with pytest.raises(UserError, match="number of heads is not stored"):
        import_supernet(path, config={})
    found = same_logits(net, path, {"heads": 2})
    assert "eps 1e-12 are assumed" in found.notes[0]
    net = make("vit", layer_norm_eps=1e-3)
    torch.save(net.state_dict(), path)
    same_logits(net, path, {"heads": [2], "norm_eps": 1e-3})


def test_names_without_the_networks_prefix(tmp_path: Path) -> None:
    net = make("deit-distilled")
    state = {key.removeprefix("deit."): value for key, value in net.state_dict().items()}
    state["pooler.dense.weight"] = torch.zeros(16, 16)
    torch.save(state, tmp_path / "net.pth")
    found = same_logits(net, tmp_path / "net.pth", {"heads": [2]})
    assert found.ignored == {"pooler.dense.weight": "the pooler is not used for classification"}


def test_a_checkpoint_in_parts(tmp_path: Path) -> None:
    net = make("vit")
    net.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    places = {}
    for i, names in enumerate((list(state)[::2], list(state)[1::2])):
        save_file({name: state[name] for name in names}, tmp_path / f"part{i}.safetensors")
        places |= dict.fromkeys(names, f"part{i}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    same_logits(net, tmp_path, {})
    for bad, said in (
        ({"weight_map": {**places, "more": "part0.safetensors"}}, "more among them"),
        ({"weight_map": {"a": "../x.safetensors"}}, "outside its folder"),
        ({"weight_map": {}}, "lists no parts"),
        ([], "not the index"),
    ):
        index.write_text(json.dumps(bad))
        with pytest.raises(UserError, match=said):
            import_supernet(tmp_path, config={})
    index.unlink()
    with pytest.raises(UserError, match=r"holds neither model\.safetensors nor"):
        import_supernet(tmp_path, config={})


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("vit", {"hidden_act": "quick_gelu"}, "activation quick_gelu, but family vit computes"),
        ("vit", {"hidden_size": 32}, "config.json says hidden_size 32"),
        ("vit", {"num_attention_heads": 3}, "heads is 3, but the queries are 16 wide"),
        ("vit", {"image_size": [16, 32]}, "Only square inputs"),
        ("vit", {"image_size": 20}, "pos_embed has shape"),
        ("vit", {"model_type": "swin"}, "that of a swin, but the tensors are those of a vit"),
        ("vit", {"layer_norm_eps": "small"}, "norm_eps"),
        ("swin", {"layer_norm_eps": 1e-6}, "1e-06 in its blocks and 1e-05 elsewhere"),
        ("resnet", {"downsample_in_bottleneck": True}, "downsample_in_bottleneck True"),
        ("resnet", {"hidden_act": "gelu"}, "activation gelu"),
    ],
)
def test_config_json_is_checked(
    name: str, change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    make(name).save_pretrained(tmp_path)
    place = tmp_path / "config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), **change}))
    with pytest.raises(UserError, match=said):
        import_supernet(tmp_path / "model.safetensors", config=given(name))


def test_settings_that_contradict_config_json(tmp_path: Path) -> None:
    make("vit").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"heads is given as \[4\], but .* is a network with 2"):
        import_supernet(tmp_path, config={"heads": [4]})
    with pytest.raises(UserError, match="norm_eps is given as 1e-06"):
        import_supernet(tmp_path, config={"norm_eps": 1e-6})


def test_backbones_and_other_networks(tmp_path: Path) -> None:
    make("vit").vit.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="backbone without a classifier"):
        import_supernet(tmp_path, config={})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="is a bert, which no family builds"):
        import_supernet(tmp_path, config={})
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="backbone without a classifier"):
        import_supernet(tmp_path / "model.safetensors", config={})
