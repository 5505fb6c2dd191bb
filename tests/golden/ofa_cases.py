"""Cases of the Once-for-all folders, for both families."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from case import Case
from torch import Tensor, nn

from elastic_export.checkpoints import import_supernet
from elastic_export.elastic import Supernet, extract, recalibrate

# The official sums are float32: up to here they are exact, beyond only `official` repeats them.
EXACT = 1 << 24


def ofa_cases(
    folder: Path, fixture: Mapping[str, Any], settings: Mapping[str, Any], *, products: bool
) -> Iterator[Case]:
    """Each arch from each supernet file, with stored and with re-estimated statistics.

    Args:
        folder: The fixture.
        fixture: Its description.
        settings: What a user gives with a supernet.
        products: Whether small kernels are products, which float32 rounds.
    """
    files = [file for file in fixture["checkpoints"] if not file.endswith("/")]
    sizes = sorted({arch["resolution"] for arch in fixture["archs"].values()})
    config = {**settings, "resolution": sizes, "bn_eps": fixture["model"].get("bn_eps", 1e-5)}
    for file in files:
        short = "" if file == files[0] else f"@{Path(file).stem}"
        for name, arch in fixture["archs"].items():
            size = arch["resolution"]
            spec = {**arch["config"], "resolution": size}
            common: dict[str, Any] = {
                "source": folder / file,
                "config": config,
                "spec": spec,
                "input": f"{name}.input",
            }
            if f"{name}.logits" in fixture["tensors"]:
                double = partial(_in_double, folder / file, json.dumps(config), spec)
                yield Case(
                    name=f"{name}{short}",
                    logits=f"{name}.logits",
                    transform=double if products else None,
                    **common,
                    **_counts(arch),
                )
            if f"{name}.bncal.logits" in fixture["tensors"]:
                batches, logits = f"bncal.images_R{size}", f"{name}.bncal.logits"
                rounded = partial(_of_rounded_kernels, batches, f"{name}.input", f"{logits}_f64")
                yield Case(
                    name=f"{name}.bncal{short}",
                    logits=logits,
                    recalibrate=batches,
                    biased=True,
                    transform=rounded if products and _shrinks(arch, settings) else None,
                    **common,
                )
    for special in set(fixture["checkpoints"]) - set(files):
        name = special.strip("/").removeprefix("specialized_")
        arch = fixture["archs"][name]
        spec = {**arch["config"], "resolution": arch["resolution"]}
        same = partial(_rounded_alike, folder / files[0], json.dumps(config), spec)
        common = {"source": folder / special, "config": {}, "spec": "max", "input": f"{name}.input"}
        yield Case(
            name=special.strip("/"),
            logits=f"{name}.logits",
            transform=same if products else None,
            **common,
            **_counts(arch),
        )
        if f"{name}.bncal.logits" in fixture["tensors"]:
            # Holds the very kernels of the official extraction, so this one is exact.
            yield Case(
                name=f"{special.strip('/')}.bncal",
                logits=f"{name}.bncal.logits",
                recalibrate=f"bncal.images_R{arch['resolution']}",
                biased=True,
                **common,
            )


@lru_cache(maxsize=2)
def _double(source: Path, config: str) -> Supernet:
    supernet = import_supernet(source, config=json.loads(config)).supernet
    return supernet.to("cpu", torch.float64).eval()


def _in_double(
    source: Path, config: str, spec: Mapping[str, Any], module: nn.Module, _: Mapping[str, Tensor]
) -> nn.Module:
    """Extract in float64: the official supernet does not round its kernels, which are products."""
    if next(module.parameters()).dtype != torch.float64:
        return module
    supernet = _double(source, config)
    return extract(supernet, supernet.spec(spec)).module


def _rounded_alike(
    source: Path, config: str, spec: Mapping[str, Any], module: nn.Module, _: Mapping[str, Tensor]
) -> nn.Module:
    """In float64, the network of the supernet: it must be that of the folder but for rounding."""
    if next(module.parameters()).dtype != torch.float64:
        return module
    twin = _in_double(source, config, spec, module, _)
    wanted = twin.state_dict()
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            continue  # The official extraction leaves the counters of batches out.
        if name.endswith("conv_dw.weight"):
            assert (tensor - wanted[name]).abs().max() <= 1e-6 * wanted[name].abs().max(), name
        else:
            assert torch.equal(tensor, wanted[name]), name
    return twin


def _of_rounded_kernels(
    batches: str, images: str, logits: str, module: nn.Module, expected: Mapping[str, Tensor]
) -> nn.Module:
    """Compare in float64 within the rounding of the kernels, then skip the exact comparison.

    The official extraction multiplies kernels in float32, in an order that depends on its machine,
    and its float64 logits are of those kernels: some 1e-6 from those of exact kernels.
    """
    if next(module.parameters()).dtype != torch.float64 or logits not in expected:
        return module
    recalibrate(module, expected[batches].double(), variance="biased")
    with torch.no_grad():
        found = module(expected[images].double())
    error = (found - expected[logits]).abs().max() / expected[logits].abs().max()
    assert error <= 1e-5, error
    pytest.skip(f"official kernels are rounded to float32; within 1e-5 in float64 ({error:.1e})")


def _shrinks(arch: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    return min(arch["config"]["ks"]) < max(settings["ks_list"])


def _counts(arch: Mapping[str, Any]) -> dict[str, Any]:
    flops, params = arch["flops_official"], arch["params_official"]
    exact = {"params": int(params)} if params < EXACT else {}
    return {"official": {"flops": flops, "params": params}, **exact}
