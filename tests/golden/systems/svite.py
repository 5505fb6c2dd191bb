"""SViTE: unstructured and structured checkpoints, full and slim, with tokens kept or zeroed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from case import Case


def cases(folder: Path, fixture: Mapping[str, Any]) -> Iterator[Case]:
    """``max`` of every row, and ``slim`` where heads and neurons died."""
    heads = {"heads": [fixture["model"]["num_heads"]]}
    for key in fixture["tensors"]:
        match = re.fullmatch(r"(.+?)\.(?:token_k(\d+)_zero_noise\.)?logits", key)
        if match is None:
            continue
        kind, keep = match[1], match[2]
        names = (name for name in fixture["checkpoints"] if name.startswith(kind))
        source = folder / next(names)
        config = heads | ({"token_keep": int(keep)} if keep else {})
        name = key.removesuffix(".logits")
        structured = "active_heads" in fixture["archs"].get(kind, {})
        full = _params(fixture, kind, False, bool(keep))
        yield Case(name, source, config, "max", "input", key, params=full)
        if structured:
            slim = _params(fixture, kind, True, bool(keep))
            yield Case(f"{name}, slim", source, config, "slim", "input", key, params=slim)


def _params(fixture: Mapping[str, Any], kind: str, slim: bool, selects: bool) -> int:
    """Parameters by the sizes in the description; slim without what is not active."""
    sizes, arch = fixture["model"], fixture["archs"][kind]
    width, heads = sizes["embed_dim"], sizes["num_heads"]
    hidden = int(width * sizes["mlp_ratio"])
    patches = (sizes["img_size"] // sizes["patch_size"]) ** 2
    total = width * (patches + 2) + width * (3 * sizes["patch_size"] ** 2 + 1) + 2 * width
    total += (width + 1) * (sizes["num_classes"] + selects)
    for i in range(sizes["depth"]):
        inner, neurons = width, hidden
        if slim:
            active = len(arch["active_heads"][f"blocks.{i}.attn.qkv"])
            inner = max(1, active) * (width // heads)
            neurons = max(1, arch["active_neurons"][f"blocks.{i}.mlp"])
        total += inner * (4 * width + 3 * sizes["qkv_bias"]) + neurons * (2 * width + 1)
        total += 2 * width + 4 * width
    return total
