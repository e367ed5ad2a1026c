"""What the names in a pullback stand for: functions and values from where it was written."""

from __future__ import annotations

import ast
import builtins
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
from jax.extend.core import Primitive


def surroundings(function: Callable[..., Any]) -> dict[str, Any]:
    """What the names in a function stand for that are not its own."""
    function = inspect.unwrap(function)
    seen = {**vars(builtins), **getattr(function, "__globals__", {})}
    code = getattr(function, "__code__", None)
    for name, cell in zip(code.co_freevars if code else (), function.__closure__ or ()):  # pyright: ignore[reportFunctionMemberAccess]
        try:
            seen[name] = cell.cell_contents
        except ValueError:
            continue
    return seen


def name_of(function: Any) -> str:
    """What a function is called; ``primitive.bind`` has the primitive's name."""
    name = function.name if isinstance(function, Primitive) else None
    owner = getattr(function, "__self__", None)
    if isinstance(owner, Primitive):  # primitive.bind
        name = owner.name
    return name or getattr(function, "__name__", None) or type(function).__name__


def is_foreign(function: Any) -> bool:
    """Whether a function is JAX's, NumPy's or Python's own: named, not opened."""
    if isinstance(getattr(function, "__self__", function), Primitive):
        return True
    if isinstance(function, ModuleType):
        return False
    module = getattr(function, "__module__", None) or type(function).__module__
    return module.split(".")[0] in ("jax", "jaxlib", "numpy", "builtins", "math")


def is_type(value: Any) -> bool:
    """Whether it is an array's type (of an operand), or several of them."""
    members = value if isinstance(value, list) and value else [value]
    return all(hasattr(m, "dtype") and not isinstance(m, np.ndarray) for m in members)


def is_numerics(test: ast.expr) -> bool:
    """Whether a condition asks for the dtype alone: another way to compute the same."""
    return any(
        isinstance(n, ast.Attribute) and n.attr in ("dtype", "itemsize") for n in ast.walk(test)
    )
