"""Hypotheses about a wrong gradient: each kind on a planted fault, and none where there is none."""

import time

import numpy as np
import pytest
from disagreements import SECONDS, best, elementwise, normal, planted, tanh_bar
from sampling import sampled

from functional_bp.gradcheck.clock import TimeLimit
from functional_bp.gradcheck.diagnosis.diagnose import find_patterns
from functional_bp.gradcheck.diagnosis.patterns.evidence import wrong_entries
from functional_bp.gradcheck.subject import Disagreement, Sample


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


# fmt: off
WHOLE = {
    "sign": (lambda x, b: (-tanh_bar(x, b),), "sign", "claimed = −true"),
    "two": (lambda x, b: (2 * tanh_bar(x, b),), "factor", "claimed = 2 · true"),
    "mean": (lambda x, b: (tanh_bar(x, b) / 6,), "mean or sum",
             "1/6 · true (6 is the size of axis 1 of x)"),
    "sum": (lambda x, b: (tanh_bar(x, b) * 24,), "mean or sum",
            "24 is the number of elements of x"),
    "root": (lambda x, b: (tanh_bar(x, b) / np.sqrt(6),), "factor", "1/√6"),
    "unbiased": (lambda x, b: (tanh_bar(x, b) * 6 / 5,), "factor", "6/5"),
    "number": (lambda x, b: (tanh_bar(x, b) * 1.7327,), "factor", "1.7327"),
    "zero": (lambda x, b: (0 * x,), "missing term", "no gradient flows to x"),
    "flip": (lambda x, b: (tanh_bar(x, b)[:, ::-1],), "reversal", "axis 1"),
    "roll": (lambda x, b: (np.roll(tanh_bar(x, b), 1, 0),), "off by one", "1 place along axis 0"),
    "shift": (lambda x, b: (np.pad(tanh_bar(x, b)[:, :-1], ((0, 0), (1, 0))),),
              "off by one", "zeros"),
    "reshape": (lambda x, b: (tanh_bar(x, b).T.reshape(4, 6),), "permutation", "reshape"),
    "averaged": (lambda x, b: (np.broadcast_to(tanh_bar(x, b).mean(1, keepdims=True), x.shape),),
                 "mean or sum", "a reduction does not belong"),
    "no factor": (lambda x, b: (b,), "missing factor", "(1 − y²) is missing"),
    "factor twice": (lambda x, b: (tanh_bar(x, b) * np.tanh(x),), "missing factor",
                     "y is one too many"),
    "other function": (lambda x, b: (b * (1 - np.tanh(x)),), "wrong function",
                       "(1 − y) instead of (1 − y²)"),
    "stale": (lambda x, b: (b * (1 - x**2),), "wrong operand", "(1 − x²)"),
    "no bar": (lambda x, b: (1 - np.tanh(x)**2,), "cotangent ignored", "y_bar is not used"),
    "bar twice": (lambda x, b: (tanh_bar(x, b) * b,), "not linear", "multiplied in twice"),
    "offset": (lambda x, b: (tanh_bar(x, b) + 1,), "not linear", "not zero where y_bar is"),
    "threshold": (lambda x, b: (np.where(x < -1.03, 0, tanh_bar(x, b)),), "region", "x < −1"),
    "first": (lambda x, b: (tanh_bar(x, b) * (np.arange(4) > 0)[:, None],), "entries",
              "index 0 of axis 0, the first"),
    "not finite": (lambda x, b: (np.where(x > 1, np.nan, tanh_bar(x, b)),), "not finite", "true ="),
}


@pytest.mark.parametrize("name", WHOLE)
def test_elementwise_faults(name: str) -> None:
    wrong, kind, part = WHOLE[name]
    found = best(elementwise(wrong))
    assert found.kind == kind
    assert part in found.message


def test_a_transpose() -> None:
    found = best(planted("w", normal((5, 5)), lambda w: w**2,
                         lambda w, b: (2 * w * b,), lambda w, b: ((2 * w * b).T,)))
    assert (found.kind, "claimed = true.T" in found.message) == ("transpose", True)


