"""A spec is one choice per axis: canonical, hashable, the same everywhere it is written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping

from elastic_export.errors import UserError
from elastic_export.space.axes import Value

__all__ = ["Spec"]


class Spec(Mapping[str, Value]):
    """The genes of one descendant, without those of inactive parts.

    Build one through :meth:`Space.canonical`, which checks it. Two specs that describe the same
    network are equal, hash alike and have the same ``id``.

    Args:
        genes: Axis name to value.
        fingerprint: The fingerprint of the space the genes belong to.
    """

    __slots__ = ("_genes", "_id", "fingerprint")

    def __init__(self, genes: Mapping[str, Value], fingerprint: str) -> None:
        self._genes = dict(sorted(genes.items()))
        self.fingerprint = fingerprint
        text = json.dumps([self.fingerprint, self._genes], separators=(",", ":"))
        self._id = hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits of SHA-256 over the genes and the space's fingerprint."""
        return self._id

    def to_json(self) -> str:
        """Write the spec; :meth:`from_json` gives an equal one back."""
        return json.dumps({"fingerprint": self.fingerprint, "genes": self._genes})

    @classmethod
    def from_json(cls, text: str) -> Spec:
        """Read what :meth:`to_json` wrote.

        Raises:
            UserError: The text is not a spec.
        """
        try:
            raw = json.loads(text)
            genes, fingerprint = raw["genes"], raw["fingerprint"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"This is not a spec: {text[:60]!r}.",
                "Give the JSON that the tool wrote, or write the choices into the recipe.",
            ) from error
        return cls(genes, fingerprint)

    def __getitem__(self, name: str) -> Value:
        return self._genes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._genes)

    def __len__(self) -> int:
        return len(self._genes)

    def __hash__(self) -> int:
        return hash(self._id)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Spec):
            return NotImplemented
        return self._id == other._id

    def __repr__(self) -> str:
        return f"Spec({self._id}, {self._genes})"
