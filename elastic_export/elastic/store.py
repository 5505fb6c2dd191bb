"""The parameter store: the tensors all descendants of a supernet share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from elastic_export.errors import UserError

__all__ = ["ParameterStore"]


class ParameterStore:
    """Named parameters and buffers of a supernet, in a fixed order.

    Args:
        parameters: Learnable tensors, float.
        buffers: Statistics that training writes, such as BatchNorm's.
    """

    def __init__(self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
        self.parameters = {
            name: nn.Parameter(tensor.detach()) for name, tensor in parameters.items()
        }
        self.buffers = {name: tensor.detach() for name, tensor in buffers.items()}
        self._tensors: dict[str, Tensor] = {**self.parameters, **self.buffers}

    @classmethod
    def of_module(cls, module: nn.Module) -> ParameterStore:
        """Take the tensors of a module over; they are shared with it from then on."""
        return cls(dict(module.named_parameters()), dict(module.named_buffers()))

    @classmethod
    def of_state(cls, stored: nn.Module, state: Mapping[str, Tensor]) -> ParameterStore:
        """Take given tensors over, without a copy where the dtype is already right.

        Args:
            stored: On meta; says which tensors there must be, their shapes and dtypes.
            state: Every one of them, and no other.

        Raises:
            UserError: A name is missing, unknown, or has another shape.
        """
        wanted = dict(stored.named_parameters()) | dict(stored.named_buffers())
        _check(wanted, state)
        fitting = {name: state[name].to(tensor.dtype) for name, tensor in wanted.items()}
        names = dict(stored.named_parameters())
        return cls(
            {name: fitting[name] for name in names},
            {name: tensor for name, tensor in fitting.items() if name not in names},
        )

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name; the live ones, not copies."""
        return self._tensors

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and learnable tensors, in order."""
        yield from self.parameters.items()

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> None:
        """Move every tensor; floating-point ones also change to ``dtype`` where given."""
        for parameter in self.parameters.values():
            parameter.data = parameter.data.to(device=device, dtype=dtype)
            parameter.grad = None
        for name, buffer in self.buffers.items():
            kind = dtype if buffer.is_floating_point() else None
            self.buffers[name] = buffer.to(device=device, dtype=kind)
        self._tensors = {**self.parameters, **self.buffers}

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors, detached but not copied."""
        return {name: tensor.detach() for name, tensor in self._tensors.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy values in; every name must be there with its shape, and no other.

        Raises:
            UserError: A name is missing, unknown, or has another shape. Nothing is changed then.
        """
        _check(self._tensors, state)
        with torch.no_grad():
            for name, tensor in self._tensors.items():
                tensor.copy_(state[name])


def _check(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    missing = sorted(wanted.keys() - state.keys())
    unknown = sorted(state.keys() - wanted.keys())
    if missing or unknown:
        said = [f"{len(missing)} are missing ({', '.join(missing[:3])})"] if missing else []
        said += [f"{len(unknown)} are unknown ({', '.join(unknown[:3])})"] if unknown else []
        raise UserError(
            f"The checkpoint's tensors do not fit this supernet: {' and '.join(said)}.",
            "Check model.family and model.config against the checkpoint.",
        )
    for name, tensor in wanted.items():
        if tuple(state[name].shape) != tuple(tensor.shape):
            raise UserError(
                f"{name} has shape {tuple(state[name].shape)} in the checkpoint, "
                f"but this supernet needs {tuple(tensor.shape)}.",
                "Check the sizes in model.config against the checkpoint.",
            )
