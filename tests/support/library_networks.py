"""Models of neural networks written against other libraries, for ``test_libraries``."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from library_models import Model, doubles, draws, mean_squares


def linen_convolutions() -> Model:
    """Batch normalisation with its running averages, dropout, both poolings."""
    import flax.linen as nn
    import optax

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Conv(4, (3, 3))(x)
            x = nn.relu(nn.BatchNorm(use_running_average=False, momentum=0.9)(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
            x = nn.gelu(nn.GroupNorm(2)(nn.Conv(4, (3, 3), strides=2, feature_group_count=2)(x)))
            x = nn.avg_pool(x, (2, 2)).reshape(x.shape[0], -1)
            return nn.Dense(3)(nn.Dropout(0.3, deterministic=False)(x))

    keys = dict(zip(["params", "dropout"], jax.random.split(jax.random.key(0))))
    images, labels = draws(5, 8, 8, 2), jnp.array([0, 2, 1, 1, 0])
    variables = doubles(Network().init(keys, images))

    def loss(parameters: Any, averages: Any, images: Any, labels: Any) -> Any:
        logits, state = Network().apply(
            {"params": parameters, "batch_stats": averages},
            images, rngs={"dropout": keys["dropout"]}, mutable=["batch_stats"],
        )  # fmt: skip
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), state

    return Model(loss, variables["params"], (variables["batch_stats"], images, labels))


def linen_recurrence() -> Model:
    """Lifted transforms: ``nn.RNN`` is ``nn.scan``, over a cell under ``nn.remat``."""
    import flax.linen as nn

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x: Any, lengths: Any) -> Any:
            cell = nn.remat(nn.OptimizedLSTMCell)(4, param_dtype=x.dtype)
            back = nn.GRUCell(3, param_dtype=x.dtype)
            x = nn.Bidirectional(nn.RNN(cell), nn.RNN(back))(x, seq_lengths=lengths)
            return nn.Dense(1)(x)

    x, lengths = draws(3, 6, 2), jnp.array([6, 3, 4])
    variables = doubles(Network().init(jax.random.key(0), x, lengths))
    loss = lambda v, x, lengths: (jnp.mean(Network().apply(v, x, lengths) ** 2), None)
    return Model(loss, variables, (x, lengths))


def nnx_transformer() -> Model:
    """A pre-norm block, embedding and head; the module itself is the differentiated pytree."""
    import optax
    from flax import nnx

    class Block(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.embed = nnx.Embed(11, 8, param_dtype=jnp.float64, rngs=rngs)
            self.norms = nnx.List([nnx.LayerNorm(8, rngs=rngs), nnx.RMSNorm(8, rngs=rngs)])
            self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
            self.wide, self.narrow = nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 8, rngs=rngs)

        def __call__(self, tokens: Any) -> Any:
            x = self.embed(tokens)
            x = x + self.attention(self.norms[0](x), mask=nnx.make_causal_mask(tokens))
            x = x + self.narrow(nnx.gelu(self.wide(self.norms[1](x))))
            return self.embed.attend(x)

    def loss(state: Any, tokens: Any) -> Any:
        logits = nnx.merge(graph, state)(tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean(), None

    graph, state = nnx.split(Block(nnx.Rngs(0)))
    tokens = jnp.asarray(np.random.default_rng(0).integers(11, size=(2, 6)))
    # jax.nn.dot_product_attention takes its softmax in single precision
    return Model(loss, doubles(state), (tokens,), single=True)


def nnx_batch_statistics() -> Model:
    """A module that changes its state when called."""
    from flax import nnx

    class Network(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.linear = nnx.Linear(3, 4, rngs=rngs)
            self.norm = nnx.BatchNorm(4, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.dropout(jax.nn.softplus(self.norm(self.linear(x))))

    def loss(parameters: Any, rest: Any, x: Any) -> Any:
        model = nnx.merge(graph, parameters, rest, copy=True)
        value = jnp.mean(model(x) ** 2)
        return value, nnx.state(model, nnx.BatchStat)

    graph, parameters, rest = nnx.split(Network(nnx.Rngs(0)), nnx.Param, ...)
    return Model(loss, doubles(parameters), (doubles(rest), draws(6, 3)))


def equinox_recurrence() -> Model:
    """A filtered jit inside; a cell under ``lax.scan``, then a perceptron under ``vmap``."""
    import equinox as eqx

    class Network(eqx.Module):
        cell: eqx.nn.GRUCell
        head: eqx.nn.MLP

        def __call__(self, xs: Any) -> Any:
            start = jnp.zeros(self.cell.hidden_size)
            last, _ = lax.scan(lambda h, x: (self.cell(x, h), None), start, xs)
            return self.head(last)

    keys = jax.random.split(jax.random.key(0))
    network = Network(eqx.nn.GRUCell(2, 4, key=keys[0]), eqx.nn.MLP(4, 1, 8, 2, key=keys[1]))
    parameters, static = eqx.partition(network, eqx.is_inexact_array)

    @eqx.filter_jit
    def loss(parameters: Any, xs: Any, targets: Any) -> Any:
        predictions = jax.vmap(eqx.combine(parameters, static))(xs)
        return mean_squares(predictions, targets), None

    return Model(loss, parameters, (draws(5, 7, 2), draws(5, 1, seed=1)))


def equinox_loops() -> Model:
    """Equinox's own loops with checkpoints and bounds, and its checks that raise at run time."""
    import equinox as eqx
    import equinox.internal as eqxi

    def loss(x: Any, n: Any) -> Any:
        x = eqx.error_if(x, n > 100, "too many")
        step = lambda s: (s[0] + 1, jnp.sin(s[1]) * x)
        _, y = eqxi.while_loop(
            lambda s: s[0] < n, step, (0, x), kind="checkpointed", max_steps=64, checkpoints=4
        )
        _, z = eqxi.while_loop(lambda s: s[0] < n, step, (0, x), kind="bounded", max_steps=16)
        return jnp.sum(y * z), y

    return Model(loss, draws(3), (jnp.array(9),))


