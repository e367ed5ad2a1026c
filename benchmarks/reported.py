"""Losses whose gradients people reported not to fit their memory, each with the report's address.

They are small models of what was reported, written anew. Where an expert is known to need less,
that is here too: ``jax.checkpoint`` in the right place, a loop in two levels, a batch in chunks.
``benchmarks.held_out`` has those that nothing was tuned on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.losses import Made, Wrap

Scan = Callable[..., Any]
Over = Callable[[Callable[..., Any]], Callable[..., Any]]


def f32(*sizes: int) -> Any:
    """The shape of an array of numbers."""
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def i32(*sizes: int) -> Any:
    """The shape of an array of positions, which are below 512."""
    return jax.ShapeDtypeStruct(sizes, jnp.int32)


def as_is(block: Callable[..., Any]) -> Callable[..., Any]:
    """The block, with nothing put around it."""
    return block


def two_levels(step: Any, state: Any, xs: Any, length: int | None = None) -> Any:
    """``lax.scan`` in chunks of about the square root of the steps, each of which runs again."""
    count = length or jax.tree.leaves(xs)[0].shape[0]
    size = max(k for k in range(1, int(count**0.5) + 1) if count % k == 0)
    chunked = jax.tree.map(lambda x: x.reshape(count // size, size, *x.shape[1:]), xs)
    chunk = jax.checkpoint(lambda state, xs: lax.scan(step, state, xs, length=size))
    state, ys = lax.scan(chunk, state, chunked, length=count // size)
    return state, jax.tree.map(lambda y: y.reshape(count, *y.shape[2:]), ys)


def in_chunks(count: int) -> Over:
    """``jax.vmap`` of one chunk of rows after the other, each of which runs again."""

    def over(fun: Callable[..., Any]) -> Callable[..., Any]:
        def mapped(*rows: Any) -> Any:
            chunks = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), rows)
            chunk = jax.checkpoint(lambda rows: jax.vmap(fun)(*rows))
            outs = lax.map(chunk, chunks)
            return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outs)

        return mapped

    return over


def captured_constant(wrap: Wrap, scan: Scan = lax.scan) -> Made:
    """A sum over a scan that reads a constant: https://github.com/jax-ml/jax/issues/3186."""

    def loss(x: Any, ys: Any) -> Any:
        z = jnp.ones((512, 512))
        add = wrap(lambda x, total, y: total + x * (y + z))
        total, _ = scan(lambda total, y: (add(x, total, y), None), jnp.zeros_like(z), ys)
        return total.mean()

    return loss, (f32(), f32(24))


def bounded_while(wrap: Wrap) -> Made:
    """A while loop with a bound, scans in conds: https://github.com/jax-ml/jax/issues/8239."""

    def step(w: Any, x: Any) -> Any:
        return x + 0.1 * jnp.tanh(x @ w) * jnp.cos(x)

    inner = wrap(step)

    def loss(w: Any, x: Any, steps: Any) -> Any:
        last = 100 + jnp.sum(steps > 0)

        def level(depth: int) -> Any:
            if depth == 0:
                return lambda state: (state[0] + 1, inner(w, state[1]))
            below = level(depth - 1)
            turn = lambda state, _: (
                lax.cond(state[0] < last, below, lambda state: state, state), None
            )  # fmt: skip
            return lambda state: lax.scan(turn, state, None, length=6)[0]

        _, x = level(3)((0, x))
        return jnp.mean(x**2)

    return loss, (f32(64, 64), f32(128, 64), f32(50))


def pairwise_points(wrap: Wrap, over: Over = jax.vmap) -> Made:
    """All distances: https://github.com/facebookresearch/PointContrast/issues/11."""

    def loss(w: Any, left: Any, right: Any, match: Any) -> Any:
        a, b = jnp.tanh(left @ w), jnp.tanh(right @ w)

        def distances(row: Any) -> Any:
            return jnp.sqrt(jnp.sum(jnp.square(row - b), -1) + 1e-6)

        scores = -over(wrap(distances))(a)
        found = jnp.take_along_axis(scores, match[:, None], 1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(scores, -1) - found)

    return loss, (f32(16, 32), f32(512, 16), f32(512, 16), i32(512))


