"""trtexec by version: which arguments build and time an engine, and a script that does it there.

The flags come from the option parser of each TensorRT release (``samples/common/sampleOptions.cpp``
in github.com/NVIDIA/TensorRT); releases whose parser was not compared are refused, not guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from elastic_export.errors import UserError

__all__ = ["build_arguments", "timing_arguments", "trtexec_script"]

TRTEXEC = "/usr/src/tensorrt/bin/trtexec"
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*\.onnx")


@dataclass(frozen=True)
class _Release:
    """What changed between releases; ``first`` and ``last`` are (major, minor), both included."""

    first: tuple[int, int]
    last: tuple[int, int]
    workspace: str
    build_only: str
    weak: bool
    strong_flag: str | None
    percentile: str
    timing_flags: tuple[str, ...]


_STEADY = ("--useCudaGraph", "--useSpinWait", "--noDataTransfers")
_POOL = "--memPoolSize=workspace:{mib}"
_LIST = "--percentile=90,95,99"

_RELEASES = (
    _Release(
        (8, 2), (8, 2), "--workspace={mib}", "--buildOnly", True, None, "--percentile=99", _STEADY
    ),
    _Release((8, 5), (8, 5), _POOL, "--buildOnly", True, None, _LIST, _STEADY),
    _Release((8, 6), (8, 6), _POOL, "--skipInference", True, None, _LIST, _STEADY),
    _Release((10, 3), (10, 16), _POOL, "--skipInference", True, "--stronglyTyped", _LIST, _STEADY),
    # From 11.0 every network is strongly typed, and the flags for steady timing are the default.
    _Release((11, 0), (11, 99), _POOL, "--skipInference", False, "", _LIST, ()),
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

    Returns:
        For example ``['--stronglyTyped', '--sparsity=enable', '--memPoolSize=workspace:1024',
        '--skipInference', '--profilingVerbosity=detailed']``.

    Raises:
        UserError: The release is unknown, or has no such typing.
    """
    release = _release(version)
    arguments = []
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
    if sparse:
        arguments.append("--sparsity=enable")
    return [
        *arguments,
        release.workspace.format(mib=workspace),
        release.build_only,
        "--profilingVerbosity=detailed",
    ]


def timing_arguments(version: str) -> list[str]:
    """List the arguments for a fair timing: warm, at least 15 s and 1000 calls, no transfers.

    Raises:
        UserError: The release is unknown.
    """
    release = _release(version)
    return [
        *release.timing_flags,
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
) -> str:
    """Write the shell script that builds the engine on the device.

    It is POSIX sh and needs nothing but trtexec, from JetPack's place or from PATH. The engine goes
    beside the bundle, whose files stay as they were checked. Environment: ``TRTEXEC``, ``OUT_DIR``,
    ``WORKSPACE_MIB`` (1024); arguments are handed to trtexec.

    Args:
        onnx_name: The ONNX file in the folder of the script, a plain name.
        strongly_typed: See `build_arguments`, as are the others.
        sparse: The weights are 2:4.
        version: Of TensorRT on the device.
        quantized: A weakly typed graph holds Q/DQ.
        half: A weakly typed graph may run in FP16.

    Raises:
        UserError: The release is unknown, or has no such typing.
        ValueError: ``onnx_name`` is not a plain file name.
    """
    if not FILE_NAME.fullmatch(onnx_name):
        raise ValueError(f"{onnx_name!r} is not the plain name of an ONNX file")
    arguments = build_arguments(
        version,
        strongly_typed=strongly_typed,
        sparse=sparse,
        quantized=quantized,
        workspace="$workspace",
        half=half,
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
        sparsity=_SPARSITY if sparse else "",
    )


def _release(version: str) -> _Release:
    match = re.match(r"(\d+)(?:\.(\d+))?(?:\.|$)", version)
    if match:
        major, minor = int(match[1]), match[2]
        if minor is not None or major >= 11:
            number = (major, int(minor or 0))
            for release in _RELEASES:
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
{sparsity}echo "Built $plan"
"""

_SPARSITY = """\
# What the builder says of 2:4: which layers could use it, and which really do.
grep -F "(Sparsity)" "$log" || echo "The builder said nothing of 2:4 layers."
"""
