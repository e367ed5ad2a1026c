"""The graph of a function against counts by hand, JAX's own trace, and XLA's cost analysis."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Primitive
from jax.interpreters import ad
from jax.sharding import PartitionSpec as P

import functional_bp as bp
from functional_bp.costs import dot_subscripts
from functional_bp.graph import Graph

F32 = np.float32


def f32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, F32)


def names(variables: Any) -> list[str]:
    return [v.name for v in variables]


def operations(graph: Graph) -> list[str]:
    return [equation.operation for equation in graph]


def mlp(params: Any, x: Any) -> Any:
    z = bp.name(x @ params["W1"] + params["b1"], "z")
    h = bp.name(jnp.tanh(z), "h")
    return jnp.sum(h @ params["W2"])


PARAMS = {"W1": f32(3, 4), "W2": f32(4, 2), "b1": f32(4)}


# Names


class Batch(NamedTuple):
    x: Any
    y: Any


class Model:
    def __init__(self, W: Any) -> None:
        self.W = W

    def __call__(self, x: Any) -> Any:
        return x @ self.W

    def apply(self, x: Any, *rest: Any, scale: Any) -> Any:
        return x * scale + rest[0]


def takes_all(first: Any, /, state: Any, *xs: Any, rate: Any, **options: Any) -> Any:
    return first + state[0].x + xs[1]["a"] + rate + options["shift"]


def test_arguments_are_named_by_signature_and_path() -> None:
    one = f32()
    graph = bp.trace(takes_all, one, [Batch(one, one)], one, {"a": one}, shift=one, rate=one)
    assert set(names(graph.inputs)) == {
        "first", "state[0].x", "state[0].y", "xs[0]", "xs[1]['a']", "rate", "shift",
    }  # fmt: skip
    # the names stand at the right inputs: shift is added last
    (last,) = graph.equations[-1:]
    assert names(last.inputs)[1] == "shift"
    assert names(graph.equations[0].inputs) == ["first", "state[0].x"]


@pytest.mark.parametrize(
    ("fun", "args", "kwargs", "expected"),
    [
        (functools.partial(lambda a, b, c: a * b * c, 2.0), (1.0,), {"c": 1.0}, ["b", "c"]),
        (functools.partial(lambda a, b: a * b, b=2.0), (1.0,), {}, ["a"]),
        (Model(np.ones((2, 2))).apply, (1.0, 2.0), {"scale": 3.0}, ["x", "rest[0]", "scale"]),
        (Model(np.ones((2, 2))), (np.ones(2),), {}, ["x"]),
        (jax.jit(lambda weight: 2 * weight), (1.0,), {}, ["weight"]),
        (jnp.sin, (1.0,), {}, ["x"]),
        (max, ([1.0],), {}, ["args[0][0]"]),
        (lambda p: p["b"] - p["a"][1], ({"a": (1.0, 2.0), "b": 3.0},), {},
         ["p['a'][0]", "p['a'][1]", "p['b']"]),
    ],
)  # fmt: skip
def test_arguments_of_every_kind_of_callable(
    fun: Any, args: Any, kwargs: Any, expected: list[str]
) -> None:
    assert names(bp.trace(fun, *args, **kwargs).inputs) == expected


def test_constants_are_named_by_the_variables_that_hold_them() -> None:
    table, shift = jnp.arange(3.0), {"b": jnp.ones(3)}

    def closes_over(x: Any) -> Any:
        return lax.fori_loop(0, 2, lambda i, s: s * table, x) + shift["b"]

    graph = bp.trace(closes_over, jnp.ones(3))
    assert sorted(names(graph.constants)) == ["shift['b']", "table"]
    np.testing.assert_array_equal(graph["table"].value, [0.0, 1.0, 2.0])
    held = bp.trace(Model(jnp.ones((2, 2))), jnp.ones(2))
    assert names(held.constants) == ["self.W"]


def test_arguments_that_are_no_arrays_are_passed_on() -> None:
    def power(x: Any, how: str, fun: Any) -> Any:
        return fun(x) if how == "plain" else -fun(x)

    graph = bp.trace(power, 1.0, "negative", jnp.sin)
    assert names(graph.inputs) == ["x"] and operations(graph) == ["sin", "neg"]


def test_a_tag_names_the_value_itself() -> None:
    graph = bp.trace(mlp, PARAMS, f32(2, 3))
    assert "name" not in operations(graph)
    assert graph.defined_by("h").operation == "tanh" and graph["h"].tag == "h"
    assert names(graph.defined_by("h").inputs) == ["z"]
    assert graph["z"].shape == (2, 4) and graph["h"].bytes == 32


def test_a_tag_is_checkpoint_name_and_holds_for_untagged_uses_too() -> None:
    def twice(x: Any) -> Any:
        y = jnp.sin(x)
        return checkpoint_name(y, "s") * y

    graph = bp.trace(twice, 1.0)
    assert names(graph.defined_by("result").inputs) == ["s", "s"]
    tagged = {e.primitive.name: e for e in graph.jaxpr.eqns}
    assert graph[tagged["name"].outvars[0]] is graph[tagged["sin"].outvars[0]] is graph["s"]
    policy = jax.checkpoint_policies.save_only_these_names("h")
    saved = jax.make_jaxpr(jax.grad(jax.checkpoint(lambda x: bp.name(jnp.sin(x), "h") ** 2,
                                                   policy=policy)))(1.0)  # fmt: skip
    assert "name=h" in str(saved)


def test_a_tag_on_a_named_value_stays_an_equation() -> None:
    def tags(x: Any) -> Any:
        return bp.name(bp.name(jnp.sin(bp.name(x, "again")), "one"), "two")

    graph = bp.trace(tags, 1.0)
    assert operations(graph) == ["name", "sin", "name"]
    assert names(graph.variables) == ["x", "again", "one", "two"]
    assert graph.flops == 1


def test_equal_tags_are_numbered_and_letters_avoid_names() -> None:
    def deep(a: Any) -> Any:
        for _ in range(3):
            a = bp.name(jnp.sin(2.0 * a), "h")
        return a + 1.0

    graph = bp.trace(deep, 1.0)
    assert names(graph.variables) == ["a", "b", "h", "c", "h_2", "d", "h_3", "result"]
    assert [v.tag for v in graph.variables].count("h") == 3


def test_tags_of_a_pytree_and_wrong_tags() -> None:
    graph = bp.trace(lambda x: bp.name((jnp.sin(x), jnp.cos(x)), "pair"), 1.0)
    assert names(graph.outputs) == ["pair", "pair_2"]
    with pytest.raises(TypeError, match="non-empty string, got 3"):
        bp.name(1.0, 3)  # type: ignore[arg-type]


def test_outputs_are_found_by_path() -> None:
    def several(x: Any) -> Any:
        return {"loss": jnp.sin(x), "aux": (x, bp.name(2 * x, "twice"), 3.0)}

    graph = bp.trace(several, 1.0)
    assert dict(zip(graph.output_paths, names(graph.outputs))) == {
        "result['aux'][0]": "x",
        "result['aux'][1]": "twice",
        "result['aux'][2]": "3.0",
        "result['loss']": "result['loss']",
    }
    assert graph["result['aux'][1]"] is graph["twice"]


def test_an_unknown_name_lists_near_ones() -> None:
    graph = bp.trace(mlp, PARAMS, f32(2, 3))
    with pytest.raises(KeyError) as failure:
        graph["params['W3']"]
    assert str(failure.value).startswith("no variable of mlp is called params['W3']; near it: ")
    assert "params['W2']" in str(failure.value)
    assert "h" in graph and "nothing" not in graph


# Uses and live ranges of a small graph, by hand


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
    fun = lambda x, w: x @ w  # noqa: E731
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


# Nested graphs


def rnn(W: Any, h0: Any, xs: Any) -> Any:
    def step(h: Any, x: Any) -> Any:
        h = bp.name(jnp.tanh(W @ h + x), "h")
        return h, h

    return lax.scan(step, h0, xs)[1]


def test_scan_counts_its_body_times_its_length() -> None:
    graph = bp.trace(rnn, f32(4, 4), f32(4), f32(10, 4))
    (scan,) = graph
    (body,) = scan.nested
    assert (scan.operation, scan.label, body.label, body.runs) == ("scan", "step", "body", 10)
    assert body.graph.flops == 2 * 4 * 4 + 4 + 4
    assert scan.flops == graph.flops == 10 * body.graph.flops
    assert names(body.graph.inputs) == ["W", "h_0", "x"] and body.graph["h"].tag == "h"
    assert names(body.operands) == ["W", "h0", "xs"]
    assert graph.exact


def test_while_has_no_known_trip_count() -> None:
    def loop(x: Any) -> Any:
        return lax.while_loop(lambda s: jnp.sum(s) < 9.0, lambda s: s * x, x)

    graph = bp.trace(loop, f32(3))
    condition, body = graph.equations[0].nested
    assert (condition.label, condition.runs, body.label, body.runs) == (
        "condition", None, "body", None,
    )  # fmt: skip
    assert names(body.graph.inputs) == ["x", "s"] and names(condition.graph.inputs) == ["s"]
    assert not graph.exact and graph.flops == (3 + 1) + 3


def test_cond_costs_its_dearest_branch() -> None:
    def choose(p: Any, x: Any) -> Any:
        return lax.cond(p, lambda u: jnp.sin(jnp.cos(u)), lambda u: u, x)

    (equation,) = [e for e in bp.trace(choose, True, f32(5)) if e.operation == "cond"]
    assert [n.label for n in equation.nested] == ["branch 0", "branch 1"]
    assert equation.flops == 10 and names(equation.nested[1].operands) == ["x"]


def test_linear_solve_runs_its_solver_only() -> None:
    def solve(A: Any, b: Any) -> Any:
        return lax.custom_linear_solve(
            lambda v: A @ v, b, lambda _, c: 2.0 * c, transpose_solve=lambda _, c: jnp.sin(c)
        )

    (equation,) = bp.trace(solve, f32(3, 3), f32(3))
    assert {n.label: n.runs for n in equation.nested} == {
        "matvec": 0, "vecmat": 0, "solve": 1, "transpose_solve": 0,
    }  # fmt: skip
    assert equation.flops == 3
    assert names(equation.nested[0].graph.inputs)[0] == "A"


@jax.custom_vjp
def doubled(x: Any) -> Any:
    return 2.0 * x


doubled.defvjp(lambda x: (2.0 * x, None), lambda _, y_bar: (2.0 * y_bar,))


@pytest.mark.parametrize(
    ("fun", "inside"),
    [
        (jax.jit(lambda x: jnp.sin(x)), "sin"),
        (jax.checkpoint(lambda x: jnp.sin(x)), "sin"),
        (doubled, "mul"),
        (jax.nn.relu, "max"),
    ],
)
def test_calls_hold_their_graph(fun: Any, inside: str) -> None:
    graph = bp.trace(lambda x: fun(x), f32(3))
    (call,) = graph
    assert call.nested and call.flops == 3
    deepest = list(graph.walk())[-1]
    assert deepest.equation.operation == inside and deepest.depth >= 1 and deepest.runs == 1


def test_shard_map_counts_every_device() -> None:
    mesh = jax.make_mesh((4,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    double = jax.shard_map(lambda x: 2.0 * x, mesh=mesh, in_specs=P("i"), out_specs=P("i"))
    (equation,) = bp.trace(lambda x: double(x), f32(8))
    (body,) = equation.nested
    assert body.runs == 4 and body.graph.inputs[0].shape == (2,) and equation.flops == 8


def test_combiners_are_no_graphs() -> None:
    graph = bp.trace(lambda x: x.at[0].add(1.0), f32(4))
    assert not any(v.equation.nested for v in graph.walk() if "scatter" in v.equation.operation)


def test_walk_visits_every_equation_of_the_jaxpr() -> None:
    graph = bp.trace(rnn, f32(4, 4), f32(4), f32(10, 4))
    visits = [(v.equation.operation, v.depth, v.runs) for v in graph.walk()]
    assert visits[0] == ("scan", 0, 1)
    assert visits[1:] == [("dot_general", 1, 10), ("add", 1, 10), ("tanh", 1, 10)]


def test_the_graph_is_that_of_the_jaxpr() -> None:
    """Every equation of the graph, evaluated on its own variables, gives the function's value."""
    x, params = jnp.ones((2, 3)), jax.tree.map(lambda s: jnp.full(s.shape, 0.1), PARAMS)
    graph = bp.trace(mlp, params, x)
    values = dict(zip(graph.inputs, [*jax.tree.leaves(params), x]))
    for equation in graph:
        given = [v.value if v.kind == "literal" else values[v] for v in equation.inputs]
        out = equation.eqn.primitive.bind(*given, **equation.eqn.params)
        values.update(zip(equation.outputs, out if isinstance(out, list) else [out]))
    np.testing.assert_allclose(values[graph.outputs[0]], mlp(params, x), rtol=1e-12)