def contrastive_pairs(wrap: Wrap, over: Over = jax.vmap) -> Made:
    """NT-Xent: https://github.com/KevinMusgrave/pytorch-metric-learning/issues/547."""

    def loss(w: Any, x: Any, anchors: Any, positives: Any, labels: Any) -> Any:
        z = x @ w
        z = z / jnp.sqrt(jnp.sum(z**2, -1, keepdims=True) + 1e-6)
        scores = z @ z.T / 0.1

        def pair(anchor: Any, positive: Any) -> Any:
            others = jnp.where(labels != labels[anchor], scores[anchor], -1e30)
            top = lax.stop_gradient(jnp.max(others))
            score = scores[anchor, positive] - top
            return jnp.log(jnp.exp(score) + jnp.sum(jnp.exp(others - top))) - score

        return jnp.mean(over(wrap(pair))(anchors, positives))

    return loss, (f32(32, 64), f32(512, 32), i32(4096), i32(4096), i32(512))


def graph_operator(wrap: Wrap, over: Over = jax.vmap) -> Made:
    """A kernel on each edge: https://github.com/neuraloperator/neuraloperator/issues/726."""

    def loss(layers: Any, places: Any, values: Any, senders: Any, receivers: Any) -> Any:
        x = values
        for p in layers:

            def message(sender: Any, receiver: Any, p: Any = p, x: Any = x) -> Any:
                ends = jnp.concatenate([places[sender], places[receiver], x[sender]])
                h = jax.nn.gelu(ends @ p["in"])
                return jax.nn.gelu(h @ p["middle"]) @ p["out"] * x[sender]

            sent = over(wrap(message))(senders, receivers)
            x = x + jax.ops.segment_sum(sent, receivers, 512) / 16
        return jnp.mean(x**2)

    layers = [{"in": f32(22, 64), "middle": f32(64, 64), "out": f32(64, 16)}] * 3
    return loss, (layers, f32(512, 3), f32(512, 16), i32(8192), i32(8192))


def fast_adaptation(wrap: Wrap) -> Made:
    """Steps of descent in each task: https://github.com/tristandeleu/pytorch-maml/issues/21."""

    def error(ws: Any, x: Any, y: Any) -> Any:
        for w in ws[:-1]:
            x = jnp.tanh(x @ w)
        return jnp.mean((x @ ws[-1] - y) ** 2)

    def descend(ws: Any, x: Any, y: Any) -> Any:
        return jax.tree.map(lambda w, g: w - 0.1 * g, ws, jax.grad(error)(ws, x, y))

    step = wrap(descend)

    def loss(ws: Any, tasks: Any) -> Any:
        def task(x: Any, y: Any, new_x: Any, new_y: Any) -> Any:
            adapted, _ = lax.scan(lambda ws, _: (step(ws, x, y), None), ws, None, length=8)
            return error(adapted, new_x, new_y)

        return jnp.mean(jax.vmap(task)(*tasks))

    ws = [f32(16, 64), f32(64, 64), f32(64, 4)]
    return loss, (ws, (f32(4, 128, 16), f32(4, 128, 4), f32(4, 128, 16), f32(4, 128, 4)))


def written_buffer(wrap: Wrap, scan: Scan = lax.scan) -> Made:
    """A recurrence that fills a buffer in place: https://github.com/jax-ml/jax/issues/17640."""

    def row(w: Any, before: Any, last: Any) -> Any:
        return jnp.tanh(last @ w) + 0.5 * before * jnp.cos(last)

    step = wrap(row)

    def loss(w: Any, first: Any) -> Any:
        def body(buffer: Any, i: Any) -> Any:
            return buffer.at[i].set(step(w, buffer[i - 2], buffer[i - 1])), None

        buffer = jnp.zeros((256, 128, 32)).at[:2].set(first)
        buffer, _ = scan(body, buffer, jnp.arange(2, 256))
        return jnp.mean(buffer**2)

    return loss, (f32(32, 32), f32(2, 128, 32))


def written_buffer_lean() -> Made:
    """The same, where the loop hands on the last two rows and no buffer is filled."""
    _, args = written_buffer(as_is)

    def loss(w: Any, first: Any) -> Any:
        def body(rows: Any, _: Any) -> Any:
            before, last, total = rows
            new = jnp.tanh(last @ w) + 0.5 * before * jnp.cos(last)
            return (last, new, total + jnp.sum(new**2)), None

        start = (first[0], first[1], jnp.sum(first**2))
        (_, _, total), _ = two_levels(body, start, jnp.arange(2, 256))
        return total / (256 * 128 * 32)

    return loss, args


