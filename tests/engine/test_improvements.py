"""Where we differ from JAX on purpose: our gradient is the true one, and JAX's is not."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling import sampled

import functional_bp as bp
from functional_bp.engine.improvements import Improvement, improvements

# The list is kept for the oldest JAX that is supported; a newer one may have mended some.
OLDEST = jax.__version_info__ == (0, 10, 2)


def every_improvement() -> list[Any]:
    return [pytest.param(entry, id=entry.name) for entry in improvements]


def arguments(entry: Improvement) -> list[Any]:
    """The point, real numbers in the dtype that the improvement is shown in."""
    arrays = [np.asarray(x) for x in entry.at]
    complex_dtype = jnp.complex128 if entry.dtype == "float64" else jnp.complex64
    dtypes = {"f": entry.dtype, "c": complex_dtype}
    return [jnp.asarray(x, dtypes.get(x.dtype.kind, x.dtype)) for x in arrays]


def near(entry: Improvement, got: Any) -> bool:
    got = np.asarray(got)
    got = got.astype(np.complex128 if got.dtype.kind == "c" else np.float64)
    want = np.asarray(entry.true)
    scale = np.abs(want[np.isfinite(want)]).max(initial=0.0)
    return np.allclose(got, want, rtol=entry.rtol, atol=entry.rtol * scale, equal_nan=True)


@pytest.mark.parametrize("entry", sampled(every_improvement(), 6))
def test_our_gradient_is_the_true_one(entry: Improvement) -> None:
    args = arguments(entry)
    gradient = entry.gradient(bp.grad)
    got = gradient(*args)
    assert got.shape == args[entry.wrt].shape and got.dtype == args[entry.wrt].dtype
    assert near(entry, got), f"{got}, true {entry.true} ({entry.source})"
    assert near(entry, jax.jit(gradient)(*args)), "under jit"


@pytest.mark.parametrize("entry", sampled(every_improvement(), 16))
def test_our_gradient_is_the_true_one_under_vmap(entry: Improvement) -> None:
    args = arguments(entry)
    gradient = entry.gradient(bp.grad)
    try:
        jax.eval_shape(jax.vmap(entry.function), *[x[None] for x in args])
    except (NotImplementedError, TypeError, ValueError):
        pytest.skip("JAX has no batching rule for the function itself")
    twice = jax.jit(jax.vmap(gradient))(*[jnp.stack([x, x]) for x in args])
    assert near(entry, twice[0]) and near(entry, twice[1])


@pytest.mark.parametrize("entry", sampled(every_improvement(), 16))
def test_jax_is_still_wrong(entry: Improvement) -> None:
    try:
        theirs = entry.gradient(jax.grad)(*arguments(entry))
    except Exception:  # "raises …" is one of the ways in which JAX falls short
        return
    if OLDEST:
        assert not near(entry, theirs), f"JAX gives {theirs} for {entry.name}: no longer needed"


def test_names_are_unique_and_sources_given() -> None:
    names = [entry.name for entry in improvements]
    assert len(set(names)) == len(names)
    assert all(entry.source and entry.jax for entry in improvements)


def test_a_wrong_true_value_would_be_noticed() -> None:
    entry = Improvement("sine", jnp.sin, (1.0,), 0, 0.6, "cos 1", "wrong on purpose")
    with pytest.raises(AssertionError):
        test_our_gradient_is_the_true_one(entry)
