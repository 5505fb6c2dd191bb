"""AttentiveNAS / AlphaNet: stored statistics, calibrated ones, and images of another size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from case import Case


def cases(folder: Path, fixture: dict[str, Any]) -> Iterator[Case]:
    # Args in one file repeat the YAML, which the file without args needs.
    config = yaml.safe_load((folder / "config.yml").read_text())
    files = fixture["checkpoints"]
    told = next((name for name, entry in files.items() if "args" in entry["keys"]), None)
    bare = next((name for name, entry in files.items() if "args" not in entry["keys"]), told)
    for name, arch in fixture["archs"].items():
        genes = arch["config"]
        common: dict[str, Any] = {
            "spec": genes,
            "official": {"mflops": arch["flops_official_M"], "params": arch["params"]},
            # The counter adds up in float32.
            "official_tolerance": 1e-6,
        }
        calibrated = {"recalibrate": f"bncal.images_R{genes['resolution']}"}
        for source, given, suffix in ((told, {}, ""), (bare, config, "-yaml")):
            if source is None:
                continue
            path = folder / source
            yield Case(
                f"{name}-stored{suffix}",
                path,
                given,
                input=f"{name}.input",
                logits=f"{name}.stored_stats.logits",
                **common,
            )
        size = genes["resolution"]
        for row, logits, more in (
            ("bncal", f"{name}.bncal.logits", {"input": f"{name}.input"}),
            (
                "resized",
                f"{name}.bncal.logits_resized_input",
                {"input": "resized_input", "final_size": size},
            ),
        ):
            if logits in fixture["tensors"]:
                yield Case(
                    f"{name}-{row}", path, config, logits=logits, **more, **calibrated, **common
                )
