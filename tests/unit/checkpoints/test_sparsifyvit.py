"""SparsifyViT: masks in the file, layer-wise YAML and what its pairs mean, allocators."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.utils import prune

from elastic_export.checkpoints import import_supernet
from elastic_export.checkpoints.reader import Imported
from elastic_export.elastic import extract
from elastic_export.errors import UserError
from elastic_export.sparsity import pattern_mask

HEADS = {"heads": [2]}
LAYERS = [
    f"blocks.{i}.{name}"
    for i in range(2)
    for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
]
SEED_FORM = [[4, 2], [4, 0], [8, 6], [4, 1], [4, 3], [16, 8], [4, 2], [4, 2]]
PATTERNS = ["2:4", "dense", "2:8", "3:4", "1:4", "8:16", "2:4", "2:4"]


def _model() -> nn.Module:
    torch.manual_seed(0)
    net = VisionTransformer(
        16, 4, num_classes=5, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2
    ).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return net


def _pruned(masks: Callable[[str, Tensor], Tensor]) -> nn.Module:
    net = _model()
    for layer in LAYERS:
        module = net.get_submodule(layer)
        prune.custom_from_mask(module, "weight", masks(layer, module.weight))
    return net


def _by_pattern(layer: str, weight: Tensor) -> Tensor:
    return pattern_mask(weight, PATTERNS[LAYERS.index(layer)]).float()


def _save(net: nn.Module, path: Path, **args: Any) -> Path:
    torch.save(
        {"model": net.state_dict(), "epoch": 3, "args": argparse.Namespace(model="x", **args)}, path
    )
    return path


@pytest.fixture
def pruned(tmp_path: Path) -> Path:
    return _save(_pruned(_by_pattern), tmp_path / "pruned.pth")


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    path = tmp_path / "dense.pth"
    torch.save({"model": _model().state_dict()}, path)
    return path


def _same(found: Imported, net: nn.Module) -> None:
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        got = extract(found.supernet, found.supernet.space.max()).module(x)
        assert torch.allclose(got, net(x), atol=1e-5)


def _patterns(found: Imported) -> dict[str, str]:
    return dict(found.supernet.family.patterns(found.supernet.config, found.supernet.space.max()))


WANTED = {f"{k}.weight": v for k, v in zip(LAYERS, PATTERNS, strict=True) if v != "dense"}


def test_masks_are_multiplied_in_and_their_patterns_found(pruned: Path) -> None:
    found = import_supernet(pruned, config=HEADS)
    assert found.format == "sparsifyvit"
    assert _patterns(found) == WANTED
    _same(found, _pruned(_by_pattern))
    assert found.ignored["epoch"]
    assert found.official is not None
    kept = {k: v for k, v in found.supernet.state_dict().items() if k[:-7] in [*LAYERS, "head"]}
    density = sum(int(v.count_nonzero()) for v in kept.values()) / sum(
        v.numel() for v in kept.values()
    )
    assert found.official(found.supernet.space.max()) == {"density": pytest.approx(density)}


def test_the_yaml_is_checked_against_the_masks_or_prunes_a_dense_file(
    pruned: Path, dense: Path
) -> None:
    config = {**HEADS, "sparsity": {"mode": "nxm", "level": SEED_FORM}}
    for path in (pruned, dense):
        found = import_supernet(path, config=config)
        assert found.format == "sparsifyvit"
        assert _patterns(found) == WANTED
        _same(found, _pruned(_by_pattern))
    config["sparsity"]["level"] = [*SEED_FORM[:-1], [4, 3]]
    with pytest.raises(UserError, match=r"\[4, 3\] for blocks.1.mlp.fc2, but the mask"):
        import_supernet(pruned, config=config)


def test_masks_settle_what_a_pair_means(tmp_path: Path, dense: Path) -> None:
    path = _save(_pruned(lambda _, w: pattern_mask(w, "1:4").float()), tmp_path / "p.pth")
    for pair, meaning in (([1, 4], "keep a of each b"), ([3, 4], "remove a of each b")):
        config = {**HEADS, "sparsity": {"mode": "nxm", "level": [pair] * 8}}
        found = import_supernet(path, config=config)
        assert any(meaning in note for note in found.notes)
        with pytest.raises(UserError, match="Set nm_convention"):
            import_supernet(dense, config=config)
    for convention, pattern in (("keep-of", "1:4"), ("prune-of", "3:4")):
        config = {
            **HEADS,
            "sparsity": {"mode": "nxm", "level": [[1, 4]] * 8},
            "nm_convention": convention,
        }
        assert set(_patterns(import_supernet(dense, config=config)).values()) == {pattern}
    with pytest.raises(UserError, match="mask in the file is another"):
        import_supernet(path, config=config)
    half = {**HEADS, "sparsity": {"mode": "nxm", "level": [[2, 4]] * 8}}
    assert set(_patterns(import_supernet(dense, config=half)).values()) == {"2:4"}


def test_unstructured_levels(tmp_path: Path, dense: Path) -> None:
    shares = [0.9, 0.0, 0.25, 0.3, 0.8, 0.9, 0.65, 0.5]
    net = _model()
    for layer, share in zip(LAYERS, shares, strict=True):
        prune.l1_unstructured(net.get_submodule(layer), "weight", share)
    path = _save(net, tmp_path / "u.pth")
    config = {**HEADS, "sparsity": {"mode": "unstructured", "level": shares}}
    for file, given in ((path, HEADS), (path, config), (dense, config)):
        found = import_supernet(file, config=given)
        assert _patterns(found) == {}
        _same(found, net)
    assert found.sparsity["blocks.0.attn.qkv.weight"] == pytest.approx(0.9, abs=2e-3)
    config["sparsity"]["level"] = [*shares[:-1], 0.51]
    with pytest.raises(UserError, match=r"of blocks\.1\.mlp\.fc2, but its mask"):
        import_supernet(path, config=config)


def test_an_allocation_prunes_a_dense_file(pruned: Path, dense: Path) -> None:
    asked = {"method": "unif", "sparsity": 0.65}
    found = import_supernet(dense, config={**HEADS, "allocation": asked})
    net = _model()
    for layer in LAYERS:
        prune.l1_unstructured(net.get_submodule(layer), "weight", 0.65)
    _same(found, net)
    with pytest.raises(UserError, match="pruned already"):
        import_supernet(pruned, config={**HEADS, "allocation": asked})
    for wrong in ("lamp", {"method": "lamp"}, {"method": "lamp", "sparsty": 0.5}):
        with pytest.raises(UserError, match="allocation is"):
            import_supernet(dense, config={**HEADS, "allocation": wrong})


def test_head_dist_is_pruned_too_and_carries_no_pattern(tmp_path: Path) -> None:
    state = dict(_model().state_dict())
    state["dist_token"] = torch.randn(1, 1, 16)
    state["pos_embed"] = torch.randn(1, 18, 16)
    weight = torch.randn(5, 16)
    state["head_dist.bias"] = torch.randn(5)
    state["head_dist.weight"] = weight
    torch.save(state, tmp_path / "d.pth")
    level = [[4, 2]] * 9
    config = {**HEADS, "sparsity": {"mode": "nxm", "level": level}}
    found = import_supernet(tmp_path / "d.pth", config=config)
    got = found.supernet.state_dict()["head_dist.weight"]
    assert torch.equal(got, weight * pattern_mask(weight, "2:4"))
    assert any("head_dist is 2:4" in note for note in found.notes)
    assert len(_patterns(found)) == 8
    extract(found.supernet, found.supernet.space.max())


def test_candidates_of_the_supernet_stage(dense: Path) -> None:
    one, two = [[1, 4], [2, 4], [4, 4]], [[2, 4]]
    config = {**HEADS, "sparsity": {"mode": "nas", "choices": [one, two, one, one] * 2}}
    found = import_supernet(dense, config=config)
    axes = found.supernet.space.describe()
    assert axes["blocks.0.attn.proj.nm"] == ["1:4", "2:4", "dense"]
    assert axes["blocks.1.attn.qkv.nm"] == ["2:4"]
    extract(found.supernet, found.supernet.space.min())
    config["sparsity"]["per_cand_affine"] = True
    with pytest.raises(UserError, match="per_cand_affine"):
        import_supernet(dense, config=config)


def test_the_name_of_a_known_model_tells_its_heads(tmp_path: Path) -> None:
    net = VisionTransformer(32, 16, num_classes=2, embed_dim=192, depth=1, num_heads=3, mlp_ratio=1)
    prune.identity(net.blocks[0].attn.qkv, "weight")
    path = tmp_path / "t.pth"
    for name in ("deit_tiny_patch16_224", "deit_small_patch16_224"):
        torch.save(
            {"model": net.state_dict(), "args": argparse.Namespace(model=name)},
            path,
        )
        if "tiny" in name:
            assert import_supernet(path, config={}).supernet.config.heads == (3,)
        else:
            with pytest.raises(UserError, match="number of heads is not stored"):
                import_supernet(path, config={})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("blocks.0.attn.qkv.weight_mask"), "weight_mask"),
        (lambda s: s.pop("blocks.1.mlp.fc1.weight_orig"), "weight_orig"),
        (lambda s: s["blocks.0.mlp.fc1.weight_mask"].mul_(0.5), "other than 0 and 1"),
        (
            lambda s: s.update({"blocks.0.mlp.fc1.weight_mask": torch.ones(3, 3)}),
            "The mask of blocks.0.mlp.fc1 has the shape",
        ),
        (
            lambda s: s.update({"blocks.0.mlp.fc1.weight": torch.ones(32, 16)}),
            "a weight and a pruned weight",
        ),
        (lambda s: s.update({"gate": torch.ones(3)}), "gate"),
    ],
)
def test_damaged_files(
    change: Callable[[dict[str, Tensor]], Any], said: str, tmp_path: Path
) -> None:
    state = dict(_pruned(_by_pattern).state_dict())
    change(state)
    torch.save({"model": state}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=said):
        import_supernet(tmp_path / "x.pth", config=HEADS, format="sparsifyvit")


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"mode": "nxm", "level": [[4, 2]] * 7}, "7 entries, but the network has 8"),
        ({"mode": "nmx", "level": []}, 'Did you mean "nxm"'),
        ({"level": []}, "sparsity.mode is None"),
        ({"mode": "nxm", "level": [[4, 2]] * 7 + [[2, 4]]}, "contradicts"),
        ({"mode": "nxm", "level": [[4, 4]] + [[4, 2]] * 7}, "removes all of blocks.0.attn.qkv"),
        ({"mode": "nxm", "level": [[4, 2, 1]] * 8}, "no pair of whole numbers"),
        ({"mode": "nxm", "level": [[0, 0]] * 8}, "a group of nothing"),
        ({"mode": "nxm", "level": [[5, 2]] * 8}, "cannot be 3:5"),
        ({"mode": "unstructured", "level": [1.5] * 8}, "no share below 1"),
        ({"mode": "unstructured", "level": 0.5}, "is no list"),
        ({"choices": [[[3, 2]]] * 8}, "not N of M"),
    ],
)
def test_wrong_yaml(section: dict[str, Any], said: str, dense: Path) -> None:
    with pytest.raises(UserError, match=said):
        import_supernet(dense, config={**HEADS, "sparsity": section})
