"""What the tests of plain checkpoints share: random values everywhere, and logits compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

from elastic_export.checkpoints import Imported, import_supernet
from elastic_export.elastic import extract
from elastic_export.elastic.fold import fold_batchnorm
from elastic_export.export import export_fp32

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-9}


def shaken(net: nn.Module) -> nn.Module:
    """Move every value, so that nothing is at its neutral start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in net.parameters():
            tensor.add_((torch.rand(tensor.shape, generator=generator) - 0.5) * 0.3)
        for name, tensor in net.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                tensor.add_(torch.rand(tensor.shape, generator=generator) * 0.3)
    return net.eval()


def logits_of(net: nn.Module, x: Tensor) -> Tensor:
    found = net(x)
    return found if isinstance(found, Tensor) else found.logits


def same_logits(
    net: nn.Module, path: Path, config: dict[str, Any], format: str = "auto"
) -> Imported:
    """Import a file and compare with the network it was written from, in both precisions."""
    found = import_supernet(path, config=config, format=format)
    supernet = found.supernet
    module = extract(supernet, supernet.space.max()).module
    x = torch.randn(2, *supernet.family.input_shape(supernet.config))
    for dtype, tolerance in TOLERANCES.items():
        with torch.no_grad():
            wanted = logits_of(net.to(dtype), x.to(dtype))
            got = module.to(dtype)(x.to(dtype))
        assert float((got - wanted).abs().max() / wanted.abs().max()) <= tolerance
    net.float()
    return found


def same_in_onnx(found: Imported, path: Path) -> None:
    """Export the network and run it in ONNX Runtime."""
    supernet = found.supernet
    module = extract(supernet, supernet.space.max()).module
    fold_batchnorm(module, supernet.family.fold_pairs(module))
    x = torch.randn(1, *supernet.family.input_shape(supernet.config))
    session = onnxruntime.InferenceSession(
        str(export_fp32(module, x, path).path), providers=["CPUExecutionProvider"]
    )
    got = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    with torch.no_grad():
        wanted = module(x)
    assert float((got - wanted).abs().max() / wanted.abs().max()) <= 1e-4


Make = Callable[[], nn.Module]
