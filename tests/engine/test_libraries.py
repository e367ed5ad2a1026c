"""Models written against other libraries, with ``jax.grad`` replaced by ``bp.grad``.

Run with ``-m libraries``, the extra ``libraries`` being installed. Nothing is skipped: a library
that is missing, or that its model no longer runs with, is a failure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import library_networks as networks
import library_numerics as numerics
import numpy as np
import pytest
from library_models import Model

import functional_bp as bp

pytestmark = pytest.mark.libraries

# Both sides run the same primal operations in double precision, and differ in the order in which
# cotangents are summed: some hundred roundings of 1e-16 of the largest entry of a gradient.
TOLERANCE = 1e-12

# The same with roundings of 6e-8, for what a library computes in single precision.
SINGLE = 1e-5

# TensorFlow Probability, and distrax through it, reads names that JAX is taking out of jax.core.
OLD_NAMES = pytest.mark.filterwarnings("ignore:jax.core.* is deprecated:DeprecationWarning")

# Its samplers ask for the shape of a bound that is None.
NONE_SHAPE = pytest.mark.filterwarnings(
    "ignore:shape requires ndarray or scalar arguments:DeprecationWarning"
)

MODELS = [
    networks.linen_convolutions,
    networks.linen_recurrence,
    networks.nnx_transformer,
    networks.nnx_batch_statistics,
    networks.equinox_recurrence,
    networks.equinox_loops,
    networks.haiku_convolutions,
    networks.keras_stateless,
    networks.jraph_network,
    numerics.numpyro_density,
    numerics.numpyro_elbo,
    numerics.diffrax_recursive_checkpoint,
    numerics.diffrax_direct,
    numerics.diffrax_backsolve,
    numerics.diffrax_implicit,
    numerics.diffrax_sde,
    numerics.optimistix_solves,
    numerics.lineax_solves,
    pytest.param(numerics.distrax_flow, marks=OLD_NAMES),
    pytest.param(numerics.tfp_densities, marks=[OLD_NAMES, NONE_SHAPE]),
    numerics.optax_losses,
    numerics.optax_updates,
    numerics.scipy_matrix_functions,
]


@pytest.fixture(autouse=True)
def keras_on_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keras chooses its backend when it is imported."""
    monkeypatch.setenv("KERAS_BACKEND", "jax")


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_value_gradient_and_state_are_those_of_jax(make: Callable[[], Model]) -> None:
    model = make()
    inputs = model.parameters, *model.data
    exact = jax.value_and_grad(model.reference or model.loss, has_aux=True)
    ours = bp.value_and_grad(model.loss, has_aux=True, max_steps=model.max_steps)
    expected = jax.jit(exact)(*inputs)
    tolerance = SINGLE if model.single else TOLERANCE
    assert_close(jax.jit(ours)(*inputs), expected, tolerance)
    assert_close(ours(*inputs), expected, tolerance)


def test_an_error_of_a_few_roundings_is_seen() -> None:
    tree = {"w": np.array([1e-3, 5.0]), "b": np.array(0.0)}
    assert_close(tree, tree, TOLERANCE)
    with pytest.raises(AssertionError, match="b"):
        assert_close({**tree, "b": np.array(1e-10)}, tree, TOLERANCE)


def assert_close(found: Any, expected: Any, tolerance: float) -> None:
    """Equal trees, whose numbers agree relative to the largest of them all.

    Relative to each leaf it would not do: the gradient of a bias before a normalisation is zero by
    cancellation.
    """
    chex.assert_trees_all_equal_structs(found, expected)
    chex.assert_trees_all_equal_dtypes(found, expected)
    size = max(float(np.max(np.abs(x), initial=0)) for x in jax.tree.leaves(expected))
    assert np.isfinite(size)
    chex.assert_trees_all_close(found, expected, rtol=0, atol=tolerance * size)
