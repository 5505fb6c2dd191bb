"""A builder's settings, and its timing cache file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from elastic_export.artifacts.files import write_atomically
from elastic_export.engine.adapters.options import BuildOptions
from elastic_export.engine.adapters.releases import Release
from elastic_export.errors import UserError

__all__ = ["keep_timings", "make_settings"]


def make_settings(
    trt: Any, release: Release, builder: Any, network: Any, options: BuildOptions
) -> Any:
    """Make the ``IBuilderConfig`` of a build.

    Raises:
        UserError: The timing cache cannot be used here, or the module lacks a level its release
            should have.
    """
    config = builder.create_builder_config()
    for flag in options.flags:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.dla is not None:
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = options.dla
        for layer in map(network.get_layer, range(network.num_layers)):
            if layer.name in options.pins:  # a DLA has no FP32
                config.set_device_type(layer, trt.DeviceType.GPU)
    if options.workspace_mib is not None:
        size = options.workspace_mib << 20
        if release.workspace == "pool":
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, size)
        else:
            config.max_workspace_size = size
    if options.level is not None:
        config.builder_optimization_level = options.level
    if options.hardware != "none":
        config.hardware_compatibility_level = _hardware(trt, options.hardware)
    if release.chooses_sm:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{options.sm}"), 0)
    if options.timing_cache is not None:
        try:
            _take_timings(config, options.timing_cache)
        except UserError:
            if not options.timings_may_be_new:
                raise
            options.timing_cache.unlink(missing_ok=True)
            _take_timings(config, options.timing_cache)
    return config


def _take_timings(config: Any, path: Path) -> None:
    if not config.set_timing_cache(_read(config, path), False):
        raise _foreign(path)


def keep_timings(config: Any, path: Path) -> None:
    """Write what a build timed, with what other builds wrote to the file meanwhile.

    Raises:
        UserError: The disk is full or the folder cannot be written; the old file stays.
    """
    cache = config.get_timing_cache()
    if path.is_file():
        cache.combine(_read(config, path), False)
    write_atomically(path, bytes(cache.serialize()))


def _read(config: Any, path: Path) -> Any:
    """Load the timings of a file, or begin with none."""
    data = path.read_bytes() if path.is_file() else b""
    try:
        cache = config.create_timing_cache(data)
    except (RuntimeError, TypeError, ValueError) as error:
        raise _foreign(path) from error
    if cache is None:
        raise _foreign(path)
    return cache


def _foreign(path: Path) -> UserError:
    return UserError(
        f"The timing cache {path} is damaged, or of another device or version of TensorRT.",
        "Name another file, or remove it: timings are only valid where they were taken.",
    )


def _hardware(trt: Any, level: str) -> Any:
    found = getattr(trt.HardwareCompatibilityLevel, level.upper(), None)
    if found is None:
        raise UserError(
            f'TensorRT {trt.__version__} has no hardware compatibility level "{level}" yet.',
            "Leave it out, or use a newer TensorRT.",
        )
    return found
