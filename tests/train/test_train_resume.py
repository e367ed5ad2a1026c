"""A run that is broken off at any moment ends, resumed, in the very state of one that was not."""

from __future__ import annotations

import functools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_train_fit import same

from functional_bp import train
from functional_bp.errors import CheckpointError, NonFiniteError, TrainingError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 4)).astype(np.float32)
Y = RNG.integers(0, 3, 50)
PARAMS = {"W": RNG.normal(size=(4, 3)).astype(np.float32)}


def scores(params: Any, x: Any, *, rng: Any, model_state: Any, training: bool) -> Any:
    """A linear layer behind dropout, with a running mean beside it: all that a state can hold."""
    mean = 0.9 * model_state + 0.1 * x.mean(axis=0) if training else model_state
    kept = jax.random.bernoulli(rng, 0.8, x.shape) if training else 1.0
    return ((x - mean) * kept) @ params["W"], mean


TASK = train.supervised(scores, "cross_entropy", ["accuracy"])


class Killed(BaseException):
    """Stands for the end of the process, behind which nothing is done."""


class KillAt(train.Callback):
    """Break off behind a step, as if the process had ended there."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, run: Any, step: int) -> None:
        if step == self.step:
            raise Killed


def fit(folder: Any = None, *, callbacks: Any = (), **options: Any) -> Any:
    options = {"epochs": 4, "batch_size": 16, "validation_split": 0.2, **options}
    return train.fit(
        TASK, PARAMS, X, Y, optimizer=optax.adam(1e-2), model_state=np.zeros(4, np.float32),
        verbose=0, checkpoints=folder, callbacks=list(callbacks), **options,
    )  # fmt: skip


def stopping() -> Any:
    return train.EarlyStopping("val_loss", patience=2, min_delta=1.0)  # stops after epoch 3


@functools.cache
def undisturbed(epochs: int = 4, stops: bool = False) -> Any:
    return fit(epochs=epochs, callbacks=[stopping()] if stops else [])


LONG = [pytest.param(step, marks=pytest.mark.long) for step in (1, 3, 5, 8)]


@pytest.mark.parametrize("step", [4, *LONG])
def test_broken_off_behind_any_step(step: int, tmp_path: Path) -> None:
    expected, history = undisturbed(stops=True)
    folder = train.Checkpoints(tmp_path, every_steps=2)
    with folder, pytest.raises(Killed):
        fit(folder, callbacks=[stopping(), KillAt(step)])
    with train.Checkpoints(tmp_path, every_steps=2) as folder:
        state, resumed = fit(folder, callbacks=[stopping()])
    same(state, expected)
    assert dict(resumed) == dict(history)
    assert history.stopped == resumed.stopped


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    state, history = fit(tmp_path)
    again, resumed = fit(tmp_path, callbacks=[KillAt(step) for step in range(20)])
    same(state, again)
    assert dict(resumed) == dict(history)


def test_more_epochs_go_on(tmp_path: Path) -> None:
    expected, _ = undisturbed()
    fit(tmp_path, epochs=2)
    state, history = fit(tmp_path, epochs=4)
    same(state, expected)
    assert len(history["loss"]) == 4


def test_other_data_or_options_are_refused(tmp_path: Path) -> None:
    fit(tmp_path, epochs=1)
    with pytest.raises(CheckpointError, match="batch_size=8") as caught:
        fit(tmp_path, batch_size=8)
    assert "batch_size=16" in str(caught.value)


def test_a_broken_checkpoint_is_left_for_the_one_before_on_request(tmp_path: Path) -> None:
    fit(tmp_path, epochs=3)
    newest = max(path for path in tmp_path.iterdir() if path.is_dir() and "-step-" in path.name)
    file = max(
        (path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="fallback=True"):
        fit(tmp_path)
    with pytest.warns(UserWarning, match="taken instead: the checkpoint of step 6"):
        state, _ = fit(tmp_path, resume="fallback")
    same(state, undisturbed()[0])


def test_a_checkpoint_saved_by_hand_is_no_run(tmp_path: Path) -> None:
    state, _ = undisturbed()
    with train.Checkpoints(tmp_path) as folder:
        folder.save(3, state)
    with pytest.raises(CheckpointError, match="was not saved by fit"):
        fit(tmp_path)
    with pytest.raises(TrainingError, match="True, False or 'fallback'"):
        fit(tmp_path, resume="yes")


def test_a_folder_in_use_can_be_refused(tmp_path: Path) -> None:
    fit(tmp_path, epochs=1)
    with pytest.raises(TrainingError, match="holds checkpoints already"):
        fit(tmp_path, resume=False)


class RaiseAt(KillAt):
    """A mistake in a person's callback."""

    def on_step_end(self, run: Any, step: int) -> None:
        if step == self.step:
            raise ZeroDivisionError("a person's mistake")


