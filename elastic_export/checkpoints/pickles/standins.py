"""What the classes and functions that a pickle names are taken for.

Nothing here is looked up in a module: a name either stands in a table below, which says what inert
value a call of it means, or becomes an :class:`Opaque`. Records of settings become plain dicts,
paths and devices become text, numpy's scalars become Python's.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from elastic_export.checkpoints.pickles.inert import Budget, Opaque, UnreadableError, printable
from elastic_export.checkpoints.pickles.storages import StorageKind, tensor_of

__all__ = ["ATTRIBUTES", "MAPPINGS", "ArrayInMaking", "DtypeInMaking", "call", "named", "to_key"]

ATTRIBUTES = frozenset({"argparse.Namespace", "types.SimpleNamespace"})
"""Classes whose attributes are their content."""
MAPPINGS = frozenset(
    {
        "addict.addict.Dict",
        "collections.Counter",
        "collections.OrderedDict",
        "collections.defaultdict",
        "builtins.dict",
        "detectron2.config.config.CfgNode",
        "easydict.EasyDict",
        "fvcore.common.config.CfgNode",
        "mmcv.utils.config.ConfigDict",
        "mmengine.config.config.ConfigDict",
        "munch.Munch",
        "yacs.config.CfgNode",
    }
)
"""Subclasses of dict; what they have beside their items is of no interest."""

# Everything here is inert anyway; a file that asks for these was made to harm, which is said.
_HARMFUL = re.compile(
    r"(os|nt|posix|posixpath|sys|subprocess|shutil|socket|ctypes|importlib|runpy|pty|webbrowser"
    r"|code|pdb|bdb|timeit|cProfile|profile|signal|urllib|http|commands|pip|marshal)(\..*)?"
    r"|builtins\.(eval|exec|execfile|compile|open|file|__import__|input|breakpoint|globals|apply)"
    r"|(pickle|_pickle|cPickle|dill|joblib|cloudpickle|torch|numpy|torch\.hub|torch\.jit"
    r"|torch\.serialization)\.(load|loads|Unpickler)"
)
_RENAMED = (
    ("__builtin__.", "builtins."),
    ("copy_reg.", "copyreg."),
    ("numpy._core.", "numpy.core."),
    ("pathlib._local.", "pathlib."),
)
_DTYPE = re.compile(r"[<>|=]?(?:[iu][1248]|f[248]|c8|c16|b1|\?)")
_DTYPES = {
    f"torch.{name}": getattr(torch, name)
    for name in (
        *("float16", "float32", "float64", "bfloat16", "half", "float", "double"),
        *("uint8", "int8", "int16", "int32", "int64", "short", "int", "long", "bool"),
        *("uint16", "uint32", "uint64", "complex64", "complex128"),
        *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"),
    )
}
_STORAGES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Byte": torch.uint8,
    "Char": torch.int8,
    "Short": torch.int16,
    "Int": torch.int32,
    "Long": torch.int64,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
    "Untyped": torch.uint8,
    # Their bytes are read; the tensors around them stay opaque.
    "QInt8": torch.int8,
    "QUInt8": torch.uint8,
    "QInt32": torch.int32,
}
_STORAGE = re.compile(r"torch\.(?:storage\.|cuda\.)?(\w+?)Storage")
_ITEM = 100
_MOST_ODD_KEYS = 4096
_MOST_PARTS = 1 << 17


class DtypeInMaking(Opaque):
    """A numpy dtype of plain numbers; its byte order comes with its state."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: np.dtype) -> None:
        super().__init__("numpy.dtype", "object")
        self.dtype = dtype

    def build(self, state: Any) -> DtypeInMaking:
        """Set the byte order from a pickled state."""
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])
        return self


class ArrayInMaking(Opaque):
    """A numpy array before its state is known.

    Attributes:
        slots: Where the memo holds it, so that the array can take its place.
    """

    __slots__ = ("slots",)

    def __init__(self) -> None:
        super().__init__("numpy.ndarray", "object")
        self.slots: list[int] = []

    def build(self, state: Any, budget: Budget) -> Any:
        """The array of a pickled state; opaque where its elements are not plain numbers."""
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise UnreadableError("is cut off or damaged")
        shape, dtype, fortran, data = state[-4:]
        if not isinstance(dtype, DtypeInMaking) or not isinstance(data, bytes):
            return Opaque("numpy.ndarray of objects")
        return _array(data, dtype, shape, "F" if fortran else "C", budget)


class Keys:
    """Counts the keys whose hashes a file could choose to collide."""

    def __init__(self) -> None:
        self.odd = 0
        self.parts = 0


