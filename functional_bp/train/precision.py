"""Mixed precision: float32 masters, half precision arithmetic, and the scale of the loss.

In float16 the smallest positive number is 6e-8, and gradients below it are lost. The loss is
multiplied by a scale S before the reverse sweep and the gradients are divided by S after it, which
is the same by linearity of the sweep. S is halved when a gradient overflows, and that step is left
out; it is doubled after ``GROWTH_STEPS`` steps without. bfloat16 has float32's range and needs no
scale.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from functional_bp.errors import TrainingError, compose

FIRST_SCALE = 2.0**15
LARGEST_SCALE = 2.0**126  # twice an infinity could not be halved again
GROWTH_STEPS = 2000
HALVES = ("bfloat16", "float16")
WIDE = ("float32", "float64")


class LossScale(NamedTuple):
    """``scale: f32[]`` ≥ 1 and the number of good steps since it changed, ``i32[]``."""

    scale: jax.Array
    good_steps: jax.Array

    def after(self, finite: jax.Array) -> LossScale:
        """Doubled after ``GROWTH_STEPS`` finite steps in a row, halved after one that was not."""
        grows = self.good_steps + 1 >= GROWTH_STEPS
        good = jnp.where(grows, jnp.minimum(self.scale * 2, LARGEST_SCALE), self.scale)
        scale = jnp.where(finite, good, jnp.maximum(self.scale / 2, 1.0))
        steps = jnp.where(finite & ~grows, self.good_steps + 1, 0)
        return LossScale(scale, steps)


class Precision(NamedTuple):
    """In which dtype the model is computed; None leaves every array as it is."""

    dtype: Any = None

    @classmethod
    def of(cls, name: Any) -> Precision:
        """From None, "float32", "bfloat16" or "float16", or a dtype of one of these names.

        Raises:
            TrainingError: another name.
        """
        if name is None:
            return cls()
        try:
            known = str(jnp.dtype(name))
        except TypeError:
            known = ""
        if known == "float32":
            return cls()
        if known not in HALVES:
            raise TrainingError(
                compose("this precision is not known", got=repr(name),
                        expected="None, 'float32', 'bfloat16' or 'float16'")
            )  # fmt: skip
        return cls(jnp.dtype(known))

    @property
    def scales(self) -> bool:
        """Whether the loss needs a scale."""
        return self.dtype is not None and str(self.dtype) == "float16"

    def first_scale(self) -> LossScale | None:
        """The scale before the first step."""
        if not self.scales:
            return None
        return LossScale(jnp.float32(FIRST_SCALE), jnp.int32(0))

    def cast(self, tree: Any) -> Any:
        """Wider real floating arrays in the dtype of the computation; others as they are."""
        return tree if self.dtype is None else _converted(tree, WIDE, self.dtype)

    def masters(self, params: Any) -> Any:
        """The parameters as they are kept: half precision ones in float32 if these are computed."""
        return params if self.dtype is None else _converted(params, HALVES, jnp.float32)


def _converted(tree: Any, given: tuple[str, ...], dtype: Any) -> Any:
    def convert(x: Any) -> Any:
        return x.astype(dtype) if str(getattr(x, "dtype", None)) in given else x

    return jax.tree.map(convert, tree)