def sinkhorn(wrap: Wrap, scan: Scan = lax.scan) -> Made:
    """Entropic optimal transport, unrolled: https://github.com/PythonOT/POT/issues/565."""

    def balance(cost: Any, potentials: Any) -> Any:
        _, g = potentials
        f = -jax.nn.logsumexp((g - cost) / 0.1, 1) * 0.1
        g = -jax.nn.logsumexp((f[:, None] - cost) / 0.1, 0) * 0.1
        return f, g

    step = wrap(balance)

    def loss(w: Any, x: Any, y: Any) -> Any:
        a, b = jnp.tanh(x @ w), jnp.tanh(y @ w)
        cost = jnp.sum(a**2, -1)[:, None] + jnp.sum(b**2, -1) - 2 * a @ b.T
        start = (jnp.zeros(320), jnp.zeros(320))
        run = lambda potentials, _: (step(cost, potentials), None)
        (f, g), _ = scan(run, start, None, length=32)
        return jnp.sum(jnp.exp((f[:, None] + g - cost) / 0.1) * cost) / 320

    return loss, (f32(8, 8), f32(320, 8), f32(320, 8))


def gaussian_process(wrap: Wrap) -> Made:
    """Marginal likelihood, Matern's kernel: https://github.com/meta-pytorch/botorch/issues/798."""

    def kernel(p: Any, x: Any) -> Any:
        apart = (x[:, None] - x) / jax.nn.softplus(p["scales"])
        r = jnp.sqrt(5 * jnp.sum(apart**2, -1) + 1e-6)
        return jnp.exp(p["height"]) * (1 + r + r**2 / 3) * jnp.exp(-r)

    covariance = wrap(kernel)

    def loss(p: Any, x: Any, y: Any) -> Any:
        noise = jax.nn.softplus(p["noise"]) + 0.1
        factor = jnp.linalg.cholesky(covariance(p, x) + noise * jnp.eye(512))
        white = jax.scipy.linalg.solve_triangular(factor, y, lower=True)
        return 0.5 * jnp.sum(white**2) / 512 + jnp.mean(jnp.log(jnp.diagonal(factor)))

    return loss, ({"scales": f32(8), "height": f32(), "noise": f32()}, f32(512, 8), f32(512))


def selective_scan(wrap: Wrap) -> Made:
    """State spaces in parallel over time: https://github.com/state-spaces/mamba/issues/35."""

    def mix(p: Any, x: Any) -> Any:
        step = jax.nn.softplus(x @ p["step"])
        decay = jnp.exp(-step[..., None] * jnp.exp(p["rates"]))
        inward = (step * x)[..., None] * (x @ p["in"])[..., None, :]
        join = lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1])
        _, states = lax.associative_scan(join, (decay, inward), axis=0)
        read = jnp.einsum("tdn,tn->td", states, x @ p["out"])
        return x + read * jax.nn.silu(x @ p["gate"])

    layer = wrap(mix)

    def loss(layers: Any, x: Any) -> Any:
        for p in layers:
            x = layer(p, x)
        return jnp.mean(x**2)

    sizes = {"step": (64, 64), "rates": (64, 8), "in": (64, 8), "out": (64, 8), "gate": (64, 64)}
    return loss, ([{name: f32(*size) for name, size in sizes.items()}] * 2, f32(256, 64))


def maxwell(wrap: Wrap, scan: Scan = lax.scan) -> Made:
    """Light in a material to be designed: https://github.com/ymahlau/fdtdx/issues/58."""

    def curl(field: Any, sign: int) -> Any:
        d = lambda k, axis: sign * (jnp.roll(field[k], -sign, axis) - field[k])
        return jnp.stack([d(2, 1) - d(1, 2), d(0, 2) - d(2, 0), d(1, 0) - d(0, 1)])

    def step(inverse: Any, fields: Any, t: Any) -> Any:
        e, h = fields
        e = e + 0.5 * inverse * curl(h, -1)
        e = e.at[2, 4, 8, 8].add(jnp.sin(0.3 * t))
        h = h - 0.5 * curl(e, 1)
        return (e, h), jnp.sum(e[2, 12] ** 2)

    inner = wrap(step)

    def loss(material: Any) -> Any:
        inverse = 1 / (1 + 2 * jax.nn.sigmoid(material))
        start = (jnp.zeros((3, 16, 16, 16)),) * 2
        _, power = scan(lambda f, t: inner(inverse, f, t), start, jnp.arange(240.0))
        return -jnp.mean(power)

    return loss, (f32(16, 16, 16),)


def dropped_blocks(wrap: Wrap) -> Made:
    """A person's own checkpoint and dropout: https://github.com/jax-ml/jax/issues/17982."""

    def block(p: Any, x: Any, key: Any) -> Any:
        h = jax.nn.gelu(x @ p["up"]) @ p["down"]
        return x + jnp.where(jax.random.bernoulli(key, 0.9, h.shape), h / 0.9, 0.0)

    inner = wrap(jax.checkpoint(block))

    def loss(blocks: Any, x: Any) -> Any:
        for k, p in enumerate(blocks):
            x = inner(p, x, jax.random.fold_in(jax.random.key(0), k))
        return jnp.mean(x**2)

    return loss, ([{"up": f32(128, 512), "down": f32(512, 128)}] * 6, f32(1024, 128))


