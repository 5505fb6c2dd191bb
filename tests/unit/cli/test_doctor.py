"""doctor: every probe stands alone."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from elastic_export.cli import probes
from elastic_export.cli.probes import Check


@pytest.mark.timeout(300)
def test_doctor_finds_this_environment_complete(run) -> None:
    told = run("doctor", "--json")
    document = json.loads(told.stdout)
    status = {check["name"]: check["status"] for check in document["checks"]}
    for name in ("python", "torch", "timm", "onnx", "onnxruntime", "nvidia-modelopt", "data"):
        assert status[name] == "ok", document
    assert set(status.values()) <= {"ok", "absent"}
    assert (document["ok"], told.returncode) == (True, 0)


def test_a_module_that_kills_the_process_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dies.py").write_text("import os\nos._exit(7)\n")
    (tmp_path / "fails.py").write_text("raise OSError('libfoo.so: cannot open')\n")
    (tmp_path / "noisy.py").write_text("print('{}'); print('hello')\n__version__ = '1.2'\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = probes._imports(["noisy", "dies", "fails", "no_such_module", "json"])
    assert found["noisy"]["version"] == "1.2"
    assert "ended with 7" in found["dies"]["error"]
    assert "libfoo.so" in found["fails"]["error"]
    assert found["no_such_module"]["error"].startswith("ModuleNotFoundError")
    assert "error" not in found["json"]


def test_a_module_that_never_answers_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hangs.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(probes, "_IMPORT_SECONDS", 1)
    began = time.monotonic()
    assert "no answer" in probes._imports(["hangs"])["hangs"]["error"]
    assert time.monotonic() - began < 20


def test_what_is_missing_says_what_to_install() -> None:
    modules = [entry[1] for entry in (*probes._HEAVY, *probes._LIGHT, *probes._OPTIONAL)]
    found = {name: {"name": name, "version": "1"} for name in modules}
    found["onnxruntime"] = {
        "name": "onnxruntime",
        "error": "ModuleNotFoundError: No module named 'onnxruntime'",
    }
    found["timm"] = {"name": "timm", "error": "ModuleNotFoundError: No module named 'torchvision'"}
    found["tensorrt_rtx"] = {
        "name": "tensorrt_rtx",
        "error": "ModuleNotFoundError: No module named 'tensorrt_rtx'",
    }
    checks = {check.name: check for check in probes._libraries(found)}
    assert checks["onnxruntime"].status == "missing"
    assert "pip install" in checks["onnxruntime"].fix
    assert checks["timm"].status == "broken"
    assert checks["tensorrt-rtx"].status == "absent"
    assert "elastic-export[rtx]" in checks["tensorrt-rtx"].fix


def test_a_probe_that_fails_is_a_line_of_its_own() -> None:
    def fails() -> Check:
        raise RuntimeError("no such thing")

    check = probes._guarded("gpu", fails)
    assert (check.status, check.name) == ("broken", "gpu")
    assert "no such thing" in check.detail
