"""Every fixture: import, parity with the official logits, costs, ONNX, engine.

Tolerances (docs/architecture.md, "extract"): float32 ``max(1e-5, 20 x the difference the fixture
observed between CPU kernels)``, float64 1e-8, both relative to the largest official logit. ONNX
Runtime against the extracted module: 1e-4.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import onnxruntime
import pytest
import torch
from case import Case, Counted, read_fixture
from folders import SHARED, cases, folders
from safetensors import safe_open
from torch import Tensor, nn

from elastic_export.checkpoints import import_supernet
from elastic_export.checkpoints.reader import Imported
from elastic_export.checkpoints.safe import load_tensors
from elastic_export.elastic import Supernet, extract, recalibrate
from elastic_export.elastic.fold import fold_batchnorm
from elastic_export.elastic.store import ParameterStore
from elastic_export.elastic.supernet import resized
from elastic_export.engine import tensorrt_rtx
from elastic_export.export import check_no_weight_slices, export_fp32

Variance = Literal["unbiased", "biased"]
NoteError = Callable[[Path, str, float], None]


def expected(folder: Path, key: str) -> Tensor:
    with safe_open(folder / "expected.safetensors", framework="pt") as file:
        return file.get_tensor(key)


def has(folder: Path, key: str) -> bool:
    with safe_open(folder / "expected.safetensors", framework="pt") as file:
        return key in set(file.keys())


@dataclass(frozen=True)
class Source:
    """What a case imports, in a form that can be a key."""

    path: Path
    config: str
    format: str
    family: str | None

    @staticmethod
    def of(case: Case) -> Source:
        return Source(case.source, json.dumps(case.config), case.format, case.family)


# The tests come case by case (see conftest.py), so these need to remember little.
@lru_cache(maxsize=4)
def _imported(source: Source) -> Imported:
    return import_supernet(
        source.path, family=source.family, format=source.format, config=json.loads(source.config)
    )


@lru_cache(maxsize=2)
def _in_float64(source: Source) -> Supernet:
    """A copy, so that rules that compute (kernel matrices, folded biases) do so in float64."""
    supernet = _imported(source).supernet
    double = {
        name: tensor.double() if tensor.is_floating_point() else tensor
        for name, tensor in supernet.state_dict().items()
    }
    parameters = {name: double.pop(name) for name, _ in supernet.named_parameters()}
    store = ParameterStore(parameters, double)
    return Supernet(supernet.family, supernet.config, store).eval()


@lru_cache(maxsize=4)
def _extracted(source: Source, spec: str, dtype: torch.dtype) -> nn.Module:
    supernet = _imported(source).supernet.eval()
    if dtype == torch.float64:
        supernet = _in_float64(source)
    return extract(supernet, supernet.spec(json.loads(spec))).module.to(dtype)


@lru_cache(maxsize=2)
def _entries(path: Path) -> frozenset[str]:
    """What a file holds beside tensors."""
    content = load_tensors(path).content
    return frozenset(key for key, value in content.items() if not isinstance(value, Tensor))


def imported(case: Case) -> Imported:
    found = _imported(Source.of(case))
    found.supernet.eval()
    return found


def extracted(case: Case, dtype: torch.dtype) -> nn.Module:
    """The module as it comes out; shared between tests, so not to be changed."""
    return _extracted(Source.of(case), json.dumps(case.spec), dtype)


def network(folder: Path, case: Case, dtype: torch.dtype) -> nn.Module:
    """A module of the caller's own whose logits are expected."""
    module = copy.deepcopy(extracted(case, dtype))
    if case.transform is not None:
        with safe_open(folder / "expected.safetensors", framework="pt") as file:
            module = case.transform(module, {key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    if case.recalibrate is not None:
        variance: Variance = "biased" if case.biased else "unbiased"
        recalibrate(module, expected(folder, case.recalibrate).to(dtype), variance=variance)
    return module.eval()


def images(folder: Path, case: Case, dtype: torch.dtype) -> Tensor:
    x = expected(folder, case.input).to(dtype)[: case.batch]
    return x if case.final_size is None else resized(x, case.final_size)


def relative(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())


def test_fixtures_that_are_kept_elsewhere() -> None:
    if not SHARED.is_dir():
        pytest.skip(f"no {SHARED}: the systems whose fixtures are large are not compared")
    assert folders(None)


def test_every_row_is_a_case(folder: Path) -> None:
    rows = {case.logits for case in cases(folder)}
    with safe_open(folder / "expected.safetensors", framework="pt") as file:
        keys = {key for key in file.keys() if re.search(r"\.logits(_(?!f64)\w+)?$", key)}  # noqa: SIM118
    assert rows, "no case was made of this folder"
    assert not keys - rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_parity(folder: Path, case: Case, dtype: torch.dtype, note_error: NoteError) -> None:
    key = case.logits if dtype == torch.float32 else f"{case.logits}_f64"
    if not has(folder, key):
        pytest.skip(f"the fixture holds no {key}")
    if dtype == torch.float32 and case.only_float64:
        pytest.skip(case.only_float64)
    observed = read_fixture(folder)["observed_relative_difference_between_cpu_kernels"]["value"]
    tolerance = max(1e-5, 20 * observed) if dtype == torch.float32 else case.float64_tolerance
    with torch.no_grad():
        logits = network(folder, case, dtype)(images(folder, case, dtype))
    error = relative(logits, expected(folder, key))
    note_error(folder, "float32" if dtype == torch.float32 else "float64", error)
    assert error <= tolerance


def test_costs(folder: Path, case: Case, note_error: NoteError) -> None:
    found = imported(case)
    spec = found.supernet.spec(case.spec)
    module = extracted(case, torch.float32)
    if case.params is not None:
        assert sum(p.numel() for p in module.parameters()) == case.params
    if not case.official:
        return
    assert found.official is not None
    counts = found.official(spec)
    for name, wanted in case.official.items():
        error = abs(counts[name] - wanted) / max(abs(wanted), 1e-30)
        note_error(folder, "MACs", error)
        assert error <= case.official_tolerance, (name, counts[name], wanted)


def test_masks(folder: Path, case: Case) -> None:
    if not case.masks:
        pytest.skip("the fixture holds no masks of this arch")
    weights = dict(network(folder, case, torch.float32).named_parameters())
    for name, key in case.masks.items():
        mask = expected(folder, key).bool()
        assert not weights[name][~mask].any(), name
        assert torch.equal(weights[name] != 0, mask & (weights[name] != 0)), name
        assert float((weights[name] != 0).float().mean()) >= 0.9 * float(mask.float().mean()), name


def test_full_size_costs(folder: Path, cost: Counted, note_error: NoteError) -> None:
    counts = cost.count()
    for name, wanted in cost.official.items():
        error = abs(counts[name] - wanted) / abs(wanted)
        note_error(folder, "full-size MACs", error)
        assert error <= cost.tolerance, (name, counts[name], wanted)


def test_onnx_and_engine(
    folder: Path, case: Case, through_onnx: bool, note_error: NoteError, tmp_path: Path
) -> None:
    supernet = imported(case).supernet
    module = network(folder, case, torch.float32)
    fold_batchnorm(module, supernet.family.fold_pairs(module))
    x = images(folder, case, torch.float32)[:1]
    path = export_fp32(module, x, tmp_path / "net.onnx").path
    check_no_weight_slices(path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    logits = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    with torch.no_grad():
        error = relative(logits, module(x))
    note_error(folder, "ONNX", error)
    # Twice what two of torch's own kernels differ by, where that is more.
    observed = read_fixture(folder)["observed_relative_difference_between_cpu_kernels"]["value"]
    assert error <= max(1e-4, 2 * observed)
    if tensorrt_rtx.available() is None:
        pytest.skip("ONNX holds; tensorrt-rtx is not installed (extra rtx), so no engine was built")
    report = tensorrt_rtx.build(path, tmp_path / "net.engine", sm=86)
    note_error(folder, "engine MB", report.bytes / 1e6)
    assert report.status == "accepted"


def test_every_key_is_accounted_for(folder: Path, case: Case) -> None:
    found = imported(case)
    assert found.stored or case.source.is_dir()
    assert all(reason for reason in found.ignored.values())
    if not case.source.is_dir():
        assert _entries(case.source) <= {found.used, *found.ignored}
