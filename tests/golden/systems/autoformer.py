"""AutoFormer: supernets with and without the flags, all archs of the fixture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from case import Case


def cases(folder: Path, fixture: dict[str, Any]) -> Iterator[Case]:
    for name, arch in fixture["archs"].items():
        genes = arch["config"]
        spec: str | dict[str, Any] = {
            "width": genes["embed_dim"][0],
            "depth": genes["layer_num"],
            "heads": genes["num_heads"],
            "mlp_ratio": genes["mlp_ratio"],
        }
        if name == "retrain_yaml":
            config, spec = _yaml(folder / "subnet.yaml"), "retrain"
        else:
            config = _with_values(_yaml(folder / "supernet.yaml"), spec)
        yield Case(
            name=name,
            source=folder / _file_of(name, fixture),
            config=config,
            spec=spec,
            input="input",
            logits=f"{name}.logits",
            official={"params": arch["params_official"], "flops": arch["flops_official"]},
            params=arch["params_official"],
            # The system computes its GELU in float32 whatever the precision, and that rounding
            # differs by 1e-7 between the kernels of two processors.
            float64_tolerance=1e-6,
        )


def _file_of(arch: str, fixture: dict[str, Any]) -> str:
    """The checkpoint whose prefix begins the arch's name; that of the others has none."""
    prefixes = {name.removesuffix("checkpoint.pth"): name for name in fixture["checkpoints"]}
    return prefixes[max((p for p in prefixes if arch.startswith(p)), key=len)]


def _yaml(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text()))


def _with_values(config: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    """The YAML, and the choices that this arch needs beyond it, as a user would set them."""
    names = {"width": "EMBED_DIM", "depth": "DEPTH", "heads": "NUM_HEADS", "mlp_ratio": "MLP_RATIO"}
    for ours, theirs in names.items():
        listed = config["SEARCH_SPACE"][theirs]
        values = spec[ours] if isinstance(spec[ours], list) else [spec[ours]]
        if not set(values) <= set(listed):
            config[ours] = sorted({*listed, *values})
    return config
