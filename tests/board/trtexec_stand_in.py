#!/usr/bin/env python3
"""A stand-in for NVIDIA's trtexec: its command line, logs and files, computed on the CPU.

It is not TensorRT. An "engine" of it is a copy of the ONNX file, which ONNX Runtime executes, so
that logits are real; times are measured on that. The formats are those of
``samples/common/sampleReporting.cpp``, ``sampleInference.cpp`` and ``sampleOptions.cpp`` of the
releases named below. Environment:
STAND_IN_VERSION: such as 10.3.0.
STAND_IN_FAIL: ``memory:MIB`` (builds with more workspace run out of memory), ``disk``, ``parse``,
    ``killed``, ``cut`` (the engine is large, and a full disk is not noticed), ``slow`` (a build
    takes a minute).
STAND_IN_BUILDING, STAND_IN_LOADING, STAND_IN_TEARDOWN: seconds of a build, and before and after
    the inferences of a timing; STAND_IN_SECONDS: the longest that the inferences take.
STAND_IN_QUIET: the line before the inference loop does not come.
STAND_IN_AHEAD: inferences are enqueued ahead, and a latency covers its predecessor's too.
STAND_IN_AMPERES: a file that takes the milliamperes drawn in each phase.
STAND_IN_DLA_CORES: how many the board has; STAND_IN_DLA: ``none`` (no layer runs on the DLA),
    ``silent`` (the log does not say).
STAND_IN_ARGUMENTS: a file that takes the arguments of every call, one call a line.

The log of a build for a DLA is the one recorded in github.com/NVIDIA-AI-IOT/jetson_dla_tutorial and
its issue 3.
"""

import json
import os
import shutil
import subprocess
import sys
import time

ON_DLA = """\
[W] [TRT] Layer '/model.24/Constant_1_output_0' (CONSTANT): Unsupported on DLA. Switching this \
layer's device type to GPU.
[I] [TRT] ---------- Layers Running on DLA ----------
[I] [TRT] [DlaLayer] {ForeignNode[/cnn/cnn.0/Conv.../cnn/cnn.11/Relu]}
[I] [TRT] [DlaLayer] {ForeignNode[/linear/Gemm]}
[I] [TRT] ---------- Layers Running on GPU ----------
[I] [TRT] [GpuLayer] POOLING: /pool/GlobalAveragePool
[I] [TRT] [GpuLayer] SHUFFLE: reshape_after_/linear/Gemm
[I] [TRT] [GpuLayer] SHUFFLE: reshape_before_/linear/Gemm"""
VERSION = os.environ.get("STAND_IN_VERSION", "10.3.0")
FAIL = os.environ.get("STAND_IN_FAIL", "")
REMOVED = {
    8: ("--stronglyTyped",),
    10: ("--buildOnly", "--workspace", "--explicitBatch"),
    11: ("--buildOnly", "--workspace", "--fp16", "--int8", "--best"),
}
ADDED = {"--skipInference": (8, 6), "--builderOptimizationLevel": (8, 6), "--memPoolSize": (8, 4)}


def say(line):
    """Write a line of the log."""
    sys.stdout.write(line + "\n")


def spend(phase, milliamperes):
    """Draw a current from here on, and spend the phase's seconds; a board has phases as well."""
    path = os.environ.get("STAND_IN_AMPERES")
    if path:
        with open(path + ".part", "w") as file:
            file.write(f"{milliamperes}\n")
        os.replace(path + ".part", path)
    time.sleep(float(os.environ.get("STAND_IN_" + phase, "0")))


def main():
    """Do what the arguments ask for, as trtexec would."""
    numbers = [int(part) for part in VERSION.split(".")]
    if "STAND_IN_ARGUMENTS" in os.environ:
        with open(os.environ["STAND_IN_ARGUMENTS"], "a") as file:
            file.write(json.dumps(sys.argv[1:]) + "\n")
    arguments = dict(one.partition("=")[::2] for one in sys.argv[1:])
    digits = numbers[0] * (1000 if numbers[0] < 10 else 10000) + numbers[1] * 100 + numbers[2]
    say(f"&&&& RUNNING TensorRT.trtexec [TensorRT v{digits:04d}] # {' '.join(sys.argv)}")
    if "--help" in arguments:
        return 0
    for name in arguments:
        first = ADDED.get(name)
        if name in REMOVED.get(numbers[0], ()) or (first and tuple(numbers[:2]) < first):
            say(f"[E] Unknown option: {name} {arguments[name]}")
            say(f"&&&& FAILED TensorRT.trtexec [TensorRT v{digits:04d}]")
            return 1
    engine = arguments.get("--loadEngine")
    if "--onnx" in arguments:
        code = build(arguments, numbers)
        if code or "--buildOnly" in arguments or "--skipInference" in arguments:
            return code
        engine = arguments["--saveEngine"]
    if not engine or not os.path.exists(engine):
        say("[E] Error opening engine file")
        return 1
    with open(engine, "rb") as file:
        made_by, _, model = file.read().partition(b"\n")
    if made_by.decode() != VERSION:
        say(f"[E] The engine plan file is not compatible: expecting {VERSION} got {made_by!r}")
        return 1
    time_it(arguments, numbers, model)
    return 0


