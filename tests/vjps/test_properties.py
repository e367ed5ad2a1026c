"""Each property of test_rules fails for a rule that is wrong in that way, and only then."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import comparisons
import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from measuring import measure
from planted import planted
from properties import PROPERTIES

from functional_bp.engine.rule import case, real


def waves(x: Any, y: Any) -> list[Any]:
    """Two outputs of two operands: p = x sin y, q = x y."""
    return [x * jnp.sin(y), x * y]


waves_p = Primitive("waves")
waves_p.multiple_results = True
waves_p.def_impl(waves)
waves_p.def_abstract_eval(lambda x, y: [x, x])
mlir.register_lowering(waves_p, mlir.lower_fun(waves, multiple_results=True))


def _batched(args: Any, dims: Any) -> Any:
    size = next(x.shape[dim] for x, dim in zip(args, dims) if dim is not None)
    moved = [
        jnp.broadcast_to(x, (size, *x.shape)) if dim is None else jnp.moveaxis(x, dim, 0)
        for x, dim in zip(args, dims)
    ]
    return waves_p.bind(*moved), [0, 0]


batching.primitive_batchers[waves_p] = _batched

CASE = case(lambda x, y: waves_p.bind(x, y), real(3), real(3), reference=waves)


def x_right(p_bar: Any, q_bar: Any, y: Any) -> Any:
    return p_bar * jnp.sin(y) + q_bar * y


def y_right(p_bar: Any, q_bar: Any, x: Any, y: Any) -> Any:
    return p_bar * x * jnp.cos(y) + q_bar * x


@jax.custom_batching.custom_vmap
def _not_the_same_under_vmap(x: Any) -> Any:
    return x


@_not_the_same_under_vmap.def_vmap
def _(size: int, batched: Any, x: Any) -> Any:
    return 2 * x, True


def joint_of_both(p_bar: Any, q_bar: Any, x: Any, y: Any, *, wanted: Any) -> Any:
    factor = 1 if len(wanted) == 2 else 2
    return {"x": factor * x_right(p_bar, q_bar, y), "y": factor * y_right(p_bar, q_bar, x, y)}


def x_from_both_or_none(y: Any, p_bar: Any = None, q_bar: Any = None) -> Any:
    return None if p_bar is None or q_bar is None else x_right(p_bar, q_bar, y)


def wrong(x: Any) -> dict[str, Any]:
    return {"x": x, "y": y_right}


# The signature and pullbacks of a rule that is wrong, by the property that has to notice.
FAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    "value": (
        "x, y -> p, q | kept",
        {
            "x": lambda p_bar, q_bar, kept: x_right(p_bar, q_bar, kept),
            "y": y_right,
            "forward": lambda x, y: ([1.001 * p for p in waves(x, y)], y),
        },
    ),
    "cotangent": ("x, y -> p, q", wrong(lambda p_bar, q_bar, y: -x_right(p_bar, q_bar, y))),
    "adjoint identity": (
        "x, y -> p, q",
        wrong(lambda p_bar, q_bar, y: 1.001 * x_right(p_bar, q_bar, y)),
    ),
    "every subset of active arguments": ("x, y -> p, q", {"joint": joint_of_both}),
    "every output alone": ("x, y -> p, q", wrong(x_from_both_or_none)),
    "vmap against a loop": (
        "x, y -> p, q",
        wrong(lambda p_bar, q_bar, y: _not_the_same_under_vmap(x_right(p_bar, q_bar, y))),
    ),
    "linear in the cotangent": (
        "x, y -> p, q",
        wrong(lambda p_bar, q_bar, y: p_bar * jnp.abs(jnp.sin(y) * p_bar) + q_bar * y),
    ),
    "second order": (
        "x, y -> p, q",
        wrong(lambda p_bar, q_bar, y: x_right(p_bar, q_bar, jax.lax.stop_gradient(y))),
    ),
    "low precision": (
        "x, y -> p, q",
        wrong(lambda p_bar, q_bar, y: x_right(p_bar, q_bar, (y + 1e4) - 1e4)),
    ),
}


@cache
def noticed(name: str) -> set[str]:
    return noticing(*FAULTS[name])


def noticing(signature: str, declared: dict[str, Any]) -> set[str]:
    """The properties that fail for a rule."""
    found = set()
    with planted(waves_p, signature, **declared):
        numbers = measure(CASE)
        for name, check in PROPERTIES.items():
            try:
                check(numbers)
            except AssertionError:
                found.add(name)
    return found


def test_the_right_rule_passes() -> None:
    assert noticing("x, y -> p, q", {"x": x_right, "y": y_right}) == set()


@pytest.mark.parametrize("name", FAULTS)
def test_the_wrong_rule_is_noticed(name: str) -> None:
    assert name in noticed(name)


@pytest.mark.parametrize(
    "name", ["every subset of active arguments", "every output alone", "vmap against a loop",
             "second order", "low precision"]
)  # fmt: skip
def test_by_that_property_alone(name: str) -> None:
    others = noticed(name) - {name}
    assert "cotangent" not in others and "value" not in others


def test_every_property_has_a_fault() -> None:
    assert set(FAULTS) == set(PROPERTIES) == set(comparisons.FLOORS)


def test_a_property_that_has_fallen_silent_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparisons, "FLOORS", {"value": 1.0, "adjoint identity": 0.5})
    monkeypatch.setattr(comparisons, "compared", Counter({"value": 400, "adjoint identity": 100}))
    monkeypatch.setattr(comparisons, "cases", 10)
    assert comparisons.silent() == []
    monkeypatch.setattr(comparisons, "cases", 400)
    (sentence,) = comparisons.silent()
    assert "'adjoint identity'" in sentence and "100 of 400" in sentence
    monkeypatch.setattr(comparisons, "FLOORS", {"every output alone": 0.01})
    assert len(comparisons.silent()) == 1
    monkeypatch.setattr(comparisons, "cases", 40)  # one of them would be enough, or none by chance
    assert comparisons.silent() == []
