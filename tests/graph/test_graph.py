"""A graph's rules, source lines and scopes, and how it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad
from small_graphs import PARAMS, f32, mlp, rnn

import functional_bp as bp


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
        and "small_graphs.py:" in tanh
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
