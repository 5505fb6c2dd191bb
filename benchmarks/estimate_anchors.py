"""Hold the latency estimate against published figures, and fit the constants of its classes.

For every anchor of ``estimate_anchors.yaml`` the network is built with timm, exported, fused and
estimated. Printed are the published figure, the estimate and its error, with the constants fitted
to all anchors of the class (in sample) and with those fitted without any figure of the same network
on the same device (left out), and at the end the constants and ranges for ``measure/estimate.py``.

    python benchmarks/estimate_anchors.py --cache /tmp/anchors [--markdown]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, get_args

import numpy as np
import yaml
from anchor_networks import network_layers

from elastic_export.config.fused_layer import with_batch
from elastic_export.config.target import Precision
from elastic_export.config.targets import load_target
from elastic_export.measure.device_fit import Measurement, fit_constants, predicted
from elastic_export.measure.estimate import Constants
from elastic_export.measure.kernel_costs import TURING, Device, DeviceClass, device_of

DATA = Path(__file__).with_suffix(".yaml")
PRIORS: dict[DeviceClass, Constants] = {
    "gpu": Constants(0.6, 0.5, 0.3, 0.75, 4.0),
    "jetson": Constants(0.6, 0.5, 0.3, 0.75, 5.0),
    "nano": Constants(0.6, 0.5, 0.3, 0.75, 10.0),
}
"""Where a fit begins and is drawn to: ordinary shares of peaks, launches of three to ten us."""
NOISE, SPREAD = 0.15, 0.5
OTHER_STACK = "FasterTransformer"
MANY = 20
"""A range leaves out the outermost tenth of so many figures, none of fewer."""
LAUNCHES = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
"""Its program starts each kernel from the host, an engine all in one CUDA graph."""


@dataclass(frozen=True)
class Anchor:
    """One published figure."""

    device: Device
    batch: int
    stack: str
    fit: bool
    measured: Measurement

    @property
    def group(self) -> tuple[str, str]:
        """What is left out together: a network on a device, at any image size."""
        return self.measured.name.partition("-")[0], self.device.identity


@dataclass(frozen=True)
class Fitted:
    """Constants, and how much longer a launch of another stack takes."""

    constants: Constants
    launches: float


@dataclass(frozen=True)
class Row:
    """One anchor with both estimates in milliseconds."""

    anchor: Anchor
    inside: float
    outside: float

    def error(self, estimate: float) -> float:
        """Return the error in percent."""
        return 100 * (estimate / self.anchor.measured.ms - 1)


def read_anchors(cache: Path) -> list[Anchor]:
    """Read the figures and build their networks."""
    found = []
    for entry in yaml.safe_load(DATA.read_text())["anchors"]:
        target = load_target(entry["target"])
        device = device_of(target)
        layers = network_layers(
            entry["model"], entry["size"], cache, turing=(target.target.sm or 0) >= TURING
        )
        for precision, batch, ms in _figures(entry):
            measured = Measurement(
                f"{entry['model']}-{entry['size']}", with_batch(layers, batch), precision, ms
            )
            found.append(Anchor(device, batch, entry["stack"], entry.get("fit", True), measured))
    return found


def _figures(entry: dict[str, Any]) -> Iterator[tuple[Precision, int, float]]:
    for precision in get_args(Precision):
        for batch, ms in entry.get(precision, {}).items():
            yield precision, int(batch), float(ms)


def judge(anchors: Sequence[Anchor], family: DeviceClass) -> tuple[Fitted, list[Row]]:
    """Fit a class to its anchors, and once more without each network in turn."""
    mine = [anchor for anchor in anchors if anchor.device.family == family]
    used = [anchor for anchor in mine if anchor.fit]
    inside = _fit(used, family)
    rows = []
    for group in dict.fromkeys(anchor.group for anchor in mine):
        outside = _fit([anchor for anchor in used if anchor.group != group], family)
        members = [anchor for anchor in mine if anchor.group == group]
        pairs = zip(members, _predicted(members, inside), _predicted(members, outside), strict=True)
        rows += [Row(anchor, float(a), float(b)) for anchor, a, b in pairs]
    return inside, rows


def _fit(anchors: Sequence[Anchor], family: DeviceClass) -> Fitted:
    """Fit; by what factor another stack's launches are slower is found on the way."""
    factors = LAUNCHES if any(anchor.stack == OTHER_STACK for anchor in anchors) else (1.0,)
    tried = []
    for factor in factors:
        problem = [_as_measured(anchor, factor) for anchor in anchors]
        found = fit_constants(problem, PRIORS[family], noise=NOISE, spread=SPREAD)
        off = np.log(predicted(problem, found) / [anchor.measured.ms for anchor in anchors])
        away = np.log(found.floor / PRIORS[family].floor) / SPREAD
        tried.append((float(np.abs(off).sum() / NOISE + away**2 / 2), factor, found))
    _, factor, constants = min(tried, key=lambda entry: entry[0])
    return Fitted(constants, factor)


