"""A run that is broken off at any moment ends, resumed, in the very state of one that was not."""

from __future__ import annotations

import functools
import os
import random
import signal
from pathlib import Path
from typing import Any

import children
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


@pytest.mark.long
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


@pytest.mark.long
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


class Told(train.Callback):
    """Tell every step to whoever reads the pipe."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe

    def on_step_end(self, run: Any, step: int) -> None:
        self.pipe.send(step)


def run_to_its_end(pipe: Any, folder: Path, epochs: int) -> None:
    """Send every step, and at the end all bits of the state, why it stopped, and the epochs."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with train.Checkpoints(folder, every_steps=3, keep=2) as checkpoints:
        state, history = fit(checkpoints, epochs=epochs, callbacks=[Told(pipe)])
    state = state.replace(rng=jax.random.key_data(state.rng))
    bits = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]
    pipe.send((bits, history.stopped, len(history.rows)))


EPOCHS = 24


def to_its_end(folder: Path) -> Any:
    _, pipe = children.start(run_to_its_end, folder, EPOCHS)
    return children.rest(pipe)[-1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return to_its_end(tmp_path_factory.mktemp("whole"))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_moments(seed: int, whole: Any, tmp_path: Path) -> None:
    draw = random.Random(seed)
    for _ in range(8):
        process, pipe = children.start(run_to_its_end, tmp_path, EPOCHS)
        for _ in range(draw.randrange(12)):
            pipe.recv()
        process.join(draw.uniform(0, 0.1))
        process.kill()
        process.join()
    assert to_its_end(tmp_path) == whole


@pytest.mark.long
def test_ctrl_c_saves_and_gives_the_history_back(whole: Any, tmp_path: Path) -> None:
    process, pipe = children.start(run_to_its_end, tmp_path, EPOCHS)
    while pipe.recv() < EPOCHS:
        pass
    os.kill(process.pid, signal.SIGINT)
    *_, (_, stopped, epochs) = children.rest(pipe)
    process.join()
    assert stopped == "interrupted" and process.exitcode == 0
    assert 0 <= epochs < EPOCHS
    assert to_its_end(tmp_path) == whole


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