# Rules, sources, scopes


def test_rules_of_equations(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Primitive("alone")
    alone.def_abstract_eval(lambda x: x)

    def mixed(x: Any) -> Any:
        return alone.bind(jnp.floor(jnp.tanh(x)))

    tanh, floor, foreign = bp.trace(mixed, 1.0)
    assert tanh.rule.kind == "pullback" and tanh.rule.rule is bp.rules[lax.tanh_p]
    assert tanh.rule.where == (bp.rules[lax.tanh_p].file, bp.rules[lax.tanh_p].line)
    assert floor.rule.kind == "piecewise constant"
    assert foreign.rule == ("none", None, None)
    monkeypatch.setitem(ad.primitive_jvps, alone, lambda *_: None)
    assert foreign.rule.kind == "registered with JAX by its author"
    assert foreign.rule.where is None


def test_source_lines_and_scopes() -> None:
    def scoped(x: Any) -> Any:
        with jax.named_scope("outer"), jax.named_scope("inner"):
            return jnp.sin(x)

    (sine,) = bp.trace(scoped, 1.0)
    assert sine.scope == "outer/inner"
    assert sine.source == (__file__, scoped.__code__.co_firstlineno + 2)
    assert bp.trace(jnp.sin, 1.0).equations[0].source is None


# Text


def test_the_table_of_an_mlp() -> None:
    text = bp.trace(mlp, PARAMS, f32(2, 3)).text(width=200)
    lines = text.splitlines()
    assert lines[0].startswith("mlp: 6 equations, 100 flops, ")
    assert any(line.split() == ["params['W1']:", "f32[3,4]", "48", "B"] for line in lines)
    (tanh,) = [line for line in lines if "= tanh(z)" in line]
    assert tanh.split()[:2] == ["h:", "f32[2,4]"]
    assert (
        Path(bp.rules[lax.tanh_p].file).name + ":" in tanh
        and "test_graph.py:" in tanh
        and "32 B" in tanh
    )
    (product,) = [line for line in lines if "dot_general(h" in line]
    assert "dot_general(h, params['W2'], ab,bc→ac)" in product
    equals = {line.index(" = ") for line in lines if " = " in line}
    assert len(equals) == 1, "the equals signs are aligned"
    assert lines[-1].split()[:2] == ["result:", "f32[]"]


@pytest.mark.parametrize("width", [30, 60, 90, 130])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_no_line_is_wider_than_asked(width: int, depth: int) -> None:
    graph = bp.trace(rnn, f32(4, 4), f32(4), f32(10, 4))
    lines = graph.text(width=width, depth=depth).splitlines()
    assert max(map(len, lines)) <= width
    if width > 30:
        assert any("tanh(" in line for line in lines) == (depth > 0)
    assert all(line == line.rstrip() for line in lines)


def test_nested_graphs_are_shown_to_a_depth() -> None:
    graph = bp.trace(rnn, f32(4, 4), f32(4), f32(10, 4))
    assert "│ body × 10: W, h_0: f32[4] ← h0, x: f32[4] ← xs[t]" in graph.text(120)
    assert "│ … body × 10: 3 equations" in graph.text(120, depth=0)
    relu = bp.trace(lambda z: jax.nn.relu(z), f32(3)).text(120)
    assert "= max(z, 0.0)" in relu, "a call of one operation is shown in the caller's names"


def test_long_paths_are_cut_to_an_end_that_is_unique() -> None:
    kernel = {"kernel": f32(3, 3), "bias": f32(3)}
    variables = {"params": {"Dense_0": kernel, "Dense_1": kernel}}

    def apply(variables: Any, x: Any) -> Any:
        for layer in variables["params"].values():
            x = x @ layer["kernel"] + layer["bias"]
        return x

    text = bp.trace(apply, variables, f32(3)).text(140)
    assert "dot_general(x, …['Dense_0']['kernel'], a,ab→b)" in text
    assert "  variables['params']['Dense_1']['kernel']: f32[3,3]" in text


def test_print_uses_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    graph = bp.trace(mlp, PARAMS, f32(2, 3))
    assert str(graph) == graph.text(width=50)
    assert repr(graph) == "<Graph mlp: 4 inputs, 6 equations, 1 output>"


def test_unusual_values_are_shown() -> None:
    def unusual(key: Any) -> Any:
        return jax.random.split(key), jnp.zeros((0, 3)), lax.create_token()

    graph = bp.trace(unusual, jax.random.key(0))
    assert graph.inputs[0].bytes == 8 and "key" in graph.text(100)
    assert bp.trace(lambda: 1.0).text(80).splitlines()[0].startswith("<lambda>: 0 equations")
