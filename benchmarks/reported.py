"""Losses whose gradients people reported not to fit their memory, each with the report's address.

They are small models of what was reported, written anew. Where an expert is known to need less, that
is here too: ``jax.checkpoint`` in the right place, a loop in two levels, a batch in chunks. Half of
them are held out by a coin: what chooses what to make again is not tuned on these.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from benchmarks.losses import Made, Wrap

Scan = Callable[..., Any]
Over = Callable[[Callable[..., Any]], Callable[..., Any]]


def _f32(*sizes: int) -> Any:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def _i32(*sizes: int) -> Any:  # of values below 512
    return jax.ShapeDtypeStruct(sizes, jnp.int32)


def captured_constant(wrap: Wrap, scan: Scan = lax.scan) -> Made:
    """A sum over a scan that reads a constant: https://github.com/jax-ml/jax/issues/3186."""

    def loss(x: Any, ys: Any) -> Any:
        z = jnp.ones((512, 512))
        add = wrap(lambda x, total, y: total + x * (y + z))
        total, _ = scan(lambda total, y: (add(x, total, y), None), jnp.zeros_like(z), ys)
        return total.mean()

    return loss, (_f32(), _f32(24))


def cable_neuron(wrap: Wrap, scan: Scan = lax.scan) -> Made:
    """Hodgkin-Huxley on a cable, recorded: https://github.com/jaxleyverse/jaxley/issues/15."""

    def relax(gate: Any, rise: Any, fall: Any) -> Any:
        end = rise / (rise + fall)
        return end + (gate - end) * jnp.exp(-0.025 * (rise + fall))

    def step(p: Any, state: Any, current: Any) -> Any:
        v, m, h, n = state
        m = relax(m, 0.1 * (v + 40.3) / (1 - jnp.exp(-(v + 40.3) / 10)), 4 * jnp.exp(-(v + 65) / 18))
        h = relax(h, 0.07 * jnp.exp(-(v + 65) / 20), 1 / (1 + jnp.exp(-(v + 35) / 10)))
        n = relax(n, 0.01 * (v + 55.3) / (1 - jnp.exp(-(v + 55.3) / 10)),
                  0.125 * jnp.exp(-(v + 65) / 80))  # fmt: skip
        ions = (120 + p["na"]) * m**3 * h * (v - 50) + (36 + p["k"]) * n**4 * (v + 77)
        axial = jnp.roll(v, 1) - 2 * v + jnp.roll(v, -1)
        v = v + 0.025 * (axial + 10 * current - ions - (0.3 + p["leak"]) * (v + 54.4))
        return (v, m, h, n), v[::64]

    inner = wrap(step)

    def loss(p: Any, currents: Any, recorded: Any) -> Any:
        rest = tuple(jnp.full(512, value) for value in (-65.0, 0.05, 0.6, 0.32))
        _, voltages = scan(lambda state, x: inner(p, state, x), rest, currents)
        return jnp.mean((voltages - recorded) ** 2) / 1000

    params = {name: _f32(512) for name in ("na", "k", "leak")}
    return loss, (params, _f32(400), _f32(400, 8))


def path_signature(wrap: Wrap, scan: Scan = lax.scan) -> Made:
    """Signatures of long paths to depth 4: https://github.com/anh-tong/signax/issues/62."""

    def extend(levels: Any, dx: Any) -> Any:
        powers = [dx]
        for k in range(2, 5):
            powers.append(powers[-1][..., None] * dx.reshape(-1, *[1] * (k - 1), 4) / k)
        grown = []
        for k, level in enumerate(levels):
            total = level + powers[k]
            for j in range(k):
                tail = powers[k - j - 1].reshape(-1, *[1] * (j + 1), *[4] * (k - j))
                total = total + levels[j].reshape(levels[j].shape + (1,) * (k - j)) * tail
            grown.append(total)
        return tuple(grown)

    step = wrap(extend)

    def loss(w: Any, paths: Any, target: Any) -> Any:
        moves = jnp.diff(jnp.tanh(paths @ w), axis=0)
        start = tuple(jnp.zeros((32,) + (4,) * k) for k in range(1, 5))
        levels, _ = scan(lambda levels, dx: (step(levels, dx), None), start, moves)
        flat = jnp.concatenate([level.reshape(32, -1) for level in levels], -1)
        return jnp.mean((flat - target) ** 2)

    return loss, (_f32(8, 4), _f32(201, 32, 8), _f32(32, 340))


