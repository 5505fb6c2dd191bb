"""The space of a family: its axes, what is canonical, and sampling over whole populations."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from elastic_export.errors import UserError, did_you_mean
from elastic_export.space.axes import Axis, Value
from elastic_export.space.spec import Spec

__all__ = ["Space"]


class Space:
    """Axes in a fixed order; a population is a matrix of choice indices, one row a descendant.

    A gene row holds, for each axis, the index of its choice. Genes of inactive parts (blocks
    beyond the depth) are index 0, so that equal networks have equal rows.

    Args:
        axes: The axes; an axis that others depend on must come before them.
    """

    def __init__(self, axes: Sequence[Axis]) -> None:
        self.axes = tuple(axes)
        self.index = {axis.name: i for i, axis in enumerate(self.axes)}
        if len(self.index) != len(self.axes):
            raise ValueError("two axes have the same name")
        self.counts = np.array([len(axis.choices) for axis in self.axes], dtype=np.int64)
        for i, axis in enumerate(self.axes):
            if axis.when is not None and self.index.get(axis.when[0], i) >= i:
                raise ValueError(f"axis {axis.name} depends on {axis.when[0]}, not before it")
        text = json.dumps([[a.name, a.choices, a.when] for a in self.axes])
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:12]

    def min(self) -> Spec:
        """The smallest descendant: the first choice of every axis."""
        return self.decode(np.zeros(len(self.axes), dtype=np.int64))

    def max(self) -> Spec:
        """The largest descendant: the last choice of every axis."""
        return self.decode(self.counts - 1)

    def sample(self, rng: np.random.Generator) -> Spec:
        """Draw one spec, every axis uniformly."""
        return self.decode(self.sample_genes(rng, 1)[0])

    def sample_genes(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Draw ``n`` gene rows: int64 array (n, axes), canonical."""
        return self.canonical_genes(rng.integers(0, self.counts, size=(n, len(self.axes))))

    def active(self, genes: np.ndarray) -> np.ndarray:
        """Tell which genes matter: bool array of the shape of ``genes`` (n, axes)."""
        genes = np.atleast_2d(genes)
        mask = np.ones(genes.shape, dtype=bool)
        for i, axis in enumerate(self.axes):
            if axis.when is not None:
                parent = self.index[axis.when[0]]
                values = np.asarray(self.axes[parent].choices)[genes[:, parent]]
                mask[:, i] = mask[:, parent] & (values > axis.when[1])
        return mask

    def canonical_genes(self, genes: np.ndarray) -> np.ndarray:
        """Set the genes of inactive parts to index 0; int64 array (n, axes)."""
        genes = np.atleast_2d(np.asarray(genes, dtype=np.int64))
        if genes.shape[1] != len(self.axes):
            raise ValueError(f"a row needs {len(self.axes)} genes, got {genes.shape[1]}")
        if (genes < 0).any() or (genes >= self.counts).any():
            raise ValueError("a gene is outside its axis' choices")
        return np.where(self.active(genes), genes, 0)

    def decode(self, row: np.ndarray) -> Spec:
        """Turn one gene row (axes,) into a spec."""
        row = self.canonical_genes(row)[0]
        live = self.active(row)[0]
        genes = {axis.name: axis.choices[row[i]] for i, axis in enumerate(self.axes) if live[i]}
        return Spec(genes, self.fingerprint)

    def encode(self, spec: Mapping[str, Value]) -> np.ndarray:
        """Turn a canonical spec into its gene row (axes,) int64."""
        row = np.zeros(len(self.axes), dtype=np.int64)
        for name, value in spec.items():
            row[self.index[name]] = self.axes[self.index[name]].choices.index(value)
        return row

    def values(self, genes: np.ndarray, name: str) -> np.ndarray:
        """The values of one axis for a population: array (n,) of the choices' type."""
        column = self.index[name]
        return np.asarray(self.axes[column].choices)[np.atleast_2d(genes)[:, column]]

    def canonical(self, choices: Mapping[str, Any]) -> Spec:
        """Check what a user wrote and make it a spec; axes not named take their largest choice.

        A short name sets all axes of that kind: ``{"heads": 4}`` every block's heads,
        ``{"heads": [4, 4, 2]}`` the first three blocks'. Choices for inactive parts are dropped.

        Raises:
            UserError: An axis is unknown, a value is not among its choices, or a list is too long.
        """
        row = self.counts - 1
        shorts = sorted({axis.short for axis in self.axes})
        for name, value in choices.items():
            named = [self.index[name]] if name in self.index else []
            group = named or [i for i, axis in enumerate(self.axes) if axis.short == name]
            if not group:
                raise UserError(
                    f'This space has no axis "{name}".',
                    did_you_mean(str(name), sorted({*self.index, *shorts})),
                )
            values = list(value) if isinstance(value, list | tuple) else [value] * len(group)
            if len(values) > len(group):
                raise UserError(
                    f'"{name}" lists {len(values)} values, but only {len(group)} places exist.',
                    "Shorten the list.",
                )
            for column, item in zip(group, values, strict=False):
                row[column] = self._choice(self.axes[column], item)
        return self.decode(row)

    @staticmethod
    def _choice(axis: Axis, value: Any) -> int:
        for i, choice in enumerate(axis.choices):
            if choice == value and isinstance(choice, str) == isinstance(value, str):
                return i
        raise UserError(
            f"{axis.name} cannot be {value!r} in this space.",
            f"Choose one of {', '.join(str(c) for c in axis.choices)}.",
        )

    def describe(self) -> dict[str, list[Value]]:
        """Axis name to its choices, for ``inspect`` and reports."""
        return {axis.name: list(axis.choices) for axis in self.axes}
