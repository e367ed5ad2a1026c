"""Leaves of a pytree become what a file can hold: arrays in host memory, and what each one was.

A leaf is an array (JAX's or NumPy's), random keys, or a number of Python. Keys are stored as the
words behind them with their generator's name, numbers in the record itself, and so are arrays
without entries, of which there is nothing to store but the shape.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from functional_bp.errors import SHORT_DTYPES, CheckpointError, describe

Facts = dict[str, Any]  # of one leaf, as JSON holds them
SHOWN = 8  # differences of a state that one message lists
NUMBERS = {kind.__name__: kind for kind in (bool, int, float, complex)}


class MismatchError(CheckpointError):
    """A checkpoint is whole, but of another state than the one asked for."""


def facts(path: str, leaf: Any) -> Facts:
    """A leaf is told by its path, kind, shape and dtype, a number by its value too.

    Raises:
        CheckpointError: it is nothing that a checkpoint holds, or an array that is gone.
    """
    if type(leaf) in NUMBERS.values():
        value = [leaf.real, leaf.imag] if isinstance(leaf, complex) else leaf
        return {"path": path, "kind": "number", "dtype": type(leaf).__name__, "value": value}
    _refuse(path, leaf)
    found = {"path": path, "kind": "numpy", "dtype": str(leaf.dtype), "shape": list(leaf.shape)}
    if _is_key(leaf):
        impl = str(jax.random.key_impl(leaf)) if isinstance(leaf, jax.Array) else None
        return found | {"kind": "key", "impl": impl}
    return found | ({"kind": "jax"} if isinstance(leaf, jax.Array) else {})


def words(found: Facts) -> str:
    """An array is ``f32[3,5]`` in words, a number its type's name."""
    if found["kind"] == "number":
        return f"a number of Python, {found['dtype']}"
    name = SHORT_DTYPES.get(found["dtype"], found["dtype"])
    return f"{name}[{','.join(map(str, found['shape']))}]"


def in_host_memory(leaves: Sequence[Any]) -> list[np.ndarray | None]:
    """Leaves are copied, so that nothing changes them, a donation included; None for a number."""
    bare = [jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in leaves]
    for leaf in bare:
        if isinstance(leaf, jax.Array):
            leaf.copy_to_host_async()
    return [None if type(leaf) in NUMBERS.values() else _copy(leaf) for leaf in bare]


def restored(found: Facts, stored: np.ndarray | None, like: Any = None) -> Any:
    """A leaf is made again, of the kind that it was, or of ``like``'s kind and placed as it.

    Args:
        found: what ``facts`` said of it.
        stored: its values; None where there is nothing to store.
        like: the leaf that it is to stand for, an array or its abstract value.

    Raises:
        CheckpointError: JAX has the dtype only with ``jax_enable_x64``.
    """
    if found["kind"] == "number":
        value, kind = found["value"], NUMBERS[found["dtype"]]
        return complex(*value) if kind is complex else kind(value)
    if stored is None:
        stored = np.zeros(_stored_shape(found), _stored_dtype(found))
    if isinstance(like, np.generic):
        return stored[()]
    if isinstance(like, np.ndarray) or (like is None and found["kind"] == "numpy"):
        return stored
    if found["kind"] == "key":
        return jax.device_put(
            jax.random.wrap_key_data(jnp.asarray(stored), impl=found["impl"]), _placement(like)
        )
    if jax.dtypes.canonicalize_dtype(stored.dtype) != stored.dtype:
        raise CheckpointError(
            "an array of a checkpoint has a dtype that JAX would shorten", where=found["path"],
            got=words(found), do="jax.config.update('jax_enable_x64', True), as when it was saved"
        )  # fmt: skip
    return jax.device_put(stored, _placement(like))


def names(described: Sequence[Facts]) -> list[str | None]:
    """Each leaf has a name in the file of arrays; None where nothing is stored."""
    return [
        f"{k:05d}{re.sub('[^A-Za-z0-9]+', '_', found['path'])}".rstrip("_")
        if found["kind"] != "number" and 0 not in found["shape"]
        else None
        for k, found in enumerate(described)
    ]


