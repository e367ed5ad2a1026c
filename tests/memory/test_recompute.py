"""``bp.recompute`` keeps its budget in the compiled program, and is the same function."""

from __future__ import annotations

import dataclasses
import functools
import heapq
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from sampling import sampled

import functional_bp as bp
from functional_bp.memory.budgets import BudgetError
from functional_bp.memory.footprint import FootprintError
from functional_bp.memory.nested_schedules import partition
from functional_bp.memory.residual_costs import cheapest, costs_of
from functional_bp.memory.schedule import LoopSchedule, Schedule, Segment
from functional_bp.memory.scheduled import scheduled
from functional_bp.memory.scheduler import Scheduler

F = jnp.float32


def draw(seed: int, *sizes: int) -> Any:
    return jax.random.normal(jax.random.key(seed), sizes, F) / float(np.sqrt(sizes[-1]))


def deep(params: Any, x: Any) -> Any:
    """Residual layers with gelu, written one by one."""
    for w, v in params:
        x = x + jax.nn.gelu(x @ w) @ v
    return jnp.mean(x**2)


def scanned(params: Any, x: Any) -> Any:
    return jnp.mean(lax.scan(lambda x, p: (x + jax.nn.gelu(x @ p[0]) @ p[1], None), x, params)[0])


def recurrent(params: Any, xs: Any) -> Any:
    def cell(h: Any, x: Any) -> Any:
        h = jnp.tanh(h @ params + x)
        return h, jnp.sum(h)

    h, ys = lax.scan(cell, jnp.zeros(xs.shape[1:], F), xs)
    return jnp.mean(h**2) + jnp.mean(ys)


def backwards(params: Any, xs: Any) -> Any:
    cell = lambda h, x: (jnp.sin(h @ params) + x, h[0])
    h, ys = lax.scan(cell, jnp.ones(xs.shape[1:], F), xs, reverse=True)
    return jnp.mean(h**2) + jnp.mean(ys**3)


def with_skips(params: Any, x: Any) -> Any:
    states = []
    for w in params[:3]:
        x = jnp.tanh(x @ w)
        states.append(x)
    for w, state in zip(params[3:], reversed(states)):
        x = jnp.tanh(x @ w) * state
    return jnp.mean(x**2)


def attending(params: Any, x: Any) -> Any:
    for w in params:
        a = jax.nn.softmax((x @ w) @ x.T / 4)
        x = x + jnp.tanh(a @ x)
    return jnp.mean(x**2)


def dropped(params: Any, key: Any, x: Any) -> Any:
    for k, w in enumerate(params):
        keep = jax.random.bernoulli(jax.random.fold_in(key, k), 0.7, x.shape)
        x = jnp.where(keep, jax.nn.relu(x @ w) / 0.7, 0)
    return jnp.mean(x**2)


SQUARE = [draw(k, 32, 32) for k in range(6)]
PAIRS = [(draw(k, 32, 128), draw(k + 9, 128, 32)) for k in range(4)]
LOSSES: dict[str, tuple[Callable[..., Any], tuple[Any, ...], float]] = {
    "deep": (deep, (PAIRS, draw(1, 256, 32)), 0.42),
    "scan over layers": (
        scanned, (tuple(map(jnp.stack, zip(*PAIRS))), draw(1, 256, 32)), 0.5),
    "recurrent": (recurrent, (draw(0, 8, 8), draw(1, 300, 16, 8)), 0.25),
    "backwards": (backwards, (draw(0, 8, 8), draw(1, 301, 16, 8)), 0.45),
    "skips": (with_skips, (SQUARE, draw(1, 512, 32)), 0.95),
    "attention": (attending, (SQUARE[:3], draw(1, 96, 32)), 0.7),
    "dropout": (dropped, (SQUARE[:3], jax.random.key(1), draw(1, 512, 32)), 0.8),
}  # fmt: skip


