"""The shipped profiles' figures, cell by cell, against the published ones."""

from __future__ import annotations

import re
from functools import cache

import pytest

from elastic_export import resources
from elastic_export.config.peaks import figure, find_figure, peak_rates, unverified
from elastic_export.config.target import Target
from elastic_export.config.target_files import find_target

NAMES = resources.names("targets")


@cache
def profile(name: str) -> Target:
    return find_target(name)


# The vendor's figures: SM, boost GHz; INT8 and FP16 dense and 2:4, FP32, in 10^12/s; GB; GB/s; MB
# of L2; W. A second source for A100, A10, A2 and A40: glennklockwood.com, sysrqmts.com,
# hmc-tech.com.
CARDS = """
a100-sxm-40gb   108 1.41   624 1248  312  624  19.5   40 1555 40 400
a100-sxm-80gb   108 1.41   624 1248  312  624  19.5   80 2039 40 400
a100-pcie-40gb  108 1.41   624 1248  312  624  19.5   40 1555 40 250
a100-pcie-80gb  108 1.41   624 1248  312  624  19.5   80 1935 40 300
a30              56 1.44   330  661  165  330  10.3   24  933 24 165
a10              72 1.695  250  500  125  250  31.2   24  600  6 150
a2               10 1.77    36   72   18   36   4.5   16  200  2  60
a40              84 1.74   299  599  150  299  37.4   48  696  6 300
rtx-a6000        84 1.80   310  619  155  310  38.7   48  768  6 300
rtx-3060         28 1.777  102  204   51  102  12.7   12  360  3 170
rtx-3070         46 1.725  163  325   81  163  20.3    8  448  4 220
rtx-3080         68 1.71   238  476  119  238  29.8   10  760  5 320
rtx-3090         82 1.695  285  569  142  285  35.6   24  936  6 350
l4               58 2.04   242  485  121  242  30.3   24  300 48  72
rtx-4090        128 2.52   661 1321  330  661  82.6   24 1008 72 450
h100-sxm        132 1.83  1979 3958  989 1979  67     80 3350 50 700
h200            132 1.83  1979 3958  989 1979  67    141 4800 50 700
h100-pcie       114 1.62  1513 3026  756 1513  51     80 2000 50 350
"""
RATES = ("int8", "int8 2:4", "fp16", "fp16 2:4", "fp32")
FIGURES = ("memory_gb", "bandwidth_gbs", "l2_mb", "tdp_w")


def rounds_to(rates: dict[str, float], name: str, published: str) -> bool:
    """Whether the rate is the published one to its digits; 2:4 is published as twice the dense."""
    last_digit = 10 ** -len(published.partition(".")[2])
    error = abs(rates[name] - float(published))
    return error <= last_digit * (1 if name.endswith("2:4") else 0.5) + 1e-9


@pytest.mark.parametrize("row", CARDS.strip().splitlines(), ids=lambda row: row.split()[0])
def test_a_card_has_the_published_figures_and_the_formula_its_rates(row: str) -> None:
    name, sms, ghz, *rest = row.split()
    target = profile(name)
    assert figure(target, "sms") == float(sms)
    assert figure(target, "boost_ghz") == float(ghz)
    rates = peak_rates(target)
    assert list(rates) == list(RATES)
    for rate, published in zip(RATES, rest[:5], strict=True):
        assert rounds_to(rates, rate, published), (rate, rates[rate], published)
    assert [figure(target, key) for key in FIGURES] == [float(cell) for cell in rest[5:]]
    assert figure(target, "dla_cores") is None


