"""Nested networks in Elastoformer's file layout, and what each of them computes.

Written against the names in the files alone, so it shares nothing with the reader but them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from elastic_export.checkpoints.reader import Imported
from elastic_export.elastic import extract

State = dict[str, Tensor]
Kept = dict[str, list[int]]
"""Group to the channels of the full network that a level keeps."""


@dataclass
class Architecture:
    """How tensors depend on groups of channels, by the names in the files.

    ``layers`` maps each layer to its output and input group, None where it has none. ``own`` says
    which tensors every level trains anew.
    """

    full: State
    layers: Mapping[str, tuple[str | None, str | None]]
    loose: Mapping[str, str]
    own: Callable[[str], bool]
    repeats: Mapping[str, int] = field(default_factory=dict)

    def groups(self) -> dict[str, int]:
        """Group to its full width."""
        sizes: dict[str, int] = {}
        for layer, (out, into) in self.layers.items():
            shape = self.full[f"{layer}.weight"].shape
            if out is not None:
                sizes[out] = shape[0]
            if into is not None:
                sizes[into] = shape[1] // self.repeats.get(layer, 1)
        return sizes

    def cut(self, kept: Kept) -> State:
        """The tensors of a level, as slices of the full ones."""
        found = {}
        for name, tensor in self.full.items():
            layer, _, leaf = name.rpartition(".")
            if name in self.loose:
                tensor = tensor[..., kept[self.loose[name]]]
            elif layer in self.layers and tensor.dim():
                out, into = self.layers[layer]
                tensor = tensor if out is None else tensor[kept[out]]
                if into is not None and leaf == "weight" and tensor.dim() > 1:
                    n = self.repeats.get(layer, 1)
                    tensor = tensor[:, [i * n + j for i in kept[into] for j in range(n)]]
            found[name] = tensor.clone()
        return found


def random_levels(
    arch: Architecture,
    widths: Mapping[str, list[int]],
    heads: Mapping[str, int],
    generator: torch.Generator,
) -> tuple[list[State], list[Kept]]:
    """Levels from small to large, with random channels and tensors of their own.

    Args:
        arch: The full network.
        widths: Group to its width at each level, the last the full one.
        heads: Groups of which the same offsets of every head are kept.
        generator: Source of randomness.
    """
    levels = len(next(iter(widths.values())))
    kept: list[Kept] = [{} for _ in range(levels)]
    for group, sizes in widths.items():
        parts = heads.get(group, 1)
        step = arch.groups()[group] // parts
        order = torch.randperm(step, generator=generator).tolist()
        for level, size in enumerate(sizes):
            offsets = order[: size // parts]
            kept[level][group] = sorted(p * step + i for p in range(parts) for i in offsets)
    states = []
    for level, sets in enumerate(kept):
        state = arch.cut(sets)
        for name, tensor in state.items():
            if level < levels - 1 and arch.own(name) and tensor.is_floating_point():
                state[name] = tensor + torch.rand(tensor.shape, generator=generator) * 0.1
        states.append(state)
    return states, kept


def write(
    folder: Path,
    arch: Architecture,
    states: list[State],
    kept: list[Kept],
    *,
    name: str = "tiny",
    old: bool = False,
) -> None:
    """Write the files as the system names them, in its present or an earlier revision."""
    for level, state in enumerate(states, 1):
        kind = "Core" if level == 1 else "Rebuilt"
        torch.save(state, folder / f"Vit_b_16_{kind}_Level_{level}_state_dict_{name}.pth")
        if level == 1:
            continue
        tables: dict[str, dict[str, dict[str, list[int]]]] = {}
        for side, position in (("in", 1), ("out", 0)):
            for layer, groups in arch.layers.items():
                group = groups[position]
                if group is None:
                    continue
                n = arch.repeats.get(layer, 1) if side == "in" else 1
                below = kept[level - 2][group]
                gained = [i for i in kept[level - 1][group] if i not in set(below)]
                for kind, entries in (("pruned", gained), ("non_pruned", below)):
                    table = tables.setdefault(kind, {}).setdefault(side, {})
                    table[layer] = [i * n + j for i in entries for j in range(n)]
        if old:
            content: dict[str, object] = {"weights": {}} | {
                f"{kind}_index": [sides["in"], sides["out"]] for kind, sides in tables.items()
            }
        else:
            content = {"pruned_weights": {}, "non_pruned_weights": {}} | {
                f"{kind}_index_{side}": {k: torch.tensor(v) for k, v in table.items()}
                for kind, sides in tables.items()
                for side, table in sides.items()
            }
        torch.save(content, folder / f"{name}_pruning_metadata_Level_{level}.pth")


def _norm(state: State, name: str, width: int, generator: torch.Generator) -> None:
    state[f"{name}.weight"] = torch.rand(width, generator=generator) + 0.5
    state[f"{name}.bias"] = torch.randn(width, generator=generator) * 0.1


def _batchnorm(state: State, name: str, width: int, generator: torch.Generator) -> None:
    _norm(state, name, width, generator)
    state[f"{name}.running_mean"] = torch.randn(width, generator=generator) * 0.1
    state[f"{name}.running_var"] = torch.rand(width, generator=generator) + 0.5
    state[f"{name}.num_batches_tracked"] = torch.tensor(7)


def vit(
    depth: int, embed: int, inner: int, hidden: int, generator: torch.Generator
) -> Architecture:
    """A ViT for 16 x 16 images in patches of 4, 5 classes, with Hugging Face's names."""
    state: State = {}
    layers: dict[str, tuple[str | None, str | None]] = {}

    def linear(name: str, out: int, into: int, groups: tuple[str | None, str | None]) -> None:
        state[f"{name}.weight"] = torch.randn(out, into, generator=generator) * into**-0.5
        state[f"{name}.bias"] = torch.randn(out, generator=generator) * 0.1
        layers[name] = groups

    def norm(name: str) -> None:
        _norm(state, name, embed, generator)
        layers[name] = ("embed", None)

    loose = {"vit.embeddings.cls_token": 1, "vit.embeddings.position_embeddings": 17}
    for name, tokens in loose.items():
        state[name] = torch.randn(1, tokens, embed, generator=generator)
    patch = "vit.embeddings.patch_embeddings.projection"
    linear(patch, embed, 48, ("embed", None))
    state[f"{patch}.weight"] = state[f"{patch}.weight"].reshape(embed, 3, 4, 4)
    for i in range(depth):
        stem = f"vit.encoder.layer.{i}"
        for part in ("query", "key", "value"):
            linear(f"{stem}.attention.attention.{part}", inner, embed, (f"inner{i}", "embed"))
        linear(f"{stem}.attention.output.dense", embed, inner, ("embed", f"inner{i}"))
        linear(f"{stem}.intermediate.dense", hidden, embed, (f"hidden{i}", "embed"))
        linear(f"{stem}.output.dense", embed, hidden, ("embed", f"hidden{i}"))
        norm(f"{stem}.layernorm_before")
        norm(f"{stem}.layernorm_after")
    norm("vit.layernorm")
    linear("classifier", 5, embed, (None, "embed"))

    def own(name: str) -> bool:
        return bool(re.search(r"cls_token|position|classifier|layernorm\w*\.bias", name))

    return Architecture(state, layers, dict.fromkeys(loose, "embed"), own)


