"""An entry that an operation does not read has no cotangent, over all rules and cases.

A triangle that a factorization takes as the other's mirror image, the corners of a tridiagonal
matrix's bands, padding, what was masked out: an entry whose value does not change the outputs
there or nearby has the derivative zero, and so has to be its cotangent.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import primitives
from measuring import Probe, compiled, inexact, pull
from rule_cases import one_of_three, sampled_cases

import functional_bp as bp
from functional_bp.engine.rule import Case, case, real

MOST = 40  # entries of an argument that are tried
NEARBY = (-1e-3, 1e-3, 1e-2)  # an entry that is selected at a kink shows on one side at least


def without_influence(function: Any, args: list[Any], active: list[int]) -> list[Any]:
    """Per active argument, traced: which entries may be moved without changing any output."""
    outputs = lambda args: [y for y in jax.tree.leaves(function(*args)) if inexact(y)]
    base, still = outputs(args), []
    for index in active:
        x = args[index]
        steps = [step * (1 + 1j) if x.dtype.kind == "c" else step for step in NEARBY]
        rows = jnp.asarray(steps, x.dtype)[:, None, None] * jnp.eye(min(x.size, MOST), x.size)
        rows = rows.reshape(-1, *x.shape)

        def same(row: Any, index: int = index) -> Any:
            changed = [arg + row if i == index else arg for i, arg in enumerate(args)]
            pairs = zip(outputs(changed), base)
            return jnp.all(jnp.stack([jnp.all((a == b) | ((a != a) & (b != b)))
                                      for a, b in pairs]))  # fmt: skip

        still.append(jnp.all(lax.map(same, rows).reshape(len(NEARBY), -1), 0))
    return still


def count_and_check(rule_case: Case, vjp: Any = bp.vjp) -> int:
    """How many entries without influence there are; all of them must have the cotangent zero.

    Zero to rounding: 64 units of the largest entry. At a kink nan stands for no derivative.
    """
    probe = Probe(rule_case)
    if not probe.a or not all(probe.args[i].size for i in probe.active):
        return 0

    def both(args: Any, bars: Any) -> Any:
        pulled = pull(vjp, rule_case.function, args, probe.everything)[1](bars)
        return pulled, without_influence(rule_case.function, args, probe.active)

    found = jax.device_get(compiled(both)(probe.args, probe.a))
    count = 0
    for index, bar, still in zip(probe.active, *found, strict=True):
        sizes = np.abs(np.asarray(bar).ravel())
        entries, size = sizes[:MOST][still], sizes[np.isfinite(sizes)].max(initial=0.0)
        wrong = entries > 64 * probe.eps * size
        assert not np.any(wrong), f"argument {index}: {entries[wrong]}, of entries not read"
        count += int(still.sum())
    return count


def count_over(cases: Any) -> int:
    """The count over rules and cases, but those whose derivative is a person's to choose."""
    chosen = bp.rules[primitives.custom_vjp_call_p]
    count, faults = 0, []
    for parameter in cases:
        rule, k = parameter.values
        if rule is not chosen:
            try:
                count += count_and_check(rule.cases[k])
            except AssertionError as error:
                faults.append(f"{parameter.id}: {error}")
    assert not faults, "\n".join(faults)
    return count


def test_entries_that_are_not_read_have_no_cotangent() -> None:
    assert count_over(sampled_cases()[::2]) > 10


@pytest.mark.long
@pytest.mark.parametrize("part", range(4))
def test_entries_that_are_not_read_have_no_cotangent_by_any_rule(part: int) -> None:
    assert count_over([*one_of_three(1), *sampled_cases()[1::2]][part::4]) > 50


def test_a_cotangent_of_the_mirrored_triangle_would_be_noticed() -> None:
    eigenvalues = lambda a: lax.linalg.eigh(a, symmetrize_input=False)[1]
    upper = case(eigenvalues, real(3, 3, make=lambda a: a + a.T))
    assert count_and_check(upper) == 3
    with pytest.raises(AssertionError, match="not read"):
        count_and_check(upper, jax.vjp)