def to_key(value: Any, keys: Keys) -> Any:
    """Let only values be keys whose hashing is short, and few whose hashes can be chosen.

    Raises:
        UnreadableError: It is no key.
    """
    kind = type(value)
    if kind in (str, bool, bytes, float, type(None)) or isinstance(value, Opaque):
        return value
    if kind is int:
        keys.odd += not -(1 << 60) < value < 1 << 60
    elif kind in (tuple, frozenset):
        keys.odd += 1
        keys.parts += _parts(value, 8)
    elif isinstance(value, (torch.Tensor, torch.dtype, complex)):
        keys.odd += 1
    else:
        raise UnreadableError("is cut off or damaged")
    if keys.odd > _MOST_ODD_KEYS or keys.parts > _MOST_PARTS:
        raise UnreadableError("holds a dictionary with more odd keys than are read")
    return value


def _parts(value: Any, deepest: int) -> int:
    """How many values a tuple of plain values holds."""
    if type(value) in (str, int, float, bool, bytes, type(None)):
        return 1
    if type(value) not in (tuple, frozenset) or not deepest or len(value) > _MOST_PARTS:
        raise UnreadableError("holds a dictionary with keys that are no text or numbers")
    count = 0
    for part in value:
        count += 1 + _parts(part, deepest - 1)
        if count > _MOST_PARTS:
            break  # the same part may be in many places
    return count


def named(module: str, name: str) -> Any:
    """What a global stands for: a dtype, a kind of storage, or its name alone.

    Raises:
        UnreadableError: It has no other use than to run code.
    """
    full = f"{module}.{name}"
    for old, new in _RENAMED:
        if full.startswith(old):
            full = new + full[len(old) :]
    if _HARMFUL.fullmatch(full):
        raise UnreadableError(
            f"holds Python objects that could run code when loaded: {printable(full)}",
            "Do not use this file; get the checkpoint from its source again.",
        )
    if full in _DTYPES:
        return _DTYPES[full]
    storage = _STORAGE.fullmatch(full)
    if storage and storage[1] in _STORAGES:
        return StorageKind(full, _STORAGES[storage[1]])
    return Opaque(full, "name")


def call(name: str, args: tuple[Any, ...], budget: Budget, keys: Keys) -> Any:
    """What a call of a named class or function means; opaque where that is not known.

    Args:
        name: The full name.
        args: What it is called with.
        budget: Charged with the size of what is made.
        keys: Counts odd keys.

    Raises:
        UnreadableError: The arguments do not fit.
    """
    if name in _TENSORS:
        budget.charge(1000)
        return _TENSORS[name](*args)
    if name in MAPPINGS:
        return _mapping(args, budget, keys)
    if name in _SIMPLE:
        budget.charge(_ITEM + sum(map(_weight, args)))
        return _SIMPLE[name](*args)
    if name in ("builtins.set", "builtins.frozenset"):
        items = args[0] if args else []
        if type(items) not in (list, tuple):
            raise UnreadableError("is cut off or damaged")
        budget.charge(2 * _ITEM * len(items) + 2 * _ITEM)
        made = {to_key(item, keys) for item in items}
        return made if name == "builtins.set" else frozenset(made)
    if name == "numpy.core.multiarray.scalar":
        return _scalar(*args)
    if name == "numpy.core.numeric._frombuffer" and isinstance(args[1], DtypeInMaking):
        return _array(bytes(args[0]), args[1], args[2], args[3], budget)
    return Opaque(name, "tensor" if name.startswith(_TENSOR_MAKERS) else "object")


def _weight(value: Any) -> int:
    """About the bytes a copy of a value takes."""
    if type(value) in (str, bytes):
        return 2 * len(value)
    return _ITEM * len(value) if type(value) in (list, tuple) else 0


def _mapping(args: tuple[Any, ...], budget: Budget, keys: Keys) -> dict[Any, Any]:
    given = args[-1] if args else ()
    if isinstance(given, dict):
        budget.charge(_ITEM * len(given) + _ITEM)
        return dict(given)
    if type(given) not in (list, tuple):
        return {}  # the factory of a defaultdict
    budget.charge(_ITEM * len(given) + _ITEM)
    pairs = [pair for pair in given if type(pair) in (list, tuple) and len(pair) == 2]
    if len(pairs) != len(given):
        raise UnreadableError("is cut off or damaged")
    return {to_key(key, keys): value for key, value in pairs}


