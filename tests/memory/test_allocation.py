"""What was read off a compiled program is right: its parts add up, and no two live ones overlap."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import functional_bp as bp
from functional_bp.memory.allocation import AllocationKind, CompiledProgram, program_of
from functional_bp.memory.attribution import Purpose, usage_of

F = jnp.float32
Compiled = Callable[[], Any]


def shape(*sizes: int, dtype: Any = F, sharding: Any = None) -> Any:
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)


def compiled(fun: Callable[..., Any], *args: Any, **options: Any) -> Any:
    return jax.jit(fun, **options).lower(*args).compile()


W, X = shape(24, 24), shape(96, 24)


def layers(ws: Any, x: Any) -> Any:
    for w in ws:
        x = jnp.tanh(x @ w)
    return jnp.mean(x**2)


def scanned(w: Any, x: Any) -> Any:
    return jnp.sum(lax.scan(lambda c, _: (jnp.sin(c @ w), c[0]), x, None, length=7)[0])


def stacked(ws: Any, x: Any) -> Any:
    return jnp.sum(lax.scan(lambda c, w: (jax.nn.gelu(c @ w), jnp.sum(c)), x, ws)[0])


def nested(w: Any, x: Any) -> Any:
    def outer(c: Any, _: Any) -> Any:
        return lax.fori_loop(0, 3, lambda i, d: jnp.tanh(d @ w), c), None

    return jnp.sum(lax.scan(outer, x, None, length=4)[0])


def branched(w: Any, x: Any) -> Any:
    return jnp.sum(lax.cond(jnp.sum(x) > 0, lambda c: jnp.tanh(c @ w), lambda c: c * 2, x))


def chosen(w: Any, x: Any) -> Any:
    fs = [lambda c: c @ w, lambda c: jnp.exp(c), lambda c: c * 3]
    return jnp.sum(lax.switch(jnp.int32(jnp.sum(x)) % 3, fs, x) ** 2)


def until(w: Any, x: Any) -> Any:
    return jnp.sum(lax.while_loop(lambda c: jnp.sum(c) > 1, lambda c: jnp.tanh(c @ w) / 2, x))


def attention(w: Any, x: Any) -> Any:
    q, k, v = x @ w, x @ (2 * w), x @ (3 * w)
    return jnp.mean(jax.nn.softmax(q @ k.T / 5) @ v)


def convolved(kernel: Any, x: Any) -> Any:
    numbers = ("NHWC", "HWIO", "NHWC")
    x = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
    window = (1, 2, 2, 1)
    pooled = lax.reduce_window(jax.nn.relu(x), -jnp.inf, lax.max, window, window, "SAME")
    return jnp.mean(pooled)


def embedded(table: Any, ids: Any) -> Any:
    return jnp.mean(jnp.tanh(table[ids]) ** 2)


def written(w: Any, x: Any) -> Any:
    """A buffer in a scan's carry, updated in place."""

    def step(buffer: Any, i: Any) -> Any:
        return buffer.at[i].set(jnp.tanh(buffer[i - 1] @ w)), None

    return jnp.sum(lax.scan(step, x, jnp.arange(1, 9))[0])


@jax.custom_vjp
def scaled(x: Any) -> Any:
    return jnp.exp(x)


scaled.defvjp(lambda x: (jnp.exp(x), jnp.exp(x)), lambda y, y_bar: (y_bar * y,))


def custom(w: Any, x: Any) -> Any:
    return jnp.sum(scaled(x @ w))


def sorting(w: Any, x: Any) -> Any:
    return jnp.sum(jnp.sort(x @ w, axis=0)[:3])


def factored(w: Any, x: Any) -> Any:
    return jnp.linalg.slogdet(x.T @ x + w @ w.T + jnp.eye(24, dtype=F))[1]


def transformed(w: Any, x: Any) -> Any:
    return jnp.sum(jnp.abs(jnp.fft.rfft(x @ w, axis=0)))


def training_step(params: Any, opt_state: Any, x: Any) -> Any:
    loss, bars = bp.value_and_grad(layers)(params, x)
    updates, opt_state = optax.adam(1e-3).update(bars, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss


def step_with_donation() -> Any:
    params = [W] * 3
    state = jax.eval_shape(optax.adam(1e-3).init, params)
    return compiled(training_step, params, state, X, donate_argnums=(0, 1))


def over_devices() -> Any:
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))
    x = shape(96, 24, sharding=NamedSharding(mesh, PartitionSpec("data")))
    w = shape(24, 24, sharding=NamedSharding(mesh, PartitionSpec()))
    return compiled(bp.value_and_grad(layers), [w] * 3, x)


def closed_over() -> Any:
    table = jnp.ones((96, 24), F)
    return compiled(bp.value_and_grad(lambda w: jnp.mean(jnp.tanh(table @ w))), W)


def gradient(fun: Callable[..., Any], *args: Any, by: Any = bp, **options: Any) -> Compiled:
    return lambda: compiled(by.value_and_grad(fun, **options), *args)