def run_vit(state: State, heads: int, x: Tensor) -> Tensor:
    """Logits of a ViT with Hugging Face's names; exact GELU, LayerNorm with 1e-12."""
    patch = "vit.embeddings.patch_embeddings.projection"
    x = F.conv2d(x, state[f"{patch}.weight"], state[f"{patch}.bias"], stride=4)
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([state["vit.embeddings.cls_token"].expand(len(x), -1, -1), x], dim=1)
    x = x + state["vit.embeddings.position_embeddings"]
    width = x.shape[-1]

    def linear(name: str, y: Tensor) -> Tensor:
        return F.linear(y, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name: str, y: Tensor) -> Tensor:
        return F.layer_norm(y, (width,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-12)

    i = 0
    while f"vit.encoder.layer.{i}.output.dense.weight" in state:
        stem = f"vit.encoder.layer.{i}"
        y = norm(f"{stem}.layernorm_before", x)
        q, k, v = (
            linear(f"{stem}.attention.attention.{part}", y)
            .unflatten(-1, (heads, -1))
            .transpose(1, 2)
            for part in ("query", "key", "value")
        )
        scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        x = x + linear(f"{stem}.attention.output.dense", (scores @ v).transpose(1, 2).flatten(2))
        y = F.gelu(linear(f"{stem}.intermediate.dense", norm(f"{stem}.layernorm_after", x)))
        x = x + linear(f"{stem}.output.dense", y)
        i += 1
    return linear("classifier", norm("vit.layernorm", x)[:, 0])


def resnet(depths: tuple[int, ...], generator: torch.Generator) -> Architecture:
    """A narrow bottleneck ResNet with torchvision's names and 5 classes."""
    state: State = {}
    layers: dict[str, tuple[str | None, str | None]] = {}

    def conv(
        name: str, norm: str, size: tuple[int, int, int], groups: tuple[str, str | None]
    ) -> None:
        out, into, kernel = size
        weight = torch.randn(out, into, kernel, kernel, generator=generator)
        state[f"{name}.weight"] = weight * (into * kernel**2) ** -0.5
        _batchnorm(state, norm, out, generator)
        layers[name], layers[norm] = groups, (groups[0], None)

    conv("conv1", "bn1", (8, 3, 7), ("stem", None))
    into, group = 8, "stem"
    for s, depth in enumerate(depths, 1):
        for b in range(depth):
            n, mid, out = f"layer{s}.{b}", 8 + 4 * b, 16
            conv(f"{n}.conv1", f"{n}.bn1", (mid, into, 1), (f"{n}.a", group))
            conv(f"{n}.conv2", f"{n}.bn2", (mid + 4, mid, 3), (f"{n}.b", f"{n}.a"))
            conv(f"{n}.conv3", f"{n}.bn3", (out, mid + 4, 1), (f"out{s}", f"{n}.b"))
            if not b:
                down = f"{n}.downsample"
                conv(f"{down}.0", f"{down}.1", (out, into, 1), (f"out{s}", group))
            into, group = out, f"out{s}"
    state["fc.weight"] = torch.randn(5, into, generator=generator)
    state["fc.bias"] = torch.randn(5, generator=generator)
    layers["fc"] = (None, group)
    return Architecture(
        state, layers, {}, lambda name: bool(re.search(r"bn|downsample\.1|fc", name))
    )


def run_resnet(state: State, x: Tensor) -> Tensor:
    """Logits of a bottleneck ResNet with torchvision's names."""

    def conv(name: str, norm: str, y: Tensor, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        y = F.conv2d(y, weight, None, stride, weight.shape[-1] // 2)
        return _run_batchnorm(state, norm, y)

    x = F.max_pool2d(F.relu(conv("conv1", "bn1", x, 2)), 3, 2, 1)
    blocks = sorted({n[: n.index(".conv3")] for n in state if ".conv3" in n})
    for n in blocks:
        stride = 2 if n.endswith(".0") and not n.startswith("layer1.") else 1
        skip = x
        if f"{n}.downsample.0.weight" in state:
            skip = conv(f"{n}.downsample.0", f"{n}.downsample.1", x, stride)
        y = F.relu(conv(f"{n}.conv1", f"{n}.bn1", x))
        y = F.relu(conv(f"{n}.conv2", f"{n}.bn2", y, stride))
        x = F.relu(conv(f"{n}.conv3", f"{n}.bn3", y) + skip)
    return F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


VGG16 = "CCMCCMCCCMCCCMCCCM"


def vgg(generator: torch.Generator) -> Architecture:
    """A narrow VGG-16 with BatchNorm, torchvision's names, and 5 classes."""
    state: State = {}
    layers: dict[str, tuple[str | None, str | None]] = {}
    place, into, group = 0, 3, None
    for item in VGG16:
        if item == "M":
            place += 1
            continue
        name, norm, out = f"features.{place}", f"features.{place + 1}", 8
        weight = torch.randn(out, into, 3, 3, generator=generator)
        state[f"{name}.weight"] = weight * (into * 4.5) ** -0.5
        state[f"{name}.bias"] = torch.randn(out, generator=generator) * 0.1
        _batchnorm(state, norm, out, generator)
        layers[name], layers[norm] = (name, group), (name, None)
        into, group, place = out, name, place + 3
    sizes = (8 * 49, 12, 12, 5)
    for i in range(3):
        name = f"classifier.{3 * i}"
        weight = torch.randn(sizes[i + 1], sizes[i], generator=generator)
        state[f"{name}.weight"] = weight * sizes[i] ** -0.5
        state[f"{name}.bias"] = torch.randn(sizes[i + 1], generator=generator)
    layers["classifier.0"] = (None, group)

    def own(name: str) -> bool:
        norm = name.startswith("features") and f"{name.rpartition('.')[0]}.running_var" in state
        return norm or name.startswith("classifier")

    return Architecture(state, layers, {}, own, {"classifier.0": 49})


def run_vgg(state: State, x: Tensor) -> Tensor:
    """Logits of VGG-16 with BatchNorm."""
    place = 0
    for item in VGG16:
        if item == "M":
            x, place = F.max_pool2d(x, 2), place + 1
            continue
        name = f"features.{place}"
        x = F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), padding=1)
        x, place = F.relu(_run_batchnorm(state, f"features.{place + 1}", x)), place + 3
    x = F.adaptive_avg_pool2d(x, 7).flatten(1)
    for i in (0, 3, 6):
        x = F.linear(x, state[f"classifier.{i}.weight"], state[f"classifier.{i}.bias"])
        x = F.relu(x) if i < 6 else x
    return x


def _run_batchnorm(state: State, name: str, x: Tensor) -> Tensor:
    return F.batch_norm(
        x,
        state[f"{name}.running_mean"],
        state[f"{name}.running_var"],
        state[f"{name}.weight"],
        state[f"{name}.bias"],
    )


def double(state: State) -> State:
    """Floating-point tensors in float64."""
    return {k: v.double() if v.is_floating_point() else v for k, v in state.items()}


def differences(found: Imported, run: Callable[[int, Tensor], Tensor], size: int) -> list[float]:
    """Of each level, the largest difference of logits relative to the largest, in float64."""
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(9)).double()
    errors = []
    for number in range(1, len(found.supernet.space.axes[0].choices) + 1):
        module = extract(found.supernet, found.supernet.spec(f"level{number}")).module.double()
        with torch.no_grad():
            wanted = run(number, x)
            errors.append(float((module(x) - wanted).abs().max() / wanted.abs().max()))
    return errors
