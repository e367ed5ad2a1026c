"""Gradients of symbolic shapes export wherever JAX's do, over all rules and cases.

The first axes of a case's operands are symbolic: each operand's alone, and all together that have
the same length. What was exported is called at the case's own lengths.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import export, lax
from measuring import Probe, compiled, inexact
from properties import close, tolerance
from rule_cases import all_cases, one_of_three, sampled_cases

import functional_bp as bp
from functional_bp import _jax
from functional_bp.engine.rule import Case


def summed(function: Any) -> Any:
    """A scalar of all outputs, whatever their shapes."""

    def total(*args: Any) -> Any:
        parts = [jnp.zeros(())]
        for y in filter(inexact, jax.tree.leaves(function(*args))):
            parts.append(jnp.sum(jnp.sin(jnp.real(y))))
            parts += [jnp.sum(jnp.cos(jnp.imag(y)))] if y.dtype.kind == "c" else []
        return sum(parts)

    return total


def choices(probe: Probe) -> list[tuple[int, ...]]:
    """Which operands' first axes are symbolic together."""
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    longer = [i for i, x in enumerate(probe.args) if x.ndim and x.shape[0] and not is_key(x)]
    alike = [tuple(j for j in longer if probe.args[j].shape[0] == probe.args[i].shape[0])
             for i in longer]  # fmt: skip
    return list(dict.fromkeys([*alike, *((i,) for i in longer)]))


def exported(function: Any, probe: Probe, symbolic: tuple[int, ...]) -> Any:
    """The exported function of symbolic shapes."""
    (n,) = export.symbolic_shape("n")
    shapes = [(n, *x.shape[1:]) if i in symbolic else x.shape for i, x in enumerate(probe.args)]
    types = [jax.ShapeDtypeStruct(s, x.dtype) for s, x in zip(shapes, probe.args)]
    return export.export(jax.jit(function))(*types)


def accepted(function: Any, probe: Probe, symbolic: tuple[int, ...]) -> bool:
    """Whether JAX exports the function, and lowers the case at another length."""
    types = [
        jax.ShapeDtypeStruct((x.shape[0] + 1, *x.shape[1:]) if i in symbolic else x.shape, x.dtype)
        for i, x in enumerate(probe.args)
    ]
    try:
        jax.jit(probe.case.function).lower(*types)
        exported(function, probe, symbolic)
    except Exception:  # whatever JAX says there, it is JAX that says it
        return False
    return True


def compare(rule_case: Case, run: bool = True) -> int:
    """Export, call, compare; in how many ways of being symbolic that was possible."""
    probe = Probe(rule_case)
    if not probe.active or not probe.a:
        return 0
    numbers = tuple(probe.active)
    theirs, ours = (grad(summed(rule_case.function), numbers) for grad in (jax.grad, bp.grad))
    ways = [way for way in choices(probe) if accepted(theirs, probe, way)]
    calls = {way: exported(ours, probe, way) for way in ways}
    calls = {way: export.call for way, export in calls.items() if run and export.nr_devices == 1}
    if calls:
        both = lambda *args: ([call(*args) for call in calls.values()],
                              jax.grad(summed(probe.reference), numbers)(*args))  # fmt: skip
        found, wants = compiled(both)(*probe.args)
        for way, bars in zip(calls, found):
            for got, want in zip(bars, wants, strict=True):
                close(got, want, 4 * tolerance(probe), f"symbolic {way}")
    return len(ways)


def count_over(parameters: list[Any], run: bool) -> int:
    """The count over rules and cases."""
    count, faults = 0, []
    for parameter in parameters:
        rule, k = parameter.values
        try:
            count += compare(rule.cases[k], run)
        except Exception as error:
            faults.append(f"{parameter.id}: {type(error).__name__}: {error}")
    assert not faults, "\n".join(faults)
    return count


def test_gradients_of_symbolic_shapes_export() -> None:
    assert count_over(sampled_cases()[::4], run=True) > 4


@pytest.mark.long
@pytest.mark.parametrize("part", range(4))
def test_gradients_of_symbolic_shapes_export_of_every_rule(part: int) -> None:
    assert count_over(one_of_three(0)[part::4], run=True) > 40


PROGRAMS = {
    "median": lambda x: jnp.median(x),
    "scan": lambda x: lax.scan(lambda c, x: (c * jnp.sin(x), c), jnp.ones(()), x)[1].sum(),
    "scan of nothing": lambda x: lax.scan(
        lambda c, _: (jnp.sin(c), None), x, None, length=3)[0].sum(),
    "scan that keeps nothing": lambda x: lax.scan(lambda c, x: (c + x, None), 0.0, x)[0],
    "one_hot": lambda x: (jax.nn.one_hot(jnp.argmax(x), x.shape[0]) * x).sum(),
    "set": lambda x: (x.at[jnp.argsort(x)].set(x**2) * x).sum(),
    "softmax": lambda x: (jax.nn.softmax(x) * x).sum(),
    "top_k": lambda x: lax.top_k(x * x, 2)[0].sum(),
    "remat": lambda x: jax.checkpoint(lambda x: jnp.sort(jnp.sin(x))[0])(x),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_of_a_symbolic_length(name: str) -> None:
    x = jnp.asarray([0.3, -1.2, 0.8, 2.0, 0.1])
    (n,) = export.symbolic_shape("n", constraints=["n >= 2"])
    ours = export.export(jax.jit(bp.grad(PROGRAMS[name])))(jax.ShapeDtypeStruct((n,), x.dtype))
    want = jax.grad(PROGRAMS[name])(x)
    assert jnp.allclose(ours.call(x), want, rtol=1e-12)


def test_a_rule_that_compares_lengths_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_jax, "surely", lambda comparison: comparison())
    (sort,) = [p for p in all_cases() if p.id == "sorting-sort-1"]
    with pytest.raises(AssertionError, match="inconclusive"):
        count_over([sort], run=False)
