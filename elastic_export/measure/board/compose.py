"""Join the modules of this folder into ``on_device.py``, the one file a bundle carries."""

from __future__ import annotations

import ast
from functools import cache
from importlib import resources

__all__ = ["SCRIPT", "compose"]

SCRIPT = "on_device.py"
PACKAGE = "elastic_export.measure.board"
ORDER = (
    "shell",
    "stats",
    "background",
    "identity",
    "clocks",
    "rails",
    "power",
    "watch",
    "sample",
    "bundle",
    "layers",
    "dla",
    "engines",
    "trtexec",
    "cuda",
    "tensorrt_build",
    "tensorrt_module",
    "ort",
    "session",
    "options",
    "main",
)
"""Each module imports those before it only."""

_HEAD = '''\
#!/usr/bin/env python3
"""Measures the networks of an elastic-export bundle on the machine it runs on.

    python3 on_device.py probe
    python3 on_device.py run

Python 3.6 or newer and its standard library. It changes nothing on the machine but the clocks,
which it puts back; engines and logs go beside the bundle. Made by elastic-export.
"""
'''
_TAIL = """

if __name__ == "__main__":
    sys.exit(main())
"""


@cache
def compose() -> str:
    """Return the text of the script: standard imports once, then every module in order.

    Raises:
        ValueError: two modules define the same name, or one is out of order.
    """
    imports: set[str] = set()
    owners: dict[str, str] = {}
    bodies: list[str] = []
    for module in ORDER:
        source = resources.files(PACKAGE).joinpath(f"{module}.py").read_text(encoding="utf-8")
        bodies.append(_body(module, source, imports, owners))
    return _HEAD + "\n" + "\n".join(sorted(imports)) + "\n" + "".join(bodies) + _TAIL


def _body(module: str, source: str, imports: set[str], owners: dict[str, str]) -> str:
    """Return a module without its imports and ``__all__``; its docstring becomes a comment."""
    tree, lines = ast.parse(source), source.splitlines()
    dropped: set[int] = set()
    for number, node in enumerate(tree.body):
        if number == 0 and isinstance(node, ast.Expr):
            _drop(node, dropped)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            _drop(node, dropped)
            own = isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE)
            if own and all(alias.asname is None for alias in node.names):
                continue
            imports.add(ast.unparse(node))
        else:
            for name in _names(node):
                if name == "__all__":
                    _drop(node, dropped)
                elif name in owners:
                    raise ValueError(f"{module} and {owners[name]} both define {name}")
                else:
                    owners[name] = module
    said = (ast.get_docstring(tree) or "").splitlines()
    comment = "\n".join(f"# {line}".rstrip() for line in said)
    kept = [line for number, line in enumerate(lines, 1) if number not in dropped]
    text = "\n".join(kept).strip("\n")
    return f"\n\n# ---- {module} ----\n#\n{comment}\n\n{text}\n"


def _drop(node: ast.stmt, dropped: set[int]) -> None:
    dropped.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return []
