"""Each rule of the lint on the smallest graph that breaks it, and on one that does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from elastic_export import resources
from elastic_export.config.target import Software
from elastic_export.config.targets import load_target
from elastic_export.engine import tensorrt_rtx
from elastic_export.errors import CheckFailed
from elastic_export.export import emit, emit_fp16
from elastic_export.export.lint import Finding, check_lint, lint
from elastic_export.export.lowering import lower_file

F32, F16 = np.float32, np.float16
Q, DQ = "QuantizeLinear", "DequantizeLinear"


def software(version: str, runtime: str = "tensorrt", **changes: Any) -> Software:
    fields = {"name": "test", "max_opset": 25, "source": "a test", **changes}
    return Software(runtime=runtime, runtime_version=version, **fields)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a graph of ``(op, inputs, output, attributes)`` with input ``x`` and output ``y``."""

    def save(
        nodes: Sequence[tuple[Any, ...]],
        weights: dict[str, np.ndarray] | None = None,
        *,
        opset: int = 13,
        shape: Sequence[int | str] = (1, 8, 8, 8),
        kind: int = TensorProto.FLOAT,
    ) -> Path:
        made = [
            helper.make_node(
                op.rpartition(":")[2],
                inputs,
                [output],
                name=f"the {output}",
                domain=op.rpartition(":")[0],
                **(attributes[0] if attributes else {}),
            )
            for op, inputs, output, *attributes in nodes
        ]
        graph = helper.make_graph(
            made,
            "net",
            [helper.make_tensor_value_info("x", kind, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.asarray(w), name) for name, w in (weights or {}).items()],
        )
        domains = {op.rpartition(":")[0] for op, *_ in nodes} - {""}
        imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=8)
        path = tmp_path / "net.onnx"
        onnx.save(onnx.shape_inference.infer_shapes(model), path)
        return path

    return save


def weighted(kind: type = np.int8, *, zeros: Any = 0, codes: Any = None) -> tuple[Any, Any]:
    """``x -> Conv`` with weights behind a DequantizeLinear."""
    codes = np.ones((4, 8, 1, 1), kind) if codes is None else codes
    weights = {"w": codes, "s": np.full(4, 0.1, F32), "z": np.full(4, zeros, kind)}
    nodes = [(DQ, ["w", "s", "z"], "v", {"axis": 0}), ("Conv", ["x", "v"], "y")]
    return nodes, weights


def activation(zero: Any = None, scale: Any = None) -> tuple[Any, Any]:
    nodes = [(Q, ["x", "s", "z"], "q", {"axis": 1}), (DQ, ["q", "s", "z"], "y", {"axis": 1})]
    zero = np.int8(0) if zero is None else zero
    return nodes, {"s": F32(0.1) if scale is None else scale, "z": zero}


