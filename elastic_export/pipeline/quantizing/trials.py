"""Files to try out before anything is exported: one network, as one target would get it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from torch import Tensor, nn

from elastic_export.config.targets import ResolvedTarget
from elastic_export.export import Exported, emit, export_fp32
from elastic_export.quantize.record import AttentionPrecision, QuantizationRecord

__all__ = ["Trials", "int8_flavour"]


def int8_flavour(target: ResolvedTarget) -> str:
    """The form in which a target runs INT8."""
    return target.flavours["int8"]


class Trials:
    """Writes FP32 and INT8 files of one network into a folder that is thrown away.

    Args:
        module: The plain module.
        sample: The batch that a run of the files takes, (B, C, H, W).
        target: Whose flavour and opset.
        attention: The form of the attention products.
        folder: Where the files go.
    """

    def __init__(
        self,
        module: nn.Module,
        sample: Tensor,
        target: ResolvedTarget,
        attention: AttentionPrecision,
        folder: Path,
    ) -> None:
        self.module = module
        self.sample = sample
        self._target = target
        self._attention = attention
        self._folder = folder

    @cached_property
    def _exported(self) -> Exported:
        self._folder.mkdir(parents=True, exist_ok=True)
        return export_fp32(self.module, self.sample, self._folder / "fp32.onnx")

    @property
    def fp32(self) -> Path:
        """The file in floating point, written when first asked for."""
        return self._exported.path

    def int8(self, record: QuantizationRecord, name: str) -> Path:
        """Write the file that a record gives, over an earlier one of that name."""
        path = self._folder / f"{name}.int8.onnx"
        flavour = self._target.flavours["int8"]
        assert flavour != "plain"
        emit(
            flavour,
            self.fp32,
            self._exported.table,
            record,
            path,
            opset=min(self._exported.opset, self._target.software.max_opset),
            without=self._target.software.lacks,
            attention=self._attention,
        )
        return path
