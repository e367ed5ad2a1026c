"""Models from the sciences: simulations, filters, kernels, paths."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import cho_factor, cho_solve

from benchmarks.model import Model, drawing


def neural_ode() -> Model:
    """A neural ordinary differential equation by classical Runge-Kutta steps in a scan."""
    draw = drawing()
    params = {"a": draw(16, 64), "b": jnp.zeros(64), "c": draw(64, 16)}
    x = draw(64, 16, scale=1.0)

    def loss(p: Any, x: Any) -> Any:
        f = lambda x: jnp.tanh(x @ p["a"] + p["b"]) @ p["c"]

        def step(x: Any, _: Any) -> Any:
            k1 = f(x)
            k2 = f(x + 0.05 * k1)
            k3 = f(x + 0.05 * k2)
            k4 = f(x + 0.1 * k3)
            return x + 0.1 / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None

        return jnp.mean((lax.scan(step, x, None, length=20)[0] - 1) ** 2)

    return Model(loss, params, (x,))


def gaussian_process() -> Model:
    """The negative log marginal likelihood of a Gaussian process, by Cholesky."""
    draw = drawing()
    x = draw(96, 3, scale=1.0)
    y = jnp.sin(x.sum(-1))
    params = {"length": jnp.zeros(3), "scale": jnp.zeros(()), "noise": jnp.asarray(-2.0)}

    def loss(p: Any, x: Any, y: Any) -> Any:
        z = x * jnp.exp(-p["length"])
        squared = jnp.sum((z[:, None] - z[None]) ** 2, -1)
        k = jnp.exp(p["scale"] - squared / 2) + jnp.exp(p["noise"]) * jnp.eye(len(y))
        root = jnp.linalg.cholesky(k)
        alpha = jax.scipy.linalg.solve_triangular(root, y, lower=True)
        return 0.5 * alpha @ alpha + jnp.sum(jnp.log(jnp.diagonal(root)))

    return Model(loss, params, (x, y))


def bouncing_balls() -> Model:
    """A physics simulation: balls under gravity that bounce, a cond at every step."""
    draw = drawing()
    params = {"velocity": draw(64, 2, scale=1.0), "bounce": jnp.asarray(0.8)}
    start = jnp.abs(draw(64, 2, scale=1.0)) + 0.5

    def loss(p: Any, start: Any) -> Any:
        def step(state: Any, _: Any) -> Any:
            x, v = state
            v = v - jnp.asarray([0.0, 9.8]) * 0.01
            x = x + v * 0.01
            below = x[:, 1] < 0

            def bounce(x: Any, v: Any) -> Any:
                flipped = v * jnp.asarray([1.0, -1.0]) * p["bounce"]
                return jnp.abs(x), jnp.where(below[:, None], flipped, v)

            return lax.cond(jnp.any(below), bounce, lambda x, v: (x, v), x, v), None

        (x, v), _ = lax.scan(step, (start, p["velocity"]), None, length=100)
        return jnp.mean(x**2) + 0.1 * jnp.mean(v**2)

    return Model(loss, params, (start,))


def kalman_filter() -> Model:
    """The log likelihood of 100 observations under a linear Gaussian state space model."""
    draw, n, m = drawing(), 6, 3
    params = {
        "a": draw(n, n, scale=0.3) + 0.5 * jnp.eye(n), "h": draw(m, n), "q": jnp.zeros(n),
        "r": jnp.zeros(m),
    }  # fmt: skip
    ys = draw(100, m, scale=1.0)

    def loss(p: Any, ys: Any) -> Any:
        def step(state: Any, y: Any) -> Any:
            x, cov = p["a"] @ state[0], p["a"] @ state[1] @ p["a"].T + jnp.diag(jnp.exp(p["q"]))
            error = y - p["h"] @ x
            spread = p["h"] @ cov @ p["h"].T + jnp.diag(jnp.exp(p["r"]))
            root = cho_factor(spread, lower=True)
            gain = cho_solve(root, p["h"] @ cov).T
            loss = 0.5 * error @ cho_solve(root, error) + jnp.sum(jnp.log(jnp.diag(root[0])))
            return (x + gain @ error, cov - gain @ spread @ gain.T), loss

        return jnp.sum(lax.scan(step, (jnp.zeros(n), jnp.eye(n)), ys)[1])

    return Model(loss, params, (ys,))


def path_signature() -> Model:
    """The signatures of 16 paths to depth 4, each step by Chen's identity."""
    draw, depth = drawing(), 4
    params, paths = {"w": draw(3, 3)}, draw(16, 40, 3, scale=1.0)
    outer = lambda a, b: a.reshape(a.shape + (1,) * b.ndim) * b

    def step(signature: Any, x: Any) -> Any:
        """S ⊗ exp(x), each level by Horner's rule."""
        found = []
        for level in range(depth):
            term = x / (level + 1)
            for i in range(level):
                term = outer(signature[i] + term, x / (level - i))
            found.append(signature[level] + term)
        return found, None

    def loss(p: Any, paths: Any) -> Any:
        def features(path: Any) -> Any:
            start = [jnp.zeros((3,) * level) for level in range(1, depth + 1)]
            return lax.scan(step, start, jnp.diff(jnp.tanh(path @ p["w"]), axis=0))[0]

        return sum(jnp.mean((level - 1) ** 2) for level in jax.vmap(features)(paths))

    return Model(loss, params, (paths,))


def rigid_bodies() -> Model:
    """Six links on hinges under gravity: quaternions, the mass matrix, a Cholesky solve a step."""
    draw, n = drawing(), 6
    params = {"arm": draw(n, 3, scale=0.3), "mass": jnp.ones(n), "start": draw(n)}
    axes = np.eye(3)[np.arange(n) % 3]
    before = np.tril(np.ones((n, n)))[..., None]  # which hinges move a link

    def turn(v: Any, q: Any) -> Any:
        twice = 2 * jnp.cross(q[1:], v)
        return v + q[0] * twice + jnp.cross(q[1:], twice)

    def after(q: Any, r: Any) -> Any:
        vector = q[0] * r[1:] + r[0] * q[1:] + jnp.cross(q[1:], r[1:])
        return jnp.concatenate([(q[0] * r[0] - q[1:] @ r[1:])[None], vector])

    def loss(p: Any, target: Any) -> Any:
        def step(state: Any, _: Any) -> Any:
            angles, speeds = state
            at, facing = jnp.zeros(3), jnp.asarray([1.0, 0.0, 0.0, 0.0])
            hinges, lines, ends = [], [], []
            for i in range(n):
                hinges.append(at)
                lines.append(turn(axes[i], facing))
                half = jnp.take(angles, i) / 2
                hinge = jnp.concatenate([jnp.cos(half)[None], jnp.sin(half) * axes[i]])
                facing = after(facing, hinge)
                at = at + turn(p["arm"][i], facing)
                ends.append(at)
            reach = jnp.stack(ends)[:, None] - jnp.stack(hinges)
            moved = jnp.cross(jnp.stack(lines)[None], reach) * before
            mass = jnp.einsum("b,bik,bjk->ij", p["mass"], moved, moved) + 0.1 * jnp.eye(n)
            force = -9.8 * p["mass"] @ moved[..., 2] - 0.5 * speeds
            speeds = speeds + 0.01 * cho_solve(cho_factor(mass), force)
            return (angles + 0.01 * speeds, speeds), None

        (angles, speeds), _ = lax.scan(step, (p["start"], jnp.zeros(n)), None, length=20)
        return jnp.mean((angles - target) ** 2) + jnp.mean(speeds**2)

    return Model(loss, params, (jnp.zeros(n),))
