"""What the script on the board pins, watches and reads while it measures.

Power, clocks and cards are stand-ins with the files and formats of real ones (``tests/board``); the
script and its processes are real.
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from elastic_export.measure.board.compose import SCRIPT
from tests.board.machine import Board, has, jetson, nvidia_smi, processes, wait_for

MONITOR = "bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/"
GPU = "class/devfreq/17000000.gpu/"


@pytest.mark.parametrize("phases", ["plain", "ahead", "quiet"])
def test_energy_is_that_of_the_inferences_alone(tmp_path: Path, phases: str) -> None:
    """The stand-in draws 2 W while it loads, 4 W warming up, 10 W measuring, 1 W afterwards."""
    board = Board(tmp_path, "tensorrt")
    root = board.sysfs(
        {
            MONITOR + "in1_label": "VDD_IN",
            MONITOR + "in1_input": 1000,
            MONITOR + "curr1_input": 1000,
        }
    )
    more = {"plain": {}, "ahead": {"STAND_IN_AHEAD": "1"}, "quiet": {"STAND_IN_QUIET": "1"}}
    board.install_trtexec(
        "10.3.0",
        STAND_IN_AMPERES=str(root / MONITOR / "curr1_input"),
        STAND_IN_SECONDS="0.6",
        STAND_IN_LOADING="0.3",
        STAND_IN_TEARDOWN="0.3",
        **more[phases],
    )
    done = board.run(
        "--precision=int8",
        "--rounds=2",
        "--seconds=1.2",
        "--warmup-ms=300",
        "--idle-seconds=0.3",
        "--no-profile",
    )
    assert done.returncode == 0, done.stderr
    model = board.result["models"]["tiny/int8"]
    energy, count = model["energy_mj"], model["latency_ms"]["n"]
    assert (energy["source"], energy["rails"], energy["kind"]) == ("ina3221", ["VDD_IN"], "total")
    assert energy["exact_window"] == (phases != "quiet")
    per_inference = 1000 * energy["load_w"] * model["window_s"] / count
    assert energy["per_inference"] == pytest.approx(per_inference, rel=0.01)
    if phases == "quiet":
        # The old rule counts what comes after the inferences, and says that it may.
        assert energy["load_w"] < 9
        return
    assert energy["load_w"] == pytest.approx(10, rel=0.05)
    assert model["window_s"] == pytest.approx(1.2, rel=0.15)
    # Inferences that overlap take less than their latencies say.
    rate = count / model["window_s"]
    assert model["throughput_per_s"] == pytest.approx(rate, rel=0.01)
    slower = model["throughput_per_s"] * model["latency_ms"]["mean"] / 1000
    assert (slower > 1.5) == (phases == "ahead")


def test_clocks_power_and_mode(tmp_path: Path) -> None:
    board = Board(tmp_path)
    log = jetson(board)
    done = board.run("--precision=fp32", "--seconds=4", "--idle-seconds=0.5")
    assert done.returncode == 0, done.stderr
    calls = log.read_text().splitlines()
    assert [call.split()[0] if call else "pin" for call in calls] == ["--store", "pin", "--restore"]
    result = board.result
    assert result["board"]["power_mode"] == "15W"
    assert result["methodology"]["clocks_pinned"]
    model = result["models"]["tiny/fp32"]
    assert "unpinned" not in model["flags"]
    energy = model["energy_mj"]
    assert (energy["source"], energy["rails"]) == ("tegrastats", ["VDD_IN"])
    assert energy["exact_window"]
    assert energy["idle_w"] == pytest.approx(5.0)
    assert energy["load_w"] == pytest.approx(5.0)
    assert energy["net_of_idle"] == pytest.approx(0.0, abs=1e-6)
    assert energy["per_inference"] > 0
    # What is finished costs nothing more: no clock is touched, and what is known of them stays.
    again = board.run("--precision=fp32", "--seconds=4", "--idle-seconds=60")
    assert again.returncode == 0
    assert len(log.read_text().splitlines()) == len(calls)
    assert board.result["methodology"] == result["methodology"]


def test_rails_of_a_board_without_a_total(tmp_path: Path) -> None:
    """AGX Orin: the memory's rail is a part of the one it is fed from. sysfs is preferred."""
    board = Board(tmp_path)
    jetson(board)
    other = MONITOR.replace("1-0040", "1-0041").replace("hwmon3", "hwmon4")
    files: dict[str, object] = {}
    rails = [(MONITOR, 1, "VDD_GPU_SOC"), (MONITOR, 2, "VDD_CPU_CV"), (MONITOR, 3, "VIN_SYS_5V0")]
    rails += [(other, 1, "NC"), (other, 2, "VDDQ_VDD2_1V8AO")]
    for folder, number, label in rails:
        files[f"{folder}in{number}_label"] = label
        files[f"{folder}in{number}_input"] = 5000
        files[f"{folder}curr{number}_input"] = 1000
    board.sysfs(files)
    done = board.run("--precision=fp32", "--rounds=2", "--seconds=1", "--idle-seconds=0.3")
    assert done.returncode == 0, done.stderr
    energy = board.result["models"]["tiny/fp32"]["energy_mj"]
    assert energy["source"] == "ina3221"
    assert energy["rails"] == ["VDD_CPU_CV", "VDD_GPU_SOC", "VIN_SYS_5V0"]
    assert energy["kind"] == "sum"
    assert energy["load_w"] == pytest.approx(15)


