"""The estimate by hand and on boards that are made up, so that the truth is known."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace
from math import ceil
from pathlib import Path

import pytest

from elastic_export.config.fused_layer import FusedLayer, Read
from elastic_export.config.targets import load_target
from elastic_export.errors import UserError
from elastic_export.measure import kept_fits
from elastic_export.measure.device_fit import Measurement, fit
from elastic_export.measure.estimate import CLASSES, MOST_2_4, Basis, Constants, estimate
from elastic_export.measure.kept_fits import fit_file, fitted_basis, learn, load_fit
from elastic_export.measure.kernel_costs import Device, device_of, kernel_costs

ORIN = "orin-nano-8gb@jp6.2:15W"
TRUTH = Constants(tensor=0.41, int8=0.36, lanes=0.19, memory=0.62, floor=7.5)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ELASTIC_EXPORT_TARGETS", str(tmp_path / "targets"))
    return tmp_path / "targets"


def device(identity: str = ORIN) -> Device:
    return device_of(load_target(identity))


def gemm(m: int, n: int, k: int, *, reads: int = -1, name: str = "", **more: bool) -> FusedLayer:
    return FusedLayer(
        name=name or f"gemm-{m}-{n}-{k}",
        kind="gemm",
        reads=(Read(layer=reads, elements=m * k),),
        weights=n * k,
        output=m * n,
        macs=m * n * k,
        m=m,
        n=n,
        k=k,
        **{"int8": True, "eligible_2_4": True, **more},
    )


def pointwise(size: int, reads: int = -1) -> FusedLayer:
    read = Read(layer=reads, elements=size)
    return FusedLayer(name=f"add-{size}", kind="elementwise", reads=(read,), output=size)


def depthwise(channels: int, side: int) -> FusedLayer:
    size = channels * side * side
    return FusedLayer(
        name=f"depthwise-{channels}",
        kind="conv",
        reads=(Read(layer=-1, elements=size),),
        weights=121 * channels,
        output=size,
        macs=121 * size,
        m=side * side,
        n=1,
        k=121,
        groups=channels,
    )


def plain(constants: Constants) -> Basis:
    return Basis(constants, 0.8, 1.2, "made up")


def test_one_product_by_hand() -> None:
    here = device()
    found = estimate([gemm(4096, 4096, 4096)], here, "fp16", plain(TRUTH))
    # 256 x 128 tiles: 16 x 32 blocks on 8 SM; a tile waits for operands 1 + 24 (1/256 + 1/128).
    per_sm = here.rates["fp16"] * 1e12 / 8 / 2
    blocks = ceil(16 * 32 / 8)
    seconds = blocks * 256 * 128 * 4096 * (1 + 24 * (1 / 256 + 1 / 128)) / per_sm / TRUTH.tensor
    floor = 7.5e-6 / 0.625
    assert found.ms == pytest.approx(1000 * (seconds + floor), rel=0.03)
    assert found.layers[0].bound == "compute"
    assert found.shares["compute"] > 0.9
    assert (found.low_ms, found.high_ms) == pytest.approx((0.8 * found.ms, 1.2 * found.ms))
    assert found.to_json()["how"] == "estimate"
    assert json.dumps(found.to_json())


def test_one_chain_is_bound_by_memory_and_a_tiny_one_by_its_launch() -> None:
    here = replace(device(), l2_mb=0.0)
    large = estimate([pointwise(50_000_000)], here, "fp16", plain(TRUTH))
    assert large.ms == pytest.approx(1000 * 200e6 / (68e9 * 0.62) + 0.012, rel=1e-6)
    assert large.layers[0].bound == "memory"
    tiny = estimate([pointwise(100)] * 50, here, "fp16", plain(TRUTH))
    assert tiny.ms == pytest.approx(50 * 7.5e-3 / 0.625, rel=0.01)
    assert tiny.shares["launch"] > 0.95
    cached = estimate([pointwise(100_000)], device(), "fp16", plain(TRUTH))
    assert cached.ms < estimate([pointwise(100_000)], here, "fp16", plain(TRUTH)).ms


def test_blocks_that_do_not_fill_a_wave_cost_a_whole_one() -> None:
    here = device()
    times = {
        m: kernel_costs([gemm(m, 2048, 2048)], here, "fp16", sparse=False)[0].compute_s
        for m in (1, 32, 4096, 4097)
    }
    assert times[1] == times[32]
    assert times[4097] > times[4096]


def test_int8_layers_read_bytes_and_an_attention_needs_a_quantizer() -> None:
    here = replace(device(), l2_mb=0.0)
    chain = [
        gemm(512, 512, 512),
        gemm(512, 512, 512, reads=0),
        gemm(512, 64, 512, reads=1, int8=False),
    ]
    half = kernel_costs(chain, here, "fp16", sparse=False)
    eighth = kernel_costs(chain, here, "int8", sparse=False)
    size = 512 * 512
    second = here.bandwidth_gbs * 1e9
    assert half[0].memory_s == pytest.approx(3 * 2 * size / second)
    assert eighth[0].memory_s == pytest.approx(3 * size / second)
    assert eighth[1].memory_s == pytest.approx((size + size + 2 * size) / second)
    assert [cost.unit for cost in eighth] == ["int8", "int8", "tensor"]
    moved = FusedLayer(
        name="t", kind="movement", reads=(Read(layer=0, elements=size),), output=size
    )
    with_move = kernel_costs([chain[0], moved, chain[1]], here, "int8", sparse=False)
    assert [cost.launches for cost in with_move] == [1, 1, 1]
    read_by_int8 = chain[1].model_copy(update={"reads": (Read(layer=1, elements=size),)})
    with_move = kernel_costs([chain[0], moved, read_by_int8], here, "int8", sparse=False)
    assert [cost.launches for cost in with_move] == [1, 2, 1]


def test_2_4_never_promises_more_than_was_ever_measured() -> None:
    dense = [gemm(4096, 4096, 4096), pointwise(10_000)]
    sparse = [dense[0].model_copy(update={"sparse": True}), dense[1]]
    here = device("a10")
    before = estimate(dense, here, "int8").ms
    after = estimate(sparse, here, "int8")
    assert after.dense_ms == pytest.approx(before)
    assert before / after.ms == pytest.approx(MOST_2_4)
    assert sum(layer.ms for layer in after.layers) == pytest.approx(after.ms)
    xavier = device("agx-xavier")
    assert estimate(sparse, xavier, "int8").ms == estimate(dense, xavier, "int8").ms
    assert estimate(sparse, here, "fp32").ms == estimate(dense, here, "fp32").ms


def test_modes_and_devices_are_ordered_as_they_should_be() -> None:
    layers = [gemm(512, 512, 512) for _ in range(40)]
    modes = [
        estimate(layers, device(f"orin-nano-8gb@:{m}"), "fp16").ms for m in ("7W", "15W", "25W")
    ]
    assert modes == sorted(modes, reverse=True)
    assert device("jetson-nano").family == "nano"
    assert device("agx-xavier").family == "jetson"
    assert estimate(layers, device("a100-sxm-40gb"), "fp16").ms < modes[-1]


def test_what_cannot_be_estimated_is_said() -> None:
    with pytest.raises(UserError, match="no GPU"):
        device("host-cpu")
    with pytest.raises(UserError, match="a DLA, which is not modelled") as caught:
        device("agx-orin-64gb+dla1@jp6.1")
    assert "agx-orin-64gb@jp6.1:MAXN" in caught.value.fix
    with pytest.raises(UserError, match="does not run INT8"):
        estimate([gemm(64, 64, 64)], device("jetson-nano"), "int8")
    with pytest.raises(UserError, match="There is no target"):
        device("orin-nano-9gb")
    bare = load_target("a10")
    peaks = {k: v for k, v in bare.target.peaks.items() if k != "bandwidth_gbs"}
    with pytest.raises(UserError, match="has no bandwidth_gbs"):
        device_of(replace(bare, target=bare.target.model_copy(update={"peaks": peaks})))


def test_unverified_figures_are_used_and_named() -> None:
    assert set(device("l4").unverified) == {"bandwidth_gbs", "l2_mb"}


def board(here: Device, constants: Constants, noise: float = 0.0) -> list[Measurement]:
    """A made-up board: what each network would take with these constants."""
    chance = random.Random(0)
    networks = {
        "products": [gemm(2048, 2048, 2048) for _ in range(6)],
        "chains": [pointwise(8_000_000) for _ in range(10)],
        "launches": [pointwise(64) for _ in range(200)],
        "grouped": [depthwise(256, 112) for _ in range(6)],
        "mixed": [
            gemm(196, 768, 768),
            pointwise(600_000),
            depthwise(384, 28),
            gemm(196, 384, 1536),
        ],
    }
    found = []
    for name, layers in networks.items():
        for precision in ("fp16", "int8"):
            ms = estimate(layers, here, precision, plain(constants)).ms
            ms *= 1 + noise * chance.uniform(-1, 1)
            found.append(Measurement(f"{name}/{precision}", layers, precision, ms))
    return found


@pytest.mark.parametrize("identity", [ORIN, "a10", "agx-orin-64gb@:MODE_30W"])
def test_the_constants_of_a_board_are_recovered(identity: str) -> None:
    here = device(identity)
    found = fit(board(here, TRUTH, noise=0.02), here)
    for name, value in asdict(TRUTH).items():
        assert getattr(found.constants, name) == pytest.approx(value, rel=0.1), name
    assert found.scale == 1
    assert found.error < 0.05
    assert found.basis.high == pytest.approx(1.1)


def test_one_measurement_scales_and_outliers_do_not_rule() -> None:
    here = device()
    one = board(here, TRUTH)[8]
    found = fit([one], here)
    assert found.constants == CLASSES["jetson"].constants
    assert estimate(one.layers, here, "fp16", found.basis).ms == pytest.approx(one.ms)
    assert "fitted to 1 measurement of " in found.basis.text
    wrong = board(here, TRUTH)
    wrong[0] = replace(wrong[0], ms=5 * wrong[0].ms)
    assert fit(wrong, here).constants.floor == pytest.approx(TRUTH.floor, rel=0.1)
    with pytest.raises(UserError, match="no usable measurement"):
        fit([], here)
    with pytest.raises(UserError, match="no usable measurement"):
        fit([replace(one, ms=float("nan"))], here)


def test_a_fit_is_kept_for_its_target_and_used(own_folder: Path) -> None:
    here = device()
    assert fitted_basis(here) == CLASSES["jetson"]
    found = learn(named(board(here, TRUTH)), here)
    assert fit_file(ORIN).parent == own_folder / "fits"
    assert load_fit(ORIN) == found
    assert fitted_basis(here).text == f"fitted to 10 measurements of {found.day}"
    assert load_fit("orin-nano-8gb@jp6.2:7W") is None
    assert [entry.name for entry in fit_file(ORIN).parent.iterdir()] == [fit_file(ORIN).name]


def named(measured: list[Measurement]) -> list[Measurement]:
    return [replace(one, digest=f"sha-{one.name}") for one in measured]


def test_measurements_add_up_and_a_file_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    here = device()
    every = named(board(here, TRUTH))
    alone = learn(every[:1], here)
    assert len(alone.models) == 1
    # Two visits know as much as one that measured everything.
    learn(every[1:5], here)
    found = learn(every[5:], here)
    assert asdict(found.constants) == pytest.approx(asdict(fit(every, here).constants), rel=1e-6)
    # The same file again replaces what was known of it.
    again = learn([replace(every[0], ms=2 * every[0].ms)], here)
    assert len(again.models) == 10
    assert again.models[-1] == every[0].name
    monkeypatch.setattr(kept_fits, "MOST", 3)
    assert learn(every[:2], here).models[-2:] == (every[0].name, every[1].name)
    assert len(load_fit(ORIN).models) == 3


def test_a_fit_that_kept_constants_alone_is_passed_over() -> None:
    fit_file(ORIN).parent.mkdir(parents=True)
    fit_file(ORIN).write_text('{"schema_version": 1, "constants": {}}')
    assert load_fit(ORIN) is None
    assert len(learn(named(board(device(), TRUTH)), device()).models) == 10


def test_precisions_of_one_network_are_no_three_networks() -> None:
    here = device()
    three = [replace(one, name=f"net/{n}") for n, one in enumerate(board(here, TRUTH)[:3])]
    assert fit(three, here).basis.high == pytest.approx(1.3)
    other = [replace(one, name=f"net{n}/fp16") for n, one in enumerate(three)]
    assert fit(other, here).basis.high < 1.3


@pytest.mark.parametrize("text", ["{", '{"schema_version": 3}', "[]", '{"schema_version": 2}'])
def test_a_damaged_fit_is_named(text: str) -> None:
    fit_file(ORIN).parent.mkdir(parents=True)
    fit_file(ORIN).write_text(text)
    with pytest.raises(UserError, match="cannot be read") as caught:
        load_fit(ORIN)
    assert "Delete it" in caught.value.fix
