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
from elastic_export.measure.board import (
    identity,
    power,
    rails,
    sample,
    session,
    stats,
    trtexec,
    watch,
)
from elastic_export.measure.board.bundle import open_bundle
from elastic_export.measure.board.compose import ORDER, compose
from elastic_export.measure.board.shell import Cannot, Teller
from elastic_export.measure.board.stats import Series
from tests.board.bundles import make_bundle


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


@pytest.mark.parametrize(
    ("compatible", "part"),
    [
        # Recorded: rbonghi/jetson_stats issue 400, NVIDIA/jetson-gpio issue 125.
        ("nvidia,p3768-0000+p3767-0003nvidia,p3767-0005nvidia,tegra234", "p3767-0003"),
        ("nvidia,p3737-0000+p3701-0005nvidia,p3701-0005nvidia,tegra234", "p3701-0005"),
        ("nvidia,p3449-0000-b00+p3448-0000-b00nvidia,jetson-nanonvidia,tegra210", "p3448-0000"),
        ("nvidia,p3767-0001nvidia,tegra234", "p3767-0001"),
        ("nvidia,tegra234", None),
        ("", None),
    ],
)
def test_the_module_is_told_from_its_carrier_board(compatible: str, part: str | None) -> None:
    assert identity.parse_part(compatible) == part


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
    ("line", "names", "kind", "watts"),
    [
        (
            "RAM 2448/7620MB (lfb 3x4MB) CPU [5%@729,off] GR3D_FREQ 0% cpu@45.6C tj@46.0C "
            "VDD_IN 4861mW/4861mW VDD_CPU_GPU_CV 503mW/503mW VDD_SOC 1387mW/1387mW",
            ["VDD_IN"],
            "total",
            4.861,
        ),
        (
            "GR3D_FREQ 99% CV0@73.625C tj@77.281C VDD_GPU_SOC 3150mW/2971mW VDD_CPU_CV "
            "14312mW/12415mW VIN_SYS_5V0 4968mW/5048mW NC 0mW/0mW VDDQ_VDD2_1V8AO 1091mW/1091mW",
            ["VDD_CPU_CV", "VDD_GPU_SOC", "VIN_SYS_5V0"],
            "sum",
            22.43,
        ),
        (
            "RAM 1/2MB CPU@38C VDD_GPU_SOC 1234mW VDDQ_VDD2_1V8AO 567mW",
            ["VDDQ_VDD2_1V8AO", "VDD_GPU_SOC"],  # nothing feeds it that is measured
            "sum",
            1.801,
        ),
        (
            "RAM 1700/3964MB thermal@36C POM_5V_IN 2345/2300 POM_5V_GPU 40/40 POM_5V_CPU 300/310",
            ["POM_5V_IN"],
            "total",
            2.345,
        ),
        (
            "SWAP 0/3823MB AUX@38C GPU 1000/900 CPU 500/500 SOC 866/866 CV 0/0 VDDRQ 144/144 "
            "SYS5V 1889/1889",
            ["CPU", "CV", "GPU", "SOC", "SYS5V", "VDDRQ"],
            "sum",
            4.399,
        ),
        (
            "VDD_SYS_GPU 76/76 VDD_SYS_SOC 305/305 VDD_4V0_WIFI 0/0 VDD_IN 2289/2289",
            ["VDD_IN"],
            "total",
            2.289,
        ),
        ("RAM 1/2MB tj@40C VIN 19780mW/19000mW VDD_GPU 5000mW/5000mW", ["VIN"], "total", 19.78),
        ("RAM 1700/3964MB SWAP 0/1982MB CPU [1%@102] GR3D_FREQ 0%", [], "sum", None),
    ],
)
def test_tegrastats_lines(line: str, names: list[str], kind: str, watts: float | None) -> None:
    found = rails.parse_tegrastats(line)
    assert rails.choose_rails(list(found)) == (names, kind)
    if watts is not None:
        assert sum(found[name] for name in names) == pytest.approx(watts)


