"""The configuration of an ElasticViT supernet: its YAML, checked against the file's shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from elastic_export.checkpoints.elasticvit.sizes import Sizes
from elastic_export.checkpoints.reader import Source
from elastic_export.errors import UserError, did_you_mean
from elastic_export.families import get_family
from elastic_export.families.elasticvit import ElasticVitConfig, from_arch
from elastic_export.families.registry import family_config

__all__ = ["THEIRS", "Settings", "read_settings"]

_THEIRS = """
name gpu output_dir lib_dir offline_models_dir training_device dataloader resume log input_size
super_stem_channels sampling_mode head_type classifer_head_dim head_dropout_prob norm_layer
pre_norm search_space eval eval_model epochs smoothing clip_grad_value clip_mode val_cycle
alpha_divergence distillation hard_distillation teacher_model teacher_model_2
inplace_distillation opt opt_eps opt_betas lr momentum weight_decay sched min_lr decay_rate
decay_epochs warmup_epochs warmup_lr warmup_prefix cooldown_epochs patience_epochs lr_noise
lr_noise_pct lr_noise_std lr_cycle_mul lr_cycle_decay lr_cycle_limit lr_k_decay seed
"""
THEIRS = frozenset(_THEIRS.split())
"""Keys of the system's YAML; any other that holds an arch is the name of a subnet."""

_SPACE = """
res downsampling talking_head se classifier_mul dw_downsampling stage max_depth min_depth
max_channels min_channels sample_prob limit_flops min_flops bank_step bank_size big_bank
big_bank_choices big_bank_size bank_sampling_method use_min_model swin head_dims flops_bound
bank_sampling_rate sampling_rate_inc flops_sampling_method model_sampling_method res_specific_rpn
conv_ratio kr_size mlp_ratio qk_scale v_scale windows_size num_heads min_archs small_bank
small_bank_choices small_limit_flops small_min_flops small_step_size force_random use_latency
latency_bound
"""
SPACE = frozenset(_SPACE.split())
"""Keys of its ``search_space``."""

CONV_STEP = 8
"""Between two widths of a stage of mobile blocks; a stage of transformer blocks steps by heads."""

KERNELS = (3, 5)
"""Kernels of mobile blocks; ``kr_size`` is not read by the system."""

TRAINED_WITH = "Give the configuration the checkpoint was trained with."


@dataclass(frozen=True)
class Settings:
    """What a reader needs beside the tensors."""

    config: ElasticVitConfig
    head: str
    talking: tuple[bool, ...]
    notes: tuple[str, ...]


def read_settings(source: Source, sizes: Sizes) -> Settings:
    """Put YAML, shapes and family settings together.

    Raises:
        UserError: A setting is missing, not understood, or contradicts the file.
    """
    named = {key for key, value in source.config.items() if _is_arch(value)}
    theirs, _, ours = source.split_config(THEIRS | named)
    space = _mapping(theirs, "search_space")
    for key in space:
        if key not in SPACE:
            raise UserError(
                f"search_space.{key} is no setting of ElasticViT.", did_you_mean(key, sorted(SPACE))
            )
    _refuse_unbuilt(theirs, space)
    head = theirs.get("head_type", "mbv3")
    if head not in ("mbv3", "normal"):
        raise UserError(f"head_type is {head!r}, which is no head of ElasticViT.", TRAINED_WITH)
    raw = _from_shapes(sizes)
    notes: list[str] = []
    if space:
        raw |= _from_space(space, sizes)
    _check_head(theirs, sizes)
    if "head_dropout_prob" in theirs:
        raw["dropout"] = theirs["head_dropout_prob"]
    raw |= ours
    if "resolution" in ours and "image_size" not in ours:
        raw.pop("image_size", None)
    if "stages" not in raw or "resolution" not in raw:
        raw = _published(source, sizes, raw)
        notes.append(
            "No configuration was given; the shapes are those of the published supernet, whose "
            "choices were taken."
        )
    config = family_config(get_family("elasticvit"), raw)
    assert isinstance(config, ElasticVitConfig)
    check_sizes(config, sizes)
    specs = _specs(config, theirs, space, named, notes)
    config = config.model_copy(update={"specs": {**specs, **config.specs}})
    talking = space.get("talking_head", ())
    flags = tuple(map(bool, talking)) if isinstance(talking, list | tuple) else ()
    return Settings(config, head, flags, tuple(notes))


def _from_shapes(sizes: Sizes) -> dict[str, Any]:
    """Family settings that the shapes alone decide."""
    raw: dict[str, Any] = {
        "in_chans": sizes.in_chans,
        "num_classes": sizes.num_classes,
        "stem_depth": list(range(1, sizes.stem_depth + 1)),
        "stem_channels": _steps(min(16, sizes.stem_channels), sizes.stem_channels, CONV_STEP),
        "stem_kernel": list(KERNELS),
        "head_expand": sizes.head_expand,
        "head_hidden": sizes.head_hidden,
    }
    return raw | ({"head_dim": sizes.head_dim()} if sizes.head_dim() else {})