def _tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, grad: Any = False, hooks: Any = None,
    metadata: Any = None,
) -> Any:  # fmt: skip
    if metadata:
        return Opaque("a conjugate or negative view", "tensor")
    return tensor_of(storage, None, offset, shape, stride)


def _typed_tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any, dtype: Any,
    metadata: Any = None,
) -> Any:  # fmt: skip
    if metadata:
        return Opaque("a conjugate or negative view", "tensor")
    return tensor_of(storage, dtype, offset, shape, stride)


def _parameter(data: Any, *_: Any) -> Any:
    if not isinstance(data, (torch.Tensor, Opaque)):
        raise UnreadableError("is cut off or damaged")
    return data


def _from_type(maker: Any, kind: Any, args: Any, *_: Any) -> Any:
    plain = isinstance(kind, Opaque) and kind.class_name in (
        "torch.Tensor",
        "torch._tensor.Tensor",
        "torch.nn.parameter.Parameter",
        "torch.nn.parameter.Buffer",
    )
    if plain and isinstance(maker, Opaque) and maker.class_name in _TENSORS:
        if maker.class_name.endswith("_rebuild_from_type_v2"):
            raise UnreadableError("is cut off or damaged")
        return _TENSORS[maker.class_name](*args)
    return Opaque(kind.class_name if isinstance(kind, Opaque) else "unknown", "tensor")


_TENSORS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _from_type,
}
_TENSOR_MAKERS = ("torch._utils._rebuild", "torch._tensor._rebuild")


def _path(kind: type[pathlib.PurePath], parts: tuple[Any, ...]) -> str:
    if not all(type(part) is str for part in parts):
        raise UnreadableError("is cut off or damaged")
    return str(kind(*parts))


def _encode(text: Any, encoding: Any = "utf-8") -> bytes:
    if type(text) is not str or encoding not in ("latin1", "latin-1", "utf-8"):
        raise UnreadableError("is cut off or damaged")
    return text.encode(encoding)


def _device(kind: Any, index: Any = None) -> str:
    if type(kind) not in (str, int) or type(index) not in (int, type(None)):
        raise UnreadableError("is cut off or damaged")
    return str(kind) if index is None else f"{kind}:{index}"


def _bytes(data: Any = b"", encoding: Any = None) -> bytes:
    if type(data) is str:
        return _encode(data, encoding)
    if type(data) is bytes:
        return data
    if type(data) in (list, tuple):
        return bytes(data)
    raise UnreadableError("is cut off or damaged")


def _list(items: Any = (), *_: Any) -> list[Any]:
    return list(items) if type(items) in (list, tuple) else []


def _tuple(items: Any = ()) -> tuple[Any, ...]:
    return tuple(items) if type(items) in (list, tuple) else ()


def _dtype(code: Any, *_: Any) -> Any:
    if type(code) is not str or not _DTYPE.fullmatch(code):
        return Opaque("numpy.dtype of objects")
    return DtypeInMaking(np.dtype(code))


_SIMPLE: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _encode,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytes,
    "builtins.complex": lambda real, imag: complex(float(real), float(imag)),
    "builtins.list": _list,
    "builtins.tuple": _tuple,
    "collections.deque": _list,
    "numpy.core.multiarray._reconstruct": lambda *_: ArrayInMaking(),
    "numpy.dtype": _dtype,
    "torch.Size": _tuple,
    "torch.device": _device,
    **{
        f"pathlib.{name}": lambda *parts, kind=kind: _path(kind, parts)
        for name, kind in (
            ("PosixPath", pathlib.PurePosixPath),
            ("PurePosixPath", pathlib.PurePosixPath),
            ("WindowsPath", pathlib.PureWindowsPath),
            ("PureWindowsPath", pathlib.PureWindowsPath),
        )
    },
}


def _scalar(dtype: Any, data: Any = None) -> Any:
    if not isinstance(dtype, DtypeInMaking) or type(data) is not bytes:
        return Opaque("numpy scalar")
    if len(data) != dtype.dtype.itemsize:
        raise UnreadableError("is cut off or damaged")
    return np.frombuffer(data, dtype.dtype)[0].item()


def _array(data: bytes, dtype: DtypeInMaking, shape: Any, order: Any, budget: Budget) -> Any:
    if type(shape) is not tuple or any(type(n) is not int or n < 0 for n in shape):
        raise UnreadableError("is cut off or damaged")
    budget.charge(len(data) + _ITEM)
    flat = np.frombuffer(data, dtype.dtype)
    return flat.reshape(shape, order="F" if order == "F" else "C").copy(order="K")