def _jetson_with_clock(tmp_path: Path, clock: int) -> tuple[Board, Path]:
    board = Board(tmp_path)
    jetson(board)
    root = board.sysfs(
        {
            GPU + "cur_freq": clock,
            GPU + "max_freq": 918000000,
            "class/thermal/thermal_zone0/type": "gpu-thermal",
            "class/thermal/thermal_zone0/temp": 51500,
            "class/thermal/thermal_zone1/type": "cv-thermal",
            "class/thermal/thermal_zone1/temp": -256000,
        }
    )
    return board, root


@pytest.mark.parametrize("clock", [918000000, 612000000])
def test_a_clock_that_is_low_from_the_beginning(tmp_path: Path, clock: int) -> None:
    board, _ = _jetson_with_clock(tmp_path, clock)
    done = board.run("--precision=fp32", "--rounds=2", "--seconds=1.4", "--no-power")
    assert done.returncode == 0, done.stderr
    model = board.result["models"]["tiny/fp32"]
    assert (model["min_gpu_clock_mhz"], model["max_gpu_clock_mhz"]) == (clock / 1e6, 918)
    assert model["max_temperature_c"] == 51.5
    assert model["flags"] == (["throttled"] if clock < 900000000 else [])


def test_a_short_dip_and_a_short_heat_are_seen(tmp_path: Path) -> None:
    board, root = _jetson_with_clock(tmp_path, 918000000)
    process = board.start("--precision=fp32", "--rounds=2", "--seconds=6", "--no-power")

    def dip() -> None:
        wait_for(lambda: has(board.tmp / "clocks.log", "--store"))
        time.sleep(1)
        for value, heat in ((306000000, 88000), (918000000, 50000)):
            (root / GPU / "cur_freq").write_text(f"{value}\n")
            (root / "class/thermal/thermal_zone0/temp").write_text(f"{heat}\n")
            time.sleep(1.5)

    thread = threading.Thread(target=dip)
    thread.start()
    _, err = process.communicate(timeout=60)
    thread.join()
    assert process.returncode == 0, err
    model = board.result["models"]["tiny/fp32"]
    assert model["min_gpu_clock_mhz"] == 306
    assert model["max_temperature_c"] == 88
    assert model["flags"] == ["throttled"]


@pytest.mark.parametrize(
    ("fields", "throttled"),
    [
        ({"clocks_event_reasons.active": "0x0000000000000000"}, False),
        # A card that is below its limit for no reason it names has its own ceiling there.
        ({"clocks_event_reasons.active": "0x0000000000000000", "clocks.sm": 1700}, False),
        ({"clocks_event_reasons.active": "0x0000000000000004"}, False),
        ({"clocks_event_reasons.active": "0x0000000000000004", "clocks.sm": 1700}, True),
        ({"clocks_throttle_reasons.active": "0x0000000000000040"}, True),
        ({"clocks.sm": 1700}, True),
        ({}, False),
    ],
)
def test_a_card_tells_why_it_is_slow(
    tmp_path: Path, fields: dict[str, object], throttled: bool
) -> None:
    board = Board(tmp_path)
    values = nvidia_smi(board, **fields)
    done = board.run("--precision=fp32", "--rounds=2", "--seconds=1.4", "--idle-seconds=0.3")
    assert done.returncode == 0, done.stderr
    model = board.result["models"]["tiny/fp32"]
    assert model["flags"] == (["throttled"] if throttled else [])
    assert model["max_gpu_clock_mhz"] == 2000
    assert model["min_gpu_clock_mhz"] == fields.get("clocks.sm", 1950)
    energy = model["energy_mj"]
    assert (energy["source"], energy["rails"], energy["kind"]) == ("nvidia-smi", ["board"], "total")
    assert energy["load_w"] == pytest.approx(60.5)
    locked = Path(f"{values}.log").read_text().splitlines()
    assert locked == ["-i 0 -lgc 2000,2000", "-i 0 -rgc"]
    assert processes(str(board.bin)) == []


def test_a_change_of_mode_and_a_clock_that_drops_are_marked(tmp_path: Path) -> None:
    """Where the limit is not told, the highest clock of the run is what counts."""
    board = Board(tmp_path)
    jetson(board)
    values = nvidia_smi(board, **{"clocks.max.sm": "[N/A]", "clocks_event_reasons.active": "[N/A]"})
    process = board.start("--precision=fp32", "--seconds=5", "--rounds=5", "--no-power")
    wait_for(lambda: has(board.tmp / "clocks.log", "--store"))
    time.sleep(2.5)
    board.install("nvpmodel", '#!/bin/sh\necho "NV Power Mode: MODE_7W"\n')
    card = json.loads(values.read_text())
    draft = values.with_suffix(".part")
    draft.write_text(json.dumps({**card, "clocks.sm": 900}))
    draft.replace(values)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    model = board.result["models"]["tiny/fp32"]
    assert set(model["flags"]) == {"throttled", "mode_changed"}
    assert (model["min_gpu_clock_mhz"], model["max_gpu_clock_mhz"]) == (900, 1950)


def test_the_script_with_another_root_is_the_same(tmp_path: Path) -> None:
    """What these tests run differs from what bundles carry by the root of /sys alone."""
    board = Board(tmp_path)
    root = board.sysfs({"class/thermal/thermal_zone0/temp": 40000})
    text = board.script.read_text()
    assert text.replace(f'"{root}/', '"/sys/') == (board.bundle / SCRIPT).read_text()