def test_what_a_callback_raises_takes_no_work_with_it(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        fit(tmp_path, callbacks=[RaiseAt(5)])
    assert int(caught.value.state.step) == 5  # type: ignore[attr-defined]
    assert len(caught.value.history.rows) == 1  # type: ignore[attr-defined]
    (note,) = caught.value.__notes__
    assert "epoch 2, after step 5" in note and str(tmp_path) in note
    assert train.Checkpoints(tmp_path).latest() == 5
    same(fit(tmp_path)[0], undisturbed()[0])


def test_what_a_loader_raises_takes_no_work_with_it() -> None:
    def batches(epoch: int) -> Any:
        yield X[:16], Y[:16]
        yield X[16:32], Y[16:32]
        if epoch:
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone") as caught:
        train.fit(
            TASK, PARAMS, batches, optimizer=optax.adam(1e-2), verbose=0, epochs=3,
            model_state=np.zeros(4, np.float32),
        )  # fmt: skip
    assert int(caught.value.state.step) == 4  # type: ignore[attr-defined]
    assert "error.state and error.history" in caught.value.__notes__[0]


def test_the_last_good_state_is_saved(tmp_path: Path) -> None:
    def trap(params: Any, batch: Any) -> Any:
        return jnp.mean(jnp.log(batch) * params)

    data = np.full(40, 2.0, np.float32)
    data[25] = 0.0
    options: Any = {"optimizer": optax.sgd(0.1), "batch_size": 4, "verbose": 0, "shuffle": False}
    with pytest.raises(NonFiniteError) as caught:
        train.fit(trap, 1.0, data, checkpoints=tmp_path, **options)
    with train.Checkpoints(tmp_path) as folder:
        found = folder.restore(caught.value.state)
    same(found.state, caught.value.state)
    assert int(found.state.step) == 6
    data[25] = 2.0  # mended: the run goes on with the batch that failed
    state, _ = train.fit(trap, 1.0, data, checkpoints=tmp_path, **options)
    expected, _ = train.fit(trap, 1.0, data, **options)
    same(state, expected)


# Processes

PROGRAM = """
import sys, hashlib, signal, numpy as np, jax, optax
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path[:0] = sys.argv[1].split("|")
from test_train_resume import fit
from functional_bp import train

folder = sys.argv[2]
print("ready", flush=True)
with train.Checkpoints(folder, every_steps=3, keep=2) as checkpoints:
    state, history = fit(checkpoints, epochs=int(sys.argv[3]))
state = state.replace(rng=jax.random.key_data(state.rng))
data = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state))
print(hashlib.sha256(data).hexdigest(), history.stopped, len(history.rows), flush=True)
"""


def start(folder: Path, epochs: int) -> subprocess.Popen[str]:
    here = Path(__file__).parent
    paths = f"{here}|{here.parent / 'support'}"
    words = [sys.executable, "-c", PROGRAM, paths, str(folder), str(epochs)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ})


def killed_and_resumed(folder: Path, epochs: int, kills: int, seed: int) -> None:
    expected = start(folder / "whole", epochs).communicate(timeout=120)[0].split()[1:]
    draw = random.Random(seed)
    for _ in range(kills):
        with start(folder / "killed", epochs) as process:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            time.sleep(draw.uniform(0.2, 4.0))
            process.send_signal(signal.SIGKILL)
    assert start(folder / "killed", epochs).communicate(timeout=120)[0].split()[1:] == expected


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_moments(seed: int, tmp_path: Path) -> None:
    killed_and_resumed(tmp_path, epochs=60, kills=8, seed=seed)


@pytest.mark.long
def test_ctrl_c_saves_and_gives_the_history_back(tmp_path: Path) -> None:
    expected = start(tmp_path / "whole", 200).communicate(timeout=300)[0].split()[1:]
    process = start(tmp_path / "stopped", 200)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(5.0)
    process.send_signal(signal.SIGINT)
    words = process.communicate(timeout=60)[0].split()
    assert words[1:2] == ["interrupted"] and process.returncode == 0
    assert 0 <= int(words[2]) < 200
    assert start(tmp_path / "stopped", 200).communicate(timeout=300)[0].split()[1:] == expected


@pytest.fixture
def listening() -> Any:
    """Ctrl-C as in a terminal: a process in the background may have been started ignoring it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_ends_the_run_between_two_steps(tmp_path: Path, listening: None) -> None:
    class Interrupt(train.Callback):
        def on_step_end(self, run: Any, step: int) -> None:
            if step == 5:
                os.kill(os.getpid(), signal.SIGINT)

    state, history = fit(tmp_path, callbacks=[Interrupt()])
    assert history.stopped == "interrupted" and int(state.step) == 5
    assert len(history["loss"]) == 1
    resumed, _ = fit(tmp_path)
    same(resumed, undisturbed()[0])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
