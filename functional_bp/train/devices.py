"""State and batches of training lie on devices as a layout says; each device gets its rows.

Training on several devices by slices of the batch is the layout whose one mesh axis divides it. The
devices may be those of several processes; each process then puts on its own what these hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from functional_bp import processes
from functional_bp.errors import TrainingError, describe
from functional_bp.layouts.dimensions import dimensions
from functional_bp.layouts.layout import BATCH, Layout, given_devices, layout
from functional_bp.train.data import Rows
from functional_bp.train.objective import CallContext, Objective, batch_length


def place(x: Any, sharding: Any) -> jax.Array:
    """An array goes onto devices; of those of several processes, each process fills its own.

    Args:
        x: an array of NumPy or JAX, random keys, or what reads slices of one, as ``Rows`` does;
            the same in every process. Or one that all processes hold parts of.
        sharding: where it goes.
    """
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return x if x.sharding == sharding else jax.jit(_same, out_shardings=sharding)(x)
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(x if isinstance(x, jax.Array) else np.asarray(x), sharding)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        words = place(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(x))
    dtype = jax.dtypes.canonicalize_dtype(x.dtype)
    source = np.asarray(x) if isinstance(x, jax.Array) else x
    part = lambda index: np.asarray(source[index], dtype)
    return jax.make_array_from_callback(source.shape, sharding, part)


def _same(x: Any) -> Any:
    return x


def require_same_arrays(what: str, tree: Any) -> None:
    """Each process holds the same numbers, that are to become one array over all.

    Raises:
        ProcessesError: they differ; the first leaf that does is named.
    """
    if jax.process_count() == 1:
        return
    for path, leaf in jax.tree.leaves_with_path(tree):
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            numbers = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
            name = f"{what}{jax.tree_util.keystr(path)}"
            said = processes.digest(numbers.tobytes())
            processes.require_same(name, said, "draw them from one seed in every process")


class Placement:
    """A placement puts what training needs where its layout says.

    ``jit`` follows the layout of its arguments: each device computes with what it holds, and what a
    sum over a divided dimension needs of the others becomes an all-reduce.

    Args:
        layout: which mesh axis divides which dimensions.
        objective: whose dimensions they are, where the layout is bound to no loss: it is bound to
            this one with the first batch.

    Attributes:
        layout: the layout, bound as far as needed.
    """

    def __init__(self, layout: Layout, objective: Objective | None = None) -> None:
        self.layout, self._objective = layout, objective
        self._found: dict[Any, Any] = {}

    def bind(self, params: Any, batch: Any, model_state: Any = None) -> Placement:
        """The layout is bound to the objective, if it does not know its dimensions yet.

        Raises:
            LayoutError: a size cannot be divided.
            UnknownDimensionError: the loss has no dimension of a name.
        """
        is_known = self.layout.dimensions is not None or set(self.layout.names) <= {BATCH}
        if is_known or (objective := self._objective) is None:
            return self

        def loss(params: Any, batch: Any) -> Any:
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), model_state)
            context = CallContext(jax.random.key(0), zeros, True)
            return objective(params, batch, context).loss

        shapes = jax.tree.map(_shape, (params, batch))
        self.layout = self.layout.bind(dimensions(loss, *shapes))
        return self

    def _once(self, shardings: Callable[[Any], Any], tree: Any) -> Any:
        """They are the same for the same shapes: a step should not look for them again."""
        leaves, structure = jax.tree.flatten(tree)
        key = structure, tuple(map(np.shape, leaves)), shardings.__name__
        if key not in self._found:
            self._found[key] = shardings(tree)
        return self._found[key]

    def replicate(self, tree: Any) -> Any:
        """Each device gets a copy of every array."""
        return self._put(tree, jax.tree.map(lambda _: self.layout.whole, tree))

    def state(self, state: Any) -> Any:
        """The parameters go where the layout has them, and what repeats them with them."""
        return self._put(state, self._once(self.layout.of_tree, state))

    def split(self, batch: Any) -> Any:
        """Each device gets its rows of the batch, and of other divided dimensions its part.

        What has none is whole on each device, and so is what the devices do not divide. With
        several processes, ``Rows`` are those of the whole batch, of which a process reads what its
        devices hold, and other arrays are the process's part.

        Raises:
            TrainingError: the devices of this process do not divide its part.
        """
        is_whole = any(isinstance(x, Rows | jax.ShapeDtypeStruct) for x in jax.tree.leaves(batch))
        if is_whole or not self.layout.is_shared:
            return self._put(batch, self._once(self.of_batch, batch))
        length, count = batch_length(batch), self._own_shares
        if length % count:
            raise _uneven(batch, count)
        cut = NamedSharding(self.layout.mesh, PartitionSpec(self.layout.batch_axes))
        join = lambda x: jax.make_array_from_process_local_data(cut, np.asarray(x))
        put = lambda x: join(x) if np.shape(x)[:1] == (length,) else place(x, self.layout.whole)
        return jax.tree.map(put, batch)

    @property
    def _own_shares(self) -> int:
        """In how many slices the devices of this process hold its part of a batch."""
        mesh = self.layout.mesh
        axes = [mesh.axis_names.index(axis) for axis in self.layout.batch_axes]
        is_own = [d.process_index == jax.process_index() for d in mesh.devices.flat]
        own = np.argwhere(np.reshape(is_own, mesh.devices.shape))
        return len(np.unique(own[:, axes], axis=0))

    def _put(self, tree: Any, shardings: Any) -> Any:
        """Arrays are put on devices; shapes are told where they will be."""

        def told(x: Any, at: NamedSharding) -> Any:
            is_shape = isinstance(x, jax.ShapeDtypeStruct)
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at) if is_shape else place(x, at)

        is_told = any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(tree))
        if is_told or self.layout.is_shared:
            return jax.tree.map(told, tree, shardings)
        return jax.device_put(tree, shardings)

    def in_use(self, params: Any) -> Any:
        """Inside of ``jit``, parameters are gathered over the mesh axis that stores them.

        Left to itself, the partitioner may move activations to where the parameters are stored. The
        gradients go back to where the parameters are.
        """
        if self.layout.store is None:
            return params
        used = replace(self.layout, store=None).of_tree(params)
        return jax.tree.map(_gathered, params, used, self.layout.of_tree(params))

    def constrained(self, tree: Any) -> Any:
        """Inside of ``jit``, what repeats the parameters is to lie where ``state`` has them."""
        return lax.with_sharding_constraint(tree, self.layout.of_tree(tree))

    def of_batch(self, batch: Any) -> Any:
        """A sharding for each array of a batch."""
        leaves, structure = jax.tree.flatten(batch)
        length, specs = batch_length(batch), self._data_specs(len(leaves))
        found = [self._of_rows(np.shape(x), spec, length) for x, spec in zip(leaves, specs)]
        return structure.unflatten(found)

    def _data_specs(self, count: int) -> Sequence[PartitionSpec]:
        """Those of the arrays behind the loss's first argument, if there are so many of them."""
        if (dims := self.layout.dimensions) is not None:
            specs = [s for s, leaf in zip(self.layout.specs(), dims.leaves) if leaf.argument]
            if len(specs) == count:
                return specs
        return [PartitionSpec()] * count

    def _of_rows(self, shape: Sequence[int], spec: PartitionSpec, length: int) -> NamedSharding:
        mesh = self.layout.mesh
        entries = [*spec, *[None] * len(shape)][: len(shape)]
        taken = {axis for entry in entries for axis in _names(entry)}
        if shape[:1] == (length,) and entries[0] is None:
            entries[0] = tuple(axis for axis in self.layout.batch_axes if axis not in taken)
        for i, size in enumerate(shape):
            if not (axes := _names(entries[i])) or size % math.prod(mesh.shape[a] for a in axes):
                entries[i] = None
        while entries and entries[-1] is None:
            entries.pop()
        return NamedSharding(mesh, PartitionSpec(*entries))


