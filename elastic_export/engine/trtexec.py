"""trtexec by version: which arguments build and time an engine, and a script that does it there.

The flags come from the option parser of each TensorRT release (``samples/common/sampleOptions.cpp``
in github.com/NVIDIA/TensorRT); releases whose parser was not compared are refused, not guessed.
What a DLA is given is in ``samples/common/sampleEngines.cpp`` there: with ``--useDLACore`` trtexec
asks for FP16 by itself and sets ``PREFER_PRECISION_CONSTRAINTS``, so that pinned layers are
preferred in FP32 on it and not demanded. CUDA graphs take no DLA (issue 3524 there).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from elastic_export.config.dla import LAST_RELEASE, has_dla
from elastic_export.engine.python_build import PLACED, python_script
from elastic_export.errors import UserError

__all__ = [
    "RELEASES",
    "Release",
    "build_arguments",
    "load_arguments",
    "steady_arguments",
    "timing_arguments",
    "trtexec_script",
]

TRTEXEC = "/usr/src/tensorrt/bin/trtexec"
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*\.onnx")
LAYER_NAME = re.compile(r"[A-Za-z0-9_/][A-Za-z0-9._/+-]*")
"""No comma or colon, which separate, no asterisk, and nothing the shell reads."""


@dataclass(frozen=True)
class Release:
    """What changed between releases; ``first`` and ``last`` are (major, minor), both included.

    ``layer_precisions`` is false where trtexec cannot be told of single layers.
    """

    first: tuple[int, int]
    last: tuple[int, int]
    workspace: str
    build_only: str
    weak: bool
    strong_flag: str | None
    percentile: str
    timing_flags: tuple[str, ...]
    layer_precisions: bool = True


_GRAPH = "--useCudaGraph"
_STEADY = (_GRAPH, "--useSpinWait", "--noDataTransfers")
_POOL = "--memPoolSize=workspace:{mib}"
_LIST = "--percentile=90,95,99"

RELEASES = (
    # --layerPrecisions came with 8.4.1 (CHANGELOG.md of NVIDIA/TensorRT).
    Release(
        (8, 2),
        (8, 2),
        "--workspace={mib}",
        "--buildOnly",
        True,
        None,
        "--percentile=99",
        _STEADY,
        layer_precisions=False,
    ),
    Release((8, 5), (8, 5), _POOL, "--buildOnly", True, None, _LIST, _STEADY),
    Release((8, 6), (8, 6), _POOL, "--skipInference", True, None, _LIST, _STEADY),
    Release((10, 3), (10, 16), _POOL, "--skipInference", True, "--stronglyTyped", _LIST, _STEADY),
    # From 11.0 every network is strongly typed, and the flags for steady timing are the default.
    Release((11, 0), (11, 99), _POOL, "--skipInference", False, "", _LIST, ()),
)
_KNOWN = "8.2, 8.5, 8.6, 10.3 to 10.16 and 11"


def build_arguments(
    version: str,
    *,
    strongly_typed: bool,
    sparse: bool,
    quantized: bool,
    workspace: str,
    half: bool = True,
    pins: Sequence[str] = (),
    dla: int | None = None,
) -> list[str]:
    """List the arguments that make a builder accept this kind of graph.

    Args:
        version: Of TensorRT, at least major and minor: ``8.5.2``, ``10.3``; ``11`` suffices.
        strongly_typed: The graph itself says every precision. Otherwise it is an FP32 graph and
            the builder is allowed FP16, and INT8 where the graph is quantized.
        sparse: Let the builder time 2:4 kernels against dense ones and take the faster.
        quantized: A weakly typed graph holds Q/DQ. Without Q/DQ, INT8 would be made from made-up
            ranges, so it is never switched on for such a graph.
        workspace: MiB of scratch memory, or a shell expression that gives them.
        half: A weakly typed graph may run in FP16.
        pins: Nodes of a weakly typed graph that must run in FP32 all the same
            (``export.lowering.pinned_nodes``); the parser names layers after nodes.
        dla: The DLA core to build for, which takes a weakly typed graph in FP16 alone; layers that
            it does not run go to the GPU. None for the GPU.

    Returns:
        For example ``['--stronglyTyped', '--sparsity=enable', '--memPoolSize=workspace:1024',
        '--skipInference', '--profilingVerbosity=detailed']``.

    Raises:
        UserError: The release is unknown, has no such typing or no DLA, or its trtexec has no pins.
        ValueError: A pinned node has a name that the option could not hold, or a DLA is to run
            something else than FP16.
    """
    release = _release(version)
    arguments = []
    if dla is not None:
        if strongly_typed or quantized or not half:
            raise ValueError("a DLA takes FP16 alone, from a weakly typed graph")
        if not has_dla(version):
            raise UserError(
                f"TensorRT {version} cannot use a DLA; {LAST_RELEASE[0]}.{LAST_RELEASE[1]} was the "
                "last release that could.",
                "Use the board's GPU, or a JetPack with an older TensorRT.",
            )
        arguments += [*load_arguments(dla), "--allowGPUFallback"]
    if strongly_typed:
        if release.strong_flag is None:
            raise UserError(
                f"TensorRT {version} has no strongly typed networks.",
                "Export the weakly typed flavour for it, or use TensorRT 10.3 or newer.",
            )
        arguments += [release.strong_flag] if release.strong_flag else []
    else:
        if not release.weak:
            raise UserError(
                f"TensorRT {version} builds strongly typed networks only.",
                "Export the strongly typed flavour for it, or use TensorRT 10.16 or older.",
            )
        # INT8 without FP16 would leave every other layer in FP32.
        arguments += ["--fp16"] if half or quantized else []
        arguments += ["--int8"] if quantized else []
        if pins and (half or quantized):
            arguments += _pinning(version, release, pins, "obey" if dla is None else "prefer")
    if sparse:
        arguments.append("--sparsity=enable")
    return [
        *arguments,
        release.workspace.format(mib=workspace),
        release.build_only,
        "--profilingVerbosity=detailed",
    ]


def load_arguments(dla: int | None) -> list[str]:
    """List what every run of a built engine needs beside ``--loadEngine``.

    Args:
        dla: The DLA core; None for the GPU.
    """
    return [] if dla is None else [f"--useDLACore={dla}"]


def _pinning(version: str, release: Release, pins: Sequence[str], how: str) -> list[str]:
    """Keep layers in FP32, and what they hand on too: a square that is stored in FP16 overflows."""
    if not release.layer_precisions:
        raise UserError(
            f"trtexec of TensorRT {version} cannot keep single layers in FP32 (8.4.1 and later "
            "can).",
            "Build with the script of the bundle, which asks the builder through Python.",
        )
    odd = next((name for name in pins if not LAYER_NAME.fullmatch(name)), None)
    if odd is not None:
        raise ValueError(f"{odd!r} cannot be named to trtexec")
    listed = ",".join(f"{name}:fp32" for name in pins)
    return [
        f"--precisionConstraints={how}",
        f"--layerPrecisions={listed}",
        f"--layerOutputTypes={listed}",
    ]


def steady_arguments(release: Release, dla: int | None) -> list[str]:
    """List the flags for steady timing; a DLA's work cannot be captured in a CUDA graph."""
    return [flag for flag in release.timing_flags if dla is None or flag != _GRAPH]


