"""The logs of every epoch, in a table that any program reads, and for TensorBoard."""

from __future__ import annotations

import csv
import importlib.util
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from functional_bp.errors import BackpropError, compose
from functional_bp.train.callbacks.callback import Callback


class TrainExtraError(BackpropError, ImportError):
    """A package is missing that the extra ``train`` brings."""


class CSVLogger(Callback):
    """Writes a row of comma-separated values for every epoch, on the disk before the next one.

    The first column is ``epoch``, from 0. A name that comes later, as ``val_loss`` where validation
    is not in every epoch, gets a column of its own, empty in the rows before. After a resume the
    rows go on behind those of the checkpoint.

    Args:
        path: the file.
        append: whether rows are added to a file that is there already; else it is begun anew.
        separator: between the values.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, append: bool = False, separator: str = ","
    ) -> None:
        self.path, self.append, self.separator = Path(path), append, separator
        self._columns: list[str] = []
        self._rows: list[dict[str, str]] = []
        self._resumed_rows: int | None = None

    def on_fit_begin(self, run: Any) -> None:
        """Read what stays of the file, or begin it."""
        self._columns, self._rows = [], []
        if (self.append or self._resumed_rows is not None) and self.path.exists():
            with self.path.open(newline="") as file:
                reader = csv.DictReader(file, delimiter=self.separator)
                self._rows = list(reader)
                self._columns = list(reader.fieldnames or [])
        if self._resumed_rows is not None:
            self._rows = self._rows[: self._resumed_rows]
            self._resumed_rows = None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._write_all()

    def on_epoch_end(self, run: Any, epoch: int, logs: dict[str, Any]) -> None:
        """Write the row."""
        row = {"epoch": str(epoch), **{name: _written(value) for name, value in logs.items()}}
        self._rows.append(row)
        if all(name in self._columns for name in row):
            with self.path.open("a", newline="") as file:
                self._writer(file).writerow(row)
        else:
            self._columns += [name for name in row if name not in self._columns]
            self._write_all()

    def _write_all(self) -> None:
        """The whole file, put into its place at once."""
        beside = self.path.with_name(self.path.name + ".part")
        with beside.open("w", newline="") as file:
            if self._columns:
                writer = self._writer(file)
                writer.writeheader()
                writer.writerows(self._rows)
        os.replace(beside, self.path)

    def _writer(self, file: Any) -> csv.DictWriter[str]:
        return csv.DictWriter(
            file, self._columns, restval="", delimiter=self.separator, lineterminator="\n"
        )

    def state_dict(self) -> dict[str, Any]:
        """How many rows the file has."""
        return {"rows": len(self._rows)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep that many rows when training goes on."""
        self._resumed_rows = state["rows"]


def _written(value: Any) -> str:
    """A number so that reading it gives the same one."""
    array = np.asarray(value)
    return repr(array.item()) if array.ndim == 0 else str(array.tolist())


class TensorBoard(Callback):
    """Writes the logs of every epoch for TensorBoard, as Keras' callback does.

    Training is in the folder ``train``, validation in ``validation``, both under the tag
    ``epoch_loss``, so that TensorBoard draws the two into one picture.

    Args:
        directory: for the event files; one for each run.

    Raises:
        TrainExtraError: tensorboardX, which writes them, is not installed.
    """

    def __init__(self, directory: str | os.PathLike[str] = "logs") -> None:
        if importlib.util.find_spec("tensorboardX") is None:
            raise TrainExtraError(
                compose(
                    "logs for TensorBoard cannot be written",
                    got="no package tensorboardX",
                    expected="tensorboardX, which writes them",
                    do="pip install 'functional-bp[train]', or use CSVLogger",
                )
            )
        self.directory = Path(directory)
        self._writers: dict[str, Any] = {}
        self._next: int | None = None
        self._resumes = False

    def on_fit_begin(self, run: Any) -> None:
        """Begin anew, or go on behind the checkpoint."""
        if not self._resumes:
            self._next = None
        self._resumes = False

    def on_epoch_end(self, run: Any, epoch: int, logs: dict[str, Any]) -> None:
        """Write every number."""
        for name, value in logs.items():
            part = "validation" if name.startswith("val_") else "train"
            tag = f"epoch_{name.removeprefix('val_')}"
            self._writer(part).add_scalar(tag, float(np.asarray(value)), epoch)
        for writer in self._writers.values():
            writer.flush()
        self._next = epoch + 1

    def _writer(self, part: str) -> Any:
        """The writer of a folder; what an interrupted run wrote behind a checkpoint is purged."""
        if part not in self._writers:
            from tensorboardX import SummaryWriter

            # The name has a time in seconds: a second file in that second would replace the first.
            self._writers[part] = SummaryWriter(
                str(self.directory / part),
                purge_step=self._next,
                filename_suffix=f".{time.time_ns()}",
            )
        return self._writers[part]

    def on_fit_end(self, run: Any) -> None:
        """Close the files."""
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def state_dict(self) -> dict[str, Any]:
        """The epoch that comes next."""
        return {"next": self._next}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let TensorBoard forget what was written from there on."""
        self._next, self._resumes = state["next"], True
