"""The parts of the script on the board, each against recorded or known input."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from elastic_export.engine.bundle import sample_file
from elastic_export.measure import protocol
from elastic_export.measure.board import identity, power, sample, stats
from elastic_export.measure.board.compose import ORDER, compose
from elastic_export.measure.board.shell import Cannot


def test_settled_rule_is_the_one_of_this_machine() -> None:
    rng = random.Random(0)
    seen = set()
    for _ in range(400):
        count, spread, drift = rng.randint(8, 30), rng.random() * 0.2, rng.random() * 0.2
        series = [
            5.0 * (1 + spread * (rng.random() - 0.5) + drift * i / count) for i in range(count)
        ]
        ours, theirs = stats.unsettled_because(series), protocol.unsettled_because(series)
        assert ours == theirs
        seen.add(ours == "")
    assert seen == {True, False}


def test_quantiles_are_numpys() -> None:
    rng = np.random.default_rng(1)
    for count in (1, 2, 3, 10, 101):
        values = rng.lognormal(size=count).tolist()
        found = stats.summary(values)
        for name, percent in (("median", 50), ("p90", 90), ("p95", 95), ("p99", 99)):
            assert found[name] == pytest.approx(float(np.percentile(values, percent)))
        assert found["cov"] == pytest.approx(float(np.std(values) / np.mean(values)))


@pytest.mark.parametrize(
    ("text", "l4t", "jetpack"),
    [
        (
            "# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t210ref, EABI: aarch64",
            "32.7.1",
            "4.6.1",
        ),
        ("# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref", "35.4.1", "5.1.2"),
        ("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic", "36.4.3", "6.2"),
        ("# R36 (release), REVISION: 4.7, GCID: 1, BOARD: generic", "36.4.7", "6.2.1"),
        ("# R40 (release), REVISION: 1.0, GCID: 1", "40.1.0", None),
        ("", None, None),
    ],
)
def test_release_file(text: str, l4t: str | None, jetpack: str | None) -> None:
    assert identity.parse_l4t(text) == l4t
    assert identity.jetpack_of(l4t) == jetpack


def test_power_mode_and_banner() -> None:
    assert identity.parse_power_mode("NV Power Mode: MODE_15W\n2\n") == "15W"
    assert identity.parse_power_mode("NV Power Mode: MAXN_SUPER\n2\n") == "MAXN_SUPER"
    assert identity.parse_power_mode("no such thing") is None
    assert identity.banner_version("8201") == "8.2.1"
    assert identity.banner_version("8502") == "8.5.2"
    assert identity.banner_version("100300") == "10.3.0"
    assert identity.banner_version("101600") == "10.16.0"
    assert identity.banner_version("110100") == "11.1.0"


@pytest.mark.parametrize(
    ("line", "rail", "watts"),
    [
        (
            "RAM 2448/7620MB (lfb 3x4MB) CPU [5%@729,off] GR3D_FREQ 0% cpu@45.6C tj@46.0C "
            "VDD_IN 4861mW/4861mW VDD_CPU_GPU_CV 503mW/503mW VDD_SOC 1387mW/1387mW",
            "VDD_IN",
            4.861,
        ),
        (
            "RAM 1/2MB GR3D_FREQ 99% VDD_GPU_SOC 3500mW/3400mW VDD_CPU_CV 1000mW/900mW",
            "VDD_CPU_CV+VDD_GPU_SOC",
            4.5,
        ),
        (
            "RAM 1/2MB CPU@38C VDD_GPU_SOC 1234mW VDD_CPU_CV 567mW",
            "VDD_CPU_CV+VDD_GPU_SOC",
            1.801,
        ),
        (
            "RAM 1700/3964MB thermal@36C POM_5V_IN 2345/2300 POM_5V_GPU 40/40",
            "POM_5V_IN",
            2.345,
        ),
        ("RAM 1/2MB tj@40C VIN 19780mW/19000mW VDD_GPU 5000mW/5000mW", "VIN", 19.78),
        ("RAM 1700/3964MB SWAP 0/1982MB CPU [1%@102] GR3D_FREQ 0%", "", None),
    ],
)
def test_tegrastats_lines(line: str, rail: str, watts: float | None) -> None:
    name, value = power.rail_watts(power.parse_tegrastats(line))
    assert name == rail
    assert value is None if watts is None else value == pytest.approx(watts)


def test_power_monitors_of_sysfs(tmp_path: Path) -> None:
    folder = tmp_path / "1-0040" / "hwmon" / "hwmon3"
    folder.mkdir(parents=True)
    for name, text in {
        "in1_label": "VDD_IN",
        "in1_input": "5000",
        "curr1_input": "900",
        "in2_label": "VDD_SOC",
        "in2_input": "5000",
        "curr2_input": "200",
        "in3_label": "unread",
    }.items():
        (folder / name).write_text(text + "\n")
    rails = power.ina3221_rails(str(tmp_path))
    assert rails == pytest.approx({"VDD_IN": 4.5, "VDD_SOC": 1.0})
    assert power.rail_watts(rails)[0] == "VDD_IN"


def test_energy_is_the_integral_of_power() -> None:
    steady = [(t / 10, 6.0) for t in range(101)]
    assert power.energy_mj(steady, 2.0, 7.0) == pytest.approx(30_000)
    rising = [(t / 10, t / 10) for t in range(101)]
    assert power.energy_mj(rising, 0.0, 10.0) == pytest.approx(50_000)
    assert power.energy_mj(steady, 50.0, 60.0) is None
    meter = power.PowerMeter()
    meter.samples = steady
    found = meter.per_inference([(1.0, 2.0), (5.0, 6.0)], count=100, idle_w=2.0)
    assert found is not None
    assert found["per_inference"] == pytest.approx(120.0)
    assert found["net_of_idle"] == pytest.approx(80.0)
    assert meter.per_inference([(1.0, 2.0), (50.0, 60.0)], 100, None) is None


def test_sample_is_read_without_a_library(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, 2, 4, 4)).astype(np.float32)
    logits = rng.normal(size=(3, 5)).astype(np.float32)
    path = tmp_path / "sample.safetensors"
    path.write_bytes(sample_file(images, {"int8": logits}))
    found = sample.read_sample(str(path))
    assert found.shape == [2, 4, 4]
    assert found.logits["int8"] == logits.tolist()
    first, second = found.batches(2)
    assert first == images[:2].tobytes()
    assert second == images[[2, 2]].tobytes()
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(Cannot, match="cannot be read"):
        sample.read_sample(str(path))


def test_comparison_of_logits() -> None:
    expected = [[1.0, 2.0, -4.0], [0.0, 1.0, 0.5]]
    same = sample.compare_logits(expected, expected, 0.0)
    assert same["ok"]
    assert same["top1_agreement"] == 1.0
    off = sample.compare_logits([[1.0, 2.4, -4.0], [1.5, 1.0, 0.5]], expected, 0.2)
    assert off["max_relative_error"] == pytest.approx(0.375)
    assert off["top1_agreement"] == 0.5
    assert not off["ok"]
    broken = sample.compare_logits([[math.nan, 2.0, -4.0], [0.0, 1.0, 0.5]], expected, 0.5)
    assert not broken["ok"]
    assert broken["max_relative_error"] is None


def test_the_script_is_one_file_of_the_standard_library() -> None:
    text = compose()
    assert not any(line.startswith("from elastic_export") for line in text.splitlines())
    assert all(f"# ---- {module} ----" in text for module in ORDER)
    imported = {
        line.split()[1].split(".")[0]
        for line in text.splitlines()
        if line.startswith(("import ", "from "))
    }
    assert imported <= set(sys.stdlib_module_names)


def test_the_script_runs_on_python_3_6(tmp_path: Path) -> None:
    script = tmp_path / "on_device.py"
    script.write_text(compose())
    vermin = Path(sys.executable).with_name("vermin")
    done = subprocess.run(
        [str(vermin), "-t=3.6-", "--eval-annotations", "--no-tips", str(script)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "Minimum required versions: 3.6" in done.stdout
