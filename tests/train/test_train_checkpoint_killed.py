"""Processes that are killed, interrupted or end while a checkpoint is being written."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import children
import jax
import jax.numpy as jnp
import pytest
from test_train_checkpoint import same_bits, state_of

from functional_bp.train import storage
from functional_bp.train.checkpoints import Checkpoints


def state(step, size=200_000):
    params = {"a": jnp.full(size, step, jnp.float32), "b": jnp.full((3, size // 8), -step, "int32")}
    return state_of(params, step=jnp.int32(step), rng=jax.random.key(step))


def save_all_the_time(pipe, folder):
    jax.config.update("jax_platforms", "cpu")
    checkpoints = Checkpoints(folder, keep=2)
    step = checkpoints.latest() or 0
    pipe.send(step)
    while True:
        step += 1
        checkpoints.save(step, state(step), {"step": step}, metrics={"val_loss": 100.0 - step % 10})
        pipe.send(step - 1)  # the one before has been waited for


def kill_at_random(folder, times, seed):
    draw, leftovers = random.Random(seed), 0
    for _ in range(times):
        process, pipe = children.start(save_all_the_time, folder)
        times_told = [(pipe.recv(), time.monotonic()) for _ in range(draw.randrange(2, 5))]
        (_, before), (first, last) = times_told[-2:]
        process.join(draw.uniform(0, last - before))  # within the save that has begun
        assert process.exitcode is None
        process.kill()
        told = [first, *children.rest(pipe)][-1]
        process.join()
        leftovers += any(storage.LEFTOVER.fullmatch(name) for name in os.listdir(folder))
        checkpoints = Checkpoints(folder, keep=2)
        names = sorted(os.listdir(folder))
        assert all(storage.NAME.fullmatch(name) for name in names)  # nothing is left over
        steps = checkpoints.steps()
        assert steps == sorted(set(steps)) and len(steps) >= min(2, told)
        assert max(steps, default=0) >= told  # whatever was saved is there
        for step in steps:
            found = checkpoints.restore(state(0), step=step)
            assert found.loop == {"step": step}
            same_bits(found.state, state(step))
        best = max(((step % 10, -step) for step in steps), default=(0, 0))
        assert (checkpoints.best() or 0) == -best[1]
    return leftovers


def test_killed_at_random_moments_every_checkpoint_is_whole(tmp_path):
    kill_at_random(tmp_path, 2, seed=0)


@pytest.mark.long
def test_killed_thirty_times_every_checkpoint_is_whole(tmp_path):
    assert kill_at_random(tmp_path, 30, seed=1) > 3  # some of them in the middle of a save


def test_a_leftover_is_removed_but_no_save_in_progress(tmp_path):
    of_others = {".saving-mine", "9-step-3", "000009-step-3.part"}
    unfinished = {"000009-step-3.orbax-checkpoint-tmp", ".deleting", ".saving-000001-step-1"}
    for name in of_others | unfinished:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("text")
    with storage._locked(tmp_path, wait=True):  # as another process does that saves
        Checkpoints(tmp_path)
        assert set(os.listdir(tmp_path)) == of_others | unfinished
    Checkpoints(tmp_path)
    assert set(os.listdir(tmp_path)) == of_others


ENDS_AT_ONCE = """
import sys
sys.path[:0] = sys.argv[2:]
from test_train_checkpoint_killed import Checkpoints, os, state

Checkpoints(sys.argv[1]).save(5, state(5, 3_000_000), {"step": 5})
"""


@pytest.mark.parametrize("end", ["", "os.kill(os.getpid(), 2)"])
def test_a_program_that_ends_after_a_save_has_saved(tmp_path, end):
    here = Path(__file__).parent
    words = [sys.executable, "-c", ENDS_AT_ONCE + end, tmp_path, here, here.parent / "support"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run(words, env=environment, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode in ((-2, 130) if end else (0,))
    if not end:
        assert done.stderr == ""  # nothing of Orbax, absl or JAX
    else:
        assert done.stderr.count("Traceback") == 1
        assert done.stderr.rstrip().endswith("KeyboardInterrupt")
    assert os.listdir(tmp_path) == ["000001-step-5"]
    found = Checkpoints(tmp_path).restore(state(0, 3_000_000))
    assert found.loop == {"step": 5}
    same_bits(found.state, state(5, 3_000_000))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # in a __del__
def test_ctrl_c_at_any_moment_leaves_saving_as_it_was(tmp_path):
    def interrupt(*args):
        raise KeyboardInterrupt

    checkpoints, draw = Checkpoints(tmp_path, keep=2), random.Random(0)
    before = signal.signal(signal.SIGALRM, interrupt)
    begun = interrupted = 0
    try:
        for _ in range(12):
            try:
                signal.setitimer(signal.ITIMER_REAL, draw.uniform(0.002, 0.15), 1)
                while True:
                    begun += 1
                    checkpoints.save(begun, state_of(jnp.full(50, begun)), {"step": begun})
            except KeyboardInterrupt:
                signal.setitimer(signal.ITIMER_REAL, 0)
                interrupted += 1
            checkpoints.save(begun + 1, state_of(jnp.full(50, begun + 1)), {"step": begun + 1})
            begun += 1
            assert checkpoints.latest() == begun
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted == 12
    for step in checkpoints.steps():
        found = checkpoints.restore(state_of(jnp.full(50, 0)), step=step)
        assert found.loop == {"step": step} and int(found.state.params[7]) == step
    assert len(os.listdir(tmp_path)) == 2


def test_two_processes_may_look_and_save_at_once(tmp_path):
    process, pipe = children.start(save_all_the_time, tmp_path)
    try:
        pipe.recv()
        end = time.monotonic() + 1
        while time.monotonic() < end:
            Checkpoints(tmp_path)  # would remove a leftover
        first = pipe.recv()
        time.sleep(0.5)
        assert process.exitcode is None  # its saves were not spoilt
    finally:
        process.kill()
        last = children.rest(pipe)[-1]
    assert last > first