def trained(fun: Any, args: Any) -> tuple[int, Any]:
    """The temporaries of the gradient's program, and what it computes."""
    compiled: Any = jax.jit(bp.value_and_grad(fun)).lower(*args).compile()
    return compiled.memory_analysis().temp_size_in_bytes, compiled(*args)


SLOW = "recurrent", "backwards", "skips", "attention", "dropout"
NAMES = [pytest.param(n, marks=[pytest.mark.long] * (n in SLOW)) for n in LOSSES]


@pytest.mark.parametrize("name", NAMES)
def test_the_budget_is_kept_and_the_gradient_is_the_same(name: str) -> None:
    fun, args, share = LOSSES[name]
    lean = bp.recompute(fun, share)
    (size, found), (plain_size, expected) = trained(lean, args), trained(fun, args)
    assert size <= share * plain_size
    chex.assert_trees_all_close(found, expected, rtol=2e-4, atol=1e-6)
    choice = lean.choice(*args)
    assert choice.schedule.flops > 0 and "with nothing made again" in str(lean)
    assert choice.program.temporary_bytes == pytest.approx(size, rel=0.1)


def test_bytes_count_arguments_and_results_too() -> None:
    fun, args, _ = LOSSES["deep"]
    whole = bp.footprint(fun, *args).peak_bytes
    lean = bp.recompute(fun, int(0.6 * whole))
    assert bp.footprint(lean, *args).peak_bytes <= 0.6 * whole


def test_a_budget_that_suffices_changes_nothing() -> None:
    fun, args, _ = LOSSES["deep"]
    choice = bp.recompute(fun, "1 GiB").choice(*args)
    assert choice.schedule.flops == 0 and choice.compilations <= 1
    assert choice.program == choice.plain


def test_a_budget_below_the_floor_is_refused_with_what_fills_it() -> None:
    fun, args, _ = LOSSES["deep"]
    with pytest.raises(BudgetError, match="at least") as raised:
        bp.grad(bp.recompute(fun, "90 kB"))(*args)
    assert "f32[" in str(raised.value) and "test_recompute.py" in str(raised.value)
    assert "batch smaller" in raised.value.do


@pytest.mark.parametrize("budget", ["plenty", 0, -3, "2 parsecs", 1, 1.5, float("nan"), "120%"])
def test_budgets_that_are_none(budget: Any) -> None:
    with pytest.raises(FootprintError, match="no size of a memory|no budget"):
        bp.recompute(deep, budget)


def test_ways_to_write_a_share() -> None:
    fun, args, _ = LOSSES["deep"]
    choices = [bp.recompute(fun, share).choice(*args) for share in (0.6, np.float32(0.6), "60%")]
    assert len({choice.program.temporary_bytes for choice in choices}) == 1


def test_what_is_no_array_stays_as_it_is() -> None:
    """Settings choose what the function does; what is no array comes back as it was."""

    def fun(params: Any, x: Any, steps: int, kind: str, train: bool, act: Any) -> Any:
        for w, v in params[:steps] if train else params[:1]:
            x = x + act(x @ w) @ v
        return (jnp.mean(x**2) if kind == "mean" else jnp.sum(x)), {"kind": kind, "steps": steps}

    settings = (3, "mean", True, jax.nn.gelu)
    lean = bp.recompute(fun, "1 GiB")
    (value, aux), bars = bp.value_and_grad(lean, has_aux=True)(PAIRS, draw(1, 256, 32), *settings)
    assert aux == {"kind": "mean", "steps": 3}
    expected = bp.value_and_grad(fun, has_aux=True)(PAIRS, draw(1, 256, 32), *settings)
    chex.assert_trees_all_close((value, bars), (expected[0][0], expected[1]), rtol=2e-4, atol=1e-6)
    one = lean(PAIRS, draw(1, 256, 32), 1, "mean", True, jax.nn.gelu)[0]
    assert one != value and len(lean.choices) == 2


