"""Extraction: copy what the slice rules read into a plain module of its own."""

from __future__ import annotations

import torch

from elastic_export.elastic.descendant import Descendant
from elastic_export.elastic.macs import count_macs
from elastic_export.elastic.supernet import Supernet
from elastic_export.errors import CheckFailed
from elastic_export.space import Spec
from elastic_export.sparsity import check_patterns

__all__ = ["extract"]


def extract(supernet: Supernet, spec: Spec, *, copy: bool = True) -> Descendant:
    """Copy one descendant out of the supernet.

    Args:
        supernet: What to extract from.
        spec: Which descendant.
        copy: False lets tensors share the supernet's memory, for a supernet that is not used any
            more.

    Returns:
        A descendant whose module computes what :meth:`Supernet.forward` computes for ``spec``.

    Raises:
        CheckFailed: A tensor is not filled or not finite, a pattern does not hold, or the MACs
            and parameters differ from the space's closed form.
    """
    rules = supernet.activate(spec).rules
    with torch.no_grad():
        read = {name: r.read(supernet.store.tensors).detach() for name, r in rules.items()}
        state = {name: tensor.clone() for name, tensor in read.items()} if copy else read
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckFailed(
                f"{name} of the extracted network holds a value that is not a number.",
                "Check the checkpoint, or train again with a lower learning rate.",
            )
    module = supernet.family.skeleton(supernet.config, spec)
    module.load_state_dict(state, strict=True, assign=True)
    module.requires_grad_(True).eval()
    patterns = supernet.family.patterns(supernet.config, spec)
    check_patterns(state, patterns)
    _check_costs(supernet, spec)
    return Descendant(
        family=supernet.family.name,
        config=supernet.config.model_dump(mode="json"),
        genes=dict(spec),
        spec_id=spec.id,
        module=module,
        patterns=patterns,
    )


def _check_costs(supernet: Supernet, spec: Spec) -> None:
    closed = supernet.costs([spec])
    skeleton = supernet.activate(spec).skeleton
    counted = count_macs(skeleton, supernet.family.input_shape(supernet.config, spec)).total
    params = sum(p.numel() for p in skeleton.parameters())
    if counted != closed.macs[0] or params != closed.params[0]:
        raise CheckFailed(
            f"The extracted network has {counted} MACs and {params} parameters, "
            f"but its space says {closed.macs[0]} and {closed.params[0]}.",
            "The family's closed form is wrong; please report it with the spec.",
        )
