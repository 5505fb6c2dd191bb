"""Cases of the Once-for-all folders, for both families."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from case import Case

# The official sums are float32: up to here they are exact, beyond only `official` repeats them.
EXACT = 1 << 24
# The official extraction multiplies kernels in float32, in an order that depends on its machine.
# Its float64 logits are of those kernels: some 1e-6 from those of exact ones.
ROUNDED = 1e-5


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
                yield Case(
                    name=f"{name}{short}",
                    logits=f"{name}.logits",
                    **common,
                    **_counts(arch),
                )
            if f"{name}.bncal.logits" in fixture["tensors"]:
                rounded = products and _shrinks(arch, settings)
                yield Case(
                    name=f"{name}.bncal{short}",
                    logits=f"{name}.bncal.logits",
                    recalibrate=f"bncal.images_R{size}",
                    biased=True,
                    float64_tolerance=ROUNDED if rounded else 1e-8,
                    **common,
                )
    for special in set(fixture["checkpoints"]) - set(files):
        name = special.strip("/").removeprefix("specialized_")
        arch = fixture["archs"][name]
        common = {"source": folder / special, "config": {}, "spec": "max", "input": f"{name}.input"}
        yield Case(
            name=special.strip("/"),
            logits=f"{name}.logits",
            float64_tolerance=ROUNDED if products else 1e-8,
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


def _shrinks(arch: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    return min(arch["config"]["ks"]) < max(settings["ks_list"])


def _counts(arch: Mapping[str, Any]) -> dict[str, Any]:
    flops, params = arch["flops_official"], arch["params_official"]
    exact = {"params": int(params)} if params < EXACT else {}
    return {"official": {"flops": flops, "params": params}, **exact}
