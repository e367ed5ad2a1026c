"""Devices that are not here: programs are compiled for a topology of them, and none runs."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import jax
from jax.experimental import topologies

from functional_bp.errors import BackpropError

EXAMPLES = '"v5e:2x2" and "v5p:2x2x1"'


def devices_of(topology: str, error: type[BackpropError]) -> list[Any]:
    """Return the devices of a TPU topology.

    Args:
        topology: the generation and how many chips stand in each direction, as ``"v5e:4x4"``.
        error: the class of what is raised.

    Raises:
        BackpropError: the compiler is not installed, or knows no such topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise error(
            "programs for a TPU that is not there are compiled by libtpu, which is not installed",
            got=f"devices={topology!r}",
            do="pip install 'functional-bp[tpu-topology]'",
        )
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # nobody is asked which TPU this machine has
    try:
        return [*topologies.get_topology_desc(topology, "tpu").devices]
    except (RuntimeError, ValueError) as fault:
        raise error(
            "the compiler knows no such topology",
            got=f"devices={topology!r}: {str(fault).splitlines()[0][:200]}",
            expected=f"a generation and its chips in each direction, such as {EXAMPLES}",
        ) from fault


def platform_of(device: Any) -> str:
    """Return how the kind of a device is called: ``CPU``, ``NVIDIA H200``, ``TPU v5 lite``."""
    kind = device.device_kind
    return device.platform.upper() if kind in (device.platform, "") else kind


def is_here(device: Any) -> bool:
    """Say whether a device can hold arrays, rather than being one of a topology alone."""
    try:
        return device in jax.devices(device.platform)
    except RuntimeError:  # there is none of that kind
        return False