def timing_arguments(version: str, dla: int | None = None) -> list[str]:
    """List the arguments for a fair timing: warm, at least 15 s and 1000 calls, no transfers.

    Args:
        version: Of TensorRT.
        dla: The DLA core that runs the engine; None for the GPU.

    Raises:
        UserError: The release is unknown.
    """
    release = _release(version)
    return [
        *load_arguments(dla),
        *steady_arguments(release, dla),
        "--warmUp=1000",
        "--duration=15",
        "--iterations=1000",
        release.percentile,
    ]


def trtexec_script(
    onnx_name: str,
    *,
    strongly_typed: bool,
    sparse: bool,
    version: str,
    quantized: bool = False,
    half: bool = True,
    pins: Sequence[str] = (),
    dla: int | None = None,
) -> str:
    """Write the shell script that builds the engine on the device.

    It is POSIX sh and needs nothing but trtexec, from JetPack's place or from PATH. The engine goes
    beside the bundle, whose files stay as they were checked. Environment: ``TRTEXEC``, ``OUT_DIR``,
    ``WORKSPACE_MIB`` (1024); arguments are handed to trtexec.

    TensorRT 8.2 has nodes kept in FP32 by its API alone, so there the script runs JetPack's own
    Python and its ``tensorrt`` module instead.

    Args:
        onnx_name: The ONNX file in the folder of the script, a plain name.
        strongly_typed: See `build_arguments`, as are the others.
        sparse: The weights are 2:4.
        version: Of TensorRT on the device.
        quantized: A weakly typed graph holds Q/DQ.
        half: A weakly typed graph may run in FP16.
        pins: See `build_arguments`, as is ``dla``.
        dla: The DLA core to build for; None for the GPU.

    Raises:
        UserError: The release is unknown, or has no such typing or no DLA.
        ValueError: ``onnx_name`` is not a plain file name, or a pinned node has an odd name.
    """
    if not FILE_NAME.fullmatch(onnx_name):
        raise ValueError(f"{onnx_name!r} is not the plain name of an ONNX file")
    release = _release(version)
    if pins and not release.layer_precisions and not strongly_typed and (half or quantized):
        return python_script(
            onnx_name, version=version, sparse=sparse, quantized=quantized, pins=len(pins), dla=dla
        )
    arguments = build_arguments(
        version,
        strongly_typed=strongly_typed,
        sparse=sparse,
        quantized=quantized,
        workspace="$workspace",
        half=half,
        pins=pins,
        dla=dla,
    )
    # The workspace is the only argument that the shell has to fill in.
    quoted = [f'"{argument}"' if "$" in argument else argument for argument in arguments]
    listed = "".join(f"    {argument} \\\n" for argument in quoted)
    return _SCRIPT.format(
        onnx=onnx_name,
        stem=onnx_name.removesuffix(".onnx"),
        version=version,
        trtexec=TRTEXEC,
        arguments=listed,
        said=(_SPARSITY if sparse else "") + ("" if dla is None else PLACED),
    )


