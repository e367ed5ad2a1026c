"""The folder of checkpoints on disk holds whole ones, or none.

One checkpoint is a folder ``000007-step-40``: the seventh that was saved here, of step 40. Orbax's
``CheckpointManager`` writes it under another name and renames it at the end, and moves away what is
no longer kept. ``manifest.json`` in it has everything but the arrays, with size and CRC-32 of every
file that is read again. Whoever writes holds a lock on the folder. A process that is killed leaves
nothing half done under a name of a checkpoint; what else it leaves is removed by the next one that
opens the folder. Arrays that no process of several holds whole are beside the others, in parts.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np

from functional_bp.errors import CheckpointError, TrainingError

try:
    import fcntl
except ImportError:  # not on Windows, where nothing tells a leftover from a save in progress
    fcntl = None

NAME = re.compile(r"(\d{6,})-step-(\d+)")
DELETED = ".deleting"  # the folder that Orbax moves to what is no longer kept
LEFTOVER = re.compile(
    rf"{re.escape(DELETED)}|{NAME.pattern}\.orbax-checkpoint-tmp.*|\.(saving|deleting)-{NAME.pattern}"
)
LEFT_PARTS = re.compile(r"\.parts-[0-9a-f]+")  # of a process of several that was killed
FORMAT, VERSION = "functional_bp.train checkpoint", 1
ARRAYS, MANIFEST = "arrays", "manifest.json"


class Saved(NamedTuple):
    """One checkpoint of a folder has its place in the order of saves, its step, and a path."""

    serial: int
    step: int
    path: Path


class BrokenError(CheckpointError):
    """A checkpoint is not whole, or not one of this package."""


class Folder:
    """A folder reads and writes checkpoints; leftovers of killed processes are removed at once.

    Raises:
        CheckpointError: the path is a file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists() and not path.is_dir():
            raise CheckpointError("checkpoints need a folder", where=str(path), got="a file")
        if self._names(LEFTOVER):
            with contextlib.suppress(OSError), _locked(path, wait=False):
                self._remove(LEFTOVER)

    def entries(self) -> list[Saved]:
        """The checkpoints come in the order they were saved in; the last one only of every step."""
        found = {entry.step: entry for entry in self._all()}
        return sorted(found.values())

    def write(
        self,
        step: int,
        arrays: Mapping[str, np.ndarray],
        content: dict[str, Any],
        kept: Callable[[], Collection[Saved]],
        collect: Callable[[Path], dict[str, Any]] | None = None,
    ) -> None:
        """One checkpoint is saved behind all others; what is no longer kept then is deleted.

        Args:
            step: of the checkpoint; one of the same step is replaced.
            arrays: by name; they must not change meanwhile.
            content: of the manifest.
            kept: returns which entries stay, once this one is there.
            collect: puts further files into the checkpoint's folder and returns their sums.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with _locked(self.path, wait=True):
            before = self._all()
            serial = max((entry.serial for entry in before), default=0) + 1
            new = Saved(serial, step, self.path / f"{serial:06d}-step-{step}")
            try:
                write_arrays([*before, new], arrays, content, kept, collect)
            finally:
                self._remove(LEFTOVER)
                self._remove(LEFT_PARTS)
            _flush(self.path)

    def known(self, entry: Saved) -> dict[str, Any] | None:
        """The manifest of a checkpoint; None where it cannot be read."""
        try:
            return self.manifest(entry)
        except BrokenError:
            return None

    def unread(self) -> list[Saved]:
        """The manifest of these cannot be read."""
        return [entry for entry in self._all() if self.known(entry) is None]

    def manifest(self, entry: Saved) -> dict[str, Any]:
        """The manifest says what was noted of a checkpoint.

        Raises:
            BrokenError: there is no manifest, or it is not as it was written.
        """
        path = entry.path / MANIFEST
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise self.broken(entry, path, _short(error), "the manifest of a checkpoint") from error
        try:
            whole = json.loads(text)
            content, noted = whole["content"], whole["crc32"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise self.broken(entry, path, f"no manifest, {_short(error)}", "JSON") from error
        if noted != zlib.crc32(json.dumps(content).encode()):
            raise self.broken(entry, path, "other bytes than were written", f"CRC-32 {noted}")
        kind = content if isinstance(content, dict) else {}
        if kind.get("format") != FORMAT or kind.get("version") != VERSION:
            got = f"{kind.get('format')!r}, version {kind.get('version')!r}"
            raise self.broken(entry, path, got, f"{FORMAT!r}, version {VERSION}")
        return content

    def arrays(
        self, entry: Saved, content: Mapping[str, Any], names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """The arrays of a checkpoint are read by name, after a look at every byte of it.

        Raises:
            BrokenError: a file is missing, shorter or changed, or Orbax cannot read it.
        """
        for name in content["files"]:
            if name.startswith(f"{ARRAYS}/"):
                self._check(entry, content, name)
        folder = entry.path / ARRAYS
        try:
            return read_arrays(folder, names) if names else {}
        except Exception as error:  # whatever Orbax raises
            expected = "arrays, as Orbax writes them"
            raise self.broken(entry, folder, _short(error), expected) from error

    def content_of(self, entry: Saved, content: Mapping[str, Any], name: str) -> bytes:
        """A file beside the arrays is read.

        Raises:
            BrokenError: it is missing, shorter or changed.
        """
        self._check(entry, content, name)
        return (entry.path / name).read_bytes()

    def _check(self, entry: Saved, content: Mapping[str, Any], name: str) -> None:
        (size, crc), path, got = content["files"][name], entry.path / name, ""
        try:
            if (found := path.stat().st_size) != size:
                got = f"{found} bytes"
            elif _crc(path) != crc:
                got = "other bytes than were written"
        except OSError as error:
            got = _short(error)
        if got:
            raise self.broken(entry, path, got, f"{size} bytes with CRC-32 {crc}")

    def broken(self, entry: Saved, path: Path, got: str, expected: str) -> BrokenError:
        """This is the error for a checkpoint that cannot be read."""
        others = [other.step for other in self.entries() if other.step != entry.step]
        do = "begin anew in another folder"
        if others:
            do = (
                "restore with fallback=True (resume='fallback' in fit), or with step= one of\n"
                f"            {sorted(others)}, and delete the folder {entry.path.name}"
            )
        return BrokenError(f"the checkpoint of step {entry.step} is not whole", where=str(path),
                           got=got, expected=expected, do=do)  # fmt: skip

    def empty(self) -> CheckpointError:
        """This is the error for a folder without checkpoints."""
        got, expected, do = "no such folder", "", "look at the path"
        if (self.path / MANIFEST).exists():
            got, do = "a checkpoint itself", f"give the folder that it lies in, {self.path.parent}"
        elif self.path.exists():
            found = sorted(path.name for path in self.path.iterdir())
            got = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "") or "nothing"
            expected = "folders such as 000001-step-40, which functional_bp.train.Checkpoints wrote"
            do = ""
        return CheckpointError(
            "there is no checkpoint", where=str(self.path), got=got, expected=expected, do=do
        )

    def _all(self) -> list[Saved]:
        found = [(NAME.fullmatch(path.name), path) for path in self._names(NAME)]
        return sorted(Saved(int(m[1]), int(m[2]), path) for m, path in found if m)

    def _names(self, pattern: re.Pattern[str]) -> list[Path]:
        if not self.path.is_dir():
            return []
        return [path for path in self.path.iterdir() if pattern.fullmatch(path.name)]

    def _remove(self, pattern: re.Pattern[str]) -> None:
        for leftover in self._names(pattern):
            shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path, wait: bool) -> Iterator[None]:
    """Hold the one lock of a folder, which ends with the process if that is killed.

    Raises:
        OSError: another process holds it, and this one does not wait.
    """
    if fcntl is None:
        yield
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:  # where one waits: a file system without locks
            if not wait:
                raise
        yield
    finally:
        os.close(opened)


# Orbax: arrays by name in host memory, and which checkpoints are kept.


def require_orbax() -> Any:
    """The module ``orbax.checkpoint`` is imported.

    Raises:
        TrainingError: it is not installed.
    """
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise TrainingError("checkpoints need Orbax, which is not installed", got=str(error),
                            do="pip install 'functional-bp[train]'") from error  # fmt: skip
    return ocp


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax tells its steps to absl's log; what goes wrong is raised, and said by this package."""

    def is_foreign(record: logging.LogRecord) -> bool:
        return f"{os.sep}orbax{os.sep}" not in record.pathname

    logger = logging.getLogger("absl")
    logger.addFilter(is_foreign)
    try:
        yield
    finally:
        logger.removeFilter(is_foreign)


