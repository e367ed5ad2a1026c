"""Logs of every epoch on the disk: exact, complete, and those of a whole run after a resume."""

from __future__ import annotations

import csv
import json
import struct
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from test_train_callbacks import Run, through_json

from functional_bp.train.callbacks import Callback, CSVLogger, TensorBoard, TrainExtraError


def rows(path: Path, **options: Any) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, **options))


def log(callback: Callback, epochs: list[dict[str, Any]], first: int = 0) -> None:
    callback.on_fit_begin(Run())
    for epoch, logs in enumerate(epochs, first):
        callback.on_epoch_end(Run(), epoch, logs)


def test_csv_rows_are_on_the_disk_and_exact(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "log.csv"
    log(CSVLogger(path), [{"loss": jnp.float32(0.1)}, {"loss": 1 / 3, "val_loss": np.nan}])
    first, second = rows(path)
    assert list(first) == ["epoch", "loss", "val_loss"] and first["val_loss"] == ""
    assert np.float32(first["loss"]) == np.float32(0.1) and float(second["loss"]) == 1 / 3
    assert second["epoch"] == "1" and second["val_loss"] == "nan"


def test_csv_begins_anew_or_appends(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    log(CSVLogger(path, separator=";"), [{"loss": 1.0}])
    log(CSVLogger(path, separator=";", append=True), [{"loss": 2.0}])
    assert [row["loss"] for row in rows(path, delimiter=";")] == ["1.0", "2.0"]
    log(CSVLogger(path), [{"loss": 3.0}])
    assert path.read_text() == "epoch,loss\n0,3.0\n"


def test_csv_of_a_resumed_run_is_that_of_a_whole_one(tmp_path: Path) -> None:
    epochs = [{"loss": 1.0 / (k + 1)} for k in range(5)]
    log(CSVLogger(tmp_path / "whole.csv"), epochs)
    before = CSVLogger(tmp_path / "log.csv")
    log(before, epochs[:2])
    saved = json.dumps(before.state_dict())
    before.on_epoch_end(Run(), 2, epochs[2])  # written, and then the process was killed
    resumed = CSVLogger(tmp_path / "log.csv")
    resumed.load_state_dict(json.loads(saved))
    log(resumed, epochs[2:], first=2)
    assert (tmp_path / "log.csv").read_text() == (tmp_path / "whole.csv").read_text()


def events(directory: Path) -> dict[str, dict[int, float]]:
    """The scalars in event files, read by the record format: length, its crc, data, its crc."""
    from tensorboardX.proto import event_pb2

    scalars: dict[str, dict[int, float]] = {}
    for file in sorted(directory.glob("events*")):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = event_pb2.Event.FromString(content[12 : 12 + length])
            for value in event.summary.value:
                scalars.setdefault(value.tag, {})[event.step] = value.simple_value
            content = content[16 + length :]
    return scalars


def test_tensorboard_has_training_and_validation_under_one_tag(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="of the extra train")
    callback = TensorBoard(tmp_path)
    log(callback, [{"loss": 0.5, "val_loss": 0.75}, {"loss": 0.25}])
    callback.on_fit_end(Run())
    resumed = through_json(callback, TensorBoard(tmp_path))
    log(resumed, [{"loss": 0.125}], first=2)
    resumed.on_fit_end(Run())
    assert events(tmp_path / "train") == {"epoch_loss": {0: 0.5, 1: 0.25, 2: 0.125}}
    assert events(tmp_path / "validation") == {"epoch_loss": {0: 0.75}}


def test_without_tensorboardx_the_extra_is_named(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(
        TrainExtraError, match=r"no package tensorboardX(.|\n)*'functional-bp\[train"
    ):
        TensorBoard(tmp_path)
