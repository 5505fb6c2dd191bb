"""Rules for operators: the opset, what the parser has, and how Einsum may be written."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir

from elastic_export.export.lint.findings import Context, Finding, Rule

__all__ = ["OPERATOR_RULES"]

_ONNXRUNTIME = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")


def opset(c: Context) -> Iterator[Finding]:
    """The opset of the file against the newest one the parser reads."""
    version, newest = c.model.opset_imports.get("", 0), c.parser.max_opset
    if newest is not None and version > newest.value:
        yield c.finding(
            ("opset", ""),
            f"The file has opset {version}, and {c.parser.name} reads up to {newest.value}.",
            _lower(c),
            source=newest.source,
        )
    elif version > c.software.max_opset:
        yield c.finding(
            ("opset", ""),
            f"The file has opset {version}; the profile hands up to {c.software.max_opset} on.",
            _lower(c),
            "note",
            source=c.software.source,
        )


def operators(c: Context) -> Iterator[Finding]:
    """Operators that the parser does not have."""
    version = c.model.opset_imports.get("", 0)
    for node in c.nodes:
        if node.domain not in ("", "ai.onnx"):
            if c.software.runtime != "onnxruntime":
                yield c.finding(
                    node,
                    f"The operator belongs to {node.domain}, which ONNX Runtime alone knows.",
                    c.export_instead,
                    source=c.parser.lacks.get("QLinearConv", ""),
                )
            elif node.domain not in _ONNXRUNTIME:
                yield c.finding(
                    node,
                    f"The operator belongs to {node.domain}, which ONNX Runtime does not know.",
                    "Write it with operators of ONNX.",
                    source="ONNX Runtime's own operators are in com.microsoft",
                )
        elif node.op_type in c.parser.lacks:
            source = c.parser.lacks[node.op_type]
            yield c.finding(
                node,
                f"{c.parser.name} has no {node.op_type}.",
                _instead(c, node.op_type),
                source=source,
            )
        elif node.op_type in c.software.lacks:
            problem = f"The profile says that {c.software.name} has no {node.op_type}."
            yield c.finding(node, problem, _lower(c), source=c.software.source)
        elif not c.parser.known:
            if not _in_onnx(node.op_type, version):
                yield c.finding(
                    node,
                    f"Opset {version} has no {node.op_type}.",
                    "Write the file with a newer opset.",
                    source="onnx's schemas",
                )
        elif node.op_type not in c.parser.known:
            doubt = "" if c.parser.complete else " Releases since may have added it."
            yield c.finding(
                node,
                f"{node.op_type} is not among the operators of {c.parser.name}.{doubt}",
                "Try it with that release's parser, or use a network without it.",
                "refused" if c.parser.complete else "note",
                source=c.parser.operators_source,
            )


def _lower(c: Context) -> str:
    """Say how the profile has its files written."""
    without = f" without {' and '.join(c.software.lacks)}" if c.software.lacks else ""
    return f"Write the file at opset {c.software.max_opset}{without}, as the profile says."


def _instead(c: Context, op: str) -> str:
    if op == "Attention":
        return "Write attention as MatMul, Softmax, MatMul: export with opset 22 or less."
    if op.endswith("Integer") or op.startswith("QLinear") or op == "DynamicQuantizeLinear":
        return c.export_instead
    return _lower(c)


def _in_onnx(op: str, version: int) -> bool:
    try:
        onnx.defs.get_schema(op, version)
    except onnx.defs.SchemaError:
        return False
    return True


def einsum(c: Context) -> Iterator[Finding]:
    """Einsum with an ellipsis, a diagonal, or an index that is broadcast."""
    if not c.holds("plain_einsum_only"):
        return
    for node in c.nodes:
        if node.op_type != "Einsum":
            continue
        equation = node.attributes.get_string("equation", "").replace(" ", "")
        terms = equation.partition("->")[0].split(",")
        what = ""
        if "..." in equation:
            what = "an ellipsis"
        elif any(len(set(term)) < len(term) for term in terms):
            what = "a diagonal"
        elif _broadcasts(node, terms):
            what = "an index that is broadcast"
        if what:
            yield c.finding(
                node,
                f'The equation "{equation}" has {what}.',
                "Write it as MatMul with Transpose and Reshape.",
                fact="plain_einsum_only",
            )


def _broadcasts(node: ir.Node, terms: list[str]) -> bool:
    sizes: dict[str, int] = {}
    for term, value in zip(terms, node.inputs, strict=False):
        shape = list(value.shape) if value is not None and value.shape is not None else []
        for index, size in zip(term, shape, strict=False):
            if isinstance(size, int) and sizes.setdefault(index, size) != size:
                return True
    return False


OPERATOR_RULES: tuple[Rule, ...] = (opset, operators, einsum)