# By mode: SM that are on, GHz, INT8 dense and 2:4 of the GPU ("-" where nothing is published),
# GB, GB/s, DLA cores. Clocks and gated SM: nvpmodel's configurations; rates: NVIDIA's
# Deep-Learning-Accelerator-SW README and the advertised TOPS less those of the DLA.
BOARDS = """
agx-orin-64gb MAXN        16 1.30    85  170  64 204.8 2
agx-orin-64gb MODE_50W    16 0.816   53  107  64 204.8 2
agx-orin-64gb MODE_30W     8 0.612   20   40  64 204.8 2
agx-orin-64gb MODE_15W     6 0.408   10   20  64 136.5 2
agx-orin-32gb MAXN        14 0.93    53  107  32 204.8 2
agx-orin-32gb MODE_40W    14 0.816    -    -  32 204.8 2
agx-orin-32gb MODE_30W     8 0.612    -    -  32 204.8 2
agx-orin-32gb MODE_15W     6 0.408    -    -  32 136.5 2
orin-nx-16gb  MAXN         8 0.918   30   60  16 102.4 2
orin-nx-16gb  25W          8 0.408    -    -  16 102.4 2
orin-nx-16gb  15W          4 0.612    -    -  16 102.4 2
orin-nx-16gb  10W          4 0.612    -    -  16 68.3  2
orin-nx-16gb  40W          8 1.173   38   77  16 102.4 2
orin-nx-16gb  MAXN_SUPER   8 1.173   38   77  16 102.4 2
orin-nx-8gb   MAXN         8 0.765   25   50   8 102.4 1
orin-nx-8gb   20W          8 0.408    -    -   8 102.4 1
orin-nx-8gb   15W          4 0.612    -    -   8 102.4 1
orin-nx-8gb   10W          4 0.612    -    -   8 68.3  1
orin-nx-8gb   40W          8 1.173   38   77   8 102.4 1
orin-nx-8gb   MAXN_SUPER   8 1.173   38   77   8 102.4 1
orin-nano-8gb 15W          8 0.625   20   41   8 68    0
orin-nano-8gb 7W           4 0.408    -    -   8 68    0
orin-nano-8gb 25W          8 0.918    -    -   8 102   0
orin-nano-8gb MAXN_SUPER   8 1.02    33   67   8 102   0
orin-nano-4gb 10W          4 0.625   10   20   4 34    0
orin-nano-4gb 7W_AI        4 0.408    -    -   4 34    0
orin-nano-4gb 7W_CPU       4 0.306    -    -   4 34    0
orin-nano-4gb 25W          4 1.02    17   33   4 51    0
orin-nano-4gb MAXN_SUPER   4 1.02    17   33   4 51    0
jetson-nano   MAXN         1 0.921    -    -   4 25.6  0
jetson-nano   5W           1 0.64     -    -   4 25.6  0
agx-xavier    MAXN         8 1.377 22.6    -  32 136.5 2
xavier-nx     -            6 1.1     14    -   8 59.7  2
"""


@pytest.mark.parametrize("row", BOARDS.strip().splitlines(), ids=lambda row: row[:26].strip())
def test_a_board_has_the_published_figures_in_every_mode(row: str) -> None:
    name, named, sms, ghz, dense, sparse, *rest = row.split()
    target, mode = profile(name), None if named == "-" else named
    assert figure(target, "sms", mode) == float(sms)
    assert figure(target, "boost_ghz", mode) == float(ghz)
    rates = peak_rates(target, mode)
    for rate, published in (("int8", dense), ("int8 2:4", sparse)):
        assert published == "-" or rounds_to(rates, rate, published), (rate, rates[rate])
    keys = ("memory_gb", "bandwidth_gbs", "dla_cores")
    assert [figure(target, key, mode) for key in keys] == [float(cell) for cell in rest]


def test_the_tables_hold_every_shipped_device_in_every_mode() -> None:
    cards = {row.split()[0] for row in CARDS.strip().splitlines()}
    boards = [row.split()[:2] for row in BOARDS.strip().splitlines()]
    assert cards | {name for name, _ in boards} | {"host-cpu"} == set(NAMES)
    for name in {name for name, _ in boards}:
        modes = [mode for board, mode in boards if board == name and mode != "-"]
        assert set(modes) == set(profile(name).power_modes)


def test_the_nano_of_2019_has_half_a_teraflop_and_no_int8() -> None:
    rates = peak_rates(profile("jetson-nano"), "MAXN")
    assert rates == {"fp16": pytest.approx(0.472, abs=5e-4), "fp32": pytest.approx(0.236, abs=5e-4)}


@pytest.mark.parametrize(
    ("name", "mode", "advertised"),
    [
        # NVIDIA's sums of sparse INT8; by mode from its Deep-Learning-Accelerator-SW README.
        ("agx-orin-64gb", "MAXN", 275),
        ("agx-orin-64gb", "MODE_50W", 200),
        ("agx-orin-64gb", "MODE_30W", 131),
        ("agx-orin-32gb", "MAXN", 200),
        ("orin-nx-16gb", "MAXN", 100),
        ("orin-nx-16gb", "MAXN_SUPER", 157),
        ("orin-nx-8gb", "MAXN", 70),
        ("orin-nx-8gb", "MAXN_SUPER", 117),
        ("orin-nano-8gb", "15W", 40),
        ("orin-nano-8gb", "MAXN_SUPER", 67),
        ("orin-nano-4gb", "10W", 20),
        ("orin-nano-4gb", "MAXN_SUPER", 34),
    ],
)
def test_advertised_tops_are_gpu_and_dla_and_stand_in_no_rate(
    name: str, mode: str, advertised: float
) -> None:
    target = profile(name)
    rates = peak_rates(target, mode)
    dla = figure(target, "dla_int8_2_4_tops", mode) or 0
    assert rates["int8 2:4"] + dla == pytest.approx(advertised, rel=0.025)
    assert rates["int8"] < 0.55 * advertised
    assert not any("advert" in key for key in target.peaks)
    if mode == target.power_modes[0]:
        assert re.search(rf"advertise[sd] {advertised}\b", " ".join(target.notes))


