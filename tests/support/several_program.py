"""What the tests start in several processes, with the words ADDRESS COUNT INDEX FOLDER WHAT."""

from __future__ import annotations

import json
import os
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
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from functional_bp import shard, train
from functional_bp.errors import NonFiniteError
from functional_bp.train.devices import place

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(36, 5))
Y = np.tanh(X @ DRAW.normal(size=(5, 2)))
PARAMS = {"a": DRAW.normal(size=(5, 8)) / 3, "b": DRAW.normal(size=(8, 2)) / 3}
ADAM = optax.adam(1e-2)
LOSS = train.supervised(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], "mse", ["mae"])
LAST_STEP = 10  # of two epochs: 4 batches of 8 examples and one of 4


class Watched(np.ndarray):
    """An array that notes which of its rows are read."""

    rows: set[int] = set()

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, np.ndarray):
            Watched.rows |= set(index.tolist())
        return super().__getitem__(index)


class Dies(train.Callback):
    """The last process ends without a word in the middle of the second epoch."""

    def __init__(self, how: str, index: int) -> None:
        self.how, self.index = how, index

    def on_step_end(self, run: Any, step: int) -> None:
        last = jax.process_index() == self.index
        if last and step == 7 and self.how == "kill":
            run.state.params["a"].block_until_ready()
            os.kill(os.getpid(), signal.SIGKILL)
        if last and step == 7 and self.how == "raise":
            raise LookupError("a file is not there")


class Counts(train.Callback):
    """It is called by one process."""

    speaks = True
    called = 0

    def on_epoch_end(self, run: Any, epoch: int, logs: dict[str, Any]) -> None:
        Counts.called += 1


def fitted(folder: Path, callbacks: Any = (), **options: Any) -> tuple[Any, Any]:
    checkpoints = train.Checkpoints(folder / "run", every_steps=2, every_epochs=None, keep=None)
    return train.fit(
        LOSS, PARAMS, X.view(Watched), Y, optimizer=ADAM, epochs=2, batch_size=8,
        checkpoints=checkpoints, verbose=2, callbacks=callbacks, **options,
    )  # fmt: skip


def numbers(state: Any, history: Any) -> dict[str, Any]:
    """What a run has learned, for JSON."""
    return {
        "a": np.asarray(state.params["a"]).tolist(),
        "step": int(state.step),
        "loss": history["loss"],
        "evaluated": train.evaluate(LOSS, state, X, Y, batch_size=8)["loss"],
        "predicted": train.predict(LOSS, state, X, batch_size=8).tolist(),
    }


def divided(state: Any) -> Any:
    """The rows of every array are spread over all devices, where these divide them."""
    mesh = jax.make_mesh((len(jax.devices()),), ("d",), (AxisType.Auto,))

    def put(x: Any) -> Any:
        whole = x.ndim == 0 or x.shape[0] % mesh.size or not jnp.issubdtype(x.dtype, jnp.inexact)
        return place(x, NamedSharding(mesh, PartitionSpec(*([] if whole else ["d"]))))

    return jax.tree.map(put, state)


def reads_back(folder: Path) -> bool:
    """A state that no process holds whole is saved in parts, and read."""
    state = divided(train.init(PARAMS | {"w": np.arange(48.0).reshape(16, 3)}, ADAM))
    checkpoints = train.Checkpoints(folder / "parts")
    if not checkpoints.steps():
        checkpoints.save(3, state)
    found = checkpoints.restore(divided(train.init(PARAMS | {"w": np.zeros((16, 3))}, ADAM)))
    shards = found.state.params["w"].addressable_shards
    return all(
        np.array_equal(part.data, np.arange(48.0).reshape(16, 3)[part.index]) for part in shards
    )


def main(address: str, count: str, index: str, folder: str, what: str) -> None:
    jax.config.update("jax_enable_x64", True)
    if what == "late" and index == "1":
        sys.exit("it failed before it came")
    if what == "used":
        jnp.zeros(3)
    given = () if address == "-" else (address, int(count), int(index))
    connection = shard.connect(*given, timeout_seconds=5 if what == "late" else 60)
    assert shard.connect() is connection
    where = Path(folder)
    if what == "differs":
        connection.same(f"program {connection.index}")
    if what in ("kill", "raise"):
        fitted(where, [Dies(what, int(sys.argv[6]))])
    if what == "hang":
        if connection.index == 1:
            later = ["sh", "-c", f"sleep 55; kill -9 {os.getpid()}"]
            subprocess.Popen(later, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(60)
    if what == "train":
        found = numbers(*fitted(where, [Counts(), train.CSVLogger(where / "log.csv")]))
        by_part = slice(connection.index, None, connection.count)
        loader = [(X[:32][k : k + 8][by_part], Y[:32][k : k + 8][by_part]) for k in range(0, 32, 8)]
        _, history = train.fit(LOSS, PARAMS, loader, optimizer=ADAM, epochs=2, verbose=0)
        found |= {
            "read": sorted(Watched.rows), "called": Counts.called, "loader": history["loss"],
            "parts": reads_back(where),
        }  # fmt: skip
        try:
            nan = lambda params, batch: jnp.log(-(batch[0].mean() ** 2))
            train.fit(nan, PARAMS, X, Y, optimizer=ADAM, verbose=0)
        except NonFiniteError as error:
            found["cause"] = str(error.finding)
        (where / f"found-{connection.index}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:6])
