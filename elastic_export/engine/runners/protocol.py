"""What every runner offers."""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray

__all__ = ["Runner"]


class Runner(Protocol):
    """Something that executes a network."""

    name: str

    def run(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return the logits ``(B, classes)`` of a batch ``(B, C, H, W)``.

        On a GPU this includes the way there and back.

        Raises:
            UserError: Shape or type of ``x`` is not what the network takes.
        """

    def describe(self) -> dict[str, Any]:
        """Say what runs and how, in plain values: runner, version, device, precision, options."""
