"""Two processes train one network, each on its rows of every batch, to the numbers of one process.

Started alone, it starts the two by itself. As it is usual, something else does, and then
``shard.connect()`` needs no arguments: mpirun -n 2 python train.py

Run: python examples/two_processes.py
"""

import json
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from functional_bp import shard, train

address, *index = sys.argv[1:] or [""]
jax.config.update("jax_platforms", "cpu")  # which processes of one machine can share
if address:  # one of the two
    connection = shard.connect(address, 2, int(index[0]), verbose=False)

draw = np.random.default_rng(0)  # one seed in every process: the same first parameters
x = draw.normal(size=(256, 8)).astype(np.float32)
y = np.sin(x.sum(axis=1, keepdims=True))
params = {"in": draw.normal(size=(8, 32)) / 3, "out": draw.normal(size=(32, 1)) / 6}
params = jax.tree.map(np.float32, params)


def model(params, x):
    """tanh(x in) out."""
    return jnp.tanh(x @ params["in"]) @ params["out"]


loss = train.supervised(model, "mse")
state, history = train.fit(
    loss, params, x, y, optimizer=optax.adam(1e-2), epochs=3, batch_size=64, verbose=0
)
mine = {"loss": history["loss"], "out": np.asarray(state.params["out"]).ravel().tolist()}

if address:  # the parameters are whole on each process, and equal: one tells them
    if connection.speaks:
        print(json.dumps(mine))
    sys.exit()

with socket.create_server(("127.0.0.1", 0)) as listening:
    address = f"127.0.0.1:{listening.getsockname()[1]}"  # free, for them to meet at
words = [sys.executable, __file__, address]
two = [subprocess.Popen([*words, str(k)], stdout=subprocess.PIPE, text=True) for k in range(2)]
told = two[0].communicate()[0].splitlines()[-1]  # behind what the collectives say of themselves
two[1].communicate()
theirs = json.loads(told)

for epoch, (one, both) in enumerate(zip(mine["loss"], theirs["loss"])):
    print(f"epoch {epoch}: loss {one:.6f} in one process, {both:.6f} in two")
assert np.allclose(mine["loss"], theirs["loss"], rtol=1e-4)
assert np.allclose(mine["out"], theirs["out"], atol=1e-4)
