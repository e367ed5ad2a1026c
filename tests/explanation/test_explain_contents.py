"""What a still picture shows: signs, names, closed scopes, uses that sum to the cotangent."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_models import MODELS, normal

import functional_bp as bp
from functional_bp.explanation.numbers import format_number
from functional_bp.explanation.pictures.contents import contents
from functional_bp.explanation.pictures.picture import scene_of
from functional_bp.explanation.pictures.symbols import plain, typeset_name, typeset_paths


@pytest.fixture(scope="module")
def models() -> dict[str, bp.Explanation]:
    return {name: make() for name, make in MODELS.items()}


def signs(explanation: bp.Explanation, **options: Any) -> list[str]:
    return [plain(n.label) for n in contents(explanation, **options).nodes if n.kind != "leaf"]


def test_constants_are_part_of_the_sign(models: dict[str, bp.Explanation]) -> None:
    assert signs(models["neuron"]) == ["∗", "∗", "+", "+", "∗−1", "exp", "+1", "1/x"]

    def chain(x: Any) -> Any:
        return jnp.maximum(((2 - x) / 4 - 3) ** 2, 0.5) ** 0.3

    assert signs(bp.explain(chain, 1.0)) == ["2−x", "/4", "−3", "x^2", "max 0.5", "x^0.3"]


def test_what_only_carries_a_value_is_part_of_the_wire() -> None:
    def f(x: Any, b: Any) -> Any:
        return jnp.sum(x.reshape(2, 3) * b[:, None])

    explanation = bp.explain(f, normal(6), normal(2))
    shown = contents(explanation)
    assert [plain(node.label) for node in shown.nodes] == ["x", "b", "∗", "Σ"]
    (use,) = shown.uses[explanation.graph["b"]]
    np.testing.assert_array_equal(use.share, explanation.cotangent["b"])


def test_what_no_output_depends_on_is_left_out() -> None:
    def f(x: Any) -> Any:
        jnp.cos(x)
        return jnp.sin(x)

    assert signs(bp.explain(f, 1.0)) == ["sin"]


def test_uses_sum_to_the_cotangent(models: dict[str, bp.Explanation]) -> None:
    for explanation in models.values():
        for depth in (None, 0):
            for variable, uses in contents(explanation, depth).uses.items():
                ends = [s for v, s in zip(explanation.graph.outputs, explanation.seeds)
                        if v is variable]  # fmt: skip
                shares = [u.share for u in uses if u.share is not None] + ends
                if variable in explanation.bars and shares:
                    np.testing.assert_allclose(
                        np.sum([np.asarray(s) for s in shares], axis=0),
                        explanation.bars[variable],
                        rtol=1e-5,  # sums of float32 in another order
                        atol=1e-5,
                    )


def test_gates_and_closed_scopes(models: dict[str, bp.Explanation]) -> None:
    @jax.jit
    def sigmoid(x: Any) -> Any:
        return 1 / (1 + jnp.exp(-x))

    twice = bp.explain(lambda x: sigmoid(2 * sigmoid(x)), 0.5)
    assert signs(twice, gates=("sigmoid",)) == ["σ", "∗2", "σ"]
    assert signs(twice, depth=0) == ["sigmoid (4)", "∗2", "sigmoid_2 (4)"]
    assert len(signs(twice)) == 9
    assert signs(models["residual"], depth=0)[0] == "layernorm (16)"


def test_the_arguments_of_a_closed_scope_are_drawn_as_one() -> None:
    def block(p: Any, x: Any) -> Any:
        with jax.named_scope("block"):
            return jnp.tanh(x @ p["W"] + p["b"]) * p["gamma"] + p["beta"]

    params = [{"W": normal(4, 4), "b": normal(4), "gamma": normal(4), "beta": normal(4)}] * 2
    explanation = bp.explain(lambda params, x: jnp.sum(block(params[0], x)), params, normal(2, 4))
    scene = scene_of(explanation, depth=0)
    texts = {plain(t.line) for t in scene.texts}
    assert {"params_0 (4)", "x", "block (8)"} <= texts
    bars = [explanation.cotangent[f"params[0]['{n}']"] for n in ("W", "b", "gamma", "beta")]
    norm = np.linalg.norm(np.concatenate([np.ravel(bar) for bar in bars]))
    assert f"‖·‖ = {format_number(norm)}" in texts
    assert "params_0 (4)" not in {plain(t.line) for t in scene_of(explanation).texts}


def test_a_loop_is_folded_with_its_length_or_unrolled(models: dict[str, bp.Explanation]) -> None:
    assert signs(models["folded"]) == ["step × 3"]
    assert signs(models["rnn"]).count("tanh") == 3
    scene = scene_of(models["rnn"], "d2l")
    places = {plain(t.line): t.x for t in scene.texts}
    assert places["h"] < places["h_2"] < places["h_3"]  # time goes right
    assert sum(plain(t.line) == "W" for t in scene.texts) == 1  # shared, drawn once


def test_branches_show_shares_or_the_total(models: dict[str, bp.Explanation]) -> None:
    def red(**options: Any) -> list[str]:
        scene = scene_of(models["branches"], **options)
        return sorted(plain(t.line) for t in scene.texts if t.role == "gradient")

    shares = ["13.00", "6.00", "6.00", "1.00", "3.00", "1.00", "4.00", "1.00"]
    assert red() == sorted(shares)  # of x: 13 = 6 + 6 + 1
    assert red(branches="total") == sorted(["13.00"] * 3 + ["3.00", "1.00", "4.00", "1.00"])


def test_nameless_values_are_drawn_without_a_name(models: dict[str, bp.Explanation]) -> None:
    for style in ("cs231n", "d2l"):
        scene = scene_of(models["neuron"], style)
        names = {plain(t.line) for t in scene.texts if t.role == "ink"}
        assert names == {"w_0", "x_0", "w_1", "x_1", "w_2", "neuron", *signs(models["neuron"])}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("x", "x"), ("W1", "W_1"), ("w_0", "w_0"), ("alpha", "α"), ("lambda_2", "λ_2"),
        ("Gamma", "Γ"), ("x_hat", "x̂"), ("h_t", "h_t"), ("hidden", "hidden"), ("loss_2", "loss_2"),
        ("_", "_"), ("hidden_layer", "hidden_layer"), ("W_q_1", "W_q,1"),
    ],
)  # fmt: skip
def test_names_as_a_book_prints_them(name: str, expected: str) -> None:
    assert plain(typeset_name(name)) == expected


def test_letters_tell_arrays_from_numbers() -> None:
    assert typeset_name("W1", is_array=True)[0].face == "bold"
    assert typeset_name("w1")[0].face == "italic"
    assert typeset_name("W1")[1].script == -1


def test_paths_are_as_short_as_they_can_be_told_apart() -> None:
    paths = ["params['enc']['W']", "params['dec']['W']", "params['b']", "batch.x", "state[0]"]
    lines = typeset_paths({path: False for path in paths})
    assert [plain(line) for line in lines.values()] == ["enc.W", "dec.W", "b", "x", "state_0"]