@pytest.mark.long
def test_the_next_random_key_may_come_out() -> None:
    fun, args, share = LOSSES["dropout"]

    def with_key(params: Any, key: Any, x: Any) -> Any:
        return fun(params, key, x), jax.random.split(key)[0]

    found = bp.grad(bp.recompute(with_key, share), has_aux=True)(*args)[1]
    assert jnp.array_equal(jax.random.key_data(found), jax.random.key_data(with_key(*args)[1]))


def test_argnums_are_counted_as_by_grad() -> None:
    fun, (params, x), _ = LOSSES["deep"]
    swapped = bp.recompute(lambda x, params: fun(params, x), 0.6, argnums=-1)
    assert swapped.choice(x, params).schedule.flops > 0
    for argnums, said in [(2, "beyond"), (0, "nothing of")]:
        with pytest.raises(FootprintError, match=said):
            bp.recompute(lambda i, x: x[i], 0.6, argnums=argnums)(jnp.int32(1), x)


@pytest.mark.long
def test_the_budget_is_one_of_each_device() -> None:
    mesh = jax.make_mesh((4,), ("rows",), (jax.sharding.AxisType.Auto,))
    rows = jax.NamedSharding(mesh, jax.P("rows"))
    fun, (params, _), _ = LOSSES["deep"]
    x = jax.device_put(draw(1, 1024, 32), rows)
    params = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
    lean = bp.recompute(fun, 0.6)
    choice = lean.choice(params, x)
    compiled: Any = jax.jit(bp.value_and_grad(lean)).lower(params, x).compile()
    share = compiled.memory_analysis().temp_size_in_bytes / choice.plain.temporary_bytes
    parameter_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert choice.plain.argument_bytes == parameter_bytes + x.nbytes // 4 and share <= 0.6


@jax.custom_vjp
def opaque(params: Any, x: Any) -> Any:
    return deep(params, x)


opaque.defvjp(lambda *args: jax.vjp(deep, *args), lambda pull, bar: pull(bar))


def test_what_cannot_be_opened_is_named() -> None:
    with pytest.raises(BudgetError, match="nothing inside opaque is made again"):
        bp.recompute(opaque, 0.3)(*LOSSES["deep"][1])


def chosen(params: Any, x: Any) -> Any:
    return lax.cond(x[0, 0] > -9, lambda: deep(params, x), lambda: jnp.sum(x))


