"""Readers of plain networks: timm, torchvision, Hugging Face, and timm's models by name."""

from elastic_export.checkpoints.plain.huggingface import HuggingFaceReader
from elastic_export.checkpoints.plain.timm import TimmReader
from elastic_export.checkpoints.plain.timm_models import TimmModelReader
from elastic_export.checkpoints.plain.torchvision import TorchvisionReader

__all__ = ["HuggingFaceReader", "TimmModelReader", "TimmReader", "TorchvisionReader"]