def _names(entry: Any) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gathered(x: Any, used: NamedSharding, stored: NamedSharding) -> Any:
    return lax.with_sharding_constraint(x, used)


def _gathered_forward(x: Any, used: NamedSharding, stored: NamedSharding) -> Any:
    return _gathered(x, used, stored), None


def _gathered_reverse(used: NamedSharding, stored: NamedSharding, _: None, x_bar: Any) -> Any:
    return (lax.with_sharding_constraint(x_bar, stored),)


_gathered.defvjp(_gathered_forward, _gathered_reverse)


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(x), x.dtype if hasattr(x, "dtype") else jnp.result_type(x))


def _uneven(batch: Any, count: int) -> TrainingError:
    return TrainingError(
        "the devices of a process cannot share its part of a batch",
        got=", ".join(map(describe, jax.tree.leaves(batch))), expected=f"a multiple of {count}",
        do="let the loader leave a last partial batch out"
    )  # fmt: skip


def shared_layout(state: Any) -> Layout | None:
    """The batch over the devices of arrays of several processes; None for those of one."""
    for leaf in jax.tree.leaves(state):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            devices = leaf.sharding.device_set
            return over_devices(sorted(devices, key=lambda d: (d.process_index, d.id)))
    return None


def gathered(tree: Any, layout: Layout) -> Any:
    """Each process gets whole arrays of its own, for what looks at their numbers."""
    whole = jax.jit(_same, out_shardings=layout.whole)(tree)
    return jax.tree.map(lambda x: x.addressable_data(0), whole)


def over_devices(devices: int | Sequence[Any]) -> Layout:
    """The layout divides the batch over so many devices, or over these.

    Raises:
        TrainingError: there are fewer devices or none.
    """
    return layout(given_devices(devices, TrainingError), data=BATCH)


def check_shares(layout: Layout, batch_size: int | None) -> None:
    """The devices share a batch evenly.

    Raises:
        TrainingError: they do not.
    """
    count = math.prod(layout.mesh.shape[axis] for axis in layout.batch_axes)
    if batch_size is not None and batch_size % count:
        raise TrainingError("the devices cannot share a batch evenly",
                            got=f"batch_size={batch_size} over {count} devices",
                            expected=f"a multiple of {count}")  # fmt: skip
