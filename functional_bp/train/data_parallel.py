"""Data parallel training has the parameters on every device, and a slice of every batch on each.

The devices may be those of several processes; each process then puts on its own what these hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from functional_bp import processes
from functional_bp.errors import TrainingError, describe
from functional_bp.train.data import Rows
from functional_bp.train.objective import batch_length


def place(x: Any, sharding: Any) -> jax.Array:
    """An array goes onto devices; of those of several processes, each process fills its own.

    Args:
        x: an array of NumPy or JAX, random keys, or what reads slices of one, as ``Rows`` does;
            the same in every process.
        sharding: where it goes.
    """
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(x if isinstance(x, jax.Array) else np.asarray(x), sharding)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        words = place(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(x))
    dtype = jax.dtypes.canonicalize_dtype(x.dtype)
    source = np.asarray(x) if isinstance(x, jax.Array) else x
    part = lambda index: np.asarray(source[index], dtype)
    return jax.make_array_from_callback(source.shape, sharding, part)


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


class DataParallel(NamedTuple):
    """The devices are a mesh whose one axis is the batch's.

    ``jit`` follows the layout of its arguments: each device computes the gradient of its slice,
    and the sum over the batch becomes an all-reduce.
    """

    mesh: Mesh

    @classmethod
    def over(cls, devices: Sequence[Any]) -> DataParallel:
        """The one mesh axis, ``batch``, lies over the devices."""
        count = len(devices)
        return cls(jax.make_mesh((count,), ("batch",), (AxisType.Auto,), devices=devices))

    @classmethod
    def of(cls, state: Any) -> DataParallel | None:
        """The devices of arrays that several processes hold; None for arrays of this one."""
        for leaf in jax.tree.leaves(state):
            if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
                devices = leaf.sharding.device_set
                return cls.over(sorted(devices, key=lambda d: (d.process_index, d.id)))
        return None

    @property
    def is_shared(self) -> bool:
        """Several processes hold the devices."""
        return not self.whole.is_fully_addressable

    def replicate(self, tree: Any) -> Any:
        """Each device gets a copy of every array."""
        if not self.is_shared:
            return jax.device_put(tree, self.whole)
        return jax.tree.map(lambda x: place(x, self.whole), tree)

    @property
    def whole(self) -> NamedSharding:
        """Each device has the whole array."""
        return NamedSharding(self.mesh, PartitionSpec())

    def gather(self, tree: Any) -> Any:
        """Each process gets whole arrays of its own, for what looks at their numbers."""
        whole = jax.jit(lambda tree: tree, out_shardings=self.whole)(tree)
        return jax.tree.map(lambda x: x.addressable_data(0), whole)

    def split(self, batch: Any) -> Any:
        """Arrays are cut along the batch's axis.

        What has none is whole on each device, and so is all if the devices do not divide it.
        With several processes, ``Rows`` are those of the whole batch, of which a process reads
        what its devices hold, and other arrays are the process's part.

        Raises:
            TrainingError: the devices of this process do not divide its part.
        """
        length = batch_length(batch)
        cut = NamedSharding(self.mesh, PartitionSpec("batch"))
        is_part = self.is_shared and not any(isinstance(x, Rows) for x in jax.tree.leaves(batch))
        count = len(cut.addressable_devices) if is_part else self.mesh.size
        if length % count and is_part:
            raise _uneven(batch, count)
        if length % count:
            return self.replicate(batch)
        places = jax.tree.map(lambda x: cut if np.shape(x)[:1] == (length,) else self.whole, batch)
        if not self.is_shared:
            return jax.device_put(batch, places)
        join = lambda x, at: jax.make_array_from_process_local_data(at, np.asarray(x))
        put = lambda x, at: join(x, at) if is_part and at is cut else place(x, at)
        return jax.tree.map(put, batch, places)


def _uneven(batch: Any, count: int) -> TrainingError:
    return TrainingError(
        "the devices of a process cannot share its part of a batch",
        got=", ".join(map(describe, jax.tree.leaves(batch))), expected=f"a multiple of {count}",
        do="let the loader leave a last partial batch out"
    )  # fmt: skip


def layout_of(devices: int | Sequence[Any] | None, batch_size: int | None) -> DataParallel | None:
    """The layout is over so many devices, or over these.

    None trains where the arrays are, and with several processes on all of their devices.

    Raises:
        TrainingError: there are fewer devices or none, or they do not divide the batch.
    """
    if devices is None:
        if jax.process_count() == 1:
            return None
        devices = jax.devices()
    if isinstance(devices, int):
        present = jax.devices()
        if not 1 <= devices <= len(present):
            raise TrainingError(
                "there are not so many devices", got=f"devices={devices}",
                expected=f"1 to {len(present)}",
                do="simulate more with jax.config.update('jax_num_cpu_devices', n), first"
            )  # fmt: skip
        devices = present[:devices]
    if not devices:
        raise TrainingError("there is no device to train on", got="devices=[]",
                            expected="a number, or a list such as jax.devices()")  # fmt: skip
    if batch_size is not None and batch_size % len(devices):
        raise TrainingError("the devices cannot share a batch evenly",
                            got=f"batch_size={batch_size} over {len(devices)} devices",
                            expected=f"a multiple of {len(devices)}")  # fmt: skip
    return DataParallel.over(devices)