IDS, TABLE = shape(40, dtype=jnp.int32), shape(50, 24)
PROGRAMS: dict[str, Compiled] = {
    "unrolled": gradient(layers, [W] * 4, X),
    "unrolled, JAX": gradient(layers, [W] * 4, X, by=jax),
    "prediction": lambda: compiled(layers, [W] * 4, X),
    "scan": gradient(scanned, W, X),
    "scan, JAX": gradient(scanned, W, X, by=jax),
    "scan over layers": gradient(stacked, shape(5, 24, 24), X),
    "scan of loops": gradient(nested, W, X),
    "remat": gradient(jax.checkpoint(layers), [W] * 4, X),
    "remat, JAX": gradient(jax.checkpoint(layers), [W] * 4, X, by=jax),
    "remat in a scan": gradient(
        lambda w, x: jnp.sum(lax.scan(jax.checkpoint(lambda c, _: (jnp.tanh(c @ w), None)), x,
                                      None, length=6)[0]), W, X),
    "cond": gradient(branched, W, X),
    "switch": gradient(chosen, W, X),
    "while": lambda: compiled(until, W, X),
    "while with a bound": gradient(until, W, X, max_steps=9),
    "attention": gradient(attention, W, X),
    "convolution": gradient(convolved, shape(3, 3, 4, 8), shape(4, 12, 12, 4)),
    "embedding": gradient(embedded, TABLE, IDS),
    "updated in place": gradient(written, W, shape(9, 24)),
    "custom rule": gradient(custom, W, X),
    "sort": gradient(sorting, W, X),
    "factorization": gradient(factored, W, X),
    "complex": gradient(transformed, W, X),
    "half precision": gradient(layers, [shape(24, 24, dtype=jnp.bfloat16)] * 3,
                               shape(96, 24, dtype=jnp.bfloat16)),
    "random": lambda: compiled(
        bp.grad(lambda w, k: jnp.sum(jax.random.bernoulli(k, 0.5, (96, 24)) @ (w * w))), W,
        jax.eval_shape(lambda: jax.random.key(0))),
    "vmap": lambda: compiled(jax.vmap(bp.grad(layers), (None, 0)), [W] * 2, shape(5, 96, 24)),
    "Hessian": lambda: compiled(bp.hessian(lambda w: jnp.sum(jnp.tanh(w) ** 3)), shape(30)),
    "donated": step_with_donation,
    "sharded": over_devices,
    "closed over": closed_over,
}  # fmt: skip


@cache
def made(name: str) -> Any:
    return PROGRAMS[name]()


def overlaps(program: CompiledProgram) -> list[tuple[Any, Any]]:
    """Pairs of arrays that XLA would have put on the same bytes at the same time."""
    found = []
    for allocation in program.allocations:
        lying = sorted(allocation.buffers, key=lambda b: b.offset)
        for k, one in enumerate(lying):
            for other in lying[k + 1 :]:
                if other.offset >= one.offset + one.bytes:
                    break
                both = ((a, b) for a in one.spans for b in other.spans)
                found += [(one, other) for a, b in both if a[0] < b[1] and b[0] < a[1]]
    return found


@pytest.mark.parametrize("name", PROGRAMS)
def test_parts_add_up_to_what_xla_says(name: str) -> None:
    program = program_of(made(name))
    total = getattr(
        made(name).memory_analysis(), "total_allocation_bytes", program.peak_bytes
    )  # 0.12
    assert program.peak_bytes == pytest.approx(total, rel=1e-3)
    sums = dict.fromkeys(AllocationKind, 0)
    for allocation in program.allocations:
        sums[allocation.kind] += allocation.bytes
    donated = sum(a.bytes for a in program.allocations if a.is_donated)
    assert sums[AllocationKind.TEMPORARY] == program.temporary_bytes > 0
    assert sums[AllocationKind.ARGUMENT] == pytest.approx(program.argument_bytes, rel=1e-3)
    assert sums[AllocationKind.OUTPUT] + donated == pytest.approx(program.output_bytes, rel=1e-3)
    usage = usage_of(program, lambda name: Purpose.BATCH)
    assert sum(usage.by_use.values()) == pytest.approx(program.peak_bytes, rel=1e-3)


@pytest.mark.parametrize("name", PROGRAMS)
def test_no_two_arrays_that_live_at_once_share_bytes(name: str) -> None:
    program = program_of(made(name))
    assert not overlaps(program)
    live = program.live_bytes[program.peak]
    assert 0.5 * program.temporary_bytes <= live <= program.temporary_bytes


def test_the_witness_of_overlaps_can_fail() -> None:
    program = program_of(PROGRAMS["unrolled"]())
    for allocation in program.allocations:
        for buffer in allocation.buffers:
            object.__setattr__(buffer, "spans", ((0, buffer.spans[-1][1]),))
    assert overlaps(program)
