"""Training carries one pytree from step to step: state in, state out.

Mixed precision has float32 masters, half precision arithmetic, and a scale of the loss. In float16
the smallest positive number is 6e-8, and gradients below it are lost. The loss is multiplied by a
scale S before the reverse sweep and the gradients are divided by S after it, which is the same by
linearity of the sweep. S is halved when a gradient overflows, and that step is left out; it is
doubled after ``GROWTH_STEPS`` steps without. bfloat16 has float32's range and needs no scale.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from functional_bp.errors import TrainingError, describe
from functional_bp.layouts.layout import Layout
from functional_bp.train.devices import place

FIRST_SCALE = 2.0**15
LARGEST_SCALE = 2.0**126  # twice an infinity could not be halved again
GROWTH_STEPS = 2000
HALVES = ("bfloat16", "float16")
WIDE = ("float32", "float64")
AFTER_PARAMS = 2**32 - 1  # steps and split keys count from 0


class LossScale(NamedTuple):
    """``scale: f32[]`` is at least 1; ``good_steps: i32[]`` counts those since it changed."""

    scale: jax.Array
    good_steps: jax.Array

    def after(self, finite: jax.Array) -> LossScale:
        """It doubles after ``GROWTH_STEPS`` finite steps in a row, and halves after another."""
        grows = self.good_steps + 1 >= GROWTH_STEPS
        good = jnp.where(grows, jnp.minimum(self.scale * 2, LARGEST_SCALE), self.scale)
        scale = jnp.where(finite, good, jnp.maximum(self.scale / 2, 1.0))
        steps = jnp.where(finite & ~grows, self.good_steps + 1, 0)
        return LossScale(scale, steps)


class Precision(NamedTuple):
    """The model is computed in this dtype; None leaves every array as it is."""

    dtype: Any = None

    @classmethod
    def of(cls, name: Any) -> Precision:
        """It is made from None, "float32", "bfloat16" or "float16", or a dtype of that name.

        Raises:
            TrainingError: another name.
        """
        try:
            known = "float32" if name is None else str(jnp.dtype(name))
        except TypeError:
            known = ""
        if known == "float32":
            return cls()
        if known not in HALVES:
            raise TrainingError("this precision is not known", got=repr(name),
                                expected="None, 'float32', 'bfloat16' or 'float16'")  # fmt: skip
        return cls(jnp.dtype(known))

    @property
    def scales(self) -> bool:
        """The loss needs a scale in float16."""
        return self.dtype is not None and str(self.dtype) == "float16"

    def first_scale(self) -> LossScale | None:
        """The scale is this before the first step."""
        if not self.scales:
            return None
        return LossScale(jnp.float32(FIRST_SCALE), jnp.int32(0))

    def cast(self, tree: Any) -> Any:
        """Wider real floating arrays are cast to the dtype of the computation; others stay."""
        return tree if self.dtype is None else _converted(tree, WIDE, self.dtype)

    def masters(self, params: Any) -> Any:
        """The parameters are kept so: half precision ones in float32 if these are computed."""
        return params if self.dtype is None else _converted(params, HALVES, jnp.float32)


def _converted(tree: Any, given: tuple[str, ...], dtype: Any) -> Any:
    def convert(x: Any) -> Any:
        return x.astype(dtype) if str(getattr(x, "dtype", None)) in given else x

    return jax.tree.map(convert, tree)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """A step reads and writes all of this.

    Attributes:
        params: the parameters, a pytree of floating arrays.
        opt_state: the state of the optax optimizer.
        step: how many steps were taken, ``i32[]``.
        rng: a typed random key; step k draws from ``jax.random.fold_in(rng, k)``, so that the
            numbers of a step depend on nothing but the seed and the step.
        model_state: what a model keeps beside its parameters, as running statistics of a batch
            normalisation; None where it keeps nothing.
        loss_scale: of float16 computations; None otherwise.
    """

    params: Any
    opt_state: Any
    step: jax.Array
    rng: jax.Array
    model_state: Any = None
    loss_scale: LossScale | None = None

    def replace(self, **changes: Any) -> TrainState:
        """The same state is returned with some fields changed."""
        return dataclasses.replace(self, **changes)

    @property
    def step_rng(self) -> jax.Array:
        """The step that comes next draws from this random key."""
        return jax.random.fold_in(self.rng, self.step)


def init(
    params: Any,
    optimizer: optax.GradientTransformation,
    *,
    seed: int | jax.Array = 0,
    model_state: Any = None,
    precision: str | None = None,
    layout: Layout | None = None,
) -> TrainState:
    """The state is made that comes before the first step.

    Args:
        params: a pytree of arrays of a floating or complex dtype. They are copied: steps donate
            their state's buffers, and a person's own arrays stay as they are. Or a function of a
            random key, that of ``seed``, which returns them: it is compiled, and makes them where
            they will be.
        optimizer: any gradient transformation of optax.
        seed: a number or a random key, for whatever a model draws (dropout).
        model_state: what the model keeps beside its parameters; copied, too.
        precision: as for ``step``; "float16" brings a loss scale. Half precision parameters become
            float32 with it.
        layout: of ``shard.layout``: parameters and optimizer state are made where it has them, on
            no device whole that are divided. It must know the dimensions of the loss
            (``shard.layout(mesh, dims, ...)``), unless it divides the batch and by ``store`` alone.

    Raises:
        TrainingError: a parameter has no gradient (integers, strings) or there are none, or the
            seed is neither a number nor a key.
        LayoutError: the layout does not know the dimensions.

    Example:
        >>> import optax
        >>> from functional_bp import train
        >>> state = train.init({"w": 1.0}, optax.sgd(0.1))
        >>> int(state.step), float(state.params["w"])
        (0, 1.0)
    """
    key = rng = _key(seed)
    precise = Precision.of(precision)
    if callable(params) and jax.tree_util.all_leaves([params]):
        params = _made(lambda key: precise.masters(_copied(params(key))), key, layout)
        rng = jax.random.fold_in(key, AFTER_PARAMS)
    else:
        params = precise.masters(_copied(params, layout))
    _check_params(params)
    opt_state = optimizer.init(params) if layout is None else _made(optimizer.init, params, layout)
    state = TrainState(
        params=params,
        opt_state=_copied(opt_state, layout),  # an optimizer may hold params twice
        step=jnp.zeros((), jnp.int32),
        rng=rng,
        model_state=_copied(model_state, layout),
        loss_scale=precise.first_scale(),
    )
    return state if layout is None else jax.tree.map(place, state, layout.of_tree(state))


def _made(make: Callable[[Any], Any], argument: Any, layout: Layout | None) -> Any:
    """What a function returns, each array where the layout has it from the beginning."""
    where = None if layout is None else layout.of_tree(jax.eval_shape(make, argument))
    return jax.jit(make, out_shardings=where)(argument)


def _check_params(params: Any) -> None:
    leaves = jax.tree.leaves_with_path(params)
    if not leaves:
        raise TrainingError(
            "there is nothing to train", got="params without an array",
            expected="a pytree of arrays, such as {'w': ..., 'b': ...}"
        )  # fmt: skip
    for path, leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise TrainingError(
                "a parameter has no gradient", where=_path("params", path), got=describe(leaf),
                expected="a floating or complex dtype",
                do="keep what is not trained in model_state, or close over it"
            )  # fmt: skip


def _key(seed: int | jax.Array) -> jax.Array:
    dtype, shape = getattr(seed, "dtype", None), getattr(seed, "shape", ())
    if isinstance(seed, int):
        return jax.random.key(seed)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and shape == ():
        return jnp.copy(seed)
    if dtype == jnp.uint32 and len(shape) == 1:  # an old-style key
        return jax.random.wrap_key_data(jnp.array(seed))
    if dtype is not None and jnp.issubdtype(dtype, jnp.integer) and shape == ():
        return jax.random.key(seed)
    raise TrainingError("the seed is neither a number nor a random key", got=describe(seed),
                        expected="an int, or one key of jax.random.key(...)")  # fmt: skip


def _copied(tree: Any, layout: Layout | None = None) -> Any:
    """New strongly typed arrays (a weakly typed one would be compiled for again after a step)."""

    def copy(path: Any, leaf: Any, where: Any = None) -> jax.Array:
        try:
            strong = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
            if where is None:
                array = jnp.array(strong, copy=True)
            else:  # from the host at once to where it will be
                array = place(strong.copy(), where)
        except TypeError as error:
            raise TrainingError("a leaf of the state is no array", where=_path("params", path),
                                got=describe(leaf),
                                expected="numbers or an array") from error  # fmt: skip
        return jax.lax.convert_element_type(array, array.dtype)

    places = () if layout is None else (layout.of_tree(tree),)
    return jax.tree.map_with_path(copy, tree, *places)


def settled(part: str, new: Any, old: Any) -> Any:
    """A part of the state keeps structure, shapes and dtypes through a step.

    Strongly typed, so that the next step is not compiled for again.

    Raises:
        TrainingError: it has another structure, or a leaf another shape.
    """
    if jax.tree.structure(new) != jax.tree.structure(old):
        raise TrainingError(
            f"a step changes the structure of {part}", got=str(jax.tree.structure(new)),
            expected=str(jax.tree.structure(old)),
            do="give the state what the loss or the optimizer returns, and return what " "it takes"
        )  # fmt: skip

    def settle(path: Any, new: Any, old: Any) -> Any:
        if jnp.shape(new) != jnp.shape(old):
            raise TrainingError(f"a step changes the shape of {_path(part, path)}",
                                got=describe(new), expected=describe(old))  # fmt: skip
        return jax.lax.convert_element_type(new, old.dtype)

    return jax.tree.map_with_path(settle, new, old)


def _path(root: str, path: Any) -> str:
    return root + jax.tree_util.keystr(path)
