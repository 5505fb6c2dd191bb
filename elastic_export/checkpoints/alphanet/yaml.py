"""The YAML files of AttentiveNAS and AlphaNet: ``supernet_config`` and ``pareto_models``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from elastic_export.errors import UserError

__all__ = ["YAML_KEYS", "read_models", "read_supernet"]

_KEYS = """
alpha_max alpha_min arch augment auto_augment_policy batch_size batch_size_per_gpu bn_eps
bn_momentum data_loader_workers_per_gpu dataset dataset_dir dist_backend distributed
distributed_val drop_connect drop_connect_only_last_two_stages drop_last dropout epochs
eval_only evo_search exp_name gpu_type grad_clip_value inplace_distill interpolation iw_clip
label_smoothing lr_scheduler memory_per_node models_save_dir multiprocessing_distributed
n_classes n_cpu_per_node n_gpu_per_node num_arch_training num_nodes optimizer pareto_models
post_bn_calibration_batch_num print_freq resume sampler sandwich_rule seed start_epoch
supernet_config sync_bn test_crop_size test_scale train_crop_size warmup_epochs
weight_decay_bn_bias weight_decay_weight
"""
YAML_KEYS = frozenset(_KEYS.split())
"""Every key of the systems' own YAML files."""

_MODEL = ("resolution", "width", "kernel_size", "expand_ratio", "depth")


def read_supernet(supernet: Any) -> dict[str, Any]:
    """``supernet_config`` as settings of the family.

    Raises:
        UserError: A key is missing, or holds something else than it should.
    """
    where = "supernet_config"
    stem, last = _get(where, supernet, "first_conv"), _get(where, supernet, "last_conv")
    names = [str(name) for name in supernet if re.fullmatch(r"mb\d+", str(name))]
    if not names:
        raise UserError(f"{where} has no stage mb1.", "Give the YAML the supernet was trained by.")
    if supernet.get("channels_per_group", 1) != 1:
        raise UserError(
            f"{where}.channels_per_group is {supernet['channels_per_group']}; only depthwise "
            "convolutions, 1, are read.",
            "Such supernets cannot be imported.",
        )
    resolutions = _choices(where, supernet, "resolutions")
    return {
        "resolution": resolutions,
        "image_size": max(resolutions),
        "stem": _choices(f"{where}.first_conv", stem, "c"),
        "stem_act": _get(f"{where}.first_conv", stem, "act_func"),
        "stem_stride": _get(f"{where}.first_conv", stem, "s"),
        "stages": [
            _stage(f"{where}.{name}", supernet[name])
            for name in sorted(names, key=lambda name: int(name[2:]))
        ],
        "head": _choices(f"{where}.last_conv", last, "c"),
        "head_act": _get(f"{where}.last_conv", last, "act_func"),
        "v3_head": supernet.get("use_v3_head", False),
    }


def read_models(models: Any) -> dict[str, dict[str, Any]]:
    """``pareto_models`` as specs by name; entries that are no networks are left out.

    Raises:
        UserError: It is no mapping.
    """
    if models is None:
        return {}
    if not isinstance(models, Mapping):
        raise UserError(
            f"pareto_models is {models!r}, which is no mapping.", "Correct it, or leave it out."
        )
    return {
        str(name): {key: model[key] for key in _MODEL}
        for name, model in models.items()
        if isinstance(model, Mapping) and all(key in model for key in _MODEL)
    }


def _stage(where: str, stage: Any) -> dict[str, Any]:
    return {
        "width": _choices(where, stage, "c"),
        "depth": _choices(where, stage, "d"),
        "kernel_size": _choices(where, stage, "k"),
        "expand_ratio": _choices(where, stage, "t"),
        "stride": _get(where, stage, "s"),
        "act": _get(where, stage, "act_func"),
        "se": _get(where, stage, "se"),
    }


def _get(where: str, part: Any, key: str) -> Any:
    if not isinstance(part, Mapping) or key not in part:
        raise UserError(
            f"{where} does not give {key}.", "Give the YAML the supernet was trained by, whole."
        )
    return part[key]


def _choices(where: str, part: Any, key: str) -> list[Any]:
    """Numbers from small to large; one alone counts as a list of one."""
    value = _get(where, part, key)
    listed = list(value) if isinstance(value, list | tuple) else [value]
    if not listed or any(isinstance(v, bool) or not isinstance(v, int | float) for v in listed):
        raise UserError(f"{where}.{key} is {value!r}, which is no list of numbers.", "Correct it.")
    return sorted(set(listed))
