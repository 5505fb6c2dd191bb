"""The README inside a bundle, for the person at the board: what is here and how to run it."""

from __future__ import annotations

from elastic_export.config.dla import core_of
from elastic_export.config.transform import Transform
from elastic_export.engine.bundle_manifest import Manifest, Port
from elastic_export.engine.trtexec import timing_arguments

__all__ = ["preprocess_steps", "readme"]


def readme(manifest: Manifest) -> str:
    """Write Markdown from the manifest alone; equal manifests give equal text."""
    parts = [
        _head(manifest),
        _models(manifest),
        _whole(manifest),
        _inputs(manifest),
        _measure(manifest),
        _onnxruntime(manifest),
    ]
    if manifest.runtime.name == "tensorrt":
        parts.append(_tensorrt(manifest))
    if manifest.engines:
        parts.append(_engines(manifest))
    if manifest.notes:
        parts.append("## Notes\n\n" + "\n".join(f"- {note}" for note in manifest.notes))
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(manifest: Manifest) -> str:
    runtime = manifest.runtime
    version = f" {runtime.version}" if runtime.version else ""
    made = manifest.versions.get("elastic-export")
    by = f" by elastic-export {made}" if made else ""
    return (
        f"# {_inline(manifest.name)} for {_inline(manifest.target)}\n\n"
        f"A network made{by} for {_inline(manifest.target)} with {runtime.name}{version}. "
        "`manifest.json` says everything about it: its spec, what it was made from, which checks "
        "held, and a digest of each file."
    )


def _models(manifest: Manifest) -> str:
    lines = ["| precision | file | bytes | top-1 |", "|---|---|---|---|"]
    for precision, name in manifest.models.items():
        mark = " (chosen)" if precision == manifest.chosen else ""
        accuracy = manifest.accuracy.get(precision)
        top1 = f"{accuracy.top1:.2f} % ({accuracy.how})" if accuracy else ""
        lines.append(
            f"| {_inline(precision)}{mark} | `{name}` | {manifest.files[name].bytes} | {top1} |"
        )
    text = "\n".join(lines)
    if any(accuracy.how == "emulated" for accuracy in manifest.accuracy.values()):
        text += "\n\n*emulated*: the file ran in ONNX Runtime, not on this device."
    return text


def _whole(manifest: Manifest) -> str:
    sums = "\n".join(f"{entry.sha256}  {name}" for name, entry in manifest.files.items())
    return f"## Is it whole?\n\nIn this folder:\n\n```sh\nsha256sum -c <<'SUMS'\n{sums}\nSUMS\n```"


def _inputs(manifest: Manifest) -> str:
    lines = [_port("Input", port) for port in manifest.inputs]
    lines += [_port("Output", port) for port in manifest.outputs]
    lines += [f"- {step}" for step in preprocess_steps(manifest.transform)]
    return "## What goes in\n\n" + "\n".join(lines)


def _port(kind: str, port: Port) -> str:
    shape = " x ".join(str(size) for size in port.shape)
    return f"- {kind} `{port.name}`: {port.dtype}, {shape}."


def preprocess_steps(transform: Transform) -> list[str]:
    """Say in order what turns pixels into a network's input, a sentence each."""
    colour = "RGB" if transform.channels == 3 else "one grey channel"
    steps = [f"Pixels: {colour}, scaled to 0..1."]
    if transform.resize is not None:
        steps.append(
            f"Resize the shorter side to {transform.resize} ({transform.interpolation}), then take "
            f"the central {transform.size} x {transform.size} pixels."
        )
    else:
        steps.append(f"The image has {transform.size} x {transform.size} pixels already.")
    mean, std = (", ".join(f"{v:g}" for v in values) for values in (transform.mean, transform.std))
    steps.append(f"Per channel: subtract {mean}, divide by {std}. Order: channel, row, column.")
    if transform.final_size is not None:
        steps.append(
            f"Resize what that gives to {transform.final_size} x {transform.final_size}: bicubic "
            "with a = -0.75, no antialiasing, pixel centres at half (as torch's interpolate)."
        )
    return steps


def _measure(manifest: Manifest) -> str:
    """Show the script that does everything here by itself."""
    script = next((name for name in manifest.files if name == "on_device.py"), None)
    if script is None:
        return ""
    if manifest.runtime.name == "tensorrt-rtx":
        return _RTX.format(script=script)
    runs_here = manifest.runtime.name != "tensorrt"
    also = ", NumPy and ONNX Runtime" if runs_here else " and TensorRT's trtexec"
    if (manifest.runtime.version or "").startswith(_LIMITED_TRTEXEC):
        also += ", or its Python module (python3-libnvinfer) for what that trtexec cannot build"
    builds = "builds the engines, " if manifest.runtime.name == "tensorrt" else ""
    return (
        "## Measure it here\n\n"
        f"Python 3.6 or newer{also}:\n\n"
        f"```sh\npython3 {script} run\n```\n\n"
        f"It says what this machine is, {builds}compares the sample images' logits, holds the "
        "clocks still where it may (and puts them back), measures the models turn by turn until "
        "the figures are settled, reads power where there is a meter, prints them, and writes "
        "everything into one file beside this folder. Finished models are not measured again. "
        "From another machine, "
        "`elastic-export bench BUNDLE --on USER@THIS_MACHINE` does the same over ssh."
    )


