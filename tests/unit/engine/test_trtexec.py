"""trtexec arguments against the recorded option tables, and the script with a stand-in."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys

import pytest

from elastic_export.engine.trtexec import build_arguments, timing_arguments, trtexec_script
from elastic_export.errors import UserError

VERSIONS = ("8.2.1", "8.5.2", "8.6.2", "10.3.0", "10.16.1", "11", "11.4.1")

# Which release's parser knows which option (reference: sampleOptions.cpp of each branch).
KNOWN_SINCE = {
    "--workspace": ("8.2", "8.5", "8.6"),
    "--buildOnly": ("8.2", "8.5", "8.6"),
    "--memPoolSize": ("8.5", "8.6", "10.3", "11"),
    "--skipInference": ("8.6", "10.3", "11"),
    "--stronglyTyped": ("10.3", "11"),
    "--fp16": ("8.2", "8.5", "8.6", "10.3"),
    "--int8": ("8.2", "8.5", "8.6", "10.3"),
    "--useCudaGraph": ("8.2", "8.5", "8.6", "10.3", "11"),
    "--useSpinWait": ("8.2", "8.5", "8.6", "10.3", "11"),
    "--noDataTransfers": ("8.2", "8.5", "8.6", "10.3", "11"),
    # Reference: CHANGELOG.md of NVIDIA/TensorRT (added in 8.4.1), removed with weak typing in 11.0.
    "--precisionConstraints": ("8.5", "8.6", "10.3"),
    "--layerPrecisions": ("8.5", "8.6", "10.3"),
    "--layerOutputTypes": ("8.5", "8.6", "10.3"),
}
PINS = ["LayerNormalization_0.squared.fp32", "/blocks.0/norm1/Pow.fp32"]
ALWAYS = {
    "--onnx",
    "--saveEngine",
    "--sparsity",
    "--profilingVerbosity",
    "--timingCacheFile",
    "--verbose",
    "--warmUp",
    "--duration",
    "--iterations",
    "--percentile",
}

STAND_IN = """\
#!/bin/sh
# Stand-in for trtexec: records its arguments and behaves as OUTCOME says.
printf '%s\\n' "$@" > "$RECORD"
echo "[I] (Sparsity) Layers eligible for sparse math: /blocks.0/mlp/fc1"
[ "$OUTCOME" = fail ] && { echo "[E] out of memory" >&2; exit 1; }
for argument in "$@"; do
    case $argument in --saveEngine=*) echo plan > "${argument#--saveEngine=}" ;; esac