def test_a_matrix_that_should_be_transposed() -> None:
    found = best(planted("x w", normal((3, 4), (4, 4)), lambda x, w: x @ w,
                         lambda x, w, b: (b @ w.T, x.T @ b), lambda x, w, b: (b @ w, x.T @ b)))
    assert found.kind == "transpose"
    assert "y_bar @ w stands where y_bar @ w.T belongs" in found.message


def test_the_wrong_permutation() -> None:
    def right(x: np.ndarray, perm: np.ndarray, b: np.ndarray) -> tuple[np.ndarray]:
        return (b[np.argsort(perm)],)

    found = best(planted("x", normal((7,)), lambda x, perm: x[perm], right,
                         lambda x, perm, b: (b[perm],),
                         fixed=lambda rng: {"perm": rng.permutation(7)}))
    assert found.kind == "permutation"


def test_a_cumulative_sum_from_the_wrong_end() -> None:
    found = best(planted("x", normal((8,)), np.cumsum, lambda x, b: (np.cumsum(b[::-1])[::-1],),
                         lambda x, b: (np.cumsum(b),)))
    assert found.kind == "reversal"


def test_a_missing_sum() -> None:
    """y = x / s with s = sum(x) per row: the quotient's second part is the same along the row."""
    found = best(planted(
        "x", normal((4, 5)), lambda x: np.broadcast_to(x.sum(1, keepdims=True), x.shape),
        lambda x, b: (np.broadcast_to(b.sum(1, keepdims=True), x.shape),), lambda x, b: (b,)))
    assert found.kind == "missing sum"
    assert "axis 1" in found.message


def test_another_arguments_cotangent() -> None:
    found = best(planted("x y", normal((4,), (4,)), lambda x, y: x * y,
                         lambda x, y, b: (b * y, b * x), lambda x, y, b: (b * x, b * y)))
    assert (found.kind, "is the cotangent of y" in found.message) == ("wrong operand", True)


