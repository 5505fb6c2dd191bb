"""Memory and time of calibration, for each method and number of images.

    python benchmarks/calibration_memory.py [--model NAME] [--images N ...] [--methods NAME ...]
                                            [--batch N] [--size N] [--json]

A timm network with random weights sees random images that are made batch by batch, so none of them
stays in memory. Every row is a process of its own. ``above_mb`` is the peak of its resident set
above what it was with torch, ModelOpt and the network loaded; the row ``none`` runs the forward
passes alone. ``ratio`` is the time over that of ``max`` with as many images, ModelOpt's import not
counted. The bar is 2 GB above the network for 512 images of DeiT-S at 224 pixels; compare 64 images
to see that nothing grows.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

METHODS = ("none", "max", "percentile", "entropy", "mse")


def peak_mb() -> float:
    """The largest resident set of this process so far."""
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e6


def measure(options: argparse.Namespace, method: str, images: int) -> dict[str, Any]:
    """Calibrate in this process."""
    import timm
    import torch

    from elastic_export.config.calibration import CalibrationRecipe
    from elastic_export.quantize.bridge import load_modelopt
    from elastic_export.quantize.calibrate import calibrate

    class Stream:
        """Random images that are the same in every pass."""

        name, num_classes, digest = "calibration", 1, f"random-{images}-{options.size}"

        def __len__(self) -> int:
            return images

        def head(self, n: int, *, name: str | None = None) -> Stream:
            assert n == images
            return self

        def batches(
            self, size: int, *, seed: Any = None, drop_last: bool = False, start: int = 0
        ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for first in range(start * size, images, size):
                n = min(size, images - first)
                generator = torch.Generator().manual_seed(first)
                x = torch.randn(n, 3, options.size, options.size, generator=generator)
                yield x, torch.zeros(n, dtype=torch.int64)

    torch.manual_seed(0)
    load_modelopt()
    net = timm.create_model(options.model).eval()
    before = peak_mb()
    started = time.perf_counter()
    if method == "none":
        with torch.inference_mode():
            for x, _ in Stream().batches(options.batch):
                net(x)
    else:
        percentile = 99.99 if method == "percentile" else None
        settings = {"method": method, "percentile": percentile, "images": images}
        recipe = CalibrationRecipe(name=method, batch_size=options.batch, **settings)
        calibrate(net, Stream(), recipe)
    seconds = time.perf_counter() - started
    return {
        "method": method,
        "images": images,
        "seconds": round(seconds, 2),
        "model_mb": round(before),
        "above_mb": round(peak_mb() - before),
    }


def main() -> None:
    """Measure everything asked for and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--images", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "IMAGES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options, options.one[0], int(options.one[1]))))
        return
    shared = ["--model", options.model, "--batch", str(options.batch), "--size", str(options.size)]
    rows = []
    for images in options.images:
        base = None
        for method in options.methods:
            command = [sys.executable, __file__, *shared, "--one", method, str(images)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            row = json.loads(done.stdout.splitlines()[-1])
            base = row["seconds"] if method == "max" else base
            rows.append(row | {"ratio": round(row["seconds"] / base, 2) if base else None})
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    print("  ".join(f"{name:>10}" for name in rows[0]))
    for row in rows:
        print("  ".join(f"{value!s:>10}" for value in row.values()))


if __name__ == "__main__":
    main()
