"""More reported losses, held out: no choice of what to make again was tuned on these.

A coin parted them from ``benchmarks.reported`` before either was tried: of the sorted names of
both, those that ``random.Random(20261130).sample(names, 17)`` draws are here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from benchmarks.losses import Made, Wrap
from benchmarks.reported import Over, Scan, as_is, f32, i32, in_chunks, two_levels


def convolve(x: Any, kernel: Any, stride: int = 1) -> Any:
    """A convolution of images, channels last."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=numbers)


def cable_neuron(wrap: Wrap, scan: Scan = lax.scan) -> Made:
    """Hodgkin-Huxley on a cable, recorded: https://github.com/jaxleyverse/jaxley/issues/15."""

    def relax(gate: Any, rise: Any, fall: Any) -> Any:
        end = rise / (rise + fall)
        return end + (gate - end) * jnp.exp(-0.025 * (rise + fall))

    def step(p: Any, state: Any, current: Any) -> Any:
        v, m, h, n = state
        m = relax(
            m, 0.1 * (v + 40.3) / (1 - jnp.exp(-(v + 40.3) / 10)), 4 * jnp.exp(-(v + 65) / 18)
        )
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

    params = {name: f32(512) for name in ("na", "k", "leak")}
    return loss, (params, f32(400), f32(400, 8))


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

    return loss, (f32(8, 4), f32(201, 32, 8), f32(32, 340))


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

    params = {"in": f32(32, 64), "time": f32(64), "middle": f32(64, 64), "out": f32(64, 32)}
    return loss, (params, f32(256, 32), f32(256, 32))


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

    params = {"feed": f32(64, 64), "kill": f32(64, 64)}
    return loss, (params, f32(2, 64, 64), f32(64, 64))


def overlapping_patches(wrap: Wrap, over: Over = jax.vmap) -> Made:
    """A network on overlapping patches of an image: https://github.com/jax-ml/jax/issues/26263."""

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

    params = {"in": f32(3, 3, 1, 8), "out": f32(3, 3, 8, 1)}
    return loss, (params, f32(99, 99), f32(99, 99))


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

    layers = [f32(27, 64), f32(64, 64), f32(91, 64), f32(64, 64)]
    params = {"layers": layers, "last": f32(64, 4)}
    return loss, (params, f32(128, 3), f32(128, 3), f32(128, 3))


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

    return loss, ({"table": f32(4096, 64), "w": f32(64, 64)}, i32(512), i32(512))


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

    return loss, ({"up": f32(12, 64, 256), "down": f32(12, 256, 64)}, i32(12), f32(512, 64))


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

    params = {"heard": f32(32, 64), "said": f32(32, 64), "joint": f32(64, 512)}
    return loss, (params, f32(96, 32), f32(25, 32), i32(24))


def diffusion_network(wrap: Wrap) -> Made:
    """Attention at a high resolution: https://github.com/lucidrains/imagen-pytorch/issues/300."""

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

    block = {"first": f32(3, 3, 16, 16), "second": f32(3, 3, 16, 16), "time": f32(8, 16)}
    attention = {"qkv": f32(16, 48), "out": f32(16, 16)}
    params = {
        "in": f32(3, 3, 3, 16), "down": f32(3, 3, 16, 16), "out": f32(3, 3, 16, 3),
        "high": block, "low": block, "high_again": block,
        "high_attention": attention, "low_attention": attention,
    }  # fmt: skip
    return loss, (params, f32(2, 28, 28, 3), f32(2, 28, 28, 3), f32(2, 8))


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

    params = {
        "frame": f32(16, 64),
        "again": f32(64, 64),
        "in": f32(96, 128),
        "out": f32(128, 33),
    }
    return loss, (params, f32(96, 32), f32(160, 16))


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

    return loss, (f32(96, 96), f32(96, 96), f32(96, 6))


def dense_block(wrap: Wrap) -> Made:
    """Densely connected: https://github.com/gpleiss/efficient_densenet_pytorch/issues/60."""

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

    norm = lambda width: {"scale": f32(width), "shift": f32(width)}
    layers = [
        {"wide": {**norm(16 + 12 * k), "squeeze": f32(1, 1, 16 + 12 * k, 24)},
         "narrow": {**norm(24), "convolve": f32(3, 3, 24, 12)}}
        for k in range(7)
    ]  # fmt: skip
    return loss, (layers, f32(4, 24, 24, 16))


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
    attention = {name: f32(2, *size) for name, size in sizes.items()}
    return loss, ({"start": attention, "end": attention}, f32(64, 64, 32))


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

    return loss, ([f32(64, 2), *[f32(64, 64)] * 3, f32(1, 64)], f32(2048), f32(2048))


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

    return loss, ([f32(96, 32), f32(96, 96), f32(8, 96)], f32(256, 32), f32(256, 8))


def sharded_layers(wrap: Wrap) -> Made:
    """Layers scanned on a mesh: https://github.com/jax-ml/jax/issues/23869."""
    auto = (AxisType.Auto,)
    mesh = jax.make_mesh((1,), ("data",), auto, devices=jax.devices()[:1])
    layer = wrap(lambda x, w: x + jax.nn.relu(x @ w[0]) @ w[1])

    def local(layers: Any, x: Any) -> Any:
        x, _ = lax.scan(lambda x, w: (layer(x, w), None), x, layers)
        return lax.pmean(jnp.mean(x**2), "data")

    rows, same = PartitionSpec("data"), PartitionSpec()
    loss = jax.shard_map(local, mesh=mesh, in_specs=(same, rows), out_specs=same)
    return loss, ((f32(12, 64, 128), f32(12, 128, 64)), f32(1024, 64))


LOSSES: dict[str, Callable[[Wrap], Made]] = {
    made.__name__: made
    for made in (cable_neuron, path_signature, continuous_flow, reaction_diffusion,
                 overlapping_patches, radiance_field, capped_vocabulary, conditional_layers,
                 transducer, diffusion_network, neural_hmm, acoustics, dense_block,
                 triangle_attention, physics_informed, example_gradients, sharded_layers)
}  # fmt: skip
EXPERTS: dict[str, Callable[[], Made]] = {
    **{made.__name__: functools.partial(made, jax.checkpoint)
       for made in (continuous_flow, radiance_field, conditional_layers, diffusion_network,
                    dense_block, sharded_layers)},
    **{made.__name__: functools.partial(made, jax.checkpoint, scan=two_levels)
       for made in (cable_neuron, path_signature, reaction_diffusion, neural_hmm, acoustics)},
    **{made.__name__: functools.partial(made, as_is, over=in_chunks(count))
       for made, count in ((overlapping_patches, 16), (capped_vocabulary, 16), (transducer, 12),
           (triangle_attention, 16), (physics_informed, 16), (example_gradients, 16))},
}  # fmt: skip