@_quiet()
def write_arrays(
    entries: Sequence[Saved],
    arrays: Mapping[str, np.ndarray],
    content: dict[str, Any],
    kept: Callable[[], Collection[Saved]],
    collect: Callable[[Path], dict[str, Any]] | None = None,
) -> None:
    """The last of the entries is written, and those move to ``DELETED`` that are not kept then."""
    ocp, new = require_orbax(), entries[-1]

    class WithManifest(ocp.PyTreeCheckpointHandler):
        """Arrays, and the manifest beside their folder before Orbax renames the whole."""

        def finalize(self, directory: Any) -> None:
            super().finalize(directory)
            checkpoint = Path(directory).parent
            files = _sums(directory) | (collect(checkpoint) if collect else {})
            whole = content | {"format": FORMAT, "version": VERSION, "files": files}
            write_manifest(checkpoint / MANIFEST, whole)

    options = ocp.CheckpointManagerOptions(
        **_alone(ocp), create=False, enable_async_checkpointing=False, lightweight_initialize=True,
        step_name_format=_Names(entries), preservation_policy=_Kept(kept), todelete_subdir=DELETED,
    )  # fmt: skip
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    registry.add(ARRAYS, ocp.args.PyTreeSave, WithManifest(**_handling(ocp)))
    item = ocp.args.PyTreeSave(dict(arrays) or {"nothing": np.zeros(1)})
    folder = new.path.parent
    with ocp.CheckpointManager(folder, options=options, handler_registry=registry) as manager:
        manager.save(new.serial, args=ocp.args.Composite(**{ARRAYS: item}), force=True)