def test_power_monitors_of_sysfs(tmp_path: Path) -> None:
    files = {
        "ina3221/1-0040/hwmon/hwmon3/in1_label": "VDD_IN",
        "ina3221/1-0040/hwmon/hwmon3/in1_input": "5000",
        "ina3221/1-0040/hwmon/hwmon3/curr1_input": "900",
        "ina3221/1-0040/hwmon/hwmon3/in2_label": "VDD_SOC",
        "ina3221/1-0040/hwmon/hwmon3/in2_input": "5000",
        "ina3221/1-0040/hwmon/hwmon3/curr2_input": "-8",  # the noise of a rail that draws nothing
        "ina3221/1-0040/hwmon/hwmon3/in3_label": "NC",
        "ina3221/1-0040/hwmon/hwmon3/in3_input": "1",
        "ina3221/1-0040/hwmon/hwmon3/curr3_input": "1",
        "ina3221/1-0040/hwmon/hwmon3/in7_label": "sum of shunt voltages",
        "ina3221/1-0040/hwmon/hwmon3/in7_input": "12",
        # JetPack 4
        "ina3221x/6-0040/iio:device0/rail_name_0": "POM_5V_GPU",
        "ina3221x/6-0040/iio:device0/in_power0_input": "1250",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    monitors = rails.Ina3221(str(tmp_path))
    assert monitors.read() == pytest.approx({"VDD_IN": 4.5, "VDD_SOC": -0.04, "POM_5V_GPU": 1.25})
    (tmp_path / "ina3221/1-0040/hwmon/hwmon3/curr1_input").unlink()
    assert set(monitors.read()) == {"VDD_SOC", "POM_5V_GPU"}
    assert rails.Ina3221(str(tmp_path / "nothing")).read() == {}


def test_a_rail_that_is_missing_once_is_no_dip(tmp_path: Path) -> None:
    meter = power.PowerMeter()
    meter.source = "tegrastats"
    for line in ("VDD_GPU_SOC 3000mW VDD_CPU_CV 1000mW", "VDD_GPU_SOC 3000mW", "no rail at all"):
        meter._take_line(line)
    assert [watts for _, watts in meter.samples] == [4.0]
    assert (meter.rails, meter.kind) == (["VDD_CPU_CV", "VDD_GPU_SOC"], "sum")


def test_energy_is_the_integral_of_power() -> None:
    steady = [(t / 10, 6.0) for t in range(101)]
    assert power.energy_mj(steady, 2.0, 7.0) == pytest.approx(30_000)
    rising = [(t / 10, t / 10) for t in range(101)]
    assert power.energy_mj(rising, 0.0, 10.0) == pytest.approx(50_000)
    assert power.energy_mj(steady, 50.0, 60.0) is None
    meter = power.PowerMeter()
    meter.samples = steady
    parts = [Series([1.0] * 60, [], 1.0, 2.0), Series([1.0] * 40, [], 5.0, 6.0)]
    found = meter.per_inference(parts, idle_w=2.0)
    assert found is not None
    assert found["per_inference"] == pytest.approx(120.0)
    assert found["net_of_idle"] == pytest.approx(80.0)
    assert found["exact_window"]
    assert meter.per_inference([*parts, Series([1.0], [], 50.0, 60.0)], None) is None


def _row(begin: float, end: float) -> dict[str, float]:
    ms = end - begin
    return {"startComputeMs": begin, "endComputeMs": end, "latencyMs": ms, "computeMs": ms}


def test_the_window_of_trtexecs_times() -> None:
    rows = [_row(100, 110), _row(205, 215), _row(215, 225)]
    found = trtexec.read_times(rows, 200, started=50.0, begin=48.0, end=51.0)
    assert (found.latency, found.compute) == ([10, 10], [10, 10])
    assert (found.begin, found.end, found.exact) == (pytest.approx(50.205), 50.225, True)
    # The line did not come, or the figures contradict the clock.
    for started, end in ((None, 51.0), (50.9, 51.0), (40.0, 51.0)):
        found = trtexec.read_times(rows, 200, started, 48.0, end)
        assert (found.begin, found.end, found.exact) == (pytest.approx(50.98), 51.0, False)
    # A release without the columns.
    bare = [{"latencyMs": 10.0, "computeMs": 9.0}] * 3
    found = trtexec.read_times(bare, 200, 50.0, 48.0, 51.0)
    assert (len(found.latency), found.exact) == (3, False)
    # All of it was shorter than the warm-up.
    assert len(trtexec.read_times(rows, 1000, 50.0, 48.0, 51.0).latency) == 3
    with pytest.raises(Cannot, match="timed nothing"):
        trtexec.read_times([], 200, 50.0, 48.0, 51.0)


@pytest.mark.parametrize(
    ("reading", "limit", "pinned", "slowed"),
    [
        ((1000.0, None), 1000.0, True, False),
        ((800.0, None), 1000.0, True, True),
        ((800.0, None), 1000.0, False, False),
        ((800.0, None), None, True, True),  # 950 MHz was seen
        ((900.0, None), None, True, False),
        ((800.0, 0x4), 1000.0, True, True),
        ((880.0, 0x1), 1000.0, True, False),
        ((1000.0, 0x20), 1000.0, False, True),
        ((None, None), 1000.0, True, False),
    ],
)
def test_what_counts_as_slowed(
    reading: tuple[float | None, int | None], limit: float | None, pinned: bool, slowed: bool
) -> None:
    seen = [watch.Reading(0.0, reading[0], None, reading[1])]
    assert watch.is_slowed(seen, limit, 950.0, pinned) == slowed


def test_a_line_of_nvidia_smi() -> None:
    found = watch.parse_reading("1410, 45, 0x0000000000000044\n", 1.0)
    assert found == watch.Reading(1.0, 1410.0, 45.0, 0x44)
    assert watch.parse_reading("[N/A], 45", 1.0) == watch.Reading(1.0, None, 45.0, None)
    assert watch.parse_reading("", 1.0) == watch.Reading(1.0, None, None, None)


def test_marks_belong_to_the_attempt_that_counts(tmp_path: Path) -> None:
    """All is taken once more where it does not settle; what spoilt the first attempt is gone."""
    bundle = open_bundle(str(make_bundle(tmp_path / "bundle")))

    class Runner:
        runtime = "onnxruntime"
        calls = 0

        def sample(self, seconds: float, warmup_ms: int) -> Series:
            self.calls += 1
            ms = 5.0 + (self.calls if self.calls <= 10 else 0)
            return Series([ms] * 3, [], 0.0, 1.0)

    class Watch:
        calls = 0

        def judge(self, series: Series) -> watch.Verdict:
            self.calls += 1
            first = self.calls <= 10
            flags = ["throttled"] if first else []
            return watch.Verdict(flags, 500.0 if first else 900.0, 900.0, 40.0)

    one = session.Candidate(bundle, "fp32", Runner())
    session.measure_settled([one], 10, 1.0, 1, Watch(), Teller(), lambda: None)  # type: ignore[arg-type]
    found = one.result(power.PowerMeter(False), None)
    assert found["settled"]
    assert found["flags"] == []
    assert (found["min_gpu_clock_mhz"], found["max_gpu_clock_mhz"]) == (900, 900)


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
