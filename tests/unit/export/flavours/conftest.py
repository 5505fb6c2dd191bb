"""Every flavour of four small networks, written once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from elastic_export.export import EmitReport, emit, emit_fp16
from elastic_export.export.lowering import lower_file
from elastic_export.export.reference import rounded_like


@dataclass
class Written:
    """One file: the case it was made from, its form (``trt-weak@13``) and what `emit` said."""

    case: Any
    form: str
    path: Path
    report: EmitReport | None

    @property
    def flavour(self) -> str:
        return self.form.partition("@")[0]

    @property
    def opset(self) -> int:
        return int(self.form.partition("@")[2] or 20)

    def reference(self) -> nn.Module:
        """What the file must compute."""
        if self.report is None:
            return self.case.module
        return rounded_like(self.case.module, self.case.record, self.flavour)

    def logits(self) -> Any:
        """The reference's logits on the case's images."""
        with torch.no_grad():
            return self.reference()(self.case.images).numpy()


@pytest.fixture(scope="session")
def written(request: pytest.FixtureRequest, folder: Path) -> Callable[[str, str], Written]:
    """Writes a form of a network: ``written("swin", "trt-weak@13")``."""

    @cache
    def write(network: str, form: str) -> Written:
        case = request.getfixturevalue(network)
        flavour, _, number = form.partition("@")
        opset = int(number or 20)
        path = folder / f"{network}.{form}.onnx"
        report = None
        if flavour == "fp16":
            emit_fp16(case.exported.path, path, opset=opset)
        elif flavour == "plain" and number:
            lower_file(case.exported.path, path, opset)
        elif flavour == "plain":
            path = case.exported.path
        else:
            table, record = case.exported.table, case.record
            report = emit(flavour, case.exported.path, table, record, path, opset=opset)
        return Written(case, form, path, report)

    return write
