"""What a reader of one foreign format offers, and what it works with."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from torch import Tensor

from elastic_export.checkpoints.safe import LoadedCheckpoint, load_tensors
from elastic_export.elastic import Supernet
from elastic_export.errors import UserError
from elastic_export.space import Spec

__all__ = ["TRAINING", "Imported", "Keys", "Reader", "Source"]

TRAINING = dict.fromkeys(
    ("epoch", "lr_scheduler", "max_accuracy", "optimizer", "scaler", "scheduler", "step"),
    "state of the training, which the network does not need",
)
"""Entries of nearly every training checkpoint."""
_NOT_READ = "not part of the network that was read"

OfficialCounts = Callable[[Spec], Mapping[str, float]]


@dataclass
class Imported:
    """A supernet read from a file, with what was found in it.

    Attributes:
        supernet: Filled with the file's values.
        format: The reader that understood the file.
        system: What wrote it, in words.
        stored: Names of the tensor collections in the file, such as ``model`` and ``model_ema``.
        used: The collection the values come from; empty if there is only one.
        sparsity: Parameter name to the measured share of zeros, where at least 1 %.
        ignored: Key to the reason why it is not needed.
        notes: What a user should know: a convention that was assumed, a claim that was checked.
        official: The costs of a spec by the counter of the system, such as ``{"flops_m": 62.9}``;
            None where the system has none.
    """

    supernet: Supernet
    format: str
    system: str = ""
    stored: tuple[str, ...] = ()
    used: str = ""
    sparsity: dict[str, float] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    official: OfficialCounts | None = None


@dataclass(frozen=True)
class Source:
    """What a user hands in.

    Attributes:
        path: A file, or a folder for the systems that write several files.
        config: Settings as given: the system's own configuration, our family settings, or both.
        family: The family the user names; None to find it out.
    """

    path: Path
    config: Mapping[str, Any]
    family: str | None = None

    @cached_property
    def loaded(self) -> LoadedCheckpoint:
        """The file's content, read safely.

        Raises:
            UserError: It is no checkpoint, or a folder.
        """
        return load_tensors(self.path)

    @property
    def content(self) -> Any:
        """What the file holds; an empty dict for a folder."""
        return {} if self.path.is_dir() else self.loaded.content

    def keys(self) -> Collection[str]:
        """The top-level keys of a file that holds a dict; none otherwise."""
        return [str(key) for key in self.content] if isinstance(self.content, Mapping) else []

    @cached_property
    def names(self) -> list[frozenset[str]]:
        """Names in the file and in each collection within, without a leading ``module.``."""
        content = self.content
        if not isinstance(content, Mapping):
            return []
        groups = [content, *(value for value in content.values() if isinstance(value, Mapping))]
        return [frozenset(str(key).removeprefix("module.") for key in group) for group in groups]

    def split_config(
        self, theirs: Collection[str], options: Collection[str] = ()
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Part ``config`` into the system's own keys, options of the reader, and family settings.

        What is neither of the first two goes to the family, which refuses keys it does not know.
        """
        parts: tuple[dict[str, Any], dict[str, Any], dict[str, Any]] = ({}, {}, {})
        for key, value in self.config.items():
            parts[0 if key in theirs else 1 if key in options else 2][key] = value
        return parts


class Reader(ABC):
    """One file or folder per system derives from this and registers itself.

    Attributes:
        name: What ``--format`` and ``model.format`` call it.
        system: The system in words, with its paper or repository.
        reasons: Top-level entry of a file to the reason why it is not read as the network's
            tensors, beyond what :data:`TRAINING` says.
        companions: Shell patterns of other files in a file's folder that are read with it.
    """

    name: ClassVar[str]
    system: ClassVar[str]
    reasons: ClassVar[Mapping[str, str]] = MappingProxyType({})
    companions: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def claims(self, source: Source) -> bool:
        """Whether the file (or folder) is of this system, told by keys and never by its name."""

    @abstractmethod
    def read(self, source: Source) -> Imported:
        """Read it.

        Raises:
            UserError: Something is missing, does not fit, or is ambiguous; how to give it is said.
        """

    def left_out(self, source: Source, found: Imported) -> dict[str, str]:
        """Top-level entries of a file that are not the network's tensors, each with the reason."""
        content = source.content if source.path.is_file() else {}
        if not isinstance(content, Mapping):
            return {}
        entries = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
        return {
            name: self.reasons.get(name) or TRAINING.get(name) or _NOT_READ
            for name in entries
            if name != found.used and name not in found.ignored
        }


class Keys:
    """The tensors of a file, every one of which must be accounted for.

    Args:
        tensors: The state dict.
        path: The file, for messages.
    """

    def __init__(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        self._left = dict(tensors)
        self._path = path
        self.ignored: dict[str, str] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def __iter__(self) -> Any:
        return iter(list(self._left))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor that is still there.

        Raises:
            UserError: It is not in the file.
        """
        return tuple(self._get(name).shape)

    def take(self, name: str) -> Tensor:
        """Use a tensor.

        Raises:
            UserError: It is not in the file, or was used before.
        """
        tensor = self._get(name)
        del self._left[name]
        return tensor

    def ignore(self, pattern: str, reason: str) -> list[str]:
        """Leave out every key that a regular expression matches whole; the keys are returned."""
        names = [name for name in self._left if re.fullmatch(pattern, name)]
        for name in names:
            self.ignored[name] = reason
            del self._left[name]
        return names

    def rename(self, *rules: tuple[str, str]) -> dict[str, Tensor]:
        """Use every key that a rule matches whole, under its new name.

        Args:
            rules: A regular expression and its replacement; the first that matches a key counts.

        Raises:
            UserError: Two keys get the same name.
        """
        named: dict[str, Tensor] = {}
        for name in list(self._left):
            for pattern, new in rules:
                if re.fullmatch(pattern, name):
                    wanted = re.sub(pattern, new, name)
                    if wanted in named:
                        raise UserError(
                            f"{self._path} holds {wanted} twice, under different names.",
                            "Use a checkpoint of one network.",
                        )
                    named[wanted] = self._left.pop(name)
                    break
        return named

    def finish(self) -> dict[str, str]:
        """What was ignored and why.

        Raises:
            UserError: A key was neither used nor ignored.
        """
        if self._left:
            names = list(self._left)
            listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            raise UserError(
                f"{self._path} holds {len(names)} tensors this reader does not know: {listed}.",
                "The file is of another system or version; inspect it, or name the format.",
            )
        return self.ignored

    def _get(self, name: str) -> Tensor:
        if name not in self._left:
            raise UserError(
                f"{self._path} has no tensor {name}.",
                "The file is incomplete or of another system; inspect tells what it holds.",
            )
        return self._left[name]