def _from_space(space: Mapping[str, Any], sizes: Sizes) -> dict[str, Any]:
    needed = ("res", "downsampling", "min_depth", "min_channels", "conv_ratio", "mlp_ratio")
    missing = [f"search_space.{key}" for key in (*needed, "v_scale") if key not in space]
    if missing:
        raise UserError(
            f"The configuration lacks {', '.join(missing)}, which the file does not tell.",
            TRAINED_WITH,
        )
    count = len(sizes.stages)
    tokens = sum(stage.kind == "T" for stage in sizes.stages)
    kinds = _list(space, "stage", count, [stage.kind for stage in sizes.stages])
    _agree("search_space.stage", kinds, [stage.kind for stage in sizes.stages])
    halves = _list(space, "downsampling", count)
    depths = _ints(space, "max_depth", count, [stage.depth for stage in sizes.stages])
    least_depths = _ints(space, "min_depth", count)
    widths = _ints(space, "max_channels", count, [stage.channels for stage in sizes.stages])
    least_widths = _ints(space, "min_channels", count)
    gates = _list(space, "se", count, [stage.se for stage in sizes.stages])
    values = _list(space, "v_scale", tokens)
    queries = _list(space, "qk_scale", tokens, [[1]] * tokens)
    head_dim = space.get("head_dims", sizes.head_dim())
    if isinstance(head_dim, bool) or not isinstance(head_dim, int) or head_dim < 1:
        raise UserError(
            "The width of a head is not given, and the shapes allow no guess."
            if "head_dims" not in space
            else f"search_space.head_dims is {head_dim!r}, which is not a positive whole number.",
            "Set search_space.head_dims.",
        )
    stages: list[dict[str, Any]] = []
    for s, stage in enumerate(sizes.stages):
        step = CONV_STEP if stage.kind == "C" else head_dim
        one: dict[str, Any] = {
            "kind": stage.kind,
            "depth": _steps(least_depths[s], depths[s], 1),
            "channels": _steps(least_widths[s], widths[s], step),
            "downsample": bool(halves[s]),
        }
        if stage.kind == "C":
            one |= {"ratio": _sorted(space, "conv_ratio"), "kernel": list(KERNELS)}
            one["se"] = bool(gates[s])
        else:
            at = s - (count - tokens)
            one["mlp_ratio"] = _sorted(space, "mlp_ratio")
            one["v_scale"] = _sorted({"v_scale": values[at]}, "v_scale")
            one["qk_scale"] = _sorted({"qk_scale": queries[at]}, "qk_scale")
        stages.append(one)
    return {"resolution": _sorted(space, "res"), "stages": stages, "head_dim": head_dim}


def check_sizes(config: ElasticVitConfig, sizes: Sizes) -> None:
    """Refuse settings that contradict the file.

    Raises:
        UserError: They do; the first contradiction is named.
    """
    _agree("num_classes", config.num_classes, sizes.num_classes)
    _agree("in_chans", config.in_chans, sizes.in_chans)
    _agree("the number of stages", len(config.stages), len(sizes.stages))
    _agree("the largest depth of the stem", max(config.stem_depth), sizes.stem_depth)
    _agree("the largest channels of the stem", max(config.stem_channels), sizes.stem_channels)
    _agree("head_expand (classifier_mul)", config.head_expand, sizes.head_expand)
    _agree("head_hidden (classifer_head_dim)", config.head_hidden, sizes.head_hidden)
    for s, (stage, found) in enumerate(zip(config.stages, sizes.stages, strict=True)):
        at = f"of stages[{s}]"
        _agree(f"the kind {at}", stage.kind, found.kind)
        _agree(f"the largest depth {at}", max(stage.depth), found.depth)
        _agree(f"the largest channels {at}", max(stage.channels), found.channels)
        if stage.kind == "C":
            _agree(f"the largest conv_ratio {at}", max(stage.ratio), found.ratio)
            _agree(f"se {at}", stage.se, found.se)
            continue
        width = found.channels
        for name, choices, ratio in (
            ("mlp_ratio", stage.mlp_ratio, found.mlp_ratio),
            ("v_scale", stage.v_scale, found.v_scale),
        ):
            if int(max(choices) * width) != round(ratio * width):
                _agree(f"the largest {name} {at}", max(choices), ratio)
        _agree(f"the number of heads {at}", config.heads(width), found.heads)
        _agree(f"the map {at} at resolution {config.image_size}", config.table_sides[s], found.side)


