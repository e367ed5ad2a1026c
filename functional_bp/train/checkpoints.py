"""Checkpoints are atomic, asynchronous, checked byte for byte; the last and the best are kept.

``save`` copies the arrays to host memory and returns; a thread has Orbax write them. A step may
donate its state at once, and an interrupted or killed process leaves every checkpoint before it
whole. The thread is of this package, since Orbax's own asynchrony loses a save where the program
ends behind it, and forgets to delete what Ctrl-C came between.
"""

from __future__ import annotations

import atexit
import functools
import json
import math
import re
import secrets
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from functional_bp import processes
from functional_bp.errors import SHORT_DTYPES, CheckpointError, TrainingError, describe, warn
from functional_bp.train import parts
from functional_bp.train.devices import place
from functional_bp.train.state import TrainState
from functional_bp.train.storage import BrokenError, Folder, Saved, require_orbax

Facts = dict[str, Any]  # of one leaf, as JSON holds them
SHARED = "give a folder that all processes see, on a file system of all machines"
SHOWN = 8  # differences of a state that one message lists
NUMBERS = {kind.__name__: kind for kind in (bool, int, float, complex)}


class MismatchError(CheckpointError):
    """A checkpoint is whole, but of another state than the one asked for."""


class Background:
    """A thread does one piece of work at a time, also where the program ends before it is done.

    Ctrl-C never lands in it.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """The work begins; the one before it has been waited for."""

        def run() -> None:
            try:
                work()
            except BaseException as error:
                self._failure = error

        _finish_at_exit()
        _at_work.add(self)
        self._thread = threading.Thread(target=run, name="functional_bp checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """This returns when it is done; raises what it raised, once."""
        if self._thread is not None:
            if self._thread.ident is not None:  # else Ctrl-C came before it began
                self._thread.join()  # Ctrl-C here leaves it to be waited for again
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure


_at_work: weakref.WeakSet[Background] = weakref.WeakSet()


@functools.cache
def _finish_at_exit() -> None:
    """What is at work when the program ends is waited for; registered once.

    Orbax takes threads of pools, which Python refuses as soon as it begins to end. What ``atexit``
    calls comes after that; what ``threading`` calls, as those pools use it themselves, before.
    """
    getattr(threading, "_register_atexit", atexit.register)(_finish)


def _finish() -> None:
    for background in list(_at_work):
        try:
            background.wait()
        except BaseException:
            print("a checkpoint could not be written", file=sys.stderr)
            traceback.print_exc()


class Restored(NamedTuple):
    """A checkpoint held this.

    Attributes:
        state: the state, laid out as the one that was asked for.
        loop: what the loop had noted, as JSON holds it.
        extra: further arrays, in nested dictionaries, lists and tuples.
        step: of the checkpoint.
    """

    state: TrainState
    loop: dict[str, Any]
    extra: Any
    step: int


class Checkpoints:
    """A folder holds checkpoints; give it to ``fit``, or save and restore by hand.

    Args:
        directory: the folder; made by the first save if it is not there.
        every_steps: ``fit`` saves after every so many steps, too.
        every_epochs: ``fit`` saves after every so many epochs; None: not by epochs.
        keep: how many of the last checkpoints are kept; None: all.
        best: the number whose best checkpoint is kept beside them, "val_loss" for instance.
        mode: whether "min" or "max" of it is best.
        asynchronous: write while training goes on.

    With several processes all of them save and restore; the first one writes what all hold, and
    each its parts of arrays that no process holds whole. A checkpoint is read by any number of
    processes.

    Raises:
        TrainingError: an option makes no sense, or Orbax is not installed.
        CheckpointError: the directory is a file.

    Example:
        >>> import optax, tempfile
        >>> from functional_bp import train
        >>> state = train.init({"w": 1.0}, optax.sgd(0.1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with train.Checkpoints(folder) as checkpoints:
        ...         checkpoints.save(0, state)
        ...         float(checkpoints.restore(state).state.params["w"])
        1.0
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        every_steps: int | None = None,
        every_epochs: int | None = 1,
        keep: int | None = 3,
        best: str | None = "val_loss",
        mode: str = "min",
        asynchronous: bool = True,
    ) -> None:
        counts = {"every_steps": every_steps, "every_epochs": every_epochs, "keep": keep}
        for name, count in counts.items():
            if count is not None and (type(count) is not int or count < 1):
                raise TrainingError(f"{name} is no count", got=repr(count),
                                    expected="1 or more, or None")  # fmt: skip
        if mode not in ("min", "max"):
            raise TrainingError("mode is neither", got=repr(mode), expected="'min' or 'max'")
        if "://" in str(directory):
            raise TrainingError(
                "checkpoints lie in a folder of this machine", got=str(directory),
                do="save there, and copy the folder; a copy can be restored from"
            )  # fmt: skip
        require_orbax()
        self.directory = Path(directory).expanduser().absolute()
        self.every_steps, self.every_epochs = every_steps, every_epochs
        self._keep, self._best, self._sign = keep, best, 1 if mode == "min" else -1
        self._asynchronous = asynchronous
        self._folder = Folder(self.directory)
        self._background = Background()

    def save(
        self,
        step: int,
        state: TrainState,
        loop: Mapping[str, Any] | None = None,
        extra: Any = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """The arrays are copied before this returns, and written behind it.

        Args:
            step: the name of the checkpoint; one of the same step is replaced.
            state: the state.
            loop: what JSON can hold.
            extra: arrays in nested dictionaries, lists and tuples.
            metrics: the numbers among which ``best`` is.

        Raises:
            CheckpointError: a leaf or ``loop`` cannot be saved, or the save before this one failed.
        """
        if not isinstance(step, int | np.integer) or step < 0:
            raise CheckpointError("a checkpoint is named by its step", got=repr(step),
                                  expected="0 or more")  # fmt: skip
        self.wait()
        leaves = [(jax.tree_util.keystr(p), leaf) for p, leaf in jax.tree.leaves_with_path(state)]
        in_state, bones = len(leaves), _skeleton("extra", extra, leaves)
        described = [_facts(path, leaf) for path, leaf in leaves]
        content = {
            "step": int(step),
            "state": described[:in_state],
            "extra": described[in_state:],
            "skeleton": bones,
            "loop": _as_json(dict(loop or {})),
            "metrics": {name: float(value) for name, value in (metrics or {}).items()},
        }
        bare = [_bare(leaf) for _, leaf in leaves]
        blocks: dict[str, np.ndarray] = {}
        for name, found, leaf in zip(_names(described), described, bare, strict=True):
            if (divided := parts.parts_of(leaf)) is not None:
                found["parts"] = divided
                blocks |= parts.own_blocks(str(name), leaf, divided)
        self._background.start(self._writing(int(step), described, bare, content, blocks))
        if not self._asynchronous:
            self.wait()

    def _writing(
        self, step: int, described: Sequence[Facts], bare: Sequence[Any], content: Any, blocks: Any
    ) -> Callable[[], None]:
        """What this process writes: process 0 what all hold, and each its parts."""
        folder, count = None, 1
        if any("parts" in found for found in described):
            token = processes.exchange(f"the checkpoint of step {step}", secrets.token_hex(4))[0]
            folder, count = self.directory / f".parts-{token}", jax.process_count()
        if not processes.speaks():
            return partial(self._write_parts, folder, blocks)
        wanted = [None if "parts" in found else leaf for found, leaf in zip(described, bare)]
        pairs = zip(_names(described), _in_host_memory(wanted), strict=True)
        named = {name: copy for name, copy in pairs if name and copy is not None}

        def write() -> None:
            self._write_parts(folder, blocks)
            collect = partial(parts.collect, folder, count=count) if folder else None
            self._folder.write(step, named, content, self._kept, collect)

        return write

    def _write_parts(self, folder: Path | None, blocks: Mapping[str, np.ndarray]) -> None:
        if folder is not None:
            parts.write(folder / str(jax.process_index()), blocks)

    def steps(self) -> list[int]:
        """The steps of all checkpoints come in the order they were saved in, the newest last."""
        self.wait()
        return [entry.step for entry in self._folder.entries()]

    def latest(self) -> int | None:
        """The newest checkpoint is of this step; None where there is none."""
        return next(reversed(self.steps()), None)

    def best(self) -> int | None:
        """The best checkpoint is of this step; None where none has the number.

        One whose manifest cannot be read is passed over; a number which is not finite is no best.
        """
        self.wait()
        entry = self._best_entry()
        return entry and entry.step

    def restore(
        self, like: TrainState, *, step: int | str | None = None, fallback: bool = False
    ) -> Restored:
        """A checkpoint is read, its every byte compared with the checksums of when it was saved.

        Args:
            like: a state of the structure, shapes and dtypes that are expected. Every array is
                placed on devices as the one of ``like``, whatever mesh it was saved from.
            step: of the checkpoint, or "best"; by default the newest.
            fallback: where it is not whole, take the newest one that is, and warn.

        Raises:
            CheckpointError: there is none, it is not whole, or it is of another state.
        """
        self.wait()
        together = any(map(parts.is_shared, jax.tree.leaves(like)))
        if together:
            processes.exchange("the reading of a checkpoint", "")  # what process 0 wrote is there
        found = self._found(like, step, fallback)
        if together:
            processes.require_same("the checkpoints that were read", f"step {found.step}", SHARED)
        return found

    def _found(self, like: TrainState, step: int | str | None, fallback: bool) -> Restored:
        best = self._best_entry() if step == "best" else None
        others = [*([best] if best else []), *reversed(self._folder.entries())]
        failures: list[BrokenError] = []
        for entry in dict.fromkeys([self._chosen(step), *others]):
            try:
                found = self._read(entry, like)
            except BrokenError as error:
                if not fallback:
                    raise
                failures.append(error)
                continue
            if failures:
                taken = f"taken instead: the checkpoint of step {found.step}"
                warn(f"{failures[0]}\n{taken}")
            return found
        raise CheckpointError("no checkpoint here is whole", where=str(self.directory),
                              got="\n".join(map(str, failures))) from failures[0]  # fmt: skip

    def wait(self) -> None:
        """This returns when everything is written.

        Raises:
            CheckpointError: it could not be, as on a full disk.
        """
        try:
            self._background.wait()
        except Exception as error:
            raise CheckpointError(
                "a checkpoint could not be written", where=str(self.directory),
                got=f"{type(error).__name__}: {error}",
                expected="room and permission to write; those saved before are whole"
            ) from error  # fmt: skip

    def close(self) -> None:
        """This waits; nothing else is held."""
        self.wait()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _kept(self) -> set[Saved]:
        """The last ones, the best one, and whatever cannot be read."""
        entries, best = self._folder.entries(), self._best_entry()
        last = entries if self._keep is None else entries[-self._keep :]
        return {*last, *self._folder.unread(), *([best] if best else [])}

    def _chosen(self, step: int | str | None) -> Saved:
        entries = self._folder.entries()
        if not entries:
            raise self._folder.empty()
        if step is None:
            return entries[-1]
        if step == "best":
            # One that cannot be read may have been it: its error says so, here and not in best().
            unread = [entry for entry in entries if self._folder.known(entry) is None]
            entry = unread[0] if unread else self._best_entry()
            if entry is not None:
                return entry
            got = f"none of the steps {[entry.step for entry in entries]} with a finite number"
            raise CheckpointError(f"there is no best checkpoint by {self._best!r}",
                                  where=str(self.directory), got=got,
                                  do="give validation data, or name a step")  # fmt: skip
        for entry in entries:
            if entry.step == step:
                return entry
        raise CheckpointError(f"there is no checkpoint of step {step!r}", where=str(self.directory),
                              got=f"steps {[entry.step for entry in entries]}",
                              expected="one of them")  # fmt: skip

    def _best_entry(self) -> Saved | None:
        found = []
        for entry in self._folder.entries() if self._best else ():
            metrics = (self._folder.known(entry) or {"metrics": {}})["metrics"]
            if math.isfinite(value := metrics.get(self._best, math.nan)):
                found.append((self._sign * value, entry))  # of equal ones the first
        return min(found)[-1] if found else None

    def _read(self, entry: Saved, like: TrainState) -> Restored:
        content = self._folder.manifest(entry)
        described, in_state = [*content["state"], *content["extra"]], len(content["state"])
        wanted = [
            (_facts(jax.tree_util.keystr(path), leaf), leaf)
            for path, leaf in jax.tree.leaves_with_path(like)
        ]
        _compare(entry.step, described[:in_state], [fact for fact, _ in wanted])
        whole = [n for n, found in zip(_names(described), described) if n and "parts" not in found]
        stored: dict[Any, Any] = dict(self._folder.arrays(entry, content, whole))
        read = partial(self._folder.content_of, entry, content)
        for name, found in zip(_names(described), described):
            if "parts" in found:
                kind = _stored_as(found)
                stored[name] = parts.Stored(str(name), found["parts"], *kind, read)
        likes = [leaf for _, leaf in wanted] + [None] * len(content["extra"])
        leaves = [
            _restored(found, stored[name] if name else None, shape_of)
            for found, name, shape_of in zip(described, _names(described), likes, strict=True)
        ]
        return Restored(
            jax.tree.unflatten(jax.tree.structure(like), leaves[:in_state]),
            content["loop"],
            _filled(content["skeleton"], leaves),
            entry.step,
        )


def _as_json(loop: dict[str, Any]) -> Any:
    """As it is now; what is noted later is not of this checkpoint."""
    try:
        return json.loads(json.dumps(loop))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            "JSON cannot hold what a checkpoint is to note of the loop", got=str(error),
            expected="dicts, lists, strings, numbers of Python, None",
            do="float(...) of a scalar; arrays go into extra"
        ) from error  # fmt: skip


# Leaves of a pytree become what a file can hold: arrays in host memory, and what each one was. A
# leaf is an array (JAX's or NumPy's), random keys, or a number of Python. Keys are stored as the
# words behind them with their generator's name, numbers in the manifest itself, and so are arrays
# without entries, of which there is nothing to store but the shape.


def _facts(path: str, leaf: Any) -> Facts:
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


def _words(found: Facts) -> str:
    """An array is ``f32[3,5]`` in words, a number its type's name."""
    if found["kind"] == "number":
        return f"a number of Python, {found['dtype']}"
    name = SHORT_DTYPES.get(found["dtype"], found["dtype"])
    return f"{name}[{','.join(map(str, found['shape']))}]"


def _bare(leaf: Any) -> Any:
    """A leaf as numbers: of random keys the words behind them."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _in_host_memory(leaves: Sequence[Any]) -> list[np.ndarray | None]:
    """Leaves are copied, so that nothing changes them, a donation included; None for a number."""
    for leaf in leaves:
        if isinstance(leaf, jax.Array):
            leaf.copy_to_host_async()
    numbers = (*NUMBERS.values(), type(None))
    return [None if type(leaf) in numbers else _copy(leaf) for leaf in leaves]


def _restored(found: Facts, stored: np.ndarray | None, like: Any = None) -> Any:
    """A leaf is made again, of the kind that it was, or of ``like``'s kind and placed as it.

    Args:
        found: what ``_facts`` said of it.
        stored: its values; None where there is nothing to store.
        like: the leaf that it is to stand for, an array or its abstract value.

    Raises:
        CheckpointError: JAX has the dtype only with ``jax_enable_x64``.
    """
    if found["kind"] == "number":
        value, kind = found["value"], NUMBERS[found["dtype"]]
        return complex(*value) if kind is complex else kind(value)
    if stored is None:
        stored = _without_entries(found)
    if isinstance(like, np.generic):
        return stored[()]
    if isinstance(like, np.ndarray) or (like is None and found["kind"] == "numpy"):
        return np.asarray(stored)
    if found["kind"] == "key":
        keys = jax.random.wrap_key_data(jnp.asarray(np.asarray(stored)), impl=found["impl"])
        return place(keys, _placement(like))
    if jax.dtypes.canonicalize_dtype(stored.dtype) != stored.dtype:
        raise CheckpointError(
            "an array of a checkpoint has a dtype that JAX would shorten", where=found["path"],
            got=_words(found), do="jax.config.update('jax_enable_x64', True), as when it was saved"
        )  # fmt: skip
    return place(stored, _placement(like))


def _names(described: Sequence[Facts]) -> list[str | None]:
    """Each leaf has a name in the file of arrays; None where nothing is stored."""
    return [
        f"{k:05d}{re.sub('[^A-Za-z0-9]+', '_', found['path'])}".rstrip("_")
        if found["kind"] != "number" and 0 not in found["shape"]
        else None
        for k, found in enumerate(described)
    ]


def _compare(step: int, saved: Sequence[Facts], wanted: Sequence[Facts]) -> None:
    """Paths, shapes and dtypes agree, in this order of leaves.

    Raises:
        MismatchError: they do not; it names the paths, and what is on either side.
    """
    before = {found["path"]: _words(found) for found in saved}
    now = {found["path"]: _words(found) for found in wanted}
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


def _skeleton(path: str, tree: Any, leaves: list[tuple[str, Any]]) -> Any:
    """Nested dicts, lists and tuples become JSON; their leaves are appended to ``leaves``.

    Raises:
        CheckpointError: the tree is made of something else, which could not be restored as it was.
    """
    if tree is None:
        return None
    if type(tree) is dict and all(isinstance(key, str) for key in tree):
        return {"dict": {key: _skeleton(f"{path}[{key!r}]", tree[key], leaves) for key in tree}}
    if type(tree) in (list, tuple):
        inner = [_skeleton(f"{path}[{k}]", item, leaves) for k, item in enumerate(tree)]
        return {type(tree).__name__: inner}
    if isinstance(tree, Mapping | tuple | list) or not jax.tree_util.all_leaves([tree]):
        raise CheckpointError(
            "what a checkpoint holds beside the state cannot be told from its leaves", where=path,
            got=describe(tree), expected="dicts with names as keys, lists, tuples and arrays",
            do="give jax.tree.leaves(...) of it, and put it together again on your side"
        )  # fmt: skip
    leaves.append((path, tree))
    return len(leaves) - 1


def _filled(bones: Any, leaves: Sequence[Any]) -> Any:
    """The tree of a ``_skeleton`` gets its leaves back."""
    if bones is None:
        return None
    if isinstance(bones, int):
        return leaves[bones]
    if "dict" in bones:
        return {key: _filled(inner, leaves) for key, inner in bones["dict"].items()}
    (kind, inners) = next(iter(bones.items()))
    return {"list": list, "tuple": tuple}[kind](_filled(inner, leaves) for inner in inners)


def _refuse(path: str, leaf: Any) -> None:
    got = expected = do = ""
    if isinstance(leaf, Tracer):
        got, do = "a value that is being traced", "save outside of jit, grad and scan"
    elif isinstance(leaf, jax.Array) and leaf.is_deleted():
        got = f"{describe(leaf)}, whose buffer was donated"
        do = "save the state that a step returned, not the one that it was given"
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


def _without_entries(found: Facts) -> np.ndarray:
    """An array, or the words of keys, of which there was nothing to store."""
    return np.zeros(*_stored_as(found))


def _stored_as(found: Facts) -> tuple[list[int], np.dtype]:
    """Shape and dtype of what is stored of an array, or of the words of keys."""
    if found["kind"] != "key":
        return found["shape"], jnp.dtype(found["dtype"])
    words = jax.random.key_data(jax.random.key(0, impl=found["impl"]))
    return [*found["shape"], *words.shape], np.dtype(np.uint32)


def _placement(like: Any) -> Any:
    """Where an array goes; None is JAX's choice, for one which is bound to no device."""
    if isinstance(like, jax.Array) and not like.committed:
        return None
    return getattr(like, "sharding", None)
