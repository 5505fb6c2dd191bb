"""A build script for releases whose trtexec cannot keep single layers in FP32 (TensorRT 8.2).

The API of 8.2 has them (``ILayer.precision`` with the builder flag ``OBEY_PRECISION_CONSTRAINTS``),
and JetPack 4.6 installs the ``tensorrt`` module for its Python 3.6, so the script asks there. The
nodes are told by their names, as ``export.lowering`` wrote them.

Of a DLA the API is ``IBuilderConfig.default_device_type``, ``DLA_core`` and the flag
``GPU_FALLBACK``; it has no FP32, so the kept nodes are told to the GPU (``set_device_type``).
"""

from __future__ import annotations

__all__ = ["PLACED", "python_script"]

PLACED = """\
# What the builder says of the DLA: how many of the engine's layers run there.
count() { grep -cF "$1" "$log" || true; }
echo "Layers on the DLA: $(count "[DlaLayer]"); on the GPU: $(count "[GpuLayer]"), names in $log"
"""
"""The end of a build script for a DLA (lines of the log: jetson_dla_tutorial of NVIDIA-AI-IOT)."""


def python_script(
    onnx_name: str,
    *,
    version: str,
    sparse: bool,
    quantized: bool,
    pins: int,
    dla: int | None = None,
) -> str:
    """Write the shell script; it behaves as that of ``trtexec_script``.

    Args:
        onnx_name: The ONNX file in the folder of the script, a plain name.
        version: Of TensorRT on the device.
        sparse: Let the builder time 2:4 kernels against dense ones.
        quantized: The graph holds Q/DQ.
        pins: How many nodes must run in FP32; another number of layers is an error.
        dla: The DLA core that runs the other nodes; None for the GPU.
    """
    from elastic_export.export.lowering import SUFFIX  # which loads onnx

    flags = ["FP16", *(["INT8"] if quantized else []), *(["SPARSE_WEIGHTS"] if sparse else [])]
    return _SCRIPT.format(
        onnx=onnx_name,
        stem=onnx_name.removesuffix(".onnx"),
        version=version,
        flags=" ".join([*flags, "OBEY_PRECISION_CONSTRAINTS"]),
        suffix=SUFFIX,
        pins=pins,
        device="" if dla is None else _ON_DLA.format(core=dla),
        keep="" if dla is None else _ON_GPU,
        said="" if dla is None else PLACED,
    )


_ON_DLA = """\
config.default_device_type = trt.DeviceType.DLA
config.DLA_core = {core}
config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
"""
_ON_GPU = "        config.set_device_type(layer, trt.DeviceType.GPU)\n"

# Python 3.6 reads what is between the marks.
_SCRIPT = """\
#!/bin/sh
# Builds an engine from {onnx} for the device this runs on; made for TensorRT {version}.
#   sh THIS_SCRIPT
# {pins} layers of it may overflow FP16 and are kept in FP32. The trtexec of this release cannot be
# told so; the builder is, through the Python module that JetPack installs (python3-libnvinfer).
# PYTHON (path), OUT_DIR (default: beside this folder) and WORKSPACE_MIB (default: 1024; less where
# memory is short) change what it does.
set -eu

if [ "$#" -gt 0 ]; then
    echo "This script hands nothing on to trtexec, so it takes no arguments." >&2
    exit 1
fi
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
onnx=$here/{onnx}
out=${{OUT_DIR:-$here.engine}}
workspace=${{WORKSPACE_MIB:-1024}}
python=${{PYTHON:-python3}}

if ! "$python" -c "import tensorrt" 2>/dev/null; then
    echo "Python's tensorrt module was not found. Install python3-libnvinfer, or set PYTHON." >&2
    exit 1
fi

mkdir -p "$out"
plan=$out/{stem}.engine
log=$out/{stem}.build.log
echo "Building $plan (minutes; log: $log)"
if ! "$python" - "$onnx" "$plan.part" "$workspace" "$out/timing.cache" >"$log" 2>&1 <<'END'
import os
import sys

import tensorrt as trt

onnx, plan, workspace, cache_file = sys.argv[1:]
logger = trt.Logger(trt.Logger.VERBOSE)
builder = trt.Builder(logger)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
parser = trt.OnnxParser(network, logger)
with open(onnx, "rb") as file:
    if not parser.parse(file.read()):
        sys.exit("\\n".join(str(parser.get_error(i)) for i in range(parser.num_errors)))

config = builder.create_builder_config()
{device}pinned = 0
for index in range(network.num_layers):
    layer = network.get_layer(index)
    if layer.name.endswith("{suffix}"):
        layer.precision = trt.float32
        for output in range(layer.num_outputs):
            layer.set_output_type(output, trt.float32)
{keep}        pinned += 1
if pinned != {pins}:
    sys.exit("%d layers are to be kept in FP32, and {pins} were expected." % pinned)

config.max_workspace_size = int(workspace) << 20
config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
for flag in "{flags}".split():
    config.set_flag(getattr(trt.BuilderFlag, flag))
known = b""
if os.path.exists(cache_file):
    with open(cache_file, "rb") as file:
        known = file.read()
cache = config.create_timing_cache(known)
config.set_timing_cache(cache, False)
engine = builder.build_serialized_network(network, config)
if engine is None:
    sys.exit("The builder made no engine.")
with open(plan, "wb") as file:
    file.write(engine)
with open(cache_file, "wb") as file:
    file.write(cache.serialize())
END
then
    rm -f "$plan.part"
    tail -n 20 "$log" >&2
    echo "The build failed; the whole log is $log." >&2
    exit 1
fi
mv "$plan.part" "$plan"
{said}echo "Built $plan"
"""