def _onnxruntime(manifest: Manifest) -> str:
    """Show a program that runs the sample, from the standard library, NumPy and ONNX Runtime."""
    precision = manifest.chosen or next(iter(manifest.models), None)
    if manifest.sample is None or precision is None:
        return ""
    allowed = manifest.sample.tolerance.get(precision)
    expected = f" Expected: at most {allowed:g}." if allowed is not None else ""
    code = _PROGRAM.format(
        sample=manifest.sample.file, model=manifest.models[precision], precision=precision
    )
    return (
        "## Run it with ONNX Runtime\n\n"
        f"This runs the {manifest.sample.images} sample images and compares the logits with those "
        f"of the machine that built the bundle.{expected}\n\n```python\n{code}```"
    )


def _tensorrt(manifest: Manifest) -> str:
    scripts = [name for name in manifest.files if name.endswith(".sh")]
    if not scripts or manifest.runtime.version is None:
        return ""
    build = "\n".join(f"sh {name}" for name in scripts)
    dla = core_of(manifest.target)
    flags = " \\\n  ".join(timing_arguments(manifest.runtime.version, dla))
    return (
        "## Build and time it with TensorRT\n\n"
        "An engine belongs to the board and the TensorRT that built it, so build it there. It goes "
        "beside this folder. Set the power mode and lock the clocks first (`sudo nvpmodel -q`, "
        "`sudo jetson_clocks`).\n\n"
        f"```sh\n{build}\n```\n\n"
        "Then time it, with the path that the script printed for ENGINE:\n\n"
        "```sh\n/usr/src/tensorrt/bin/trtexec --loadEngine=ENGINE \\\n"
        f"  {flags} \\\n  --exportTimes=times.json\n```\n\n"
        + (_DLA.format(core=dla) if dla is not None else _SPARSITY if _skips(manifest) else "")
    )


def _skips(manifest: Manifest) -> bool:
    """Tell whether the target skips zeros of any file."""
    told = manifest.descendant
    dense = (told.get("cost") or {}).get("macs", 0)
    return any(macs < dense for macs in (told.get("executed_macs") or {}).values())


_LIMITED_TRTEXEC = "8.2"
"""The release whose trtexec keeps no single layer in FP32."""
_RTX = (
    "## Measure it here\n\n"
    "The engines run with the TensorRT-RTX runtime. On a machine with the GPU, with elastic-export "
    "and its extra `rtx` installed, `elastic-export bench THIS_FOLDER` compares the sample images' "
    "logits and measures them. `{script}` runs the ONNX files in ONNX Runtime instead, which says "
    "nothing of the engines' speed."
)
_SPARSITY = (
    "Whether 2:4 kernels were used is what the build prints under `(Sparsity)`; the builder takes "
    "dense ones where those are faster."
)
_DLA = (
    "The engine is for DLA core {core}, and whatever loads it must name that core: `--useDLACore` "
    "here, `runtime.DLA_core` in Python. How many layers run there, and how many fell back to the "
    "GPU, is what the build prints last."
)


def _engines(manifest: Manifest) -> str:
    lines = ["| precision | status | runtime | version | sm |", "|---|---|---|---|---|"]
    for precision, engine in manifest.engines.items():
        cells = [str(engine.get(key, "")) for key in ("status", "runtime", "version", "sm")]
        lines.append(f"| {_inline(precision)} | {' | '.join(_inline(cell) for cell in cells)} |")
    return (
        "## Engines\n\n" + "\n".join(lines) + "\n\n"
        "*accepted* says that the builder took the graph. An engine runs only with the runtime and "
        "version named here: a TensorRT-RTX engine is not a TensorRT engine."
    )


def _inline(text: str) -> str:
    """Keep names from breaking out of a line or a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


_PROGRAM = '''\
import json
import struct

import numpy as np
import onnxruntime


def read(path):
    """Read a safetensors file of float32 arrays."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        data = file.read()
    arrays = {{}}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            arrays[name] = np.frombuffer(data[begin:end], "<f4").reshape(entry["shape"])
    return arrays


sample = read("{sample}")
session = onnxruntime.InferenceSession("{model}", providers=["CPUExecutionProvider"])
port = session.get_inputs()[0]
batch = port.shape[0] if isinstance(port.shape[0], int) else len(sample["input"])
images, expected = sample["input"], sample["logits.{precision}"]
logits = np.concatenate(
    [
        session.run(None, {{port.name: images[i : i + batch]}})[0]
        for i in range(0, len(images), batch)
    ]
)
print("top-1 agrees for", int((logits.argmax(1) == expected.argmax(1)).sum()), "of", len(images))
print("largest difference of logits:", float(abs(logits - expected).max() / abs(expected).max()))
'''