# Figures of common knowledge that were not looked up, and those with one source alone: the clock of
# AGX Orin at 15 W (from which NVIDIA's own rate differs), memory at 2133 MHz, Hopper's FP32 clock.
UNVERIFIED = {
    "a100-pcie-80gb": {"bandwidth_gbs", "tdp_w"},
    "a30": {"bandwidth_gbs", "l2_mb"},
    "rtx-a6000": {"bandwidth_gbs"},
    "rtx-3060": {"bandwidth_gbs", "l2_mb"},
    "rtx-3070": {"bandwidth_gbs", "l2_mb"},
    "rtx-3080": {"bandwidth_gbs", "l2_mb"},
    "rtx-3090": {"bandwidth_gbs"},
    "l4": {"bandwidth_gbs", "l2_mb"},
    "rtx-4090": {"bandwidth_gbs", "l2_mb"},
    "h100-sxm": {"bandwidth_gbs", "fp32_ghz"},
    "h200": {"bandwidth_gbs", "fp32_ghz", "l2_mb"},
    "h100-pcie": {"bandwidth_gbs", "fp32_ghz"},
    "agx-orin-64gb": {"boost_ghz@MODE_15W", "bandwidth_gbs@MODE_15W"},
    "agx-orin-32gb": {"boost_ghz@MODE_15W", "bandwidth_gbs@MODE_15W"},
    "orin-nx-16gb": {"bandwidth_gbs@10W"},
    "orin-nx-8gb": {"bandwidth_gbs@10W"},
    "orin-nano-8gb": {"l2_mb"},
    "jetson-nano": {"l2_mb", "tdp_w"},
    "agx-xavier": {"sms", "boost_ghz", "memory_gb", "bandwidth_gbs"},
    "xavier-nx": {"sms", "boost_ghz", "memory_gb", "bandwidth_gbs"},
}


@pytest.mark.parametrize("name", NAMES)
def test_unverified_figures_are_marked_and_every_figure_has_a_source(name: str) -> None:
    target = profile(name)
    marked = {key for key, peak in target.peaks.items() if not peak.verified}
    assert marked == UNVERIFIED.get(name, set())
    assert unverified(target) == len(marked)
    for source in [peak.source for peak in target.peaks.values()] + [
        entry.source for entry in target.software
    ]:
        assert len(source) > 10
    doubtful = {entry.name for entry in target.software if not entry.verified}
    assert doubtful == ({"jp7.2"} if target.sm == 87 else set())


def test_what_a_mode_sets_is_not_taken_from_another_mode() -> None:
    target = profile("orin-nx-16gb")
    assert figure(target, "tdp_w", "25W") == 25
    assert figure(target, "tdp_w", "MAXN") is None
    assert figure(target, "dla_int8_2_4_tops") == 40
    assert figure(target, "dla_int8_2_4_tops", "40W") is None
    assert figure(target, "memory_gb", "40W") == 16
    assert figure(target, "nothing") is None
    kept = {key: peak for key, peak in target.peaks.items() if key != "boost_ghz@40W"}
    without = target.model_copy(update={"peaks": kept})
    assert peak_rates(without, "40W") == {}
    assert peak_rates(without) == peak_rates(target)
    found = find_figure(target, "sms", "10W")
    assert found is not None
    assert "252" in found.source


def test_a_device_without_a_known_architecture_has_no_rates() -> None:
    assert peak_rates(profile("host-cpu")) == {}
    assert peak_rates(profile("a10").model_copy(update={"sm": 75})) == {}


def test_the_readme_explains_every_key_and_every_figure() -> None:
    text = (resources.shipped("targets") / "README.md").read_text()
    explained = set(re.findall(r"`(\w+)`", text))
    assert set(Target.model_fields) - {"schema_version"} <= explained
    used = {key.partition("@")[0] for name in NAMES for key in profile(name).peaks}
    assert used <= explained