@_quiet()
def read_arrays(folder: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of a folder, which have these names, are read."""
    ocp = require_orbax()
    handler = ocp.PyTreeCheckpointHandler(**_handling(ocp))
    with contextlib.closing(ocp.Checkpointer(handler, **_alone(ocp))) as checkpointer:
        how = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
        found = checkpointer.restore(folder, args=ocp.args.PyTreeRestore(restore_args=how))
    return {name: np.asarray(array) for name, array in found.items()}


def _alone(ocp: Any) -> dict[str, Any]:
    """Orbax is called by one process, and waits for no other."""
    if jax.process_count() == 1:
        return {}
    here = jax.process_index()
    options = ocp.options.MultiprocessingOptions(primary_host=here, active_processes={here})
    return {"multiprocessing_options": options}


def _handling(ocp: Any) -> dict[str, Any]:
    handlers = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False))
    )
    # Weights hardly compress (8 % of random ones), and take half as long again to write if tried.
    return {"use_compression": False, "type_handler_registry": handlers, **_alone(ocp)}


class _Names:
    """Orbax knows a checkpoint by one number, its serial; this says where it lies."""

    def __init__(self, entries: Sequence[Saved]) -> None:
        self._paths = {entry.serial: entry.path for entry in entries}

    def build_name(self, step: int) -> str:
        return self._paths[step].name

    def find_all(self, base_path: Any) -> Iterator[Any]:
        return (self.find_step(base_path, k) for k, path in self._paths.items() if path.is_dir())

    def find_step(self, base_path: Any, step: int) -> Any:
        return SimpleNamespace(step=step, path=type(base_path)(self._paths[step]))


class _Kept(NamedTuple):
    """Orbax asks this policy which checkpoints stay."""

    kept: Callable[[], Collection[Saved]]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        serials = {entry.serial for entry in self.kept()}
        return [checkpoint.step in serials for checkpoint in checkpoints]


def _sums(arrays: Path) -> dict[str, tuple[int, int]]:
    """Size and CRC-32 of every file of the arrays, by its path from the checkpoint's folder."""
    files = sorted(path for path in Path(arrays).rglob("*") if path.is_file())
    name = lambda path: f"{ARRAYS}/{path.relative_to(arrays).as_posix()}"
    return {name(path): (path.stat().st_size, _crc(path)) for path in files}


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return crc


def write_manifest(path: Path, content: dict[str, Any]) -> None:
    """A manifest is written, on the disk when this returns."""
    text = json.dumps(content)
    with path.open("w", encoding="utf-8") as file:
        file.write(f'{{"crc32": {zlib.crc32(text.encode())},\n "content": {text}}}\n')
        file.flush()
        os.fsync(file.fileno())


def _flush(folder: Path) -> None:
    """A power failure forgets no name either."""
    if os.name == "posix":
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _short(error: Exception) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line[:200]}"