def continuous_flow(wrap: Wrap) -> Made:
    """A flow and its log density: https://github.com/patrick-kidger/diffrax/issues/574."""

    def field(p: Any, x: Any, t: Any) -> Any:
        h = jnp.tanh(x @ p["in"] + t * p["time"])
        return jnp.tanh(h @ p["middle"]) @ p["out"]

    def drift(p: Any, x: Any, noise: Any, t: Any) -> Any:
        velocity, pushed = jax.jvp(lambda x: field(p, x, t), (x,), (noise,))
        return velocity, jnp.sum(pushed * noise, -1)

    def step(p: Any, state: Any, noise: Any, t: Any) -> Any:  # Runge and Kutta's fourth order
        x, density = state
        k1, d1 = drift(p, x, noise, t)
        k2, d2 = drift(p, x + 0.05 * k1, noise, t + 0.05)
        k3, d3 = drift(p, x + 0.05 * k2, noise, t + 0.05)
        k4, d4 = drift(p, x + 0.1 * k3, noise, t + 0.1)
        return x + (k1 + 2 * k2 + 2 * k3 + k4) / 60, density + (d1 + 2 * d2 + 2 * d3 + d4) / 60

    inner = wrap(step)

    def loss(p: Any, x: Any, noise: Any) -> Any:
        body = lambda i, state: inner(p, state, noise, 0.1 * i)
        z, density = lax.fori_loop(0, 10, body, (x, jnp.zeros(x.shape[0])))
        return jnp.mean(0.5 * jnp.sum(z**2, -1) - density)

    params = {"in": _f32(32, 64), "time": _f32(64), "middle": _f32(64, 64), "out": _f32(64, 32)}
    return loss, (params, _f32(256, 32), _f32(256, 32))


def reaction_diffusion(wrap: Wrap, scan: Scan = lax.scan) -> Made:
    """Many coupled equations, many stages: https://github.com/patrick-kidger/diffrax/issues/685."""

    def rate(p: Any, u: Any, v: Any) -> Any:
        spread = lambda f: sum(jnp.roll(f, s, a) for s in (1, -1) for a in (0, 1)) - 4 * f
        eaten = u * v * v
        return (
            0.16 * spread(u) - eaten + (p["feed"] * 0.02 + 0.04) * (1 - u),
            0.08 * spread(v) + eaten - (0.02 * (p["feed"] + p["kill"]) + 0.1) * v,
        )

    def step(p: Any, state: Any) -> Any:  # Bogacki and Shampine's third order
        u, v = state
        a, b = rate(p, u, v)
        c, d = rate(p, u + 0.25 * a, v + 0.25 * b)
        e, f = rate(p, u + 0.375 * c, v + 0.375 * d)
        return u + (2 * a + 3 * c + 4 * e) / 18, v + (2 * b + 3 * d + 4 * f) / 18

    inner = wrap(step)

    def loss(p: Any, start: Any, target: Any) -> Any:
        state = (1 - 0.1 * start[0] ** 2, 0.1 * start[1] ** 2)
        (u, _), _ = scan(lambda state, _: (inner(p, state), None), state, None, length=64)
        return jnp.mean((u - target) ** 2)

    params = {"feed": _f32(64, 64), "kill": _f32(64, 64)}
    return loss, (params, _f32(2, 64, 64), _f32(64, 64))


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

    return loss, (_f32(64, 64), _f32(128, 64), _f32(50))


def pairwise_points(wrap: Wrap, over: Over = jax.vmap) -> Made:
    """All distances: https://github.com/facebookresearch/PointContrast/issues/11."""

    def loss(w: Any, left: Any, right: Any, match: Any) -> Any:
        a, b = jnp.tanh(left @ w), jnp.tanh(right @ w)

        def distances(row: Any) -> Any:
            return jnp.sqrt(jnp.sum(jnp.square(row - b), -1) + 1e-6)

        scores = -over(wrap(distances))(a)
        found = jnp.take_along_axis(scores, match[:, None], 1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(scores, -1) - found)

    return loss, (_f32(16, 32), _f32(512, 16), _f32(512, 16), _i32(512))


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

    return loss, (_f32(32, 64), _f32(512, 32), _i32(4096), _i32(4096), _i32(512))