def haiku_convolutions() -> Model:
    """State and randomness threaded by ``transform_with_state``; an LSTM after a convolution."""
    import haiku as hk

    def network(x: Any) -> Any:
        x = hk.Conv1D(4, 3)(x)
        x = jax.nn.elu(hk.BatchNorm(True, True, 0.9)(x, is_training=True))
        x = hk.dropout(hk.next_rng_key(), 0.2, hk.LayerNorm(-1, True, True)(x))
        core = hk.LSTM(3)
        x, _ = hk.dynamic_unroll(core, x, core.initial_state(x.shape[0]), time_major=False)
        return hk.nets.MLP([4, 1])(x)

    key, x = jax.random.key(0), draws(3, 6, 2)
    init, apply = hk.transform_with_state(network)
    parameters, state = doubles(init(key, x))

    def loss(parameters: Any, state: Any, x: Any) -> Any:
        y, state = apply(parameters, state, key, x)
        return jnp.mean(y**2), state

    return Model(loss, parameters, (state, x))


def keras_stateless() -> Model:
    """``stateless_call`` on the JAX backend, with trained and untrained variables."""
    import keras
    from keras import layers

    keras.config.set_floatx("float64")
    inputs = keras.Input((6, 6, 1))
    x = layers.BatchNormalization()(layers.Conv2D(3, 3, activation="silu")(inputs))
    x = layers.Reshape((9, 2))(layers.SeparableConv2D(2, 2)(x))
    x = layers.MultiHeadAttention(2, 3)(x, x) + layers.LSTM(2, return_sequences=True)(x)
    model = keras.Model(inputs, layers.Dense(2, kernel_regularizer="l2")(layers.Flatten()(x)))
    error = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def loss(trained: Any, untrained: Any, x: Any, labels: Any) -> Any:
        logits, untrained, extra = model.stateless_call(
            trained, untrained, x, training=True, return_losses=True
        )
        return error(labels, logits) + sum(extra), untrained

    trained = [v.value for v in model.trainable_variables]
    untrained = [v.value for v in model.non_trainable_variables]
    data = untrained, draws(4, 6, 6, 1), jnp.array([0, 1, 1, 0])
    return Model(loss, trained, data, single=True)  # tanh is, with the dtype policy float64 too


def jraph_network() -> Model:
    """Messages along edges, attention over them, and a readout per graph."""
    import jraph

    def loss(p: Any, graph: Any) -> Any:
        network = jraph.GraphNetwork(
            update_edge_fn=lambda e, s, r, g: jnp.tanh((e + s - r) @ p["edge"] + g),
            update_node_fn=lambda n, s, r, g: jax.nn.relu(jnp.hstack([n, s, r]) @ p["node"]),
            update_global_fn=lambda n, e, g: n + e * g,
            attention_logit_fn=lambda e, s, r, g: (e * s) @ p["score"],
            attention_reduce_fn=lambda e, weight: e * weight,
            aggregate_edges_for_nodes_fn=jraph.segment_mean,
        )
        out = network(network(graph))
        return jnp.sum(out.globals**2), out.nodes

    graph = jraph.GraphsTuple(
        nodes=draws(5, 3), edges=draws(6, 3, seed=1), globals=draws(2, 3, seed=2),
        senders=jnp.array([0, 1, 2, 3, 4, 3]), receivers=jnp.array([1, 2, 0, 4, 3, 3]),
        n_node=jnp.array([3, 2]), n_edge=jnp.array([3, 3]),
    )  # fmt: skip
    weights = {"edge": draws(3, 3), "node": draws(9, 3, seed=1), "score": draws(3, 1, seed=2)}
    return Model(loss, weights, (graph,))