def on_devices(params: Any, x: Any) -> Any:
    mesh = jax.make_mesh((2,), ("rows",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    specs = jax.P(), jax.P("rows")
    body = lambda params, x: lax.pmean(deep(params, x), "rows")
    return jax.shard_map(body, mesh=mesh, in_specs=specs, out_specs=jax.P())(params, x)


def under_checkpoint(params: Any, x: Any) -> Any:
    return jax.checkpoint(deep)(params, x)


def chosen_or_nothing(params: Any, x: Any) -> Any:
    """A branch without an operation."""
    step = lambda x, p: lax.cond(p[0][0, 0] > -9, lambda: jnp.tanh(x @ p[0]) @ p[1], lambda: x)
    return jnp.mean(lax.scan(lambda x, p: (step(x, p), None), x, params)[0] ** 2)


def looped_on_devices(params: Any, x: Any) -> Any:
    """A loop on each device: its state differs between them, its weights do not."""
    mesh = jax.make_mesh((2,), ("rows",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])

    def body(params: Any, x: Any) -> Any:
        layer = lambda x, p: (x + jax.nn.gelu(x @ p[0]) @ p[1], None)
        return lax.pmean(jnp.mean(lax.scan(layer, x, params)[0] ** 2), "rows")

    specs = jax.P(), jax.P("rows")
    return jax.shard_map(body, mesh=mesh, in_specs=specs, out_specs=jax.P())(params, x)


STACKED = LOSSES["scan over layers"][1]


INSIDE = [
    *[(fun, LOSSES["deep"][1]) for fun in (chosen, on_devices, under_checkpoint)],
    *[(fun, STACKED) for fun in (chosen_or_nothing, looped_on_devices)],
]


@pytest.mark.parametrize(
    ("fun", "args"), sampled(INSIDE, 4), ids=[fun.__name__ for fun, _ in INSIDE]
)
def test_what_is_inside_is_made_again_too(fun: Any, args: Any) -> None:
    lean = bp.recompute(fun, 0.6)
    (size, found), (plain_size, expected) = trained(lean, args), trained(fun, args)
    assert size <= 0.6 * plain_size
    chex.assert_trees_all_close(found, expected, rtol=2e-4, atol=1e-6)


@pytest.mark.long
def test_equal_segments_are_tried_where_the_estimate_errs() -> None:
    def layers(w: Any, x: Any) -> Any:
        for _ in range(12):
            x = jnp.sin(jnp.tanh(x @ w))
        return jnp.mean(x**2)

    def by_hand(w: Any, x: Any) -> Any:
        three = jax.checkpoint(lambda w, x: layers_of(w, x, 3))
        for _ in range(4):
            x = three(w, x)
        return jnp.mean(x**2)

    def layers_of(w: Any, x: Any, count: int) -> Any:
        for _ in range(count):
            x = jnp.sin(jnp.tanh(x @ w))
        return x

    args = draw(0, 64, 64), draw(1, 256, 64)
    budget = int(1.02 * bp.footprint(by_hand, *args).peak_bytes)
    assert bp.recompute(layers, budget).choice(*args).program.peak_bytes <= budget


def test_it_is_a_function_among_others() -> None:
    """Under vmap, twice differentiated, by keyword, of several arguments, by JAX's own grad."""
    fun, (params, x), _ = LOSSES["deep"]
    lean = bp.recompute(fun, 0.6, argnums=(0, 1))
    chex.assert_trees_all_close(lean(params, x), fun(params, x), rtol=1e-5)
    expected = jax.jit(jax.grad(fun, (0, 1)))(params, x)
    close = functools.partial(chex.assert_trees_all_close, rtol=2e-4, atol=1e-6)
    for args, kwargs in [((params, x), {}), ((params,), {"x": x})]:
        close(jax.jit(bp.grad(lean))(*args, **kwargs), expected[0])
    close(jax.jit(jax.grad(lean, (0, 1)))(params, x), expected)
    mapped = jax.jit(jax.vmap(bp.grad(lean, 1), (None, 0)))
    close(mapped(params, jnp.stack([2 * x, x]))[1], expected[1])
    turn = lambda f: jax.jit(lambda x: bp.hvp(lambda x: f(params, x), (x,), (x,)))(x)
    chex.assert_trees_all_close(turn(lean), turn(fun), rtol=2e-3, atol=1e-5)


def test_a_decorated_method_is_bound() -> None:
    """``argnums`` count behind ``self``, as those of ``bp.grad`` of a bound method do."""

    class Model:
        layers = 3

        @functools.partial(bp.recompute, budget=0.6)
        def loss(self, params: Any, x: Any) -> Any:
            return deep(params[: self.layers], x)

    model, x = Model(), draw(1, 256, 32)
    found = bp.grad(model.loss)(PAIRS, x)
    chex.assert_trees_all_close(
        found, bp.grad(deep)(PAIRS[:3], x) + found[3:], rtol=2e-4, atol=1e-6
    )
    assert Model.loss.choices == model.loss.choices and len(model.loss.choices) == 1
    assert model.loss.choice(PAIRS, x).schedule.flops > 0
    told = bp.footprint(model.loss, PAIRS, x).training
    assert told and "params[0][0]" in {share.name for share in told.shares}


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Module:
    """A module as Equinox has them: a pytree of arrays and functions that is called."""

    pairs: Any
    act: Any

    def __call__(self, x: Any) -> Any:
        for w, v in self.pairs:
            x = x + self.act(x @ w) @ v
        return jnp.mean(x**2)

    @functools.partial(bp.recompute, budget=0.6)
    def loss(self, x: Any) -> Any:
        return self(x)


@pytest.mark.long
def test_the_arrays_of_a_module_are_differentiated() -> None:
    x = draw(1, 256, 32)

    def through(call: Any) -> Any:
        return jax.jit(bp.grad(lambda pairs: call(Module(pairs, jax.nn.gelu))))(PAIRS)

    plain = through(lambda module: module(x))
    ways = [lambda module: bp.recompute(module, 0.6)(x), lambda module: module.loss(x)]
    for way in ways:
        chex.assert_trees_all_close(through(way), plain, rtol=2e-4, atol=1e-6)
    assert str(bp.recompute(Module(PAIRS, jax.nn.gelu), 0.6)).startswith("Module, to be")
    chosen = Module(PAIRS, jax.nn.gelu).loss.choice(x)
    parameter_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(PAIRS))
    assert chosen.schedule.flops > 0 and chosen.program.output_bytes >= parameter_bytes


@pytest.mark.long
def test_a_smaller_budget_never_gives_a_larger_program() -> None:
    def fun(w: Any, h: Any) -> Any:
        return jnp.mean(lax.scan(lambda h, _: (jnp.tanh(h @ w), None), h, None, length=100)[0] ** 2)

    args = draw(0, 16, 16), draw(1, 32, 16)
    budgets = (0.5, 0.25, 0.8, 0.35, 0.65, 0.28)
    found = {b: bp.recompute(fun, b).choice(*args) for b in budgets}
    sizes = [found[b].program.temporary_bytes for b in sorted(budgets)]
    efforts = [found[b].program.flops for b in sorted(budgets)]
    assert sizes == sorted(sizes) and efforts == sorted(efforts, reverse=True)
    assert len(set(sizes)) > 2
    assert sum(choice.compilations for choice in found.values()) <= 14  # they are shared


@pytest.mark.long
def test_random_bits_are_the_same() -> None:
    fun, args, share = LOSSES["dropout"]
    found, plain = (jax.jit(f)(*args) for f in (bp.recompute(fun, share), fun))
    np.testing.assert_allclose(found, plain, rtol=1e-6)  # sums of pieces are sums in another order


@pytest.mark.long
def test_each_shape_has_its_own_choice() -> None:
    fun, (params, x), share = LOSSES["deep"]
    lean = bp.recompute(fun, share)
    for rows, count in [(x, 1), (x + 1, 1), (x[:64], 2)]:
        jax.eval_shape(bp.grad(lean), params, rows)
        assert len(lean.choices) == count


# What is chosen.


def chain(x: Any) -> Any:
    for _ in range(8):
        x = jnp.sin(x)
    return x


def test_the_cut_keeps_the_cheapest_set() -> None:
    """Among all subsets of a small graph none costs less bytes and operations."""

    def small(x: Any, w: Any) -> Any:
        a = jnp.exp(x)
        b = jnp.sum(a.reshape(8, 4), 1)
        return jnp.sum(jnp.sin(b * w) * jnp.cos(b))

    jaxpr = jax.make_jaxpr(small)(jnp.ones(32, F), jnp.ones(8, F)).jaxpr
    costs = costs_of(jaxpr, (True, True))
    defined = {v: i for i, eqn in enumerate(jaxpr.eqns) for v in eqn.outvars}
    named = {v for group in costs.named for v in group if v in defined}

    def price(kept: set[Any], weight: float) -> float:
        needed, total = set(named), sum(v.aval.size * 4 for v in kept)
        for i in reversed(range(len(jaxpr.eqns))):
            eqn = jaxpr.eqns[i]
            if any(v in needed and v not in kept for v in eqn.outvars):
                total += weight * costs.flops[i]
                needed |= {a for a in eqn.invars if a in defined}
        return total

    for weight in (0.0, 0.1, 1.0, 50.0):
        subsets = [
            {v for k, v in enumerate(defined) if mask >> k & 1} for mask in range(2 ** len(defined))
        ]
        best = min(price(kept, weight) for kept in subsets)
        found = price(cheapest(costs, weight, {}) & set(defined), weight)
        assert found == pytest.approx(best, rel=1e-2, abs=40)


def fewest_steps(length: int, room: int) -> float:
    """The fewest steps that reverse a chain with room for so many states, of all orders there are.

    The k-th reverse step needs the state before the k-th step. A state is computed from the one
    before, in its place or beside it; the start is there always, and the end is not kept.
    """
    start = frozenset[int](), length
    cost, queue, seen = {start: 0}, [(0, 0, start)], set[Any]()
    while queue:
        total, _, state = heapq.heappop(queue)
        held, last = state
        if not last:
            return total
        if state in seen:
            continue
        seen.add(state)
        there = last == 1 or last - 1 in held
        following = [(held - {last - 1}, last - 1, total)] if there else []
        for k in range(length - 1):
            if k == 0 or k in held:
                beside, instead = held | {k + 1}, (held - {k}) | {k + 1}
                following += [(new, last, total + 1) for new in (beside, instead)]
        for new, left, more in following:
            if len(new) <= room and more < cost.get((new, left), np.inf):
                cost[new, left] = more
                heapq.heappush(queue, (more, len(cost), (new, left)))
    return np.inf


def test_the_schedule_of_a_chain_is_the_best_there_is() -> None:
    size = 1021  # a prime: it is not divided
    jaxpr = jax.make_jaxpr(chain)(jnp.ones(size, F)).jaxpr
    scheduler = Scheduler(costs_of(jaxpr, (True,)))
    unit, count, cotangents = 4 * size, 8, 2
    for room in range(1, count):
        found = scheduler.within((room + cotangents + 0.2) * unit)
        assert found is not None
        assert found.flops / size + count - 1 == fewest_steps(count, room)


LEAN = Schedule((Segment(0, 4, kept=frozenset()),))
LOOPS = [
    LoopSchedule(*options)
    for options in (
        ((), 1, LEAN), ((2,), 1, None), ((3,), 1, LEAN), ((7,), 1, None), ((4,), 2, None),
        ((4,), 4, LEAN), ((3, 2), 1, None), ((2, 2, 2), 1, LEAN), ((1,), 1, None, 8),
        ((3,), 1, LEAN, 2),
    )
]  # fmt: skip


@pytest.mark.parametrize(("k", "loop"), sampled(enumerate(LOOPS), 3))
def test_a_loop_in_chunks_is_the_same_loop(k: int, loop: LoopSchedule) -> None:
    def step(c: Any, x: Any) -> Any:
        c = jnp.sin(c) * x + 1
        return c, c * 2

    run = lambda c, xs: lax.scan(step, c, xs, reverse=k % 2 == 1)
    args = draw(0, 5), draw(1, 17, 5)
    jaxpr = jax.make_jaxpr(run)(*args).jaxpr
    divided = scheduled(jaxpr, Schedule((Segment(0, 1, inside=loop),)))

    def both(*args: Any) -> Any:
        total = lambda c, ys: jnp.sum(c) + jnp.sum(ys**2)
        found = bp.value_and_grad(lambda *args: total(*divided((), *args)), (0, 1))(*args)
        return found, bp.value_and_grad(lambda *args: total(*run(*args)), (0, 1))(*args)

    found, expected = jax.jit(both)(*args)
    chex.assert_trees_all_close(found, expected, rtol=1e-5)


@pytest.mark.parametrize("length", [17, 64, 1000])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_chunks_take_all_steps(length: int, groups: int) -> None:
    for chunks in (groups, 4 * groups, length // 2):
        parts = partition(length, chunks, groups)
        assert sum(count * size for count, size in parts) == length
        assert [size for _, size in parts] == sorted((size for _, size in parts), reverse=True)