def _predicted(anchors: Sequence[Anchor], fitted: Fitted) -> np.ndarray:
    problem = [_as_measured(anchor, fitted.launches) for anchor in anchors]
    return predicted(problem, fitted.constants)


def _as_measured(anchor: Anchor, launches: float) -> tuple[Device, Measurement]:
    """Slow the clock of another stack's launches; the rates of its arithmetic are given apart."""
    device = anchor.device
    if anchor.stack == OTHER_STACK:
        device = replace(device, launch_clock_ghz=device.clock_ghz / launches)
    return device, anchor.measured


def table(rows: Sequence[Row], *, markdown: bool) -> str:
    """Lay the rows out."""
    head = ("network", "device", "stack", "precision", "batch", "published ms", "estimate ms")
    cells = [(*head, "error %", "left out: estimate ms", "error %")]
    for row in rows:
        a = row.anchor
        cells.append(
            (
                *(a.measured.name, a.device.identity, a.stack, a.measured.precision, str(a.batch)),
                *(f"{a.measured.ms:g}", f"{row.inside:.3g}", f"{row.error(row.inside):+.0f}"),
                *(f"{row.outside:.3g}", f"{row.error(row.outside):+.0f}"),
            )
        )
    if markdown:
        cells.insert(1, ("---",) * len(cells[0]))
        return "\n".join(f"| {' | '.join(line)} |" for line in cells)
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    )


def summary(rows: Sequence[Row]) -> str:
    """Say how large the errors are, and the range that the truth lies in."""
    parts = []
    for words, name in (("in sample", "inside"), ("left out", "outside")):
        errors = [abs(row.error(getattr(row, name))) for row in rows if row.anchor.fit]
        parts.append(f"{words}: median {median(errors):.0f} %, worst {max(errors):.0f} %")
    true = [row.anchor.measured.ms / row.outside for row in rows if row.anchor.fit]
    low, high = np.percentile(true, [5, 95] if len(true) >= MANY else [0, 100])
    return f"{'; '.join(parts)}; published over left-out estimate: {low:.2f}-{high:.2f}"


def main() -> None:
    """Print the tables and the constants."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True, help="where layer lists are kept")
    parser.add_argument("--markdown", action="store_true", help="tables for docs/estimate.md")
    options = parser.parse_args()
    anchors = read_anchors(options.cache)
    everything: list[Row] = []
    for family in get_args(DeviceClass):
        fitted, rows = judge(anchors, family)
        everything += rows
        print(f"\n{family}: {sum(row.anchor.fit for row in rows)} anchors")
        print(table(rows, markdown=options.markdown))
        print(summary(rows))
        print(", ".join(f"{name}={value:.3g}" for name, value in asdict(fitted.constants).items()))
        if any(row.anchor.stack == OTHER_STACK for row in rows):
            print(f"a launch of {OTHER_STACK} takes {fitted.launches:g} times as long")
    print(f"\nall classes: {summary(everything)}")
    for left in yaml.safe_load(DATA.read_text())["not_modelled"]:
        print(f"not modelled: {left['what']} ({left['why']})")


if __name__ == "__main__":
    main()
