"""Run any descendant of a supernet on views of the shared parameters."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from elastic_export.config.base import Schema
from elastic_export.elastic.family import Family
from elastic_export.elastic.recalibrate import written_buffers
from elastic_export.elastic.rules import Rule
from elastic_export.elastic.store import ParameterStore
from elastic_export.errors import UserError, did_you_mean
from elastic_export.space import Costs, Space, Spec

__all__ = ["Active", "Supernet", "resized", "resolve_spec"]

# A skeleton holds no memory to speak of; the bound keeps the Python objects of a long search small.
_CACHED_SPECS = 256


@dataclass(frozen=True)
class Active:
    """What a spec needs to run.

    Attributes:
        skeleton: Its plain module on meta.
        rules: How each of its tensors is read.
        written: Buffers that training writes and whose rule is a copy, so that the values must be
            written back.
    """

    skeleton: nn.Module
    rules: Mapping[str, Rule]
    written: tuple[str, ...]


class Supernet:
    """A family, its config, and the parameter store.

    Not an ``nn.Module`` on purpose: skeletons are cached here and must not appear among its
    children. ``forward`` runs a spec's plain module with ``torch.func.functional_call`` on what
    the slice rules read, so gradients and BatchNorm statistics flow into the store.
    """

    def __init__(self, family: Family, config: Schema, store: ParameterStore) -> None:
        self.family = family
        self.config = config
        self.space: Space = family.space(config)
        self.store = store
        self.training = False
        self._cache: OrderedDict[Spec, Active] = OrderedDict()

    @classmethod
    def create(cls, family: Family, config: Schema, *, seed: int = 0) -> Supernet:
        """Make a supernet with the family's starting values, a function of ``seed`` alone."""
        module = family.stored(config).to_empty(device="cpu")
        generator = torch.Generator().manual_seed(seed)
        family.initialise(config, module, generator)
        return cls(family, config, ParameterStore.of_module(module))

    @classmethod
    def of_state(cls, family: Family, config: Schema, state: Mapping[str, Tensor]) -> Supernet:
        """Make a supernet of given tensors, which are kept, not copied.

        Raises:
            UserError: A name is missing, unknown, or has another shape.
        """
        return cls(family, config, ParameterStore.of_state(family.stored(config), state))

    def activate(self, spec: Spec) -> Active:
        """The skeleton and rules of a spec, from the cache where possible."""
        active = self._cache.get(spec)
        if active is None:
            skeleton = self.family.skeleton(self.config, spec)
            rules = self.family.rules(self.config, spec, skeleton)
            written = tuple(n for n in written_buffers(skeleton) if not rules[n].is_view)
            active = self._cache[spec] = Active(skeleton, rules, written)
            if len(self._cache) > _CACHED_SPECS:
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end(spec)
        return active

    def forward(self, spec: Spec, x: Tensor) -> Tensor:
        """Logits (B, classes) of a descendant for images ``x`` (B, C, H, W) float.

        Images of another size than the descendant reads are resized first, as the final step of
        the families with a resolution axis is.
        """
        active = self.activate(spec)
        x = resized(x, self.family.input_shape(self.config, spec)[1])
        active.skeleton.train(self.training)
        store = self.store.tensors
        tensors = {name: rule.read(store) for name, rule in active.rules.items()}
        logits = functional_call(active.skeleton, tensors, (x,), strict=True)
        if self.training:
            for name in active.written:
                active.rules[name].write_back(store, tensors[name])
        return logits

    __call__ = forward

    def train(self, mode: bool = True) -> Supernet:
        """Choose train or eval mode for the next forwards."""
        self.training = mode
        return self

    def eval(self) -> Supernet:
        """Choose eval mode for the next forwards."""
        return self.train(False)

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> Supernet:
        """Move the store."""
        self.store.to(device, dtype)
        return self

    def parameters(self) -> Iterator[nn.Parameter]:
        """The shared parameters."""
        yield from self.store.parameters.values()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The shared parameters with their names."""
        yield from self.store.named_parameters()

    def state_dict(self) -> dict[str, Tensor]:
        """All shared tensors, detached."""
        return self.store.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load all shared tensors; see :meth:`ParameterStore.load_state_dict`."""
        self.store.load_state_dict(state)

    def costs_of_genes(self, genes: np.ndarray) -> Costs:
        """Closed-form costs of gene rows (n, axes)."""
        return self.family.costs(self.config, self.space, self.space.canonical_genes(genes))

    def costs(self, specs: Sequence[Spec]) -> Costs:
        """Closed-form costs of specs."""
        return self.costs_of_genes(np.stack([self.space.encode(spec) for spec in specs]))

    def describe(self) -> dict[str, Any]:
        """What ``inspect`` and the report say about this supernet."""
        ends = self.costs([self.space.min(), self.space.max()])
        return {
            "family": self.family.name,
            "config": self.config.model_dump(mode="json"),
            "axes": self.space.describe(),
            "fingerprint": self.space.fingerprint,
            "params": sum(p.numel() for p in self.parameters()),
            "macs": [int(ends.macs[0]), int(ends.macs[1])],
            "named_specs": ["min", "max", *self.family.named_specs(self.config)],
        }

    def spec(self, wanted: str | Mapping[str, Any]) -> Spec:
        """Resolve a spec of this supernet; see :func:`resolve_spec`."""
        return resolve_spec(self.family, self.config, wanted)


def resized(x: Tensor, size: int) -> Tensor:
    """Images (B, C, H, W) at ``size`` x ``size`` pixels, bicubic without antialiasing."""
    if x.shape[-1] == size and x.shape[-2] == size:
        return x
    return F.interpolate(x, size=(size, size), mode="bicubic", align_corners=False)


def resolve_spec(family: Family, config: Schema, wanted: str | Mapping[str, Any]) -> Spec:
    """Resolve ``min``, ``max``, a named spec, or a mapping of choices.

    Raises:
        UserError: The name or a choice is unknown.
    """
    space = family.space(config)
    if isinstance(wanted, Mapping):
        return space.canonical(wanted)
    if wanted in ("min", "max"):
        return space.min() if wanted == "min" else space.max()
    named = family.named_specs(config)
    if wanted not in named:
        raise UserError(
            f'This supernet has no spec named "{wanted}".',
            did_you_mean(wanted, ["min", "max", *named]),
        )
    return space.canonical(named[wanted])