done
"""


def family(version: str) -> str:
    return next(name for name in ("8.2", "8.5", "8.6", "10", "11") if version.startswith(name))


def build(version, **changes):
    options = {"strongly_typed": True, "sparse": True, "quantized": False, "workspace": "512"}
    return build_arguments(version, **(options | changes))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize("pins", [[], PINS])
def test_no_release_gets_an_option_it_does_not_know(version, typed, pins):
    release = {"10": "10.3"}.get(family(version), family(version))
    try:
        arguments = build(version, strongly_typed=typed, quantized=not typed, pins=pins)
    except UserError:
        assert typed is (release in ("8.2", "8.5", "8.6")) or (pins and release == "8.2")
        return
    for argument in [*arguments, *timing_arguments(version)]:
        option = argument.partition("=")[0]
        if option not in ALWAYS:
            assert release in KNOWN_SINCE[option], f"{option} for {version}"


def test_exact_arguments_of_two_releases():
    assert build("10.3") == [
        "--stronglyTyped",
        "--sparsity=enable",
        "--memPoolSize=workspace:512",
        "--skipInference",
        "--profilingVerbosity=detailed",
    ]
    assert build("8.2", strongly_typed=False, sparse=False, quantized=True) == [
        "--fp16",
        "--int8",
        "--workspace=512",
        "--buildOnly",
        "--profilingVerbosity=detailed",
    ]
    assert "--percentile=99" in timing_arguments("8.2.1")
    assert "--percentile=90,95,99" in timing_arguments("8.5")
    assert "--useCudaGraph" not in timing_arguments("11")


def test_pinned_nodes_stay_in_fp32_where_the_builder_chooses():
    listed = "LayerNormalization_0.squared.fp32:fp32,/blocks.0/norm1/Pow.fp32:fp32"
    wanted = [
        "--precisionConstraints=obey",
        f"--layerPrecisions={listed}",
        f"--layerOutputTypes={listed}",
    ]
    for version in ("8.5.2", "8.6.2", "10.3"):
        weak = build(version, strongly_typed=False, sparse=False, pins=PINS)
        assert weak[:4] == ["--fp16", *wanted]
    assert build("10.3", pins=PINS) == build("10.3")
    assert build("11", pins=PINS) == build("11")
    # An engine in FP32 alone has nothing to be kept from FP16.
    plain = {"strongly_typed": False, "half": False}
    assert build("8.5", pins=PINS, **plain) == build("8.5", **plain)


def test_pins_that_trtexec_cannot_hold():
    with pytest.raises(UserError, match=r"8\.2\.1 cannot keep single layers in FP32"):
        build("8.2.1", strongly_typed=False, pins=PINS)
    for name in ("a,b", "a:fp16", "*", "a b", "$(x)", ""):
        with pytest.raises(ValueError, match="cannot be named"):
            build("8.5", strongly_typed=False, pins=[name])


def test_int8_without_ranges_is_never_switched_on():
    assert "--int8" not in build("8.6", strongly_typed=False)
    assert "--stronglyTyped" not in build("11.2", quantized=True)


@pytest.mark.parametrize(
    ("version", "typed", "what"),
    [
        ("8.6", True, "no strongly typed networks"),
        ("11.0", False, "strongly typed networks only"),
        ("8.4.1", False, "not known"),
        ("10.2", True, "not known"),
        ("10.17", True, "not known"),
        ("12.0", True, "not known"),
        ("8", False, "not known"),
        ("10", True, "not known"),
        ("", True, "not known"),
        ("newest", True, "not known"),
        ("10.3x", True, "not known"),
    ],
)
def test_impossible_combinations_are_refused(version, typed, what):
    with pytest.raises(UserError, match=what):
        trtexec_script("m.onnx", strongly_typed=typed, sparse=False, version=version)


@pytest.mark.parametrize(
    "name", ["../m.onnx", "m;rm.onnx", "m.engine", "a b.onnx", "$(x).onnx", ""]
)
def test_only_plain_file_names(name):
    with pytest.raises(ValueError, match="plain name"):
        trtexec_script(name, strongly_typed=True, sparse=False, version="10.3")


@pytest.fixture
def board(tmp_path, monkeypatch):
    """A folder with a space in its name, and a stand-in for trtexec on PATH."""
    folder = tmp_path / "my bundle"
    folder.mkdir()
    (folder / "model_int8.onnx").write_bytes(b"onnx")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "trtexec").write_text(STAND_IN)
    (tools / "trtexec").chmod(0o755)
    record = tmp_path / "record"
    monkeypatch.setenv("RECORD", str(record))
    monkeypatch.setenv("OUTCOME", "succeed")
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")

    def run(*arguments, version="10.3", typed=True, sparse=True):
        script = folder / "build_engine.sh"
        script.write_text(
            trtexec_script("model_int8.onnx", strongly_typed=typed, sparse=sparse, version=version)
        )
        done = subprocess.run(
            ["sh", str(script), *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        return done, record.read_text().splitlines() if record.exists() else []

    run.folder = folder
    run.tools = tools
    return run


def test_script_builds_beside_the_bundle(board, monkeypatch):
    monkeypatch.setenv("WORKSPACE_MIB", "256")
    done, given = board("--useDLACore=0")
    assert done.returncode == 0, done.stderr
    out = board.folder.with_name("my bundle.engine")
    assert (out / "model_int8.engine").read_text() == "plan\n"
    assert {path.name for path in out.iterdir()} == {"model_int8.engine", "model_int8.build.log"}
    assert given[0] == f"--onnx={board.folder}/model_int8.onnx"
    assert "--memPoolSize=workspace:256" in given
    assert given[-1] == "--useDLACore=0"
    assert "Layers eligible for sparse math" in done.stdout
    assert {path.name for path in board.folder.iterdir()} == {"model_int8.onnx", "build_engine.sh"}


def test_script_reports_a_failed_build_and_leaves_no_engine(board, monkeypatch):
    monkeypatch.setenv("OUTCOME", "fail")
    done, _ = board()
    assert done.returncode == 1
    assert "out of memory" in done.stderr
    out = board.folder.with_name("my bundle.engine")
    assert {path.name for path in out.iterdir()} == {"model_int8.build.log"}


def test_script_says_what_to_do_without_trtexec(board):
    (board.tools / "trtexec").unlink()
    done, _ = board()
    assert done.returncode == 1
    assert "Install TensorRT" in done.stderr


def test_dense_network_says_nothing_of_sparsity(board):
    done, given = board(sparse=False, typed=False, version="8.6")
    assert done.returncode == 0, done.stderr
    assert "--sparsity=enable" not in given
    assert "Sparsity" not in done.stdout


TENSORRT = """\
import json, os, types
class Enum:
    def __getattr__(self, name):
        return name
    FP16, INT8, SPARSE_WEIGHTS, OBEY_PRECISION_CONSTRAINTS = "FP16", "INT8", "SPARSE", "OBEY"
    VERBOSE, DETAILED, EXPLICIT_BATCH = "VERBOSE", "DETAILED", 0
