"""What ELSA's configuration says: sizes, per-layer candidates, subnets.

Keys are those of ``config.py`` of ningchihuang/ELSA (yacs). A configuration lies in a training
checkpoint, in a YAML file, or in both. A subnet is a flat list of [N, M], N of M values kept, in
the order in which ELSA's modules are registered: ``proj`` before ``qkv``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from elastic_export.errors import UserError
from elastic_export.space import density

__all__ = ["KEYS", "ORDER", "Choices", "choices_of", "merged_config", "parse_subnet", "section_of"]

KEYS = (
    *("BASE", "DATA", "MODEL", "DISTILL", "TRAIN", "NAS", "AUG", "TEST"),
    *("AMP_ENABLE", "OUTPUT", "TAG", "SAVE_FREQ", "PRINT_FREQ", "SEED"),
    *("EVAL_MODE", "THROUGHPUT_MODE", "LOCAL_RANK", "FUSED_WINDOW_PROCESS"),
)
ORDER = ("attn.proj", "attn.qkv", "mlp.fc1", "mlp.fc2")
"""A block's layers in the order of ELSA's lists."""

_SECTIONS = {"vit": "DEIT", "swin": "SWIN"}
_TYPES = {"sparse_deit": "vit", "deit": "vit", "sparse_swin": "swin", "swin": "swin"}
_ORDER_ADVICE = (
    "Give one [N, M] for each layer, in the order proj, qkv, fc1, fc2 of block after block."
)


@dataclass(frozen=True)
class Choices:
    """What each layer may be, and the subnets with a name.

    Attributes:
        of: Layer to its patterns, from sparse to dense.
        named: Name to one pattern a layer.
        only: The one subnet the user gives or SEARCH_SPACE leaves, if there is one.
    """

    of: Mapping[str, tuple[str, ...]]
    named: Mapping[str, tuple[str, ...]]
    only: tuple[str, ...] | None = None


def merged_config(
    stored: Mapping[str, Any], given: Mapping[str, Any], family: str
) -> dict[str, Any]:
    """What is given laid over what is stored; the word "None" becomes None.

    Args:
        stored: The configuration in the checkpoint; empty if there is none.
        given: The one the user gives.
        family: ``vit`` or ``swin``, as the names of the tensors tell.

    Raises:
        UserError: A section is no mapping, a size differs between the two, or the type of model
            is another one.
    """
    stored, given = _plain(stored), _plain(given)
    for config in (stored, given):
        kind = section_of(config, "MODEL").get("TYPE")
        if kind is not None and _TYPES.get(str(kind)) != family:
            raise UserError(
                f"MODEL.TYPE is {kind} in the ELSA configuration, but the tensors are those of a "
                f"{_SECTIONS[family]}.",
                f"Give the configuration of this checkpoint; types that are read are "
                f"{', '.join(_TYPES)}.",
            )
    for path in (("MODEL", _SECTIONS[family]), ("DATA",), ("MODEL",)):
        old, new = section_of(stored, *path), section_of(given, *path)
        for key in old.keys() & new.keys():
            architecture = len(path) == 2 or key in ("IMG_SIZE", "NUM_CLASSES")
            if architecture and old[key] != new[key]:
                raise UserError(
                    f"{'.'.join((*path, key))} is {new[key]} in the configuration given, but "
                    f"{old[key]} in the one stored in the checkpoint.",
                    "Give the configuration this checkpoint was trained with, or none.",
                )
    return _over(stored, given)


def section_of(config: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    """A section of a configuration; empty where it is missing.

    Raises:
        UserError: Something else stands in its place.
    """
    found: Any = config
    for i, key in enumerate(path):
        found = found.get(key)
        if found is None:
            return {}
        if not isinstance(found, Mapping):
            raise UserError(
                f"{'.'.join(path[: i + 1])} is {found!r} in the ELSA configuration, where a "
                "section is wanted.",
                "Correct the YAML file.",
            )
    return dict(found)


def parse_subnet(value: Any, what: str, layers: Sequence[str]) -> tuple[str, ...]:
    """Read a flat list of [N, M]; ``[4, 4]`` is dense.

    Raises:
        UserError: It is no such list, or has not one entry a layer. The official code ignores what
            is too much or too little.
    """
    if not isinstance(value, list | tuple):
        raise UserError(f"{what} is {value!r}, where a list of [N, M] is wanted.", _ORDER_ADVICE)
    _check_length(value, what, layers)
    return tuple(_pattern(pair, what) for pair in value)


def choices_of(
    config: Mapping[str, Any],
    subnet: Any,
    extra: Mapping[str, Sequence[str]],
    layers: Sequence[str],
) -> Choices:
    """Patterns of each layer: SEARCH_SPACE, those of the subnets with a name, and dense.

    Masks are found in shared dense weights, so any subnet a configuration names can be had, and the
    dense network always.

    Args:
        config: The configuration; may be empty.
        subnet: A subnet the user gives beside it, or None.
        extra: Further patterns of a layer.
        layers: All layers that may be sparse, in ELSA's order.

    Raises:
        UserError: A list is not what it should be.
    """
    nas = section_of(config, "NAS")
    tests = section_of(config, "NAS", "TEST_CONFIG")
    named: dict[str, tuple[str, ...]] = {}
    for name, value, what in (
        ("init_config", nas.get("INIT_CONFIG"), "NAS.INIT_CONFIG"),
        ("test_subnet", tests.get("TEST_SUBNET"), "NAS.TEST_CONFIG.TEST_SUBNET"),
        ("subnet", subnet, "subnet"),
    ):
        if value is not None and value != []:
            named[name] = parse_subnet(value, what, layers)
    space = _search_space(nas.get("SEARCH_SPACE") or [], layers)
    uniform = tests.get("UNIFORM_SUBNETS") or []
    if not isinstance(uniform, list | tuple):
        uniform = [uniform]
    everywhere = [_pattern(pair, "NAS.TEST_CONFIG.UNIFORM_SUBNETS") for pair in uniform]
    of = {}
    for i, layer in enumerate(layers):
        found = [*space[i], *(patterns[i] for patterns in named.values()), *everywhere, "dense"]
        of[layer] = tuple(sorted({*found, *extra.get(layer, ())}, key=lambda p: (density(p), p)))
    shared = set.intersection(*(set(patterns) for patterns in of.values()))
    for pattern in sorted(shared, key=density):
        name = "dense" if pattern == "dense" else f"uniform_{pattern.replace(':', '_')}"
        named[name] = (pattern,) * len(layers)
    single = all(len(candidates) == 1 for candidates in space)
    fixed = tuple(candidates[0] for candidates in space) if single else None
    return Choices(of, named, named.get("subnet", fixed))


def _search_space(value: Any, layers: Sequence[str]) -> list[list[str]]:
    what = "NAS.SEARCH_SPACE"
    if not isinstance(value, list | tuple):
        raise UserError(
            f"{what} is {value!r}, where a list of candidates for each layer is wanted.",
            _ORDER_ADVICE,
        )
    if not value:
        return [[] for _ in layers]
    _check_length(value, what, layers)
    space = []
    for candidates in value:
        if not isinstance(candidates, list | tuple) or not candidates:
            raise UserError(
                f"{what} has the entry {candidates!r}, where candidates such as [[2, 4], [4, 4]] "
                "are wanted.",
                "Give each layer a list of [N, M].",
            )
        space.append([_pattern(pair, what) for pair in candidates])
    return space


def _check_length(value: Sequence[Any], what: str, layers: Sequence[str]) -> None:
    if len(value) != len(layers):
        raise UserError(
            f"{what} has {len(value)} entries, but the network has {len(layers)} layers that can "
            "be sparse.",
            _ORDER_ADVICE,
        )


def _pattern(pair: Any, what: str) -> str:
    if (
        not isinstance(pair, list | tuple)
        or len(pair) != 2
        or not all(isinstance(n, int) and not isinstance(n, bool) for n in pair)
        or not 0 < pair[0] <= pair[1]
    ):
        raise UserError(
            f"{what} has the entry {pair!r}, which is no [N, M] with 0 < N <= M.",
            "Write [2, 4] to keep two of four values, and [4, 4] for a dense layer.",
        )
    return "dense" if pair[0] == pair[1] else f"{pair[0]}:{pair[1]}"


def _plain(value: Any) -> Any:
    """The same without the word "None", which YAML reads as text, and with lists for tuples."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, str) and value == "None" else value


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        if isinstance(value, Mapping) and isinstance(under, Mapping):
            merged[key] = _over(under, value)
        else:
            merged[key] = value
    return merged
