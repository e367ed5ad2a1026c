"""The folder of checkpoints on disk: whole ones, or none.

One checkpoint is a folder ``000007-step-40``: the seventh that was saved here, of step 40. In it
Orbax writes ``arrays/``, and ``manifest.json`` has everything else, with size and CRC-32 of every
file. All is written under a name that begins with ``.saving-`` and renamed at the end; what is no
longer kept is renamed to ``.deleting-`` before it is deleted. A process killed at any moment leaves
such names, which are removed when the folder is next opened, and nothing half done.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from functional_bp.errors import CheckpointError, TrainingError, compose

# The arrays of a checkpoint on disk, by Orbax: written and read by name, in host memory.


def require_orbax() -> Any:
    """The module ``orbax.checkpoint``.

    Raises:
        TrainingError: it is not installed.
    """
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise TrainingError(
            compose("checkpoints need Orbax, which is not installed", got=str(error),
                    do="pip install 'functional-bp[train]'")
        ) from error  # fmt: skip
    return ocp


def write_arrays(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays; they must not change meanwhile."""
    ocp = require_orbax()
    with _quiet(), _checkpointer(ocp) as checkpointer:
        checkpointer.save(folder, args=ocp.args.PyTreeSave(dict(arrays)))


def read_arrays(folder: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Read the arrays of a folder, which have these names."""
    ocp = require_orbax()
    with _quiet(), _checkpointer(ocp) as checkpointer:
        how = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
        found = checkpointer.restore(folder, args=ocp.args.PyTreeRestore(restore_args=how))
    return {name: np.asarray(array) for name, array in found.items()}


@contextlib.contextmanager
def _checkpointer(ocp: Any) -> Iterator[Any]:
    handlers = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False))
    )
    # Weights hardly compress (8 % of random ones), and take half as long again to write if tried.
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=handlers)
    made = ocp.Checkpointer(handler)
    try:
        yield made
    finally:
        made.close()


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


try:
    import fcntl
except ImportError:  # not on Windows, where nothing tells a leftover from a save in progress
    fcntl = None

NAME = re.compile(r"(\d{6,})-step-(\d+)")
LEFTOVER = re.compile(rf"\.(saving|deleting)-{NAME.pattern}")
FORMAT, VERSION = "functional_bp.train checkpoint", 1
ARRAYS, MANIFEST = "arrays", "manifest.json"


class Entry(NamedTuple):
    """One checkpoint of a folder: the how-manieth it is, its step, where it lies."""

    serial: int
    step: int
    path: Path


class BrokenError(CheckpointError):
    """A checkpoint is not whole, or not one of this package."""


class Folder:
    """Reads and writes checkpoints; leftovers of killed processes are removed at once.

    Raises:
        CheckpointError: the path is a file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists() and not path.is_dir():
            raise CheckpointError(
                compose("checkpoints need a folder", where=str(path), got="a file")
            )
        for leftover in self._names(LEFTOVER):
            _remove_leftover(leftover)

    def entries(self) -> list[Entry]:
        """The checkpoints in the order they were saved in; the last one only of every step."""
        found = {entry.step: entry for entry in self._all()}
        return sorted(found.values())

    def write(self, step: int, arrays: Mapping[str, np.ndarray], content: dict[str, Any]) -> None:
        """Save one checkpoint, after all others; there may be one of this step already."""
        self.path.mkdir(parents=True, exist_ok=True)
        serial = max((entry.serial for entry in self._all()), default=0) + 1
        name = f"{serial:06d}-step-{step}"
        with _made(self.path / f".saving-{name}") as folder:
            if arrays:
                write_arrays(folder / ARRAYS, arrays)
            content = content | {"format": FORMAT, "version": VERSION, "files": _sums(folder)}
            _write_manifest(folder / MANIFEST, content)
            _flush(folder)
            folder.rename(self.path / name)
        _flush(self.path)

    def prune(self, keep: int | None, best: Entry | None) -> None:
        """Delete all but the last ``keep`` checkpoints and the best one; never what is unread."""
        entries = self.entries()
        kept = {*(entries if keep is None else entries[-keep:]), best}
        for entry in self._all():
            if entry not in kept and self.is_known(entry):
                doomed = entry.path.with_name(f".deleting-{entry.path.name}")
                entry.path.rename(doomed)
                shutil.rmtree(doomed, ignore_errors=True)

    def is_known(self, entry: Entry) -> bool:
        """Whether it has a manifest that can be read."""
        try:
            return bool(self.manifest(entry))
        except CheckpointError:
            return False

    def manifest(self, entry: Entry) -> dict[str, Any]:
        """What was noted of a checkpoint.

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
        self, entry: Entry, content: Mapping[str, Any], names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """The arrays of a checkpoint by their names, after a look at every byte of it.

        Raises:
            BrokenError: a file is missing, shorter or changed, or Orbax cannot read it.
        """
        for name, (size, crc) in content["files"].items():
            path = entry.path / name
            try:
                found = path.stat().st_size
                if found == size:
                    found = None if _crc(path) == crc else "other bytes than were written"
            except OSError as error:
                found = _short(error)
            if found is not None:
                got = f"{found} bytes" if isinstance(found, int) else found
                raise self.broken(entry, path, got, f"{size} bytes with CRC-32 {crc}")
        folder = entry.path / ARRAYS
        try:
            return read_arrays(folder, names) if names else {}
        except Exception as error:  # whatever Orbax raises
            raise self.broken(
                entry, folder, _short(error), "arrays, as Orbax writes them"
            ) from error

    def broken(self, entry: Entry, path: Path, got: str, expected: str) -> BrokenError:
        """The error for a checkpoint that cannot be read."""
        others = [other.step for other in self.entries() if other.step != entry.step]
        do = "begin anew in another folder"
        if others:
            do = (
                "restore with fallback=True (resume='fallback' in fit), or with step= one of\n"
                f"            {sorted(others)}, and delete the folder {entry.path.name}"
            )
        return BrokenError(
            compose(f"the checkpoint of step {entry.step} is not whole", where=str(path),
                    got=got, expected=expected, do=do)
        )  # fmt: skip

    def empty(self) -> CheckpointError:
        """The error for a folder without checkpoints."""
        what, where = "there is no checkpoint", str(self.path)
        if not self.path.exists():
            text = compose(what, where=where, got="no such folder", do="look at the path")
        elif (self.path / MANIFEST).exists():
            do = f"give the folder that it lies in, {self.path.parent}"
            text = compose(what, where=where, got="a checkpoint itself", do=do)
        else:
            found = sorted(path.name for path in self.path.iterdir())
            listed = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
            expected = "folders such as 000001-step-40, which functional_bp.train.Checkpoints wrote"
            text = compose(what, where=where, got=listed or "nothing", expected=expected)
        return CheckpointError(text)

    def _all(self) -> list[Entry]:
        found = [(NAME.fullmatch(path.name), path) for path in self._names(NAME)]
        return sorted(Entry(int(m[1]), int(m[2]), path) for m, path in found if m)

    def _names(self, pattern: re.Pattern[str]) -> list[Path]:
        if not self.path.is_dir():
            return []
        return [path for path in self.path.iterdir() if pattern.fullmatch(path.name)]


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[Path]:
    """A new folder, locked while it is written so that nobody takes it for a leftover."""
    while True:
        folder.mkdir()
        lock = _locked(folder, wait=True)
        if folder.exists():  # not removed between these two lines
            break
        _unlocked(lock)
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        _unlocked(lock)


def _remove_leftover(folder: Path) -> None:
    try:
        lock = _locked(folder, wait=False)
    except OSError:  # somebody is writing it, or it is gone
        return
    shutil.rmtree(folder, ignore_errors=True)
    _unlocked(lock)


def _locked(folder: Path, wait: bool) -> int | None:
    """A lock that ends with the process, if it is killed."""
    if fcntl is None:
        return None
    try:
        lock = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        if wait:
            return None
        raise
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        if not wait:
            os.close(lock)
            raise  # else: a file system without locks
    return lock


def _unlocked(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def _sums(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and CRC-32 of every file, by its path from the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {p.relative_to(folder).as_posix(): (p.stat().st_size, _crc(p)) for p in files}


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return crc


def _write_manifest(path: Path, content: dict[str, Any]) -> None:
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