def _published(source: Source, sizes: Sizes, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The published space, where the shapes are its shapes."""
    candidate = {
        key: value for key, value in raw.items() if key not in ("stem_channels", "stem_depth")
    }
    config = family_config(get_family("elasticvit"), candidate)
    assert isinstance(config, ElasticVitConfig)
    try:
        check_sizes(config, sizes)
    except UserError as error:
        raise UserError(
            f"{source.path} does not tell its resolutions and choices (res, downsampling, "
            "min_depth, min_channels, conv_ratio, mlp_ratio and v_scale of search_space).",
            "Give the YAML the supernet was trained with as the configuration.",
        ) from error
    return candidate


def _specs(
    config: ElasticVitConfig,
    theirs: Mapping[str, Any],
    space: Mapping[str, Any],
    named: set[str],
    notes: list[str],
) -> dict[str, dict[str, Any]]:
    """Subnets the YAML names; what does not fit is told."""
    archs = {key: theirs[key] for key in sorted(named)}
    mins = space.get("min_archs") or {}
    if not isinstance(mins, Mapping):
        raise UserError("search_space.min_archs is not a mapping.", TRAINED_WITH)
    archs |= {f"min_{key}": arch for key, arch in mins.items()}
    found = {name: _built(config, name, arch, notes) for name, arch in archs.items()}
    return {name: genes for name, genes in found.items() if genes}


def _built(
    config: ElasticVitConfig, name: str, arch: Any, notes: list[str]
) -> dict[str, Any] | None:
    try:
        return dict(from_arch(config, arch, name=name))
    except UserError as error:
        notes.append(f"The configuration names a subnet that cannot be built: {error.what}")
        return None


def _refuse_unbuilt(theirs: Mapping[str, Any], space: Mapping[str, Any]) -> None:
    wrong = {
        "norm_layer": str(theirs.get("norm_layer", "LN")) != "LN",
        "pre_norm": not theirs.get("pre_norm", True),
        "search_space.swin": bool(space.get("swin", False)),
    }
    for key, refused in wrong.items():
        if refused:
            raise UserError(
                f"{key} asks for a kind of block that this family does not build.",
                "Only layer norms before each part and global attention are read.",
            )


def _check_head(theirs: Mapping[str, Any], sizes: Sizes) -> None:
    classes = _mapping(theirs, "dataloader").get("num_classes", sizes.num_classes)
    _agree("dataloader.num_classes", classes, sizes.num_classes)
    widths = theirs.get("classifer_head_dim")
    if widths is not None:
        last = widths[1] if isinstance(widths, list | tuple) and len(widths) > 1 else widths
        _agree("the second of classifer_head_dim", last, sizes.head_hidden)
    multiple = _mapping(theirs, "search_space").get("classifier_mul", sizes.head_expand)
    _agree("search_space.classifier_mul", multiple, sizes.head_expand)


def _agree(what: str, said: object, found: object) -> None:
    if said != found:
        raise UserError(
            f"By the configuration {what} is {said!r}, by the file it is {found!r}.", TRAINED_WITH
        )


def _mapping(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = raw.get(key) or {}
    if not isinstance(value, Mapping):
        raise UserError(f"{key} is not a mapping.", TRAINED_WITH)
    return value


def _list(
    space: Mapping[str, Any], key: str, length: int, default: list[Any] | None = None
) -> list[Any]:
    value = space.get(key, default)
    if not isinstance(value, list | tuple) or len(value) != length:
        raise UserError(
            f"search_space.{key} is {value!r}, where the file needs a list of {length}.",
            TRAINED_WITH,
        )
    return list(value)


def _ints(
    space: Mapping[str, Any], key: str, length: int, default: list[Any] | None = None
) -> list[int]:
    values = _list(space, key, length, default)
    if not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values):
        raise UserError(
            f"search_space.{key} is {values!r}, which are not positive whole numbers.", TRAINED_WITH
        )
    return values


def _sorted(space: Mapping[str, Any], key: str) -> list[float]:
    values = space[key]
    numbers = isinstance(values, list | tuple) and all(
        isinstance(v, int | float) and not isinstance(v, bool) for v in values
    )
    if not numbers or not values:
        raise UserError(
            f"search_space.{key} is {values!r}, where a list of numbers is needed.", TRAINED_WITH
        )
    return sorted(set(values))


def _steps(least: int, most: int, step: int) -> list[int]:
    """From the least to the most, which belongs to them in any case."""
    if least > most:
        raise UserError(
            f"The configuration has a smallest choice of {least} and a largest of {most}.",
            TRAINED_WITH,
        )
    return sorted({*range(least, most + 1, step), most})


def _is_arch(value: object) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 10
        and all(isinstance(part, list | tuple) for part in value[1:])
    )