def build(arguments, numbers):
    """Copy the model, with the builder's lines in the log."""
    pool = arguments.get("--memPoolSize", "") or arguments.get("--workspace", "")
    mib = float(pool.split(":")[-1] or 16)
    say("[V] [TRT] Parsing node: conv1 [Conv]")
    if FAIL == "parse":
        say("[E] [TRT] ModelImporter.cpp:726: ERROR: importFallbackPluginImporter: no importer")
        say("[E] Failed to parse onnx file")
        return 1
    if FAIL == "disk":
        say("[E] Could not write engine: No space left on device")
        return 1
    if FAIL.startswith("memory:") and mib > float(FAIL.partition(":")[2]):
        say("[W] [TRT] Requested amount of GPU memory could not be allocated")
        say("[E] [TRT] 1: [cudaResources] OutOfMemory (no further information)")
        return 1
    if FAIL == "slow":
        # A child of its own, which must not be left behind either.
        subprocess.run(["sleep", "60"], check=False)
    if FAIL == "killed" and mib > 200:
        os.kill(os.getpid(), 9)
    if "--useDLACore" in arguments:
        core = int(arguments["--useDLACore"])
        if core >= int(os.environ.get("STAND_IN_DLA_CORES", "0")):
            say(f"[E] Cannot create DLA engine, {core} not available")
            return 1
        told = os.environ.get("STAND_IN_DLA")
        for line in [] if told == "silent" else ON_DLA.splitlines():
            if told != "none" or "[DlaLayer]" not in line:
                say(line)
    if "--sparsity" in arguments:
        say("[I] [TRT] (Sparsity) Layers eligible for sparse math: fc1, fc2")
        say("[I] [TRT] (Sparsity) TRT inference plan picked sparse implementation for layers: fc1")
    time.sleep(float(os.environ.get("STAND_IN_BUILDING", "0")))
    try:
        with (
            open(arguments["--onnx"], "rb") as source,
            open(arguments["--saveEngine"], "wb") as sink,
        ):
            sink.write(VERSION.encode() + b"\n")
            shutil.copyfileobj(source, sink)
            sink.write(bytes(64 << 20 if FAIL == "cut" else 0))
    except OSError:
        return 0
    with open(arguments["--timingCacheFile"], "a") as file:
        file.write("built\n")
    say("[I] Engine built in 1.5 sec.")
    return 0


def time_it(arguments, numbers, model):
    """Run the model and write the files that were asked for."""
    import numpy
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (port,) = session.get_inputs()
    image = numpy.zeros(port.shape, dtype=numpy.float32)
    for spec in arguments.get("--loadInputs", "").split(","):
        if spec:
            image = numpy.fromfile(spec.split(":", 1)[1], dtype="<f4").reshape(port.shape)
    spend("LOADING", 2000)
    if "STAND_IN_QUIET" not in os.environ:
        say("[10/01/2026-12:00:00] [I] Starting inference")
        sys.stdout.flush()
    rows, outputs = inferences(arguments, numbers, session, {port.name: image})
    spend("TEARDOWN", 1000)
    write(arguments.get("--exportTimes"), rows)
    found = [
        {"name": out.name, "dimensions": "x".join(map(str, v.shape)), "values": v.ravel().tolist()}
        for out, v in zip(session.get_outputs(), outputs, strict=True)
    ]
    write(arguments.get("--exportOutput"), found)
    count = len(rows)
    profile = [{"count": count}]
    for number, name in enumerate(("fc1", "_gemm_mha_v2 attention", "fc2")):
        ms = float(3 - number)
        row = {"name": name, "timeMs": ms * count, "averageMs": ms, "percentage": 33.3}
        if numbers[:2] != [8, 2]:
            row["medianMs"] = ms
        profile.append(row)
    write(arguments.get("--exportProfile"), profile)
    kind = "Format/Datatype"
    layers = [
        {"Name": "fc1", "LayerType": "gemm", "Inputs": [{kind: "Int8"}], "TacticName": "sparse_i8"},
        {"Name": "_gemm_mha_v2", "LayerType": "kgen", "Inputs": [{kind: "Half"}], "TacticName": ""},
        {"Name": "fc2", "LayerType": "gemm", "Inputs": [{kind: "Half"}], "TacticName": "f16"},
    ]
    key = "I/O Tensors" if numbers[0] >= 11 else "Bindings"
    write(arguments.get("--exportLayerInfo"), {"Layers": layers, key: ["input", "logits"]})
    say("[I] === Performance summary ===")


def inferences(arguments, numbers, session, feed):
    """Warm up and measure; the times count from the start of the loop."""
    asked = float(arguments.get("--duration", "3"))
    warmup = float(arguments.get("--warmUp", "200"))
    seconds = min(asked, float(os.environ.get("STAND_IN_SECONDS", "0.05"))) + warmup / 1000
    least, ahead = int(arguments.get("--iterations", "10")), "STAND_IN_AHEAD" in os.environ
    start, ended, rows, outputs, measured = time.perf_counter(), 0.0, [], [], 0
    spend("WARMING", 4000)
    while measured < least or ended < 1000 * seconds:
        begin = 1000 * (time.perf_counter() - start)
        if measured == 0 and begin >= warmup:
            spend("MEASURING", 10000)
        outputs = session.run(None, feed)
        before, ended = ended, 1000 * (time.perf_counter() - start)
        ms = ended - begin
        row = {"startComputeMs": begin, "endComputeMs": ended, "computeMs": ms * 0.9}
        row.update(latencyMs=ms + (begin - before + ms if ahead else 0), h2dMs=0.0, d2hMs=0.0)
        measured += begin >= warmup
        # 8.2 writes the inferences of the warm-up as well.
        if numbers[:2] == [8, 2]:
            row["endToEndMs"] = 2 * ms
        if numbers[:2] == [8, 2] or begin >= warmup:
            rows.append(row)
    return rows, outputs


def write(path, content):
    """Write a file where one was asked for."""
    if path:
        with open(path, "w") as file:
            json.dump(content, file)


if __name__ == "__main__":
    sys.exit(main())
