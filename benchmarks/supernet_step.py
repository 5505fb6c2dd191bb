"""What running on views of shared parameters costs, against the plain module of the same spec.

    python benchmarks/supernet_step.py [--shape NAME] [--batch N] [--rounds N] [--json]

Both contenders take turns in one run; the figures are medians. ``forward_backward`` is one forward
and backward pass, ``step`` the same with an AdamW update. The supernet updates all its parameters,
also those outside the spec, so ``step`` differs by more for a small spec.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from elastic_export.elastic import Supernet, extract
from elastic_export.families import get_family
from elastic_export.space import Spec

SHAPES = {
    "digits": {
        "image_size": 8,
        "patch_size": 2,
        "in_chans": 1,
        "num_classes": 10,
        "width": (32, 48, 64),
        "depth": (2, 3, 4),
        "heads": (2, 3, 4),
        "head_dim": 16,
        "mlp_ratio": (2.0, 3.0, 4.0),
    },
    "deit-tiny": {
        "width": (128, 160, 192),
        "depth": (8, 10, 12),
        "heads": (2, 3),
        "head_dim": 64,
        "mlp_ratio": (2.0, 3.0, 4.0),
    },
}


def _timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def compare(shape: str, spec_name: str, batch: int, rounds: int) -> dict[str, object]:
    """Time one spec both ways; returns medians in milliseconds and their ratios."""
    family = get_family("vit")
    config = family.Config.model_validate(SHAPES[shape])
    net = Supernet.create(family, config, seed=0)
    middle = {k: v[len(v) // 2] for k, v in net.space.describe().items()}
    spec: Spec = net.space.canonical(middle) if spec_name == "middle" else net.spec(spec_name)
    plain = extract(net, spec).module.train()
    net.train()
    x = torch.randn(batch, *family.input_shape(config))
    y = torch.randint(family.num_classes(config), (batch,))
    net_adam = torch.optim.AdamW(net.parameters(), lr=1e-5)
    plain_adam = torch.optim.AdamW(plain.parameters(), lr=1e-5)

    def pass_of(forward: Callable[[], torch.Tensor], adam: torch.optim.Optimizer) -> None:
        adam.zero_grad(set_to_none=True)
        F.cross_entropy(forward(), y).backward()

    def step_of(forward: Callable[[], torch.Tensor], adam: torch.optim.Optimizer) -> None:
        pass_of(forward, adam)
        adam.step()

    contenders: dict[str, Callable[[], None]] = {
        "supernet.forward_backward": lambda: pass_of(lambda: net(spec, x), net_adam),
        "plain.forward_backward": lambda: pass_of(lambda: plain(x), plain_adam),
        "supernet.step": lambda: step_of(lambda: net(spec, x), net_adam),
        "plain.step": lambda: step_of(lambda: plain(x), plain_adam),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(rounds + 3):
        order = list(contenders) if round_ % 2 else list(contenders)[::-1]
        for name in order:
            seconds = _timed(contenders[name])
            if round_ >= 3:
                times[name].append(seconds)
    ms = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    return {
        "shape": shape,
        "spec": spec_name,
        "batch": batch,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "median_ms": {name: round(value, 3) for name, value in ms.items()},
        "forward_backward_ratio": round(
            ms["supernet.forward_backward"] / ms["plain.forward_backward"], 3
        ),
        "step_ratio": round(ms["supernet.step"] / ms["plain.step"], 3),
    }


def main() -> None:
    """Print the comparison for the largest, a middle and the smallest spec."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), default="digits")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found = [
        compare(asked.shape, spec, asked.batch, asked.rounds) for spec in ("max", "middle", "min")
    ]
    if asked.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{asked.shape}, batch {asked.batch}, {found[0]['threads']} threads, medians")
    for row in found:
        print(
            f"{row['spec']:>7}  forward+backward {row['forward_backward_ratio']}x"
            f"  step {row['step_ratio']}x  {row['median_ms']}"
        )


if __name__ == "__main__":
    main()
