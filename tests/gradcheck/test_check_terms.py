"""Terms that are missing, too many or wrong, named in a rule's own residuals."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from disagreements import SECONDS, Pullback, best, elementwise, normal, planted

from functional_bp.gradcheck.clock import TimeLimit
from functional_bp.gradcheck.diagnosis import diagnose as searches
from functional_bp.gradcheck.diagnosis.diagnose import find_patterns
from functional_bp.gradcheck.diagnosis.patterns.evidence import gather
from functional_bp.gradcheck.subject import Disagreement


# fmt: off
# Layer normalization, the example: three terms, of which two are easily forgotten.
def normalized(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> dict[str, np.ndarray]:
    r = 1 / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return {"r": r, "x_hat": (x - x.mean(-1, keepdims=True)) * r, "gamma": gamma}


def layer_norm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> np.ndarray:
    return normalized(x, gamma, beta)["x_hat"] * gamma + beta


def layer_norm_back(
    *, centre: float = 1.0, scale: float = 1.0, axis: int = -1, gamma_bar: float = 1.0
) -> Pullback:
    def back(x: Any, gamma: Any, beta: Any, y_bar: Any) -> tuple[Any, ...]:
        r, x_hat, _ = normalized(x, gamma, beta).values()
        x_hat_bar = y_bar * gamma
        mean = x_hat_bar.mean(axis, keepdims=True)
        along = (x_hat_bar * x_hat).mean(-1, keepdims=True)
        x_bar = r * (x_hat_bar - centre * mean - scale * x_hat * along)
        return x_bar, gamma_bar * (y_bar * x_hat).sum(0), y_bar.sum(0)
    return back


def layer_normed(wrong: Pullback, argument: int = 0) -> Disagreement:
    return planted("x gamma beta", normal((6, 8), (8,), (8,)), layer_norm, layer_norm_back(), wrong,
                   argument=argument, residuals=normalized)


def test_a_missing_term_in_the_rules_own_names() -> None:
    found = best(layer_normed(layer_norm_back(scale=0)))
    assert found.kind == "missing term"
    assert "missing: − r · x_hat · mean(gamma · x_hat · y_bar, axis=-1)" in found.message


def test_two_missing_terms() -> None:
    found = best(layer_normed(layer_norm_back(scale=0, centre=0)))
    assert found.kind == "missing term"
    assert "r · mean(gamma · y_bar, axis=-1)" in found.message
    assert "− r · x_hat · mean(gamma · x_hat · y_bar, axis=-1)" in found.message


def test_the_sign_of_a_term() -> None:
    found = best(layer_normed(layer_norm_back(centre=-1)))
    assert (found.kind, "r · mean(gamma · y_bar, axis=-1)" in found.message) == ("sign", True)


def test_a_sum_in_one_term() -> None:
    found = best(layer_normed(layer_norm_back(centre=8)))
    assert found.kind == "mean or sum"
    assert "− r · sum(gamma · y_bar, axis=-1) stands where − r · mean(" in found.message


def test_the_wrong_axis_of_one_term() -> None:
    found = best(layer_normed(layer_norm_back(axis=0)))
    assert (found.kind, "reduced over another axis" in found.message) == ("axis", True)


def test_a_term_that_does_not_belong() -> None:
    """y = x ȳ-weighted: softmax's correction where there is no softmax."""
    found = best(planted("x w", normal((4, 5), (5,)), lambda x, w: x * w,
                         lambda x, w, b: (b * w, (b * x).sum(0)),
                         lambda x, w, b: (b * w - w * (w * b).sum(1, keepdims=True),
                                          (b * x).sum(0))))
    assert found.kind == "extra term"
    assert "− w · sum(w · y_bar, axis=-1)" in found.message


def test_a_softmax_without_its_correction() -> None:
    def softmax(x: np.ndarray) -> np.ndarray:
        return np.exp(x) / np.exp(x).sum(-1, keepdims=True)

    def right(x: np.ndarray, b: np.ndarray) -> tuple[np.ndarray]:
        y = softmax(x)
        return (y * (b - (y * b).sum(-1, keepdims=True)),)

    found = best(planted("x", normal((3, 5)), softmax, right, lambda x, b: (softmax(x) * b,)))
    assert found.kind == "missing term"
    assert "missing: − y · sum(y · y_bar, axis=-1)" in found.message


