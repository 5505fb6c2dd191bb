"""ELSA: masked subnets of dense weights, and the file of one materialised subnet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from case import Case, Counted

from elastic_export.config.reading import read_settings
from elastic_export.families.counters.elsa import deit_flops, swin_flops
from elastic_export.families.swin import SwinConfig, SwinStage
from elastic_export.families.vit import VitConfig

ORDER = ("attn.proj", "attn.qkv", "mlp.fc1", "mlp.fc2")


def cases(folder: Path, fixture: dict[str, Any]) -> Iterator[Case]:
    """Every arch from the dense checkpoint; ``init_config`` also from the materialised files."""
    theirs = read_settings(folder / fixture["config_file"])
    dense = [name for name, about in fixture["checkpoints"].items() if _is_dense(about)]
    masks = {
        f"{layer}.weight": f"init_config.mask.{layer}"
        for layer in fixture["layer_order"]
        if f"init_config.mask.{layer}" in fixture["tensors"]
    }
    for checkpoint in fixture["checkpoints"]:
        archs = fixture["archs"] if checkpoint in dense else ["init_config"]
        for arch in archs:
            expected = fixture["archs"][arch]
            named = arch in ("init_config", "dense")
            official = {
                "flops_g": expected["flops_official_G"],
                "params": expected["num_params_official"],
            }
            yield Case(
                name=f"{Path(checkpoint).stem}-{arch}" if checkpoint not in dense[:1] else arch,
                source=folder / checkpoint,
                config=theirs if named else {**theirs, "subnet": expected["config"]},
                spec=arch if named else "subnet",
                input="input",
                logits=f"{arch}.logits",
                official=official,
                masks=masks if arch == "init_config" else {},
            )
    if "config" in fixture["checkpoints"][dense[0]]["keys"]:
        yield Case(
            name="without_yaml",
            source=folder / dense[0],
            config={},
            spec="init_config",
            input="input",
            logits="init_config.logits",
        )


def _is_dense(about: dict[str, Any]) -> bool:
    return str(about["weights"]).startswith("dense")


def counted(folder: Path, fixture: dict[str, Any]) -> Iterator[Counted]:
    """The configurations ELSA ships, at full size."""
    for i, row in enumerate(fixture.get("full_size_flops", [])):
        name = f"{i}-{row['file'] or row['type']}"
        official = {"flops_g": row["flops_official_G"]}
        yield Counted(name, lambda row=row: {"flops_g": _flops(row) / 1e9}, official)


def _flops(row: dict[str, Any]) -> float:
    width, depths = row["embed_dim"], row["depths"]
    if "deit" in row["type"]:
        blocks = [f"blocks.{i}" for i in range(depths)]
        config = VitConfig(width=(width,), depth=(depths,), heads=(width // 64,))
        return deit_flops(config, _spec(blocks, row["config"]))
    stages = tuple(
        SwinStage(depth=(depth,), heads=((width << s) // 32,)) for s, depth in enumerate(depths)
    )
    blocks = [f"layers.{s}.blocks.{b}" for s, depth in enumerate(depths) for b in range(depth)]
    return swin_flops(SwinConfig(width=(width,), stages=stages), _spec(blocks, row["config"]))


def _spec(blocks: list[str], pairs: list[list[int]]) -> dict[str, str]:
    layers = [f"{block}.{name}" for block in blocks for name in ORDER]
    return {
        f"{layer}.nm": "dense" if n == m else f"{n}:{m}"
        for layer, (n, m) in zip(layers, pairs, strict=True)
    }
