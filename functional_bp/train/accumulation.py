"""The gradients of microbatches are put together as the law of their batch has it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functional_bp.errors import TrainingError
from functional_bp.graph.graph import short_place
from functional_bp.layouts.batch_law import BatchLaw, Law, batch_law
from functional_bp.train.objective import CallContext, Objective


def law_of(
    objective: Objective, params: Any, batch: Any, context: CallContext, allow_coupled: bool
) -> BatchLaw:
    """The law of a batch is found, and one that couples its examples is refused.

    A loss that says itself how many examples it is a mean of (``Output.weight``) is taken at its
    word.

    Raises:
        TrainingError: microbatches would change the loss, and nobody allowed that.
    """
    own: list[bool] = []

    def loss(params: Any, batch: Any) -> Any:
        output = objective(params, batch, context)
        own.append(not isinstance(output.weight, np.generic))
        return output.loss

    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)),
                          (params, batch))  # fmt: skip
    law = batch_law(loss, *shapes)
    if law.kind is Law.COUPLED and not allow_coupled:
        raise TrainingError(
            "microbatches would change the loss",
            where=short_place(law.source),
            got=law.told_why,
            expected="a mean over the examples, a sum, or one that is divided by their weights",
            do="give memory= in the place of accumulate=, by which parts of the loss run again, in "
            "pieces where they can; or pass allow_coupled=True, and each microbatch is coupled "
            "in itself alone, as in batch normalisation by its own statistics",
        )
    is_said = any(own)  # how many examples the loss is a mean of
    return dataclasses.replace(law, kind=Law.MEAN) if is_said else law


def share_of(law: BatchLaw, params: Any, batch: Any, examples: Any) -> jax.Array:
    """A (micro)batch has this share in the loss; the whole's divides the sum.

    Args:
        law: of the batch.
        params: the parameters.
        batch: the batch or a part of it.
        examples: how many examples its loss is a mean of.
    """
    if law.kind is Law.SUM:
        return jnp.float32(1)
    if law.kind is Law.WEIGHTED:
        return jnp.asarray(law.weight(params, batch))
    return examples