def test_a_wrong_factor_before_a_matrix_product() -> None:
    def right(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        z_bar = b * (1 - np.tanh(x @ w)**2)
        return z_bar @ w.T, x.T @ z_bar

    for argument in (0, 1):
        found = best(planted("x w", normal((5, 3), (3, 4)), lambda x, w: np.tanh(x @ w), right,
                             lambda x, w, b: (b @ w.T, x.T @ b), argument=argument))
        assert (found.kind, "(1 − y²) is missing" in found.message) == ("missing factor", True)


def test_a_factor_of_one_term_is_missing() -> None:
    """true − claimed is then a factor (1 − y) times a term: two terms, one for the other."""
    def softmax(x: np.ndarray) -> np.ndarray:
        return np.exp(x) / np.exp(x).sum(-1, keepdims=True)

    def back(factor: Callable[[np.ndarray], Any]) -> Pullback:
        def pull(x: np.ndarray, b: np.ndarray) -> tuple[np.ndarray]:
            y = softmax(x)
            return (y * (b - (factor(y) * b).sum(-1, keepdims=True)),)
        return pull

    found = best(planted("x", normal((3, 5)), softmax, back(lambda y: y), back(lambda y: 1)))
    assert (found.kind, "the factor y is missing" in found.message) == ("missing factor", True)


def first_entry() -> Disagreement:
    return planted("x w", normal((6, 4), (4,)), lambda x, w: x * w,
                   lambda x, w, b: (b * w, (b * x).sum(0)),
                   lambda x, w, b: (b * w, (b * x)[0]), argument=1)


def test_the_first_entry_in_place_of_a_sum() -> None:
    found = best(first_entry())
    assert (found.kind, "(x · y_bar)[0] stands where" in found.message) == ("missing sum", True)


def test_a_scalar_argument() -> None:
    """One number per sample: more samples are drawn, and the sum is named all the same."""
    found = best(planted("t x", normal((), (5, 6)), lambda t, x: t * x**2,
                         lambda t, x, b: ((b * x**2).sum(), 2 * t * b * x),
                         lambda t, x, b: ((b * x).sum(), 2 * t * b * x)))
    assert (found.kind, "the factor x is missing" in found.message) == ("missing factor", True)


def attention(correction: float = 0) -> Disagreement:
    """Attention, by default without the softmax's correction."""
    def probabilities(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> dict[str, np.ndarray]:
        scores = np.exp(q @ k.T / np.sqrt(8))
        return {"q": q, "k": k, "v": v, "p": scores / scores.sum(-1, keepdims=True)}

    def back(correction: float) -> Pullback:
        def pull(q: Any, k: Any, v: Any, b: Any) -> tuple[Any, ...]:
            p = probabilities(q, k, v)["p"]
            p_bar = b @ v.T
            scores_bar = p * (p_bar - correction * (p * p_bar).sum(-1, keepdims=True)) / np.sqrt(8)
            return scores_bar @ k, scores_bar.T @ q, p.T @ b
        return pull

    return planted("q k v", normal((5, 8), (5, 8), (5, 3)),
                   lambda q, k, v: probabilities(q, k, v)["p"] @ v, back(1), back(correction),
                   residuals=probabilities)


def test_a_term_behind_two_matrix_products() -> None:
    found = best(attention())
    assert found.kind == "missing term"
    assert "missing: − 1/√8 · (p · sum(p · (y_bar @ v.T), axis=-1)) @ k" in found.message


@pytest.mark.parametrize("disagreement", [
    layer_normed(layer_norm_back(scale=0)), layer_normed(layer_norm_back(scale=0, centre=0)),
    layer_normed(layer_norm_back(axis=0)), first_entry(), attention(),
], ids=["a mean", "two means", "two axes", "a sum", "products"])
def test_a_formula_in_python_computes_what_is_missing(disagreement: Disagreement) -> None:
    found = next(f for f in find_patterns(disagreement, TimeLimit(SECONDS)) if f.added)
    given, position = disagreement.given, disagreement.argument
    values = {"jnp": jnp, "y_bar": given.bars[0], "y": given.outs[0], **disagreement.residuals,
              **dict(zip(disagreement.subject.names, given.actives))}
    missing = sum((-1 if minus else 1) * eval(term.python(), values) for minus, term in found.added)
    gap = given.true[position] - given.claimed[position]
    assert np.shape(missing) == gap.shape
    np.testing.assert_allclose(missing, gap, rtol=1e-4, atol=1e-4)


def test_a_target_that_was_forgotten() -> None:
    found = best(planted("p t", normal((7, 3), (7, 3)), lambda p, t: ((p - t)**2).mean(),
                         lambda p, t, b: (2 * b * (p - t) / 21, -2 * b * (p - t) / 21),
                         lambda p, t, b: (2 * b * p / 21, -2 * b * (p - t) / 21)))
    assert (found.kind, "missing: − 2/21 · t · y_bar" in found.message) == ("missing term", True)


@pytest.mark.parametrize("search", [*searches.PLAIN, *searches.PARTIAL, *searches.FORMULAS],
                         ids=lambda search: search.__name__)
def test_no_search_fails(search: searches.Pattern) -> None:
    """What a search raises is kept from the verdict, and would go unseen elsewhere."""
    centred = lambda x, gamma, beta: {"x": x, "mean": x.mean(-1, keepdims=True)}
    for disagreement in (
        elementwise(lambda x, b: (b * (1 - x),)),
        layer_normed(layer_norm_back(scale=0)),
        planted("x gamma beta", normal((2, 3, 5), (5,), (5,)), layer_norm, layer_norm_back(),
                layer_norm_back(centre=0), residuals=centred),
        planted("x", normal((5, 5)), lambda x: (x**2, x.sum(0)),
                lambda x, a, b: (2 * x * a + b,), lambda x, a, b: (x * a + b[:, None],)),
    ):
        search(gather(disagreement, TimeLimit(SECONDS)))
