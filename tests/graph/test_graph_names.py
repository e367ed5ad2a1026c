"""Names of a graph's variables: arguments, paths, tags, constants."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from small_graphs import PARAMS, f32, mlp, names, operations

import functional_bp as bp


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
