"""Rules that are registered for the length of a ``with``, and primitives made for a test."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

import functional_bp as bp
from functional_bp.engine.rule import Rule


@contextlib.contextmanager
def planted(primitive: Primitive, signature: str, **declared: Any) -> Iterator[Rule]:
    """``bp.rule`` for ``primitive``, undone at the end."""
    before = bp.rules.get(primitive)
    try:
        yield bp.rule(primitive, signature, **declared)
    finally:
        if before is not None:
            bp.rules.add(before)
        else:
            bp.rules.remove(primitive)


def primitive_of(name: str, function: Callable[..., Any], shapes: Callable[..., Any]) -> Primitive:
    """A primitive with value, shape rule, lowering and elementwise batching; no derivative."""
    primitive = Primitive(name)
    several = isinstance(function_result(shapes), list)
    primitive.multiple_results = several
    primitive.def_impl(function)
    primitive.def_abstract_eval(shapes)
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=several))
    batching.defvectorized(primitive)
    return primitive


def function_result(shapes: Callable[..., Any]) -> Any:
    """What the shape rule returns for a scalar: a list for several outputs."""
    import jax
    import jax.numpy as jnp

    return shapes(jax.core.ShapedArray((), jnp.float32))
