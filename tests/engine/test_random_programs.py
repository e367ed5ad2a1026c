"""bp.vjp against jax.vjp over random programs: 12 graphs, and 312 more with the long tests."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from measuring import compiled
from random_programs import arguments, program
from sampling import sampled

import functional_bp as bp

# A dozen in one compilation saves the fixed cost of one, and still says which is wrong.
TOGETHER, RUNS = 12, 1

# Ten operations of condition number below about 30 each on 2⁻⁵²: 1e-9 leaves room for products
# of the largest, and a wrong term is not that small.
TOLERANCE = 1e-9


def cotangents(vjp: Any, seed: int, args: Any) -> Any:
    """Outputs and argument cotangents of one program, for a cotangent that depends on the place."""
    run = program(seed)
    floats, integers = args
    out, pullback = vjp(lambda floats: run(floats, integers), floats)
    bars = [jnp.cos(jnp.arange(1.0, y.size + 1)).reshape(y.shape).astype(y.dtype) for y in out]
    return out, pullback(bars)[0]


def disagreements(vjp: Any, seeds: list[int]) -> list[str]:
    """The programs for which ``vjp`` differs from ``jax.vjp``, each with its seed."""
    args = [arguments(seed) for seed in seeds]

    def both(args: Any) -> Any:
        return [
            (cotangents(vjp, seed, one), cotangents(jax.vjp, seed, one))
            for seed, one in zip(seeds, args)
        ]

    found = []
    for seed, (got, want) in zip(seeds, jax.device_get(compiled(both)(args))):
        for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            scale = float(np.abs(y[np.isfinite(y)]).max(initial=1.0))
            if not np.allclose(x, y, rtol=TOLERANCE, atol=TOLERANCE * scale, equal_nan=True):
                found.append(f"program({seed}): {x}, JAX {y}")
                break
    return found


@pytest.mark.parametrize("part", sampled(range(27), 27))
@settings(max_examples=RUNS, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 10**9))
def test_gradients_of_random_programs(part: int, first: int) -> None:
    first += part * 10**9  # reproducible draws are the same in each part
    found = disagreements(bp.vjp, list(range(first, first + TOGETHER)))
    assert not found, "\n".join(found)


def test_programs_are_as_varied_as_meant() -> None:
    """Over a hundred programs, the primitives that matter all occur."""
    seen: set[str] = set()
    for seed in range(100):
        text = str(jax.make_jaxpr(program(seed))(*arguments(seed)))
        seen |= {name for name in NEEDED if name in text}
    assert seen == NEEDED


NEEDED = {
    "dot_general", "reduce_sum", "reduce_max", "broadcast_in_dim", "reshape", "transpose", "slice",
    "dynamic_slice", "gather", "scatter", "concatenate", "select_n", "scan", "cond", "jit",
    "custom_jvp_call", "custom_vjp_call", "cumsum", "sort", "pad", "integer_pow", "stop_gradient",
}  # fmt: skip


def test_a_program_is_the_same_every_time() -> None:
    first, second = (jax.tree.leaves(program(7)(*arguments(7))) for _ in range(2))
    assert all(np.array_equal(x, y) for x, y in zip(first, second, strict=True))


def test_a_wrong_rule_would_be_noticed() -> None:
    def faulty(function: Any, *args: Any) -> Any:
        out, pullback = jax.vjp(function, *args)
        return out, lambda bars: jax.tree.map(lambda x: x * (1 + 1e-6), pullback(bars))

    with pytest.raises(AssertionError):
        assert not disagreements(faulty, [0, 1])
