"""What a law of the batch promises of gradients is so in numbers, and what it refuses is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import batching
from sampling import sampled

from functional_bp import shard
from functional_bp.errors import ArgumentsError
from functional_bp.layouts.batch_law import BatchLaw, Law

B, T, D, K = 8, 5, 3, 4


def drawn() -> tuple[Any, dict[str, Any]]:
    """Weights, and a batch of many kinds of arrays."""
    rng = np.random.default_rng(0)
    batch = {
        "x": rng.normal(size=(B, D)),
        "y": rng.normal(size=(B, K)),
        "label": rng.integers(0, K, B),
        "weight": rng.random(B),
        "seq": rng.normal(size=(B, T, D)),
        "tokens": rng.integers(0, K, (B, T)),
        "mask": (rng.random((B, T)) < 0.6).astype(float),
    }
    return rng.normal(size=(D, K)), batch


def picked(logits: Any, labels: Any) -> Any:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)[..., 0]


def of_tokens(w: Any, b: Any) -> Any:
    return picked(b["seq"] @ w, b["tokens"])


def masked(w: Any, b: Any) -> Any:
    return jnp.sum(of_tokens(w, b) * b["mask"]) / jnp.sum(b["mask"])


def recurrent(w: Any, b: Any) -> Any:
    def cell(h: Any, x: Any) -> Any:
        h = jnp.tanh(0.3 * h + x @ w)
        return h, h

    start = jnp.zeros((b["seq"].shape[0], K))
    last, outs = lax.scan(cell, start, jnp.swapaxes(b["seq"], 0, 1))
    return jnp.mean((last - b["y"]) ** 2) + jnp.mean(outs**2)


def over_examples(decay: float) -> Callable[[Any, Any], Any]:
    def loss(w: Any, b: Any) -> Any:
        step = lambda c, e: (decay * c + jnp.sum((e[0] @ w - e[1]) ** 2), None)
        added = lambda c, e: (c + jnp.sum((e[0] @ w - e[1]) ** 2), None)
        return lax.scan(added if decay == 1 else step, 0.0, (b["x"], b["y"]))[0]

    return loss


def normalised(w: Any, b: Any) -> Any:
    h = b["x"] @ w
    h = (h - h.mean(0)) / jnp.sqrt(h.var(0) + 1e-3)
    return jnp.mean((jnp.tanh(h) - b["y"]) ** 2)


def contrasted(w: Any, b: Any) -> Any:
    scores = (b["x"] @ w) @ b["y"].T
    return -jnp.mean(jnp.diag(jax.nn.log_softmax(scores)))


def residual(w: Any, b: Any) -> Any:
    return b["x"] @ w - b["y"]


class Example(NamedTuple):
    """A loss, its law, and the operation that couples its examples."""

    law: Law
    loss: Callable[[Any, Any], Any]
    culprit: str = ""


EXAMPLES = {
    "mean squared error": Example(Law.MEAN, lambda w, b: jnp.mean(residual(w, b) ** 2)),
    "with a penalty": Example(
        Law.MEAN, lambda w, b: jnp.mean(residual(w, b) ** 2) + 0.1 * jnp.sum(w**2)
    ),
    "a sum by the length": Example(
        Law.MEAN, lambda w, b: jnp.sum(residual(w, b) ** 2) / len(b["x"])
    ),
    "batch times time": Example(Law.MEAN, lambda w, b: jnp.mean(of_tokens(w, b))),
    "flattened": Example(
        Law.MEAN, lambda w, b: jnp.mean(picked(b["seq"].reshape(-1, D) @ w, b["tokens"].ravel()))
    ),
    "each sequence by its own tokens": Example(
        Law.MEAN,
        lambda w, b: jnp.mean(
            jnp.sum(of_tokens(w, b) * b["mask"], -1) / (b["mask"].sum(-1) + 1e-3)
        ),
    ),
    "rows by arange": Example(
        Law.MEAN,
        lambda w, b: -jnp.mean(jax.nn.log_softmax(b["x"] @ w)[jnp.arange(len(b["x"])), b["label"]]),
    ),
    "one-hot": Example(
        Law.MEAN,
        lambda w, b: (
            -jnp.vdot(jax.nn.one_hot(b["label"], K), jax.nn.log_softmax(b["x"] @ w)) / len(b["x"])
        ),
    ),
    "vmap and checkpoint": Example(
        Law.MEAN,
        lambda w, b: jnp.mean(
            jax.vmap(jax.checkpoint(lambda x, y: jnp.sum(jnp.sin(x @ w) * y)))(b["x"], b["y"])
        ),
    ),
    "each example by its own variance": Example(
        Law.MEAN, lambda w, b: jnp.mean(((h := b["x"] @ w) / (h.var(-1, keepdims=True) + 1)) ** 3)
    ),
    "recurrent": Example(Law.MEAN, recurrent),
    "a sum": Example(Law.SUM, lambda w, b: jnp.sum(residual(w, b) ** 2)),
    "a sum in a loop over the examples": Example(Law.SUM, over_examples(1)),
    "masked tokens": Example(Law.WEIGHTED, masked),
    "at least one token": Example(
        Law.WEIGHTED,
        lambda w, b: jnp.sum(of_tokens(w, b) * b["mask"]) / jnp.maximum(b["mask"].sum(), 1.0),
    ),
    "mean where": Example(
        Law.WEIGHTED, lambda w, b: jnp.mean(of_tokens(w, b), where=b["mask"] > 0)
    ),
    "ignored label": Example(
        Law.WEIGHTED,
        lambda w, b: (
            jnp.sum(jnp.where(b["tokens"] != 0, of_tokens(w, b), 0)) / jnp.sum(b["tokens"] != 0)
        ),
    ),
    "weights that sum to one": Example(
        Law.WEIGHTED,
        lambda w, b: jnp.sum(
            jnp.mean(residual(w, b) ** 2, -1) * (b["weight"] / jnp.sum(b["weight"]))
        ),
    ),
    "inside jit": Example(Law.WEIGHTED, jax.jit(masked)),
    "batch norm": Example(Law.COUPLED, normalised, "sub"),
    "in-batch negatives": Example(Law.COUPLED, contrasted, "add"),
    "a decaying loop over the examples": Example(Law.COUPLED, over_examples(0.5), "scan"),
    "a sum with a penalty": Example(
        Law.COUPLED, lambda w, b: jnp.sum(residual(w, b) ** 2) + 0.1 * jnp.sum(w**2)
    ),
    "a root of a mean": Example(
        Law.COUPLED, lambda w, b: jnp.sqrt(jnp.mean((b["x"] @ w) ** 2)), "sqrt"
    ),
    "the largest": Example(Law.COUPLED, lambda w, b: jnp.max(b["x"] @ w), "reduce_max"),
    "sorted": Example(
        Law.COUPLED, lambda w, b: jnp.mean(jnp.sort(b["x"] @ w, 0)[: len(b["x"]) // 2]), "sort"
    ),
    "neighbours": Example(
        Law.COUPLED, lambda w, b: jnp.mean(jnp.diff(b["x"] @ w, axis=0) ** 2), "slice"
    ),
    "learned weights": Example(
        Law.COUPLED,
        lambda w, b: (
            jnp.sum(jax.nn.sigmoid(b["x"] @ w) * b["y"]) / jnp.sum(jax.nn.sigmoid(b["x"] @ w))
        ),
        "div",
    ),
    "two divisors": Example(
        Law.COUPLED, lambda w, b: masked(w, b) + jnp.mean((b["seq"] @ w) ** 2), "add"
    ),
    "segments": Example(
        Law.COUPLED,
        lambda w, b: jnp.mean(jax.ops.segment_sum(b["x"] @ w, b["label"], K) ** 2),
        "integer_pow",
    ),
    "centred inputs": Example(
        Law.COUPLED, lambda w, b: jnp.mean(((b["x"] - b["x"].mean(0)) @ w) ** 2), "sub"
    ),
}


def combined(law: BatchLaw, loss: Callable[..., Any], w: Any, batch: Any, count: int) -> Any:
    """The gradient of a batch from those of microbatches, as a law has it; else their mean."""
    parts = [jax.tree.map(lambda x, k=k: x[k::count], batch) for k in range(count)]
    found = [jax.grad(loss)(w, part) for part in parts]
    if law.kind is Law.SUM:
        return sum(found)
    if law.kind is Law.WEIGHTED:
        weighted = [law.weight(w, part) * g for part, g in zip(parts, found)]
        return sum(weighted) / law.weight(w, batch)
    return sum(found) / count


@pytest.mark.parametrize("name", sampled(EXAMPLES, 4, kind=lambda name: EXAMPLES[name].law))
def test_gradients_of_microbatches_make_up_that_of_the_batch(name: str) -> None:
    example, (w, batch) = EXAMPLES[name], drawn()
    law = shard.batch_law(example.loss, w, batch)
    assert law.kind is example.law, str(law)
    assert (law.culprit.operation if law.culprit else "") == example.culprit, str(law)
    whole = jax.grad(example.loss)(w, batch)
    difference = np.abs(combined(law, example.loss, w, batch, 2) - whole).max()
    if example.law is Law.COUPLED:
        assert difference > 1e-2 * np.abs(whole).max()
    else:
        assert difference < 1e-9 * np.abs(whole).max()


def root(x: Any) -> Any:
    """By Newton's method, in as many steps as x takes."""
    far = lambda y: abs(y * y - x) > 1e-12 * x
    return lax.while_loop(far, lambda y: 0.5 * (y + x / y), x)