def _release(version: str) -> Release:
    match = re.match(r"(\d+)(?:\.(\d+))?(?:\.|$)", version)
    if match:
        major, minor = int(match[1]), match[2]
        if minor is not None or major >= 11:
            number = (major, int(minor or 0))
            for release in RELEASES:
                if release.first <= number <= release.last:
                    return release
    raise UserError(
        f'The trtexec arguments of TensorRT "{version}" are not known.',
        f"Known are TensorRT {_KNOWN}; build the engine by hand from the ONNX file otherwise.",
    )


_SCRIPT = """\
#!/bin/sh
# Builds an engine from {onnx} for the device this runs on; made for TensorRT {version}.
#   sh THIS_SCRIPT [more trtexec arguments]
# TRTEXEC (path), OUT_DIR (default: beside this folder) and WORKSPACE_MIB (default: 1024; less
# where memory is short) change what it does.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
onnx=$here/{onnx}
out=${{OUT_DIR:-$here.engine}}
workspace=${{WORKSPACE_MIB:-1024}}

trtexec=${{TRTEXEC:-{trtexec}}}
if [ ! -x "$trtexec" ]; then
    if ! trtexec=$(command -v trtexec); then
        echo "trtexec was not found. Install TensorRT (JetPack brings it), or set TRTEXEC." >&2
        exit 1
    fi
fi

mkdir -p "$out"
plan=$out/{stem}.engine
log=$out/{stem}.build.log
echo "Building $plan (minutes; log: $log)"
if ! "$trtexec" --onnx="$onnx" --saveEngine="$plan.part" \\
    --timingCacheFile="$out/timing.cache" \\
{arguments}    --verbose "$@" >"$log" 2>&1; then
    rm -f "$plan.part"
    tail -n 20 "$log" >&2
    echo "The build failed; the whole log is $log." >&2
    exit 1
fi
mv "$plan.part" "$plan"
{said}echo "Built $plan"
"""

_SPARSITY = """\
# What the builder says of 2:4: which layers could use it, and which really do.
grep -F "(Sparsity)" "$log" || echo "The builder said nothing of 2:4 layers."
"""
