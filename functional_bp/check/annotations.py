"""Shapes that a signature's annotations give, in jaxtyping's notation: ``Float[Array, "b d"]``.

jaxtyping itself is not needed: its annotations are read by their attributes, or as text.

References: docs.kidger.site/jaxtyping/api/array, "Shape".
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

# What is drawn for each of jaxtyping's names, where it allows several dtypes.
DTYPES = {
    "float": "f32", "inexact": "f32", "real": "f32", "num": "f32", "shaped": "f32",
    "complex": "c64", "int": "i32", "integer": "i32", "uint": "u32", "bool": "bool", "key": "key",
    "float16": "f16", "float32": "f32", "float64": "f64", "bfloat16": "bf16",
    "complex64": "c64", "complex128": "c128",
    "int8": "i8", "int16": "i16", "int32": "i32", "int64": "i64",
    "uint8": "u8", "uint16": "u16", "uint32": "u32", "uint64": "u64",
}  # fmt: skip
SIZES = (3, 4, 5, 2, 6, 7, 8, 9)  # all different, so that no two axes can be taken for each other


@dataclass
class Sizes:
    """The sizes of named dimensions, the same in all arguments."""

    known: dict[str, int] = field(default_factory=dict)

    def __getitem__(self, name: str) -> int:
        if name not in self.known:
            count = len(self.known)
            self.known[name] = SIZES[count] if count < len(SIZES) else count + 2
        return self.known[name]


def annotated(function: Callable[..., Any]) -> Mapping[str, tuple[str, str]]:
    """Dtype and dimensions (``("f32", "b d")``) of every parameter whose annotation gives them."""
    try:
        texts = inspect.get_annotations(inspect.unwrap(function))
    except TypeError:  # an object that has none
        return {}
    found = {}
    for name, annotation in texts.items():
        if isinstance(annotation, str):
            evaluated = _evaluated(annotation, function)
            parsed = _read(evaluated) or _parse(annotation)
        else:
            parsed = _read(annotation)
        if parsed and name != "return":
            found[name] = parsed
    return found


def shape_of(dims: str, sizes: Sizes) -> tuple[int, ...]:
    """The shape that ``"b d"`` stands for.

    Raises:
        ValueError: a dimension that is no number, no name and no expression of these.
    """
    shape: list[int] = []
    for dim in dims.split():
        name = dim.rpartition("=")[2].lstrip("?#") or "_"
        starred = name.startswith("*") or name == "..."
        name = name.lstrip("*?#")
        if name == "..." or name.startswith("_"):
            shape.append(sizes[f"_{len(sizes.known)}"])
        elif name.isidentifier():
            shape.append(sizes["*" * starred + name])
        else:
            shape.append(_value(ast.parse(name, mode="eval").body, dim, sizes))
    return tuple(shape)


def _evaluated(text: str, function: Any) -> Any:
    """What a textual annotation means where it stands, or None."""
    try:
        return eval(text, getattr(inspect.unwrap(function), "__globals__", {}))
    except Exception:  # a name that is imported for type checkers alone
        return None


def _read(annotation: Any) -> tuple[str, str] | None:
    """From jaxtyping's own objects; also a Python number's type."""
    if annotation in (float, complex):
        return ("f32" if annotation is float else "c64"), ""
    dims, dtypes = getattr(annotation, "dim_str", None), getattr(annotation, "dtypes", None)
    if not isinstance(dims, str):
        return None
    allowed = [str(dtype) for dtype in dtypes] if isinstance(dtypes, list | tuple) else []
    for name in ("float32", "int32", "uint32", "complex64", "bool"):
        if name in allowed:
            return DTYPES[name], dims
    known = [DTYPES[dtype] for dtype in allowed if dtype in DTYPES]
    is_key = any("prng" in dtype or "key" in dtype for dtype in allowed)
    return (known[0] if known else "key" if is_key else "f32"), dims


def _parse(text: str) -> tuple[str, str] | None:
    """From the text ``Float[Array, "b d"]``."""
    try:
        node = ast.parse(text, mode="eval").body
    except SyntaxError:
        return None
    if isinstance(node, ast.Name) and node.id in ("float", "complex"):
        return ("f32" if node.id == "float" else "c64"), ""
    if not isinstance(node, ast.Subscript) or not isinstance(node.slice, ast.Tuple):
        return None
    kind = node.value.attr if isinstance(node.value, ast.Attribute) else ""
    kind = node.value.id if isinstance(node.value, ast.Name) else kind
    last = node.slice.elts[-1]
    is_text = isinstance(last, ast.Constant) and isinstance(last.value, str)
    if kind.lower() not in DTYPES or not is_text:
        return None
    return DTYPES[kind.lower()], str(ast.literal_eval(last))


def _value(node: ast.expr, dim: str, sizes: Sizes) -> int:
    """A dimension such as ``4``, ``2*d`` or ``t-1``."""
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.Name(id=name):
            return sizes[name]
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _value(left, dim, sizes), _value(right, dim, sizes)
            results = {ast.Add: a + b, ast.Sub: a - b, ast.Mult: a * b, ast.FloorDiv: a // (b or 1)}
            if type(op) in results and results[type(op)] >= 0:
                return results[type(op)]
    raise ValueError(f"the dimension {dim!r} is no number, no name and no sum or product of them")
