"""Data parallel training has the parameters on every device, and a slice of every batch on each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from functional_bp.errors import TrainingError
from functional_bp.train.objective import batch_length


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

    def replicate(self, tree: Any) -> Any:
        """Each device gets a copy of every array."""
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))

    def split(self, batch: Any) -> Any:
        """Arrays are cut along the batch's axis.

        What has none is whole on each device, and so is all if the devices do not divide it.
        """
        length = batch_length(batch)
        if length % self.mesh.size:
            return self.replicate(batch)
        cut = NamedSharding(self.mesh, PartitionSpec("batch"))
        whole = NamedSharding(self.mesh, PartitionSpec())
        places = jax.tree.map(lambda x: cut if np.shape(x)[:1] == (length,) else whole, batch)
        return jax.device_put(batch, places)


def layout_of(devices: int | Sequence[Any] | None, batch_size: int | None) -> DataParallel | None:
    """The layout is over so many devices, or over these; None trains where the arrays are.

    Raises:
        TrainingError: there are fewer devices or none, or they do not divide the batch.
    """
    if devices is None:
        return None
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
