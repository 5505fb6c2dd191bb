"""The networks of the latency anchors, as layer lists; each is exported once and then kept."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from elastic_export.config.fused_layer import FusedLayer
from elastic_export.export import export_fp32
from elastic_export.export.fused_layers import fused_layers

__all__ = ["network_layers"]


def network_layers(model: str, size: int, cache: Path, *, turing: bool) -> list[FusedLayer]:
    """Return the layers of one image through a network of timm, or ``yolov8n``.

    Args:
        model: Its name.
        size: Of the image.
        cache: A folder where the layers are kept.
        turing: See ``fused_layers``.
    """
    kept = cache / f"{model}-{size}{'' if turing else '-old'}.json"
    if not kept.is_file():
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            module = _build(model, size).eval()
            path = Path(folder) / "model.onnx"
            export_fp32(module, torch.zeros(1, 3, size, size), path)
            found = [layer.model_dump(mode="json") for layer in fused_layers(path, turing=turing)]
        cache.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(found))
    return [FusedLayer.model_validate(entry) for entry in json.loads(kept.read_text())]


def _build(model: str, size: int) -> nn.Module:
    if model == "yolov8n":
        return YoloV8Nano()
    network: nn.Module = timm.create_model(model)
    return network


class _Conv(nn.Sequential):
    def __init__(self, into: int, out: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(into, out, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(out),
            nn.SiLU(),
        )


class _Split(nn.Module):
    """Half of the channels pass through ``depth`` pairs of 3x3; every stage is kept and joined."""

    def __init__(self, into: int, out: int, depth: int, shortcut: bool) -> None:
        super().__init__()
        half = out // 2
        self.first, self.last = _Conv(into, out), _Conv((2 + depth) * half, out)
        self.pairs = nn.ModuleList(
            nn.Sequential(_Conv(half, half, 3), _Conv(half, half, 3)) for _ in range(depth)
        )
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).chunk(2, 1))
        for pair in self.pairs:
            made = pair(parts[-1])
            parts.append(parts[-1] + made if self.shortcut else made)
        return self.last(torch.cat(parts, 1))


class _Pyramid(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = _Conv(width, width // 2), _Conv(2 * width, width)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.first(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        return self.last(torch.cat(parts, 1))


class YoloV8Nano(nn.Module):
    """The layers of YOLOv8n (3.2 M parameters, 4.4 GMAC at 640) up to its raw outputs."""

    def __init__(self, classes: int = 80) -> None:
        super().__init__()
        self.stem = nn.Sequential(_Conv(3, 16, 3, 2), _Conv(16, 32, 3, 2), _Split(32, 32, 1, True))
        self.p3 = nn.Sequential(_Conv(32, 64, 3, 2), _Split(64, 64, 2, True))
        self.p4 = nn.Sequential(_Conv(64, 128, 3, 2), _Split(128, 128, 2, True))
        self.p5 = nn.Sequential(_Conv(128, 256, 3, 2), _Split(256, 256, 1, True), _Pyramid(256))
        self.up = nn.Upsample(scale_factor=2)
        self.up4, self.up3 = _Split(384, 128, 1, False), _Split(192, 64, 1, False)
        self.down3, self.down4 = _Conv(64, 64, 3, 2), _Conv(128, 128, 3, 2)
        self.out4, self.out5 = _Split(192, 128, 1, False), _Split(384, 256, 1, False)
        self.boxes = nn.ModuleList(_head(width, 64, 64) for width in (64, 128, 256))
        self.classes = nn.ModuleList(_head(width, 80, classes) for width in (64, 128, 256))

    def forward(self, x: Tensor) -> Tensor:
        p3 = self.p3(self.stem(x))
        p4 = self.p4(p3)
        p5 = self.p5(p4)
        mid4 = self.up4(torch.cat([self.up(p5), p4], 1))
        out3 = self.up3(torch.cat([self.up(mid4), p3], 1))
        out4 = self.out4(torch.cat([self.down3(out3), mid4], 1))
        out5 = self.out5(torch.cat([self.down4(out4), p5], 1))
        found = [
            torch.cat([box(level), kind(level)], 1).flatten(2)
            for box, kind, level in zip(self.boxes, self.classes, (out3, out4, out5), strict=True)
        ]
        return torch.cat(found, 2)


def _head(into: int, width: int, out: int) -> nn.Sequential:
    return nn.Sequential(_Conv(into, width, 3), _Conv(width, width, 3), nn.Conv2d(width, out, 1))
