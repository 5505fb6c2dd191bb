"""An axis is one choice a supernet leaves open."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Axis", "Value"]

Value = int | float | str


@dataclass(frozen=True)
class Axis:
    """One choice, its values ordered from the smallest network to the largest.

    Args:
        name: Dotted path, ``depth`` or ``blocks.3.heads``.
        choices: Allowed values; the first makes the smallest network.
        when: ``(axis, number)``: the choice exists only where that axis' value exceeds the number,
            as ``("depth", 3)`` for the fourth block. None: always.
    """

    name: str
    choices: tuple[Value, ...]
    when: tuple[str, int] | None = None

    def __post_init__(self) -> None:
        if not self.choices:
            raise ValueError(f"axis {self.name} has no choices")
        if len(set(self.choices)) != len(self.choices):
            raise ValueError(f"axis {self.name} lists a choice twice: {self.choices}")

    @property
    def short(self) -> str:
        """The last part of the name, by which a recipe may set all axes of a kind at once."""
        return self.name.rsplit(".", 1)[-1]