doubled_p = Primitive("doubled_by_a_library")
doubled_p.def_impl(lambda x: 2.0 * x + 0.0 * jnp.cumsum(x, 1))
doubled_p.def_abstract_eval(lambda x: x)
batching.primitive_batchers[doubled_p] = lambda xs, axes: (doubled_p.bind(*xs), axes[0])


@pytest.mark.parametrize("of_each", [jax.vmap(jax.vmap(root)), doubled_p.bind])
def test_each_example_may_have_its_own_loop_or_an_operation_of_a_library(of_each: Any) -> None:
    """A loop under vmap ends for each example; a primitive's own function says what it mixes."""
    loss = lambda w, b: jnp.mean(w * of_each(b))
    x = jnp.linspace(0.1, 40.0, B * 3).reshape(B, 3)
    assert shard.batch_law(loss, 1.5, x).kind is Law.MEAN
    np.testing.assert_allclose(loss(1.5, x), (loss(1.5, x[:3]) * 3 + loss(1.5, x[3:]) * 5) / 8)


def test_what_a_library_mixes_is_told_by_its_function() -> None:
    law = shard.batch_law(lambda w, x: jnp.mean(w * doubled_p.bind(x.T)), 1.5, jnp.ones((B, 3)))
    assert law.kind is Law.COUPLED and law.told_why == "cumsum mixes the examples"