BuilderFlag = ProfilingVerbosity = NetworkDefinitionCreationFlag = DeviceType = Enum()
float32 = "float32"
told = {"flags": [], "layers": {}, "config": {}, "devices": {}}
class Logger:
    VERBOSE = 0
    def __init__(self, level):
        pass
class Layer:
    num_outputs = 1
    def __init__(self, name):
        self.name = name
    def __setattr__(self, key, value):
        self.__dict__[key] = value
        told["layers"].setdefault(self.name, []).append([key, value])
    def set_output_type(self, index, kind):
        told["layers"][self.name].append(["output", kind])
class Network:
    num_layers = 3
    layers = [Layer(n) for n in ("fc1", "norm.squared.fp32", "norm.root.fp32")]
    def get_layer(self, index):
        return self.layers[index]
class Cache:
    def serialize(self):
        return b"timings"
class Config:
    def __setattr__(self, key, value):
        self.__dict__[key] = told["config"][key] = value
    def set_device_type(self, layer, device):
        told["devices"][layer.name] = device
    def set_flag(self, flag):
        told["flags"].append(flag)
    def create_timing_cache(self, known):
        return Cache()
    def set_timing_cache(self, cache, mismatch):
        pass
class Builder:
    def __init__(self, logger):
        pass
    def create_network(self, flags):
        return Network()
    def create_builder_config(self):
        return Config()
    def build_serialized_network(self, network, config):
        told["workspace"] = config.max_workspace_size
        with open(os.environ["RECORD"], "w") as file:
            json.dump(told, file)
        return b"plan" if os.environ["OUTCOME"] == "succeed" else None
class OnnxParser:
    num_errors = 0
    def __init__(self, network, logger):
        pass
    def parse(self, data):
        return data == b"onnx"