def overlapping_patches(wrap: Wrap, over: Over = jax.vmap) -> Made:
    """A network on overlapping patches of an image: https://github.com/jax-ml/jax/issues/26263."""

    def convolve(x: Any, kernel: Any) -> Any:
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)

    def loss(p: Any, image: Any, target: Any) -> Any:
        def patch(at: Any) -> Any:
            x = lax.dynamic_slice(image, (at // 16 * 5, at % 16 * 5), (24, 24))[None, :, :, None]
            return convolve(jax.nn.gelu(convolve(x, p["in"])), p["out"])[0, :, :, 0]

        corners = jnp.arange(256)
        patches = over(wrap(patch))(corners)
        rows = (corners // 16 * 5)[:, None, None] + jnp.arange(24)[:, None]
        columns = (corners % 16 * 5)[:, None, None] + jnp.arange(24)
        whole = jnp.zeros_like(image).at[rows, columns].add(patches)
        return jnp.mean((whole - target) ** 2)

    params = {"in": _f32(3, 3, 1, 8), "out": _f32(3, 3, 8, 1)}
    return loss, (params, _f32(99, 99), _f32(99, 99))


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

    layers = [{"in": _f32(22, 64), "middle": _f32(64, 64), "out": _f32(64, 16)}] * 3
    return loss, (layers, _f32(512, 3), _f32(512, 16), _i32(8192), _i32(8192))


def radiance_field(wrap: Wrap) -> Made:
    """Colours along rays, points in chunks by map: https://github.com/jax-ml/jax/issues/3865."""

    def network(p: Any, points: Any) -> Any:
        waves = [f(2.0**k * points) for k in range(4) for f in (jnp.sin, jnp.cos)]
        x = inputs = jnp.concatenate([points, *waves], -1)
        for k, w in enumerate(p["layers"]):
            x = jax.nn.relu((jnp.concatenate([x, inputs], -1) if k == 2 else x) @ w)
        return x @ p["last"]

    chunk = wrap(network)

    def loss(p: Any, origins: Any, directions: Any, colours: Any) -> Any:
        depths = jnp.linspace(2.0, 6.0, 64)
        points = origins[:, None] + directions[:, None] * depths[:, None]
        raw = lax.map(lambda points: chunk(p, points), points.reshape(16, -1, 3))
        raw = raw.reshape(-1, 64, 4)
        opacity = 1 - jnp.exp(-jax.nn.relu(raw[..., 3]) * (4 / 64))
        through = jnp.cumprod(1 - opacity + 1e-6, -1)
        weights = opacity * jnp.concatenate([jnp.ones_like(through[:, :1]), through[:, :-1]], -1)
        seen = jnp.sum(weights[..., None] * jax.nn.sigmoid(raw[..., :3]), 1)
        return jnp.mean((seen - colours) ** 2)

    layers = [_f32(27, 64), _f32(64, 64), _f32(91, 64), _f32(64, 64)]
    params = {"layers": layers, "last": _f32(64, 4)}
    return loss, (params, _f32(128, 3), _f32(128, 3), _f32(128, 3))


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

    ws = [_f32(16, 64), _f32(64, 64), _f32(64, 4)]
    return loss, (ws, (_f32(4, 128, 16), _f32(4, 128, 4), _f32(4, 128, 16), _f32(4, 128, 4)))


def capped_vocabulary(wrap: Wrap, over: Over = jax.vmap) -> Made:
    """Capped scores of many words, masked: https://github.com/huggingface/trl/pull/5575."""

    def token(table: Any, x: Any, label: Any) -> Any:
        scores = 30 * jnp.tanh(table @ x / 30)
        total = jax.nn.logsumexp(scores)
        return jnp.where(label > 40, total - scores[label] + 1e-4 * total**2, 0.0)

    def loss(p: Any, ids: Any, labels: Any) -> Any:
        x = jax.nn.gelu(p["table"][ids] @ p["w"])
        losses = over(lambda x, label: wrap(token)(p["table"], x, label))(x, labels)
        return losses.sum() / jnp.sum(labels > 40)

    return loss, ({"table": _f32(4096, 64), "w": _f32(64, 64)}, _i32(512), _i32(512))


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

    return loss, (_f32(32, 32), _f32(2, 128, 32))


def written_buffer_lean() -> Made:
    """The same, where the loop hands on the last two rows and no buffer is filled."""
    _, args = written_buffer(lambda block: block)

    def loss(w: Any, first: Any) -> Any:
        def body(rows: Any, _: Any) -> Any:
            before, last, total = rows
            new = jnp.tanh(last @ w) + 0.5 * before * jnp.cos(last)
            return (last, new, total + jnp.sum(new**2)), None

        start = (first[0], first[1], jnp.sum(first**2))
        (_, _, total), _ = two_levels(body, start, jnp.arange(2, 256))
        return total / (256 * 128 * 32)

    return loss, args


def conditional_layers(wrap: Wrap) -> Made:
    """Layers of three kinds, by a switch: https://github.com/jax-ml/jax/issues/2775."""
    kinds = (
        lambda p, x: x + jax.nn.gelu(x @ p["up"]) @ p["down"],
        lambda p, x: x + jax.nn.softmax(x @ p["up"]) @ p["down"],
        lambda p, x: x * jax.nn.sigmoid(x),
    )
    layer = wrap(lambda p, kind, x: lax.switch(kind, kinds, p, x))

    def loss(layers: Any, kinds: Any, x: Any) -> Any:
        step = lambda x, layer_: (layer(layer_[0], layer_[1], x), None)
        x, _ = lax.scan(step, x, (layers, kinds % 3))
        return jnp.mean(x**2)

    return loss, ({"up": _f32(12, 64, 256), "down": _f32(12, 256, 64)}, _i32(12), _f32(512, 64))


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

    return loss, (_f32(8, 8), _f32(320, 8), _f32(320, 8))


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

    return loss, ({"scales": _f32(8), "height": _f32(), "noise": _f32()}, _f32(512, 8), _f32(512))


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
    return loss, ([{name: _f32(*size) for name, size in sizes.items()}] * 2, _f32(256, 64))


def transducer(wrap: Wrap, over: Over = jax.vmap) -> Made:
    """A lattice of times and labels: https://github.com/espnet/espnet/issues/1651."""

    def loss(p: Any, heard: Any, said: Any, labels: Any) -> Any:
        encoded, predicted = heard @ p["heard"], said @ p["said"]

        def at_time(frame: Any) -> Any:
            scores = jax.nn.log_softmax(jnp.tanh(frame + predicted) @ p["joint"])
            return scores[:, 0], jnp.take_along_axis(scores[:-1], labels[:, None], 1)[:, 0]

        blank, label = over(wrap(at_time))(encoded)

        def forward(before: Any, moves: Any) -> Any:
            stay, move = moves

            def upward(below: Any, here: Any) -> Any:
                now = jnp.logaddexp(here[0], below + here[1])
                return now, now

            first = before[0]
            _, rest = lax.scan(upward, first, (before[1:], move))
            now = jnp.concatenate([first[None], rest])
            return now + stay, None

        start = jnp.full(25, -1e4).at[0].set(0.0)
        last, _ = lax.scan(forward, start, (blank, label))
        return -last[-1] / 100

    params = {"heard": _f32(32, 64), "said": _f32(32, 64), "joint": _f32(64, 512)}
    return loss, (params, _f32(96, 32), _f32(25, 32), _i32(24))


def diffusion_network(wrap: Wrap) -> Made:
    """Attention at a high resolution: https://github.com/lucidrains/imagen-pytorch/issues/300."""

    def convolve(x: Any, kernel: Any, stride: int = 1) -> Any:
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=numbers
        )

    def norm(x: Any) -> Any:
        groups = x.reshape(*x.shape[:3], 4, -1)
        spread = groups.var((1, 2, 4), keepdims=True)
        return ((groups - groups.mean((1, 2, 4), keepdims=True)) / jnp.sqrt(spread + 1e-5)).reshape(
            x.shape
        )

    def residual(p: Any, x: Any, time: Any) -> Any:
        h = convolve(jax.nn.silu(norm(x)), p["first"]) + (time @ p["time"])[:, None, None]
        return x + convolve(jax.nn.silu(norm(h)), p["second"])

    def attend(p: Any, x: Any) -> Any:
        flat = norm(x).reshape(x.shape[0], -1, x.shape[-1])
        q, k, v = jnp.split(flat @ p["qkv"], 3, -1)
        weights = jax.nn.softmax(jnp.einsum("bqc,bkc->bqk", q, k) / 4)
        return x + (jnp.einsum("bqk,bkc->bqc", weights, v) @ p["out"]).reshape(x.shape)

    residual, attend = wrap(residual), wrap(attend)

    def loss(p: Any, clean: Any, noise: Any, time: Any) -> Any:
        x = convolve(0.8 * clean + 0.6 * noise, p["in"])
        high = attend(p["high_attention"], residual(p["high"], x, time))
        low = convolve(high, p["down"], 2)
        low = residual(p["low"], attend(p["low_attention"], low), time)
        x = high + jnp.repeat(jnp.repeat(low, 2, 1), 2, 2)
        return jnp.mean((convolve(residual(p["high_again"], x, time), p["out"]) - noise) ** 2)

    block = {"first": _f32(3, 3, 16, 16), "second": _f32(3, 3, 16, 16), "time": _f32(8, 16)}
    attention = {"qkv": _f32(16, 48), "out": _f32(16, 16)}
    params = {
        "in": _f32(3, 3, 3, 16), "down": _f32(3, 3, 16, 16), "out": _f32(3, 3, 16, 3),
        "high": block, "low": block, "high_again": block,
        "high_attention": attention, "low_attention": attention,
    }  # fmt: skip
    return loss, (params, _f32(2, 28, 28, 3), _f32(2, 28, 28, 3), _f32(2, 8))


def neural_hmm(wrap: Wrap, scan: Scan = lax.scan) -> Made:
    """A hidden Markov model of speech: https://github.com/shivammehta25/Neural-HMM/issues/1."""

    def step(p: Any, states: Any, carry: Any, frame: Any) -> Any:
        alpha, heard = carry
        heard = jnp.tanh(frame @ p["frame"] + heard @ p["again"])
        h = jax.nn.relu(jnp.concatenate([states, jnp.broadcast_to(heard, (96, 64))], -1) @ p["in"])
        mean, spread, move = jnp.split(h @ p["out"], [16, 32], -1)
        spread = jax.nn.softplus(spread) + 0.1
        emitted = -0.5 * jnp.sum(((frame - mean) / spread) ** 2 + 2 * jnp.log(spread), -1)
        stay, leave = jax.nn.log_sigmoid(-move[:, 0]), jax.nn.log_sigmoid(move[:, 0])
        moved = jnp.concatenate([jnp.array([-1e4]), (alpha + leave)[:-1]])
        alpha = emitted + jnp.logaddexp(alpha + stay, moved)
        total = jax.nn.logsumexp(alpha)
        return (alpha - total, heard), total

    inner = wrap(step)

    def loss(p: Any, states: Any, frames: Any) -> Any:
        start = (jnp.full(96, -1e4).at[0].set(0.0), jnp.zeros(64))
        _, totals = scan(lambda carry, frame: inner(p, states, carry, frame), start, frames)
        return -jnp.mean(totals) / 16

    params = {"frame": _f32(16, 64), "again": _f32(64, 64), "in": _f32(96, 128), "out": _f32(128, 33)}
    return loss, (params, _f32(96, 32), _f32(160, 16))


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

    return loss, (_f32(16, 16, 16),)


def acoustics(wrap: Wrap, scan: Scan = lax.scan) -> Made:
    """Sound by Fourier transforms: https://github.com/ucl-bug/jwave/pull/123."""

    def step(speed: Any, waves: Any, state: Any) -> Any:
        p, u = state
        spectrum = jnp.fft.rfft2(p)
        gradient = jnp.fft.irfft2(1j * waves * spectrum, (96, 96))
        u = u - 0.1 * gradient
        divergence = jnp.fft.irfft2(jnp.sum(1j * waves * jnp.fft.rfft2(u), 0), (96, 96))
        p = (p - 0.1 * speed**2 * divergence) * 0.999
        return (p, u), p[::16, 8]

    inner = wrap(step)

    def loss(speed: Any, start: Any, recorded: Any) -> Any:
        k = 2 * jnp.pi * jnp.fft.fftfreq(96)
        waves = jnp.stack(jnp.broadcast_arrays(k[:, None], jnp.abs(k[:49])))
        c = 1 + 0.2 * jnp.tanh(speed)
        state = (start, jnp.zeros((2, 96, 96)))
        _, heard = scan(lambda state, _: inner(c, waves, state), state, None, length=96)
        return jnp.mean((heard - recorded) ** 2)

    return loss, (_f32(96, 96), _f32(96, 96), _f32(96, 6))


def dense_block(wrap: Wrap) -> Made:
    """Densely connected: https://github.com/gpleiss/efficient_densenet_pytorch/issues/60."""

    def convolve(x: Any, kernel: Any) -> Any:
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)

    def active(p: Any, x: Any) -> Any:
        mean, spread = x.mean((0, 1, 2)), x.var((0, 1, 2))
        return jax.nn.relu((x - mean) * lax.rsqrt(spread + 1e-5) * (1 + p["scale"]) + p["shift"])

    squeeze = wrap(lambda p, *xs: convolve(active(p, jnp.concatenate(xs, -1)), p["squeeze"]))

    def loss(layers: Any, x: Any) -> Any:
        xs = [x]
        for p in layers:
            h = squeeze(p["wide"], *xs)
            xs.append(convolve(active(p["narrow"], h), p["narrow"]["convolve"]))
        return jnp.mean(jnp.concatenate(xs, -1) ** 2)

    norm = lambda width: {"scale": _f32(width), "shift": _f32(width)}
    layers = [
        {"wide": {**norm(16 + 12 * k), "squeeze": _f32(1, 1, 16 + 12 * k, 24)},
         "narrow": {**norm(24), "convolve": _f32(3, 3, 24, 12)}}
        for k in range(7)
    ]  # fmt: skip
    return loss, (layers, _f32(4, 24, 24, 16))


def triangle_attention(wrap: Wrap, over: Over = jax.vmap) -> Made:
    """Pairs attend to pairs: https://github.com/aqlaboratory/openfold/issues/9."""

    def attend(p: Any, pairs: Any) -> Any:
        bias = jnp.einsum("qkc,ch->hqk", pairs, p["bias"])

        def row(x: Any) -> Any:
            q, k, v = jnp.moveaxis((x @ p["qkv"]).reshape(-1, 3, 4, 8), 1, 0)
            weights = jax.nn.softmax(jnp.einsum("qhd,khd->hqk", q, k) / 8**0.5 + bias)
            mixed = jnp.einsum("hqk,khd->qhd", weights, v).reshape(x.shape)
            return (mixed * jax.nn.sigmoid(x @ p["gate"])) @ p["out"]

        return over(wrap(row))(pairs)

    def block(pairs: Any, p: Any) -> Any:
        pairs = pairs + attend(p["start"], pairs)
        pairs = pairs + jnp.swapaxes(attend(p["end"], jnp.swapaxes(pairs, 0, 1)), 0, 1)
        return pairs, None

    def loss(blocks: Any, pairs: Any) -> Any:
        return jnp.mean(lax.scan(block, pairs, blocks)[0] ** 2)

    sizes = {"qkv": (32, 96), "bias": (32, 4), "gate": (32, 32), "out": (32, 32)}
    attention = {name: _f32(2, *size) for name, size in sizes.items()}
    return loss, ({"start": attention, "end": attention}, _f32(64, 64, 32))


def physics_informed(wrap: Wrap, over: Over = jax.vmap) -> Made:
    """Derivatives by the inputs: https://github.com/patrick-kidger/diffrax/issues/691."""

    def network(ws: Any, x: Any, t: Any) -> Any:
        h = jnp.stack([x, t])
        for w in ws[:-1]:
            h = jnp.tanh(w @ h)
        return (ws[-1] @ h)[0]

    def burgers(ws: Any, x: Any, t: Any) -> Any:
        along = lambda x: jax.jvp(lambda x: network(ws, x, t), (x,), (1.0,))
        (u, u_x), (_, u_xx) = jax.jvp(along, (x,), (1.0,))
        _, u_t = jax.jvp(lambda t: network(ws, x, t), (t,), (1.0,))
        return u_t + u * u_x - 0.01 * u_xx

    def loss(ws: Any, xs: Any, ts: Any) -> Any:
        return jnp.mean(over(wrap(lambda x, t: burgers(ws, x, t)))(xs, ts) ** 2)

    return loss, ([_f32(64, 2), *[_f32(64, 64)] * 3, _f32(1, 64)], _f32(2048), _f32(2048))


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

    return loss, ([{"up": _f32(128, 512), "down": _f32(512, 128)}] * 6, _f32(1024, 128))


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
    layers = [{name: _f32(*size) for name, size in sizes.items()}] * 4
    return loss, ({"table": _f32(512, 64), "layers": layers}, _i32(8, 128), _i32(8, 128))


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
    return loss, ([{name: _f32(*size) for name, size in sizes.items()}] * 4, _f32(1024, 64))


def example_gradients(wrap: Wrap, over: Over = jax.vmap) -> Made:
    """Norms of each example's gradient: https://github.com/meta-pytorch/opacus/issues/25."""

    def error(ws: Any, x: Any, y: Any) -> Any:
        for w in ws[:-1]:
            x = jnp.tanh(w @ x)
        return jnp.sum((ws[-1] @ x - y) ** 2)

    def norm(ws: Any, x: Any, y: Any) -> Any:
        grads = jax.tree.leaves(jax.grad(error)(ws, x, y))
        return jnp.sqrt(sum(jnp.sum(g**2) for g in grads) + 1e-6)

    def loss(ws: Any, xs: Any, ys: Any) -> Any:
        return jnp.mean(over(wrap(lambda x, y: norm(ws, x, y)))(xs, ys))

    return loss, ([_f32(96, 32), _f32(96, 96), _f32(8, 96)], _f32(256, 32), _f32(256, 8))


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

    params = {"in": _f32(256, 128), "code": _f32(128, 32), "decode": _f32(16, 128), "out": _f32(128, 256)}
    return loss, (params, _f32(64, 256))


def sharded_layers(wrap: Wrap) -> Made:
    """Layers scanned on a mesh: https://github.com/jax-ml/jax/issues/23869."""
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    layer = wrap(lambda x, w: x + jax.nn.relu(x @ w[0]) @ w[1])

    def local(layers: Any, x: Any) -> Any:
        x, _ = lax.scan(lambda x, w: (layer(x, w), None), x, layers)
        return lax.pmean(jnp.mean(x**2), "data")

    rows, same = PartitionSpec("data"), PartitionSpec()
    loss = jax.shard_map(local, mesh=mesh, in_specs=(same, rows), out_specs=same)
    return loss, ((_f32(12, 64, 128), _f32(12, 128, 64)), _f32(1024, 64))


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

    two = lambda width, out: (_f32(width, 32), _f32(32, out))
    params = {
        "encode": two(8, 32), "edge": two(64, 32), "decode": two(32, 8),
        "process": [(two(96, 32), two(64, 32))] * 3,
    }  # fmt: skip
    return loss, (params, _f32(512, 8), _i32(4096), _i32(4096), _f32(4, 512, 8))


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

    return loss, ({"size": _f32(512, 1), "depth": _f32(512, 1)}, _f32(512, 3), _i32(512, 20))


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


def _as_is(block: Callable[..., Any]) -> Callable[..., Any]:
    return block


_ALL = (
    captured_constant, cable_neuron, path_signature, continuous_flow, reaction_diffusion,
    bounded_while, pairwise_points, contrastive_pairs, overlapping_patches, graph_operator,
    radiance_field, fast_adaptation, capped_vocabulary, written_buffer, conditional_layers,
    sinkhorn, gaussian_process, selective_scan, transducer, diffusion_network, neural_hmm, maxwell,
    acoustics, dense_block, triangle_attention, physics_informed, dropped_blocks, half_precision,
    flash_layers, example_gradients, importance_weighted, sharded_layers, weather_rollout, molecules,
)  # fmt: skip
REPORTED: dict[str, Callable[[Wrap], Made]] = {made.__name__: made for made in _ALL}
HELD_OUT = frozenset(random.Random(20261130).sample(sorted(REPORTED), len(REPORTED) // 2))

EXPERTS: dict[str, Callable[[], Made]] = {
    **{made.__name__: functools.partial(made, jax.checkpoint)
       for made in (captured_constant, continuous_flow, bounded_while, radiance_field,
                    fast_adaptation, conditional_layers, gaussian_process, selective_scan,
                    dense_block, sharded_layers, weather_rollout, half_precision, flash_layers,
                    diffusion_network)},
    **{made.__name__: functools.partial(made, jax.checkpoint, scan=two_levels)
       for made in (cable_neuron, path_signature, reaction_diffusion, sinkhorn, neural_hmm,
                    maxwell, acoustics, molecules)},
    **{made.__name__: functools.partial(made, _as_is, over=in_chunks(count))
       for made, count in ((pairwise_points, 16), (contrastive_pairs, 16),
                           (overlapping_patches, 16), (graph_operator, 16),
                           (capped_vocabulary, 16), (transducer, 12), (triangle_attention, 16),
                           (physics_informed, 16), (example_gradients, 16),
                           (importance_weighted, 8))},
    "written_buffer": written_buffer_lean,
}  # fmt: skip