NORM = ("LayerNormalization", ["x", "s"], "y", {"axis": -1})
# Name: graph, opset, release, operator, severity; each is refused or remarked for one reason.
BROKEN: dict[str, tuple[Any, dict[str, Any], str, str, str]] = {
    "newer than the parser": (
        ([("Relu", ["x"], "y")], {}),
        {"opset": 18},
        "8.6",
        "opset",
        "refused",
    ),
    "no LayerNormalization": (
        ([NORM], {"s": np.ones(8, F32)}),
        {"opset": 17},
        "8.5",
        "LayerNormalization",
        "refused",
    ),
    "no Gelu": (([("Gelu", ["x"], "y")], {}), {"opset": 20}, "8.6", "Gelu", "refused"),
    "no HardSwish": (
        ([("HardSwish", ["x"], "y")], {}),
        {"opset": 14},
        "8.2",
        "HardSwish",
        "refused",
    ),
    "no Reciprocal": (([("Reciprocal", ["x"], "y")], {}), {}, "8.2", "Reciprocal", "refused"),
    "no Einsum": (
        ([("Einsum", ["x", "x"], "y", {"equation": "abcd,abde->abce"})], {}),
        {},
        "8.0",
        "Einsum",
        "refused",
    ),
    "attention": (
        ([("Attention", ["x", "x", "x"], "y")], {}),
        {"opset": 23},
        "10.13",
        "Attention",
        "refused",
    ),
    "not listed where the list is whole": (
        ([("Det", ["x"], "y")], {}),
        {},
        "8.5",
        "Det",
        "refused",
    ),
    "not listed where it is not": (([("Det", ["x"], "y")], {}), {}, "10.3", "Det", "note"),
    "operator of ONNX Runtime": (
        ([("com.microsoft:QuickGelu", ["x"], "y")], {}),
        {},
        "11.0",
        "QuickGelu",
        "refused",
    ),
    "integer operator": (
        ([("ConvInteger", ["x", "w"], "y")], {"w": np.ones((4, 8, 1, 1), np.uint8)}),
        {"kind": TensorProto.UINT8},
        "10.16",
        "ConvInteger",
        "refused",
    ),
    "Einsum with an ellipsis": (
        ([("Einsum", ["x", "x"], "y", {"equation": "...ij,...jk->...ik"})], {}),
        {},
        "10.3",
        "Einsum",
        "refused",
    ),
    "Einsum with a diagonal": (
        ([("Einsum", ["x"], "y", {"equation": "abcc->abc"})], {}),
        {},
        "8.5",
        "Einsum",
        "refused",
    ),
    "Einsum that broadcasts": (
        (
            [("Einsum", ["x", "w"], "y", {"equation": "abcd,bd->abc"})],
            {"w": np.ones((1, 8), F32)},
        ),
        {},
        "8.5",
        "Einsum",
        "refused",
    ),
    "computed kernel": (
        ([("Mul", ["x", "x"], "v"), ("Conv", ["x", "v"], "y")], {}),
        {},
        "8.2",
        "Conv",
        "refused",
    ),
    "unsigned activations": (activation(np.uint8(0)), {}, "10.3", Q, "refused"),
    "zero point": (activation(np.int8(3)), {}, "10.3", Q, "refused"),
    "scale of zero": (activation(scale=F32(0)), {}, "11.1", Q, "refused"),
    "half scale": (
        activation(scale=F16(0.1)),
        {"opset": 17, "kind": TensorProto.FLOAT16},
        "8.6",
        Q,
        "refused",
    ),
    "scales of channels": (
        activation(np.zeros(8, np.int8), np.full(8, 0.1, F32)),
        {},
        "10.3",
        Q,
        "refused",
    ),
    "unsigned weights": (weighted(np.uint8), {}, "11.1", DQ, "refused"),
    "integer bias": (
        (
            [(DQ, ["b", "s"], "v"), ("Conv", ["x", "w", "v"], "y")],
            {"b": np.ones(4, np.int32), "s": F32(0.1), "w": np.ones((4, 8, 1, 1), F32)},
        ),
        {},
        "10.3",
        DQ,
        "refused",
    ),
    "stored codes": (weighted(), {}, "8.2", DQ, "refused"),
    "stored codes, not tried": (weighted(), {}, "8.6", DQ, "note"),
    "no zero point": (
        ([(Q, ["x", "s", "z"], "q"), (DQ, ["q", "s"], "y")], {"s": F32(1), "z": np.int8(0)}),
        {},
        "8.5",
        DQ,
        "refused",
    ),
    "Q/DQ before GELU": (
        ([*activation()[0][:1], (DQ, ["q", "s", "z"], "d"), ("Gelu", ["d"], "y")], activation()[1]),
        {"opset": 20},
        "10.3",
        "Gelu",
        "slower",
    ),
    "Q/DQ before GELU in parts": (
        (
            [
                (Q, ["x", "s", "z"], "q"),
                (DQ, ["q", "s", "z"], "d"),
                ("Mul", ["d", "c"], "m"),
                ("Erf", ["m"], "y"),
            ],
            {**activation()[1], "c": F32(0.7)},
        ),
        {},
        "8.5",
        "Erf",
        "slower",
    ),
    "integers that are clamped": (
        ([("Gather", ["x", "i"], "y")], {"i": np.array([2**40])}),
        {},
        "8.5",
        "initializer",
        "refused",
    ),
    "integers that fit": (
        ([("Gather", ["x", "i"], "y")], {"i": np.array([0])}),
        {},
        "8.5",
        "initializer",
        "note",
    ),
    "open size": (([("Relu", ["x"], "y")], {}), {"shape": ("n", 8)}, "10.3", "input", "note"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_each_rule(name: str, write: Callable[..., Path]) -> None:
    (nodes, weights), options, version, op, severity = BROKEN[name]
    found = lint(write(nodes, weights, **options), software(version), target="board")
    by_op: dict[str, Finding] = {f.op: f for f in reversed(found)}
    assert op in by_op, found
    worst = by_op[op]
    assert worst.severity == severity, found
    assert worst.target == "board"
    assert worst.problem.endswith(".")
    assert worst.remedy.endswith(".")
    assert worst.source
    if op not in ("opset", "initializer"):
        assert worst.node
    # The other half of a pair says the same; a newer operator needs a newer opset.
    others = {f.op for f in found if f.severity != "note"} - {op}
    assert others <= {Q: {DQ}, "Gelu": {"opset"}, "HardSwish": {"opset"}}.get(op, set())


CLEAN = {
    "8.0": ([("Conv", ["x", "w"], "y")], {"w": np.ones((4, 8, 1, 1), F32)}),
    "8.2": (
        [
            (Q, ["w", "s", "z"], "q", {"axis": 0}),
            (DQ, ["q", "s", "z"], "v", {"axis": 0}),
            ("Conv", ["x", "v"], "y"),
        ],
        {"w": np.ones((4, 8, 1, 1), F32), "s": np.ones(4, F32), "z": np.zeros(4, np.int8)},
    ),
    "8.5": activation(),
    "10.0": weighted(),
    "10.3": ([("Gather", ["x", "i"], "y")], {"i": np.array([2**40])}),
    "10.12": ([("Einsum", ["x", "x"], "y", {"equation": "...ij,...jk->...ik"})], {}),
    "11.4.1": weighted(),
}


@pytest.mark.parametrize("version", CLEAN)
def test_what_a_release_takes_is_left_alone(version: str, write: Callable[..., Path]) -> None:
    assert lint(write(*CLEAN[version]), software(version), target="board") == []


def test_rules_of_the_runtime_and_of_the_profile(write: Callable[..., Path]) -> None:
    relu = write([("Relu", ["x"], "y")], opset=18)
    assert lint(relu, software("10.3", max_opset=17), target="t")[0].severity == "note"
    assert lint(relu, software("10.3", lacks=("Relu",)), target="t")[0].op == "Relu"
    attention = write([("Attention", ["x", "x", "x"], "y")], opset=23)
    assert lint(attention, software("10.14"), target="t") == []
    assert lint(attention, software("1.7", "tensorrt-rtx"), target="t")[0].op == "Attention"
    quick = write([("com.microsoft:QuickGelu", ["x"], "y")])
    assert lint(quick, software("1.22", "onnxruntime"), target="t") == []
    own = lint(write([("my.own:Op", ["x"], "y")]), software("1.22", "onnxruntime"), target="t")
    assert own[0].severity == "refused"
    slow = lint(write(*weighted(np.uint8)), software("1.22", "onnxruntime"), target="t")
    assert [f.severity for f in slow] == ["slower"]


def test_what_the_device_cannot_do(write: Callable[..., Path]) -> None:
    nano = load_target("jetson-nano")
    found = lint(write(*activation()), nano.software, target=nano.identity, device=nano.target)
    assert "runs no INT8" in found[0].problem
    sparse = np.tile(np.array([1, 0, 0, 2], F32), (4, 2)).reshape(4, 8, 1, 1)
    path = write([("Conv", ["x", "w"], "y")], {"w": sparse})
    found = lint(path, nano.software, target="nano", device=nano.target)
    assert [(f.op, f.severity) for f in found] == [("sparsity", "note")]
    orin = load_target("orin-nano-8gb")
    assert lint(path, orin.software, target="orin", device=orin.target) == []
    open_size = write([("Relu", ["x"], "y")], shape=("n", 8))
    static = orin.target.model_copy(update={"static_shapes": True})
    assert lint(open_size, orin.software, target="orin", device=static)[0].severity == "refused"


def test_check_names_the_first_and_counts_the_rest(write: Callable[..., Path]) -> None:
    path = write([("Gelu", ["x"], "a"), ("Gelu", ["a"], "y")], opset=20)
    with pytest.raises(CheckFailed) as caught:
        check_lint(path, software("8.6", max_opset=17), target="orin@jp6.0")
    assert "orin@jp6.0" in caught.value.what
    assert "2 more" in caught.value.what
    assert "opset 17" in caught.value.fix
    notes = check_lint(path, software("10.3", max_opset=17), target="t")
    assert [f.severity for f in notes] == ["note"]
    with pytest.raises(CheckFailed):
        check_lint(path, software("10.3", max_opset=17), target="t", allowed=())


@pytest.mark.skipif(tensorrt_rtx.available() is None, reason="tensorrt-rtx is not installed")
@pytest.mark.parametrize(
    "name", ["zero point", "unsigned weights", "integer bias", "scale of zero"]
)
def test_nvidias_parser_refuses_what_the_lint_refuses(
    name: str, write: Callable[..., Path]
) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    (nodes, weights), options, *_ = BROKEN[name]
    path = write(nodes, weights, **options)
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    network = trt.Builder(logger).create_network(0)
    assert not trt.OnnxParser(network, logger).parse(path.read_bytes())
    found = lint(path, software("1.7", "tensorrt-rtx"), target="rtx")
    assert found[0].severity == "refused"


def test_every_target_takes_the_files_of_its_profile(tiny: Any, tmp_path: Path) -> None:
    """What the flavours write, for every software of every shipped target, is not refused."""
    written: dict[tuple[Any, ...], Path] = {}
    table, record = tiny.exported.table, tiny.record
    for name in resources.names("targets"):
        for entry in load_target(name).target.software:
            target = load_target(f"{name}@{entry.name}")
            for precision, flavour in target.flavours.items():
                half = precision == "fp16" and flavour != "plain"
                opset, lacks = min(20, entry.max_opset), entry.lacks
                key = (flavour, half, opset, lacks)
                path = written.get(key)
                if path is None:
                    path = written[key] = tmp_path / f"{len(written)}.onnx"
                    if half:
                        emit_fp16(tiny.exported.path, path, opset=opset, without=lacks)
                    elif flavour == "plain":
                        lower_file(tiny.exported.path, path, opset, without=lacks)
                    else:
                        options: Any = {"opset": opset, "without": lacks}
                        emit(flavour, tiny.exported.path, table, record, path, **options)
                check_lint(path, entry, target=target.identity, device=target.target)
    assert len(written) >= 6