def compare(step: int, saved: Sequence[Facts], wanted: Sequence[Facts]) -> None:
    """Paths, shapes and dtypes agree, in this order of leaves.

    Raises:
        MismatchError: they do not; it names the paths, and what is on either side.
    """
    before = {found["path"]: words(found) for found in saved}
    now = {found["path"]: words(found) for found in wanted}
    paths = dict.fromkeys([*before, *now])
    absent = "nothing"
    rows = [
        f"{path or 'the state'}: {before.get(path, absent)} in the checkpoint, "
        f"{now.get(path, absent)} in the given state"
        for path in paths
        if before.get(path) != now.get(path)
    ]
    if not rows and [found["path"] for found in saved] == [found["path"] for found in wanted]:
        return
    if len(rows) > SHOWN:
        rows[SHOWN:] = [f"... and {len(rows) - SHOWN} more"]
    raise MismatchError(
        f"the checkpoint of step {step} is of another state than the given one",
        got=f"\n{'':12}".join(rows or ["the same leaves in another order"]),
        do="make the state with the model and the optimizer that were saved"
    )  # fmt: skip


def skeleton(path: str, tree: Any, leaves: list[tuple[str, Any]]) -> Any:
    """Nested dicts, lists and tuples become JSON; their leaves are appended to ``leaves``.

    Raises:
        CheckpointError: the tree is made of something else, which could not be restored as it was.
    """
    if tree is None:
        return None
    if type(tree) is dict and all(isinstance(key, str) for key in tree):
        return {"dict": {key: skeleton(f"{path}[{key!r}]", tree[key], leaves) for key in tree}}
    if type(tree) in (list, tuple):
        inner = [skeleton(f"{path}[{k}]", item, leaves) for k, item in enumerate(tree)]
        return {type(tree).__name__: inner}
    if isinstance(tree, Mapping | tuple | list) or not jax.tree_util.all_leaves([tree]):
        raise CheckpointError(
            "what a checkpoint holds beside the state cannot be told from its leaves", where=path,
            got=describe(tree), expected="dicts with names as keys, lists, tuples and arrays",
            do="give jax.tree.leaves(...) of it, and put it together again on your side"
        )  # fmt: skip
    leaves.append((path, tree))
    return len(leaves) - 1


def filled(bones: Any, leaves: Sequence[Any]) -> Any:
    """The tree of a ``skeleton`` gets its leaves back."""
    if bones is None:
        return None
    if isinstance(bones, int):
        return leaves[bones]
    if "dict" in bones:
        return {key: filled(inner, leaves) for key, inner in bones["dict"].items()}
    (kind, inners) = next(iter(bones.items()))
    return {"list": list, "tuple": tuple}[kind](filled(inner, leaves) for inner in inners)


def _refuse(path: str, leaf: Any) -> None:
    got = expected = do = ""
    if isinstance(leaf, Tracer):
        got, do = "a value that is being traced", "save outside of jit, grad and scan"
    elif isinstance(leaf, jax.Array) and leaf.is_deleted():
        got = f"{describe(leaf)}, whose buffer was donated"
        do = "save the state that a step returned, not the one that it was given"
    elif isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        got = f"{describe(leaf)}, which other processes hold a part of"
        do = "save such arrays with orbax.checkpoint itself, from all processes"
    elif not _is_numeric(getattr(leaf, "dtype", None)):
        got, expected = describe(leaf), "arrays of numbers, random keys and numbers"
    if got:
        raise CheckpointError("a checkpoint cannot hold a leaf", where=path, got=got,
                              expected=expected, do=do)  # fmt: skip


def _is_numeric(dtype: Any) -> bool:
    kinds = (np.number, np.bool_, jax.dtypes.prng_key)
    return dtype is not None and any(jnp.issubdtype(dtype, kind) for kind in kinds)


def _is_key(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _copy(leaf: Any) -> np.ndarray:
    """An array of its own, in C order."""
    found = np.asarray(leaf)
    if isinstance(leaf, jax.Array) and (found.flags.owndata or not _is_in_host_memory(leaf)):
        return np.ascontiguousarray(found).reshape(leaf.shape)  # was copied from the device
    return np.array(found, order="C")


def _is_in_host_memory(array: jax.Array) -> bool:
    """Whether NumPy's view of an array may be the buffer itself, which a donation reuses."""
    on_cpu = any(device.platform == "cpu" for device in array.sharding.device_set)
    return on_cpu or "host" in (array.sharding.memory_kind or "")


def _stored_shape(found: Facts) -> list[int]:
    if found["kind"] != "key":
        return found["shape"]
    return [*found["shape"], *jax.random.key_data(jax.random.key(0, impl=found["impl"])).shape]


def _stored_dtype(found: Facts) -> np.dtype:
    return np.dtype(np.uint32 if found["kind"] == "key" else jnp.dtype(found["dtype"]))


def _placement(like: Any) -> Any:
    """Where an array goes; None is JAX's choice, for one which is bound to no device."""
    if isinstance(like, jax.Array) and not like.committed:
        return None
    return getattr(like, "sharding", None)
