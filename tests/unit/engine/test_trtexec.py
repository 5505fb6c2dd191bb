"""trtexec arguments against the recorded option tables, and the script with a stand-in."""

from __future__ import annotations

import shutil
import subprocess

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
}
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
def test_no_release_gets_an_option_it_does_not_know(version, typed):
    release = {"10": "10.3"}.get(family(version), family(version))
    try:
        arguments = build(version, strongly_typed=typed, quantized=not typed)
    except UserError:
        assert typed is (release in ("8.2", "8.5", "8.6"))
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