def test_a_missing_conjugate() -> None:
    def draw(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        return tuple(rng.standard_normal((2, 5)) + 1j * rng.standard_normal((2, 5)))

    found = best(planted("x y", draw, lambda x, y: x * y, lambda x, y, b: (np.conj(b) * y, b * x),
                         lambda x, y, b: (b * np.conj(y), b * x)))
    assert (found.kind, "conj(true)" in found.message) == ("wrong function", True)


def test_an_outputs_cotangent_is_ignored() -> None:
    found = best(planted("x", normal((5,)), lambda x: (x**2, np.sin(x)),
                         lambda x, a, b: (2 * x * a + np.cos(x) * b,),
                         lambda x, a, b: (2 * x * a,)))
    assert found.kind == "cotangent ignored"
    assert "y_bar[1] makes no difference" in found.message


def test_repeated_indices_are_overwritten() -> None:
    def right(x: np.ndarray, index: np.ndarray, b: np.ndarray) -> tuple[np.ndarray]:
        x_bar = np.zeros_like(x)
        np.add.at(x_bar, index, b)
        return (x_bar,)

    def wrong(x: np.ndarray, index: np.ndarray, b: np.ndarray) -> tuple[np.ndarray]:
        x_bar = np.zeros_like(x)
        x_bar[index] = b
        return (x_bar,)

    found = best(planted("table", normal((9, 3)), lambda x, index: x[index], right, wrong,
                         fixed=lambda rng: {"index": rng.integers(0, 9, 8)}))
    assert (found.kind, "accumulate (add), do not overwrite" in found.message) == ("repeats", True)


def test_ties() -> None:
    def ties(x: np.ndarray) -> np.ndarray:
        return (x == x.max(-1, keepdims=True)).astype(float)

    found = best(planted(
        "x", lambda rng: (rng.integers(0, 6, (9, 4)).astype(float),), lambda x: x.max(-1),
        lambda x, b: (b[:, None] * ties(x) / ties(x).sum(-1, keepdims=True),),
        lambda x, b: (b[:, None] * ties(x),)))
    assert (found.kind, "repeats in its row" in found.message) == ("repeats", True)


def test_the_border() -> None:
    inside = np.zeros((6, 7), bool)
    inside[1:-1, 1:-1] = True
    found = best(planted("image", normal((6, 7)), lambda x: 3 * x, lambda x, b: (3 * b,),
                         lambda x, b: (np.where(inside, 3 * b, b),)))
    assert (found.kind, "border of axes 0, 1" in found.message) == ("border", True)
    assert "there claimed = 1/3 · true" in found.message


def test_the_branch_of_a_boolean_operand() -> None:
    found = best(planted("x", normal((20,)), lambda x, keep: np.where(keep, x**2, x),
                         lambda x, keep, b: (np.where(keep, 2 * x * b, b),),
                         lambda x, keep, b: (np.where(keep, 2 * x * b, -b),),
                         fixed=lambda rng: {"keep": rng.random(20) < 0.5}))
    assert found.kind == "region"
    assert "wrong only where keep = False" in found.message


def test_few_of_many_entries() -> None:
    """The issue's example: wrong only in the far tail, with the count of entries."""
    found = best(planted("x", lambda rng: (rng.uniform(-10, 10, 8192),), sigmoid,
                         lambda x, b: (b * sigmoid(x) * sigmoid(-x),),
                         lambda x, b: (np.where(x < -9.0, 0, b * sigmoid(x) * sigmoid(-x)),)))
    assert (found.kind, "wrong only where x < −9 (" in found.message) == ("region", True)
    assert "of 8192 entries); there claimed = 0" in found.message


@pytest.mark.parametrize("shape", sampled([((4, 5),), ((1,),), ((5,),), ((40, 25),)], 4))
def test_nothing_is_claimed_of_noise(shape: tuple[int, ...]) -> None:
    """A claim that has nothing to do with the truth: no explanation may be invented."""
    for seed in range(3):
        noise = np.random.default_rng(seed + 100)
        weights = noise.standard_normal((2, 4, *shape))

        def strange(x: np.ndarray, b: np.ndarray, k: int, w: np.ndarray = weights) -> np.ndarray:
            return b * (np.sin(w[k, 0] * x + w[k, 1]) + w[k, 2] * np.cosh(w[k, 3] * x))

        found = find_patterns(
            planted("x", normal(shape), np.tanh, lambda x, b: (strange(x, b, 0),),
                    lambda x, b: (strange(x, b, 1),), seed=seed), TimeLimit(SECONDS))
        assert found == []


def test_where_no_fresh_samples_can_be_had_the_message_says_so() -> None:
    disagreement = elementwise(lambda x, b: (2 * tanh_bar(x, b),))

    def fails() -> Sample:
        raise RuntimeError("the numbers are on paper")

    alone = Disagreement(disagreement.subject, 0, disagreement.given, disagreement.masks, fails)
    found = best(alone)
    assert found.message.startswith("on the given inputs, claimed = 2 · true")
    assert found.fresh_samples == 0


def test_what_holds_on_the_given_inputs_by_chance_is_not_told() -> None:
    """At a symmetric point the claim is the transpose; fresh samples show that it is not."""
    disagreement = elementwise(lambda x, b: (tanh_bar(x, b) * (2 + (x > 0)),))
    given = disagreement.given
    lucky = Sample(given.actives, (), given.bars, given.outs, (2 * given.true[0],), given.true)
    masks = [wrong_entries(lucky.claimed[0], lucky.true[0])]
    found = find_patterns(Disagreement(disagreement.subject, 0, lucky, masks, disagreement.fresh),
                       TimeLimit(SECONDS))
    assert not any(h.kind == "factor" for h in found)


def test_a_deadline_that_has_passed_is_kept() -> None:
    disagreement = elementwise(lambda x, b: (b,))
    start = time.monotonic()
    assert find_patterns(disagreement, TimeLimit(-1)) == []
    assert time.monotonic() - start < 0.5


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 1, 3), (3, 0)])
def test_any_shape_is_looked_at(shape: tuple[int, ...]) -> None:
    found = find_patterns(planted("x", normal(shape), np.tanh, lambda x, b: (tanh_bar(x, b),),
                               lambda x, b: (-tanh_bar(x, b),)), TimeLimit(SECONDS))
    assert [h.kind for h in found[:1]] == (["sign"] if np.prod(shape) else [])