def test_a_law_says_in_words_what_couples_the_examples_and_where() -> None:
    w, batch = drawn()
    law = shard.batch_law(EXAMPLES["a root of a mean"].loss, w, batch)
    words = str(law)
    assert words.startswith("coupled: microbatches would change the loss: sqrt is not linear in")
    assert "test_batch_law.py:" in words and repr(law) == f"<BatchLaw {words}>"
    weighted = str(shard.batch_law(masked, w, batch))
    assert "divided by the reduce_sum of test_batch_law.py:" in weighted


def test_draws_for_each_example_are_told() -> None:
    def loss(w: Any, b: Any, key: Any) -> Any:
        kept = jax.random.bernoulli(key, 0.5, b["y"].shape)
        return jnp.mean(jnp.where(kept, residual(w, b), 0) ** 2)

    w, batch = drawn()
    law = shard.batch_law(loss, w, batch, jax.random.key(0))
    assert law.kind is Law.MEAN and "draws its own random numbers" in str(law)
    assert not shard.batch_law(EXAMPLES["recurrent"].loss, w, batch).draws


@pytest.mark.parametrize(
    ("loss", "why"),
    [
        (lambda w, b: jnp.sum(w**2), "does not depend on its examples"),
        (lambda w, b: jnp.mean((b["x"] @ w).reshape(B, 2, 2) ** 2), "takes batches of 8 only"),
    ],
)
def test_where_there_is_no_batch_it_is_said_why(loss: Callable[..., Any], why: str) -> None:
    law = shard.batch_law(loss, *drawn())
    assert law.kind is Law.NONE and why in str(law)


def test_parameters_with_an_entry_for_each_example_are_not_divided() -> None:
    law = shard.batch_law(lambda z, x: jnp.mean((z - x) ** 2), jnp.ones((B, D)), jnp.ones((B, D)))
    assert law.kind is Law.COUPLED and "z has an entry for each example" in str(law)


def test_a_loss_is_a_number() -> None:
    with pytest.raises(ArgumentsError, match=r"scalar loss[\s\S]*got:  "):
        shard.batch_law(lambda w, x: x @ w, jnp.ones((D,)), jnp.ones((B, D)))
