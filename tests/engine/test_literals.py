"""A Python number as an operand: the graph holds it as a literal, and rules meet it as an array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import Literal
from measuring import Probe, compiled, fixing, inexact, pull
from properties import close, tolerance
from rule_cases import all_cases, sampled_cases

import functional_bp as bp
from functional_bp.engine import sweeps
from functional_bp.engine.rule import Rule


def number_of(x: Any) -> Any:
    """The first element of an array as a Python number, None if it has none."""
    x = np.asarray(x)
    return x.ravel()[0].item() if x.size and x.dtype.kind in "fciub" else None


def accepting(probe: Probe, args: Sequence[Any]) -> Any:
    """The types of the case's outputs at these arguments, None if JAX does not take them."""
    others = [i for i, x in enumerate(args) if hasattr(x, "shape")]
    given, function = [args[i] for i in others], fixing(probe.case.function, args, others)
    try:
        outs = jax.tree.leaves(jax.jit(function).lower(*given).out_info)
        bars = [jnp.zeros(y.shape, y.dtype) for y in outs if inexact(y)]
        if probe.case.reference is None:
            jax.eval_shape(lambda *x: pull(jax.vjp, function, x, range(len(x)))[1](bars), *given)
    except Exception:  # whatever JAX says there, it is JAX that says it
        return None
    return outs if bars else None


class Pair(NamedTuple):
    """Arguments of which one is a number, and the same with an array of it."""

    place: int
    number: list[Any]
    array: list[Any]
    bars: list[Any]


def pairs_of(probe: Probe) -> list[Pair]:
    """One operand after the other as a number, beside the case's arrays and beside scalars.

    Beside arrays JAX broadcasts most numbers before an operation; beside scalars none.
    """
    found = []
    scalars = [x if number_of(x) is None else jnp.asarray(number_of(x)) for x in probe.args]
    for args in [probe.args, *([scalars] if any(x.ndim for x in probe.args) else [])]:
        for index, x in enumerate(args):
            number = number_of(x)
            if number is None or not any(i != index for i in probe.active):
                continue
            dtype = None if x.dtype.kind in "iu" else x.dtype  # None: the one JAX gives the number
            full = [*args[:index], jnp.full(x.shape, number, dtype), *args[index + 1 :]]
            given = [*args[:index], number, *args[index + 1 :]]
            outs = accepting(probe, given)
            if outs is not None and outs == accepting(probe, full):
                bars = [
                    jnp.sin(1.0 + jnp.arange(y.size)).reshape(y.shape) for y in outs if inexact(y)
                ]
                bars = [bar.astype(y.dtype) for bar, y in zip(bars, filter(inexact, outs))]
                found.append(Pair(index, given, full, bars))
    return found


def measure(rule: Rule, k: int) -> int:
    """Compare each operand that may be a number with an array of it; how many were compared."""
    probe = Probe(rule.cases[k], seed=k)
    pairs = pairs_of(probe) if len(probe.args) > 1 else []
    function = probe.case.function

    def claim() -> list[Any]:
        found = []
        for index, number, array, bars in pairs:
            others = [i for i in probe.everything if i != index]
            chosen = lambda args, o=others: [args[i] for i in o]
            alone = fixing(function, number, others)
            _, call = pull(bp.vjp, alone, chosen(number), range(len(others)))
            _, witness = pull(bp.vjp, function, array, others)
            found.append((call(bars), witness(bars)))
        return found

    found = jax.device_get(compiled(claim)()) if pairs else []
    for (got, want), pair in zip(found, pairs, strict=True):
        for x, y in zip(got, want, strict=True):
            close(x, y, tolerance(probe), f"argument {pair.place} as a number")
    return len(pairs)


# In parts, so that workers share them; a case of some rules by default, the others are long tests.
CHOSEN = sampled_cases()
OTHERS = [p for p in all_cases() if p.id not in {chosen.id for chosen in CHOSEN}]
PARTS = [CHOSEN, *(pytest.param(OTHERS[k::4], marks=pytest.mark.long) for k in range(4))]


@pytest.mark.parametrize("cases", PARTS, ids="abcde")
def test_a_number_gives_what_an_array_of_it_gives(cases: list[Any]) -> None:
    compared, faults = 0, []
    for parameter in cases:
        try:
            compared += measure(*parameter.values)
        except Exception as error:
            faults.append(f"{parameter.id}: {type(error).__name__}: {error}")
    assert not faults, "\n".join(faults)
    assert compared >= 50  # of some 300 in all


def test_literals_that_are_outputs_of_a_call_are_arrays_too() -> None:
    two = jax.jit(lambda x: (x, 2.0))
    got = bp.grad(lambda x: lax.igamma(two(x)[1], x))(0.4)
    np.testing.assert_allclose(got, 0.4 * np.exp(-0.4), rtol=1e-12)


@pytest.mark.parametrize("number", [True, 3, 2.5, 1.5 - 2j])
def test_a_number_is_an_array_of_the_literals_type(number: Any) -> None:
    (eqn,) = jax.make_jaxpr(lambda x: lax.eq_p.bind(x, number))(number).eqns
    literal: Any = eqn.invars[1]
    value = sweeps.value_of(literal, {})
    assert value.shape == () and value == number
    assert jax.typeof(value) == literal.aval and jax.typeof(value).weak_type == (number is not True)


def test_a_number_without_a_shape_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def as_it_is(atom: Any, values: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    monkeypatch.setattr(sweeps, "value_of", as_it_is)
    with pytest.raises(AttributeError, match="shape"):
        measure(bp.rules[lax.igamma_p], 0)
