"""Uses, live ranges, flops and bytes of a graph, against counts by hand and XLA's."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from small_graphs import F32, f32, names, operations

import functional_bp as bp
from functional_bp.graph import Graph
from functional_bp.graph.flops import dot_subscripts


def chain(x: Any) -> Any:
    a = bp.name(jnp.sin(x), "a")  # 0
    b = bp.name(a * x, "b")  # 1
    c = bp.name(jnp.exp(a), "c")  # 2
    return c + 1.0, b  # 3


def test_uses_and_live_ranges_by_hand() -> None:
    graph = bp.trace(chain, f32(10))
    assert operations(graph) == ["sin", "mul", "exp", "add"]
    assert [e.index for e in graph.uses("a")] == [1, 2]
    assert [e.index for e in graph.uses("x")] == [0, 1]
    assert graph.uses("result[0]") == () and graph.defined_by("x") is None
    ranges = {v.name: graph.live_range(v) for v in graph.variables}
    assert ranges == {"x": (-1, 1), "a": (0, 2), "b": (1, 4), "c": (2, 3), "result[0]": (3, 4)}
    live = [set(names(graph.live_at(i))) for i in range(4)]
    assert live == [{"x", "a"}, {"x", "a", "b"}, {"x", "a", "b", "c"}, {"x", "b", "c", "result[0]"}]
    assert [graph.live_bytes(i) for i in range(4)] == [80, 120, 160, 160]
    assert graph.peak_bytes == 160
    assert graph.temporary_bytes == 80  # a and c at equation 2


def test_peak_of_a_long_chain_does_not_grow() -> None:
    def repeated(x: Any, times: int) -> Any:
        for _ in range(times):
            x = jnp.sin(x)
        return x

    peaks = {bp.trace(functools.partial(repeated, times=n), f32(100)).peak_bytes for n in (3, 30)}
    assert peaks == {1200}  # the input, one operand and one output of 400 bytes each


def test_a_value_that_is_not_used_lives_where_it_is_made() -> None:
    graph = bp.trace(lambda x: (bp.name(jnp.sin(x), "unused"), jnp.cos(x))[1], f32(4))
    assert graph.live_range("unused") == (0, 0)


def test_temporaries_of_a_nested_graph_count_at_its_equation() -> None:
    inner = jax.jit(lambda x: jnp.sum(jnp.exp(jnp.sin(x))))
    graph = bp.trace(lambda x: inner(x), f32(100))
    assert graph.peak_bytes == 400 + 800 + 4  # the input, sin and exp at once, the sum


# Costs by hand


@pytest.mark.parametrize(
    ("fun", "shapes", "flops"),
    [
        (lambda x, y: x @ y, [(3, 4), (4, 5)], 2 * 3 * 4 * 5),
        (lambda x, y: jnp.einsum("bij,bjk->bik", x, y), [(7, 3, 4), (7, 4, 5)], 7 * 120),
        (jnp.dot, [(4,), (4,)], 8),
        (lambda x: jnp.tanh(x) + x * x, [(2, 3)], 18),
        (lambda x: jnp.sum(x, axis=1), [(2, 3)], 6),
        (lambda x: x.T.reshape(-1)[2:5], [(2, 3)], 0),
        (lambda x: lax.cumsum(x), [(5,)], 5),
        (lambda x: lax.sort(x), [(2, 8)], 2 * 8 * 3),
        (lambda x, k: lax.conv_general_dilated(x, k, (1, 1), "VALID"),
         [(2, 3, 5, 5), (4, 3, 2, 2)], 2 * (2 * 4 * 4 * 4) * (3 * 2 * 2)),
        (lambda x, k: lax.conv_general_dilated(x, k, (1,), "VALID", feature_group_count=3),
         [(1, 3, 5), (3, 1, 2)], 2 * (3 * 4) * 2),
        (lambda x: lax.reduce_window(x, 0.0, lax.add, (2, 2), (1, 1), "VALID"), [(3, 3)], 4 * 4),
    ],
)  # fmt: skip
def test_flops_by_hand(fun: Any, shapes: Any, flops: int) -> None:
    assert bp.trace(fun, *(f32(*shape) for shape in shapes)).flops == flops


def flops_of(graph: Graph, operation: str) -> int:
    return sum(v.equation.flops for v in graph.walk() if v.equation.operation == operation)


def test_flops_of_single_operations_by_hand() -> None:
    square, tall = f32(6, 6), f32(5, 3)
    assert flops_of(bp.trace(lax.linalg.cholesky, square), "cholesky") == 6**3 // 3
    assert flops_of(bp.trace(lax.linalg.lu, square), "lu") == 2 * 6**3 // 3
    # Σ_j 2·(5 − j)·(3 − j) over the eliminated columns, to leading order m n² − n³/3 = 36
    assert flops_of(bp.trace(lax.linalg.lu, tall), "lu") == 5 * 9 - 9
    solve = functools.partial(lax.linalg.triangular_solve, left_side=True)
    assert flops_of(bp.trace(solve, square, f32(6, 2)), "triangular_solve") == 6 * 6 * 2
    points = jax.ShapeDtypeStruct((3, 8), np.complex64)
    assert flops_of(bp.trace(jnp.fft.fft, points), "fft") == 3 * 5 * 8 * 3
    assert flops_of(bp.trace(jnp.fft.rfft, f32(3, 8)), "fft") == 3 * 5 * 8 * 3 // 2
    add = bp.trace(lambda x: x.at[jnp.array([0, 2])].add(1.0), f32(5, 3))
    assert flops_of(add, "scatter-add") == 2 * 3
    matrix = jax.ShapeDtypeStruct((3, 3), np.complex64)
    assert bp.trace(jnp.matmul, matrix, matrix).flops == 4 * 2 * 27


def test_flops_agree_with_xla_on_matrix_products() -> None:
    x, w = jnp.ones((8, 16), F32), jnp.ones((16, 32), F32)
    fun = lambda x, w: x @ w
    analysis = jax.jit(fun).lower(x, w).compile().cost_analysis()
    assert bp.trace(fun, x, w).flops == analysis["flops"]


def test_bytes_read_and_written_by_hand() -> None:
    (product,) = bp.trace(lambda x, y: x @ y, f32(3, 4), f32(4, 5))
    assert (product.bytes_read, product.bytes_written) == (4 * (12 + 20), 4 * 15)
    (square,) = bp.trace(lambda x: x * x, f32(3))
    assert square.bytes_read == 12  # one operand, read once
    half = jax.ShapeDtypeStruct((3,), jnp.bfloat16)
    assert bp.trace(lambda x: x + 1, half).bytes == 12


def test_contractions_are_written_as_einsum() -> None:
    def subscripts(spec: str, *shapes: tuple[int, ...]) -> str:
        graph = bp.trace(lambda x, y: jnp.einsum(spec, x, y), *(f32(*s) for s in shapes))
        found = [v.equation for v in graph.walk() if v.equation.operation == "dot_general"]
        return dot_subscripts(found[0].eqn)

    assert subscripts("ij,jk->ik", (2, 3), (3, 4)) == "ab,bc→ac"
    assert subscripts("bij,bjk->bik", (5, 2, 3), (5, 3, 4)) == "abc,acd→abd"
    # and the letters mean what they say
    x, y = np.ones((5, 2, 3)), np.ones((5, 3, 4))
    assert np.einsum("abc,acd->abd", x, y).shape == (5, 2, 4)