def half_precision(wrap: Wrap) -> Made:
    """An encoder in bfloat16: https://github.com/google-research/t5x/issues/870."""

    def norm(x: Any) -> Any:
        wide = x.astype(jnp.float32)
        return (wide * lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + 1e-6)).astype(x.dtype)

    def layer(p: Any, x: Any) -> Any:
        p = jax.tree.map(lambda w: w.astype(jnp.bfloat16), p)
        q, k, v = jnp.moveaxis((norm(x) @ p["qkv"]).reshape(*x.shape[:2], 3, 4, -1), 2, 0)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32) / 4
        weights = jax.nn.softmax(scores).astype(jnp.bfloat16)
        x = x + jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape) @ p["out"]
        gate, up = jnp.split(norm(x) @ p["up"], 2, -1)
        return x + (jax.nn.gelu(gate) * up) @ p["down"]

    layer = wrap(layer)

    def loss(p: Any, ids: Any, labels: Any) -> Any:
        x = p["table"][ids].astype(jnp.bfloat16)
        for one in p["layers"]:
            x = layer(one, x)
        scores = (norm(x) @ p["table"].T.astype(jnp.bfloat16)).astype(jnp.float32)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(scores), labels[..., None], -1)
        return -jnp.mean(chosen)

    sizes = {"qkv": (64, 192), "out": (64, 64), "up": (64, 256), "down": (128, 64)}
    layers = [{name: f32(*size) for name, size in sizes.items()}] * 4
    return loss, ({"table": f32(512, 64), "layers": layers}, i32(8, 128), i32(8, 128))


@jax.custom_vjp
def _flash(q: Any, k: Any, v: Any) -> Any:
    return _flash_forward(q, k, v)[0]


def _flash_forward(q: Any, k: Any, v: Any) -> Any:
    def part(q: Any) -> Any:
        scores = q @ k.T
        total = jax.nn.logsumexp(scores, -1)
        return jnp.exp(scores - total[:, None]) @ v, total

    out, total = lax.map(part, q.reshape(16, -1, q.shape[-1]))
    out = out.reshape(q.shape)
    return out, (q, k, v, out, total.reshape(-1))


def _flash_backward(kept: Any, bar: Any) -> Any:
    q, k, v, out, total = kept

    def part(sums: Any, rows: Any) -> Any:
        q, out, total, bar = rows
        weights = jnp.exp(q @ k.T - total[:, None])
        inner = weights * (bar @ v.T - jnp.sum(bar * out, -1, keepdims=True))
        return (sums[0] + inner.T @ q, sums[1] + weights.T @ bar), inner @ k

    rows = jax.tree.map(lambda x: x.reshape(16, -1, *x.shape[1:]), (q, out, total, bar))
    (k_bar, v_bar), q_bar = lax.scan(part, (jnp.zeros_like(k), jnp.zeros_like(v)), rows)
    return q_bar.reshape(q.shape), k_bar, v_bar


_flash.defvjp(_flash_forward, _flash_backward)


def flash_layers(wrap: Wrap) -> Made:
    """A rule of one's own: https://github.com/lucidrains/flash-attention-jax/issues/7."""

    def layer(p: Any, x: Any) -> Any:
        q, k, v = jnp.split(x @ p["qkv"], 3, -1)
        x = x + _flash(q / 8, k, v)
        return x + jax.nn.gelu(x @ p["up"]) @ p["down"]

    layer = wrap(layer)

    def loss(layers: Any, x: Any) -> Any:
        for p in layers:
            x = layer(p, x)
        return jnp.mean(x**2)

    sizes = {"qkv": (64, 192), "up": (64, 256), "down": (256, 64)}
    return loss, ([{name: f32(*size) for name, size in sizes.items()}] * 4, f32(1024, 64))


