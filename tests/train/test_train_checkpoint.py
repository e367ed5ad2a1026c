"""Checkpoints: bit for bit back, on any mesh, after donations; the last and the best are kept."""

import sys
import threading
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from functional_bp.errors import CheckpointError, TrainingError
from functional_bp.train import checkpoints as module
from functional_bp.train.checkpoints import Checkpoints
from functional_bp.train.state import TrainState, init

DTYPES = [
    "float32", "bfloat16", "float16", "float64", "complex64", "complex128", "bool", "int8", "int16",
    "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2",
]  # fmt: skip


class Pair(NamedTuple):
    left: object
    right: object


def random_bits(dtype, shape, seed=0):
    """Any bits at all: infinities, subnormal numbers and every kind of NaN among them."""
    words = np.random.default_rng(seed).bytes(int(np.prod(shape)) * jnp.dtype(dtype).itemsize)
    if dtype == "bool":
        return np.frombuffer(words, np.uint8).reshape(shape) > 127
    return np.frombuffer(words, jnp.dtype(dtype)).reshape(shape)


def state_of(params, **rest):
    fields = {"opt_state": (), "step": jnp.int32(0), "rng": jax.random.key(7), **rest}
    return TrainState(params, **fields)


def same_bits(one, other):
    """Structure, dtypes, shapes and every bit."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other)):
        assert type(a) is type(b)
        if isinstance(a, bool | int | float | complex):
            assert repr(a) == repr(b)
            continue
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def blank(state):
    """The same structure with other values, to restore into."""

    def zero(leaf):
        if isinstance(leaf, bool | int | float | complex):
            return type(leaf)()
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.split(jax.random.key(1, impl=jax.random.key_impl(leaf)), leaf.shape)
        return np.zeros_like(leaf) if isinstance(leaf, np.ndarray) else jnp.zeros_like(leaf)

    return jax.tree.map(zero, state)


def test_every_bit_comes_back(tmp_path):
    arrays = {d: jnp.asarray(random_bits(d, (3, 5), k)) for k, d in enumerate(DTYPES)}
    params = {
        "arrays": arrays,
        "empty": jnp.zeros((0, 3), jnp.bfloat16),
        "scalar": jnp.float64(np.pi),
        "numpy": np.asfortranarray(random_bits("float32", (4, 2))),
        "a/b.c['d']": [jnp.float32(-0.0), None, Pair(jnp.ones(2), (3, 0.1, True, 2j, 10**30))],
        "no keys": jax.random.split(jax.random.key(3), (0,)),
    }
    optimizer = optax.chain(optax.clip(1.0), optax.inject_hyperparams(optax.adam)(0.1))
    state = state_of(
        params,
        opt_state=optimizer.init({"w": jnp.ones(3)}),
        rng=jax.random.key(5, impl="rbg"),
        model_state={"keys": jax.random.split(jax.random.key(2), (2, 3))},
    )
    extra = {"sums": {"loss": jnp.float32(0.1)}, "kept": [(jnp.ones(2), None), np.arange(3), 7]}
    loop = {"epoch": 3, "seed": 2**70, "lr": 0.1, "nan": float("nan"), "deep": [{"a": None}]}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state, loop, extra)
    found = Checkpoints(tmp_path).restore(blank(state))
    same_bits(found.state, state)
    same_bits(found.extra, extra)
    assert repr(found.loop) == repr(loop) and found.step == 3
    draws = [jax.random.normal(s.rng, (4,)) for s in (found.state, state)]
    np.testing.assert_array_equal(*draws)


def test_a_restored_adam_goes_on_as_if_never_saved(tmp_path):
    optimizer = optax.adam(0.1)

    @jax.jit
    def step(state):
        grads = jax.tree.map(lambda w: jnp.sin(w) + w, state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state)
        return state.replace(
            params=optax.apply_updates(state.params, updates), opt_state=opt_state,
            step=state.step + 1,
        )  # fmt: skip

    state = init({"w": np.linspace(-1, 1, 7, dtype=np.float32)}, optimizer)
    checkpoints = Checkpoints(tmp_path)
    fresh, straight = state, state
    for k in range(6):
        straight = step(straight)
        if k == 2:
            checkpoints.save(3, straight)
    resumed = checkpoints.restore(fresh).state
    for _ in range(3):
        resumed = step(resumed)
    same_bits(resumed, straight)
    assert step._cache_size() == 1  # nor is anything compiled again


def spread(leaf, mesh, spec):
    return jax.device_put(leaf, NamedSharding(mesh, spec))


def test_saved_on_one_mesh_and_restored_on_another(tmp_path):
    eight = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))
    two = Mesh(np.array(jax.devices()[:2]), ("data",))
    values = random_bits("float32", (16, 6))
    keys = jax.random.split(jax.random.key(0), 8)
    saved = state_of(
        {"w": spread(values, eight, P("data", "model")), "r": spread(values, eight, P())},
        model_state=spread(keys, eight, P("data")),
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, saved)
    for w, r, k in [
        (spread(values * 0, two, P("data")), spread(values * 0, two, P()), spread(keys, two, P())),
        (spread(values * 0, two, P(None, "data")), values * 0, spread(keys, two, P("data"))),
        (jnp.zeros((16, 6), jnp.float32), jax.device_put(values * 0, jax.devices()[5]), keys),
        (spread(values * 0, eight, P("model")), jnp.asarray(values), keys),
    ]:
        like = state_of({"w": w, "r": r}, model_state=k)
        found = checkpoints.restore(like).state
        for a, b, original in zip(*map(jax.tree.leaves, (found, like, saved))):
            assert type(a) is type(b)
            if isinstance(a, jax.Array):
                assert a.sharding == b.sharding and a.committed == b.committed
            if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
                a, original = jax.random.key_data(a), jax.random.key_data(original)
            assert np.asarray(a).tobytes() == np.asarray(original).tobytes()


def test_abstract_values_are_enough_to_restore_into(tmp_path):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    state = state_of({"w": jnp.arange(8.0)})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
    like = jax.eval_shape(lambda: state)
    sharding = NamedSharding(mesh, P("data"))
    like.params["w"] = jax.ShapeDtypeStruct((8,), "float64", sharding=sharding)
    found = checkpoints.restore(like).state
    same_bits(found, state)
    assert found.params["w"].sharding == sharding


@pytest.mark.parametrize("sharded", [False, True])
def test_a_step_may_donate_what_was_just_saved(tmp_path, sharded):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    step = jax.jit(lambda w: w * 0 - 1, donate_argnums=0)
    checkpoints = Checkpoints(tmp_path, keep=None)
    values = np.arange(1 << 18, dtype=np.float32)
    for k in range(5):
        w = spread(values + k, mesh, P("data")) if sharded else jnp.asarray(values + k)
        kept = values + k
        state = state_of({"w": w, "kept": kept})
        w.block_until_ready()
        checkpoints.save(k, state)
        after = step(w).block_until_ready()
        kept[:] = -1  # NumPy's arrays can be written to, too
        assert w.is_deleted() and float(after[3]) == -1
    like = state_of({"w": jnp.zeros(1 << 18, jnp.float32), "kept": values})
    for k in range(5):
        found = checkpoints.restore(like, step=k).state.params
        np.testing.assert_array_equal(found["w"], values + k)
        np.testing.assert_array_equal(found["kept"], values + k)


def test_saving_waits_for_no_disk(tmp_path, monkeypatch):
    checkpoints, state = Checkpoints(tmp_path), state_of({"w": jnp.ones(3)})
    may_write, write = threading.Event(), checkpoints._folder.write
    monkeypatch.setattr(
        checkpoints._folder, "write", lambda *args: may_write.wait() and write(*args)
    )
    loop = {"epoch": 1}
    checkpoints.save(1, state, loop)  # returns, though nothing can be written yet
    loop["epoch"] = 2
    assert not (tmp_path / "000001-step-1").exists()
    may_write.set()
    assert checkpoints.restore(state).loop == {"epoch": 1}
    assert not [t for t in threading.enumerate() if "checkpoint" in t.name]


def test_without_asynchrony_a_save_is_on_disk_when_it_returns(tmp_path):
    Checkpoints(tmp_path, asynchronous=False).save(1, state_of(jnp.ones(3)))
    assert (tmp_path / "000001-step-1" / "manifest.json").exists()


@pytest.mark.parametrize(
    "mode, best, steps", [("min", 1, [1, 5, 6]), ("max", 3, [3, 5, 6])]
)  # fmt: skip
def test_the_last_and_the_best_are_kept(tmp_path, mode, best, steps):
    state = state_of(jnp.ones(3))
    losses = [3.0, 1.0, 2.0, 9.0, float("nan"), None, float("inf")]
    checkpoints = Checkpoints(tmp_path, keep=2, mode=mode)
    assert checkpoints.latest() is None and checkpoints.best() is None
    for k, loss in enumerate(losses):
        checkpoints.save(k, state.replace(step=jnp.int32(k)), metrics=loss and {"val_loss": loss})
    for opened in (checkpoints, Checkpoints(tmp_path, keep=2, mode=mode)):
        assert opened.steps() == steps and opened.latest() == 6 and opened.best() == best
        found = opened.restore(state, step="best")
        assert found.step == best == int(found.state.step)
        assert opened.restore(state, step=5).step == 5
    assert len(list(tmp_path.iterdir())) == 3


def test_without_a_number_to_be_best_by_only_the_last_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, best=None)
    for k in range(3):
        checkpoints.save(k, state_of(jnp.ones(3)), metrics={"val_loss": float(k)})
    assert checkpoints.steps() == [2] and checkpoints.best() is None
    with pytest.raises(CheckpointError, match="no best checkpoint by None"):
        checkpoints.restore(state_of(jnp.ones(3)), step="best")


def test_a_step_saved_twice_is_replaced_and_the_newest_is_the_last_saved(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, value in [(5, 0.0), (7, 1.0), (5, 2.0)]:  # a run that went back to step 5
        checkpoints.save(step, state_of(jnp.full(3, value)))
    assert checkpoints.steps() == [7, 5] and checkpoints.latest() == 5
    found = checkpoints.restore(state_of(jnp.zeros(3)))
    assert float(found.state.params[0]) == 2.0 and len(list(tmp_path.iterdir())) == 2


def test_a_failed_write_is_told_by_the_next_call_and_hurts_nothing(tmp_path, monkeypatch):
    checkpoints, state = Checkpoints(tmp_path), state_of(jnp.ones(3))
    checkpoints.save(1, state)
    checkpoints.wait()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("functional_bp.train.storage.write_arrays", full)
    checkpoints.save(2, state)
    with pytest.raises(CheckpointError, match="(?s)could not be written.*No space left"):
        checkpoints.save(3, state)
    monkeypatch.undo()
    assert checkpoints.steps() == [1] and len(list(tmp_path.iterdir())) == 1
    checkpoints.save(3, state)
    assert checkpoints.steps() == [1, 3]


def test_a_failed_write_at_the_end_of_a_program_is_printed(capsys):
    work = module.Background()
    work.start(lambda: 1 / 0)
    module._finish()
    assert "a checkpoint could not be written" in capsys.readouterr().err
    work.wait()  # told once


@pytest.mark.parametrize(
    "options, message",
    [
        ({"keep": 0}, "(?s)keep is no count.*got: +0"),
        ({"every_steps": 2.5}, "(?s)every_steps is no count.*2.5"),
        ({"every_epochs": True}, "(?s)every_epochs is no count.*True"),
        ({"mode": "best"}, "(?s)mode is neither.*'best'.*'min' or 'max'"),
        ({"directory": "gs://bucket/run"}, "(?s)a folder of this machine.*gs://bucket/run"),
    ],
)
def test_options_that_make_no_sense(tmp_path, options, message):
    with pytest.raises(TrainingError, match=message):
        Checkpoints(**{"directory": tmp_path, **options})


def test_without_orbax_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(TrainingError, match=r"pip install 'functional-bp\[train\]'"):
        Checkpoints(tmp_path)


def test_a_save_costs_a_loop_little(tmp_path):
    """A copy and a thread: 2 ms here; two orders of magnitude are left for a busy machine."""
    checkpoints, state = Checkpoints(tmp_path), state_of({"w": jnp.ones(1000)})
    seconds = []
    for k in range(5):
        checkpoints.wait()
        began = time.perf_counter()
        checkpoints.save(k, state)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.2
