"""What is known of each parser, release by release."""

from __future__ import annotations

import pytest

from elastic_export.errors import UserError
from elastic_export.export.parsers import parser_of, releases


def test_releases_inherit_and_add() -> None:
    for name in releases():
        runtime, _, version = name.rpartition("-")
        named = version[:1].isdigit()
        parser = parser_of(runtime if named else name, version if named else "1.0")
        assert parser.name == name
        assert all(fact.source for fact in parser.facts.values())
        assert not parser.known & set(parser.lacks)
    # deployment table of the ONNX import, by release.
    for version, opset, layer_norm, gelu, hard_swish, einsum in (
        ("8.0.1", 13, False, False, False, False),
        ("8.2.1", 13, False, False, False, True),
        ("8.4.1", 17, False, False, True, True),
        ("8.5.2", 17, False, False, True, True),
        ("8.6.2", 17, True, False, True, True),
        ("10.3.0", 20, True, True, True, True),
        ("10.9", 22, True, True, True, True),
        ("10.13", 24, True, True, True, True),
        ("11", 25, True, True, True, True),
    ):
        parser = parser_of("tensorrt", version)
        assert parser.max_opset is not None
        assert parser.max_opset.value == opset
        ops = ("LayerNormalization", "Gelu", "HardSwish", "Einsum")
        assert [op in parser.known for op in ops] == [layer_norm, gelu, hard_swish, einsum]
    with pytest.raises(UserError, match=r"tensorrt 8\.0 or newer"):
        parser_of("tensorrt", "7.1")
    with pytest.raises(UserError, match="Nothing is known"):
        parser_of("openvino", "2024.1")