"""
"""The API of TensorRT 8.2 that the script uses; the real one runs on a board alone."""


@pytest.fixture
def old_board(board, tmp_path, monkeypatch):
    """A board whose trtexec has no pins, with a stand-in for JetPack's Python module."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "tensorrt.py").write_text(TENSORRT)
    monkeypatch.setenv("PYTHONPATH", str(modules))
    monkeypatch.setenv("PYTHON", sys.executable)

    def run(*arguments, pins=("norm.squared.fp32", "norm.root.fp32"), quantized=False, dla=None):
        script = board.folder / "build_engine.sh"
        options = {"strongly_typed": False, "sparse": False, "version": "8.2.1"}
        script.write_text(
            trtexec_script("model_int8.onnx", quantized=quantized, pins=pins, dla=dla, **options)
        )
        done = subprocess.run(
            ["sh", str(script), *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        return done, tmp_path / "record"

    run.out = board.folder.with_name("my bundle.engine")
    return run


def test_the_oldest_release_is_asked_through_python(old_board, monkeypatch):
    monkeypatch.setenv("WORKSPACE_MIB", "256")
    done, record = old_board()
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(record.read_text())
    assert told["flags"] == ["FP16", "OBEY"]
    assert told["workspace"] == 256 << 20
    kept = [["precision", "float32"], ["output", "float32"]]
    assert told["layers"]["norm.squared.fp32"][-2:] == kept
    assert told["layers"]["norm.root.fp32"][-2:] == kept
    assert told["layers"]["fc1"] == [["name", "fc1"]]
    made = {path.name: path.read_bytes() for path in old_board.out.iterdir()}
    assert made["model_int8.engine"] == b"plan"
    assert made["timing.cache"] == b"timings"
    assert set(made) == {"model_int8.engine", "timing.cache", "model_int8.build.log"}


def test_a_dla_is_asked_for_through_python_too(old_board):
    done, record = old_board(dla=1)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(record.read_text())
    assert told["config"]["default_device_type"] == "DLA"
    assert told["config"]["DLA_core"] == 1
    assert told["flags"] == ["GPU_FALLBACK", "FP16", "OBEY"]
    # What stays in FP32 cannot run on a DLA.
    assert told["devices"] == {"norm.squared.fp32": "GPU", "norm.root.fp32": "GPU"}
    assert "Layers on the DLA: 0; on the GPU: 0" in done.stdout
    told = json.loads(old_board()[1].read_text())
    assert "DLA_core" not in told["config"]
    assert not told["devices"]


def test_the_python_build_fails_aloud(old_board, monkeypatch):
    done, _ = old_board(pins=("norm.squared.fp32",))
    assert done.returncode == 1
    assert "2 layers are to be kept in FP32, and 1 were expected" in done.stderr
    assert {path.name for path in old_board.out.iterdir()} == {"model_int8.build.log"}
    done, _ = old_board("--verbose")
    assert "takes no arguments" in done.stderr
    monkeypatch.setenv("OUTCOME", "fail")
    done, record = old_board(quantized=True)
    assert done.returncode == 1
    assert "made no engine" in done.stderr
    assert json.loads(record.read_text())["flags"] == ["FP16", "INT8", "OBEY"]
    monkeypatch.setenv("PYTHONPATH", "")
    assert "Install python3-libnvinfer" in old_board()[0].stderr


def test_the_python_of_jetpack_4_reads_it():
    script = trtexec_script(
        "m.onnx", strongly_typed=False, sparse=True, version="8.2", pins=["a.fp32"]
    )
    code = script.split("<<'END'\n")[1].split("\nEND\n")[0]
    ast.parse(code, feature_version=(3, 6))
    # An engine in FP32 alone is trtexec's again.
    options = {"strongly_typed": False, "sparse": True, "version": "8.2", "half": False}
    assert "--buildOnly" in trtexec_script("m.onnx", pins=["a.fp32"], **options)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("version", ["8.2", "8.6", "10.3", "11"])
@pytest.mark.parametrize("sparse", [True, False])
def test_shellcheck_has_nothing_to_say(tmp_path, version, sparse):
    script = tmp_path / "build_engine.sh"
    script.write_text(
        trtexec_script(
            "m.onnx",
            strongly_typed=not version.startswith("8"),
            sparse=sparse,
            version=version,
            quantized=True,
        )
    )
    done = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