def importance_weighted(wrap: Wrap, over: Over = jax.vmap) -> Made:
    """A bound of many particles: https://github.com/pyro-ppl/numpyro/issues/1645."""

    def loss(p: Any, x: Any) -> Any:
        mean, spread = jnp.split(jax.nn.softplus(x @ p["in"]) @ p["code"], 2, -1)

        def particle(key: Any) -> Any:
            noise = jax.random.normal(key, mean.shape)
            z = mean + jnp.exp(spread) * noise
            scores = jax.nn.softplus(z @ p["decode"]) @ p["out"]
            seen = jnp.sum(x * scores - jax.nn.softplus(scores), -1)
            return seen - 0.5 * jnp.sum(z**2 - noise**2 - 2 * spread, -1)

        weights = over(wrap(particle))(jax.random.split(jax.random.key(0), 32))
        return -jnp.mean(jax.nn.logsumexp(weights, 0)) / 256

    params = {
        "in": f32(256, 128),
        "code": f32(128, 32),
        "decode": f32(16, 128),
        "out": f32(128, 256),
    }
    return loss, (params, f32(64, 256))


def weather_rollout(wrap: Wrap) -> Made:
    """Days of weather on a mesh: https://github.com/google-deepmind/weathernext/issues/99."""

    def dense(w: Any, *xs: Any) -> Any:
        return jax.nn.silu(jnp.concatenate(xs, -1) @ w[0]) @ w[1]

    def advance(p: Any, nodes: Any, senders: Any, receivers: Any) -> Any:
        x = dense(p["encode"], nodes)
        edges = dense(p["edge"], x[senders], x[receivers])
        for edge, node in p["process"]:
            edges = edges + dense(edge, edges, x[senders], x[receivers])
            x = x + dense(node, x, jax.ops.segment_sum(edges, receivers, 512))
        return nodes + 0.1 * dense(p["decode"], x)

    step = wrap(advance)

    def loss(p: Any, nodes: Any, senders: Any, receivers: Any, truth: Any) -> Any:
        def day(nodes: Any, truth: Any) -> Any:
            nodes = step(p, nodes, senders, receivers)
            return nodes, jnp.mean((nodes - truth) ** 2)

        return jnp.mean(lax.scan(day, nodes, truth)[1])

    two = lambda width, out: (f32(width, 32), f32(32, out))
    params = {
        "encode": two(8, 32), "edge": two(64, 32), "decode": two(32, 8),
        "process": [(two(96, 32), two(64, 32))] * 3,
    }  # fmt: skip
    return loss, (params, f32(512, 8), i32(4096), i32(4096), f32(4, 512, 8))


def molecules(wrap: Wrap, scan: Scan = lax.scan) -> Made:
    """Particles and their neighbours: https://github.com/jax-md/jax-md/issues/137."""

    def energy(p: Any, places: Any, neighbours: Any) -> Any:
        apart = places[:, None] - places[neighbours]
        apart = apart - 8 * jnp.round(apart / 8)
        near = p["size"] ** 2 / (jnp.sum(apart**2, -1) + 1.0)
        return jnp.sum(p["depth"] * (near**6 - near**3))

    def advance(p: Any, state: Any, neighbours: Any) -> Any:
        places, speeds = state
        speeds = speeds - 0.005 * jax.grad(energy, 1)(p, places, neighbours)
        return places + 0.005 * speeds, speeds

    step = wrap(advance)

    def loss(p: Any, places: Any, neighbours: Any) -> Any:
        p = jax.tree.map(lambda x: 1 + 0.1 * jnp.tanh(x), p)
        run = lambda state, _: (step(p, state, neighbours), None)
        start = (8 * jax.nn.sigmoid(places), jnp.zeros_like(places))
        (places, _), _ = scan(run, start, None, length=24)
        return jnp.mean(places**2)

    return loss, ({"size": f32(512, 1), "depth": f32(512, 1)}, f32(512, 3), i32(512, 20))


LOSSES: dict[str, Callable[[Wrap], Made]] = {
    made.__name__: made
    for made in (captured_constant, bounded_while, pairwise_points, contrastive_pairs,
                 graph_operator, fast_adaptation, written_buffer, sinkhorn, gaussian_process,
                 selective_scan, maxwell, dropped_blocks, half_precision, flash_layers,
                 importance_weighted, weather_rollout, molecules)
}  # fmt: skip
EXPERTS: dict[str, Callable[[], Made]] = {
    **{made.__name__: functools.partial(made, jax.checkpoint)
       for made in (captured_constant, bounded_while, fast_adaptation, gaussian_process,
                    selective_scan, half_precision, flash_layers, weather_rollout)},
    **{made.__name__: functools.partial(made, jax.checkpoint, scan=two_levels)
       for made in (sinkhorn, maxwell, molecules)},
    **{made.__name__: functools.partial(made, as_is, over=in_chunks(count))
       for made, count in ((pairwise_points, 16), (contrastive_pairs, 16), (graph_operator, 16),
           (importance_weighted, 8))},
    "written_buffer": written_buffer_lean,
}  # fmt: skip
