"""Plans: budgets are kept by compiled steps, the least communication is sought, errors help."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from sampling import sampled

from benchmarks.divisible_losses import LOSSES
from functional_bp import shard, train
from functional_bp.layouts.dimensions import dimensions
from functional_bp.memory.footprint import footprint
from functional_bp.shard.communication import communication_of
from functional_bp.shard.divisions import Division, divisions
from functional_bp.shard.estimates import Lies, work_of
from functional_bp.shard.layout_search import (
    CompiledStep,
    LayoutSearch,
    NothingFitsError,
    PlanError,
)

SGD = optax.sgd(0.1)


def shape(*sizes: int) -> Any:
    return jax.ShapeDtypeStruct(sizes, "float32")


def mlp(params: Any, x: Any) -> Any:
    return jnp.mean((jnp.tanh(x @ params["W1"]) @ params["W2"]) ** 2)


MLP = {"W1": shape(16, 64), "W2": shape(64, 16)}
ROWS = shape(128, 16)


@pytest.fixture(scope="module")
def search() -> LayoutSearch:
    """Two devices, every kind of candidate."""
    return LayoutSearch(mlp, MLP, ROWS, SGD, jax.devices()[:2])


# Communication.


def compiled_on(n: int, fun: Any, *args: tuple[Any, Any]) -> Any:
    """Compile a function for arguments with partition specs over ``n`` devices."""
    mesh = jax.make_mesh((n,), ("a",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:n])
    laid = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))
            for x, spec in args]  # fmt: skip
    out = NamedSharding(mesh, PartitionSpec())
    return jax.jit(fun, out_shardings=out).lower(*laid).compile()


def test_a_sum_over_devices_is_an_all_reduce_of_its_bytes() -> None:
    along = PartitionSpec("a")
    compiled = compiled_on(4, lambda x: x.sum(0), (shape(8, 6), along))
    found = communication_of(compiled)
    assert found.by_kind == {"all-reduce": (1, round(2 * 3 / 4 * 6 * 4))}
    assert found.collectives[0].devices == 4


def test_making_an_array_whole_is_an_all_gather_of_the_others_parts() -> None:
    compiled = compiled_on(4, lambda x: x + 1, (shape(8, 6), PartitionSpec("a")))
    assert communication_of(compiled).by_kind == {"all-gather": (1, 3 * 2 * 6 * 4)}


def test_what_a_loop_sends_counts_as_often_as_it_runs() -> None:
    def looped(x: Any, w: Any) -> Any:
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w) @ w.T, None), x, None, length=5)[0]

    columns = PartitionSpec(None, "a")
    compiled = compiled_on(2, looped, (shape(3, 4), PartitionSpec()), (shape(4, 8), columns))
    assert communication_of(compiled).by_kind == {"all-reduce": (5, 5 * 3 * 4 * 4)}


# Estimates.


@pytest.mark.parametrize(
    ("names", "least"),
    [
        ({"batch"}, 2 * (16 * 64 * 4 + 64 * 16 * 4)),  # the gradients of the parameters
        ({"W1.1"}, 2 * 128 * 16 * 4),  # the sum over hidden units; x has no cotangent
        (set(), 0),
    ],
)
def test_sums_over_devices_are_those_of_the_textbooks(names: set[str], least: float) -> None:
    work = work_of(dimensions(mlp, MLP, ROWS))
    mesh = [Lies(4, frozenset(names))]
    assert work.sent_bytes(mesh) == pytest.approx(least * 3 / 4, abs=64)  # some scalars
    assert work.flops_of(mesh) == pytest.approx(work.flops_of(()) / (4 if names else 1), rel=0.05)


def test_megatrons_layer_sends_four_sums() -> None:
    def stack(ws: Any, x: Any) -> Any:
        x, _ = jax.lax.scan(lambda x, w: (x + jnp.tanh(x @ w[0]) @ w[1], None), x, ws)
        return jnp.mean(x**2)

    ws, x = (shape(3, 8, 32), shape(3, 32, 8)), shape(64, 8)
    found = dimensions(stack, ws, x)
    hidden = next(d.name for d in found.values() if d.size == 32)
    sent = work_of(found).sent_bytes([Lies(2, frozenset([hidden]))])
    assert sent == pytest.approx(3 * 2 * 2 * (1 / 2) * 64 * 8 * 4)  # forward and reverse, 3 layers


def test_axes_that_the_compiler_merges_are_divided_as_before() -> None:
    """Of a sequence model, XLA multiplies f32[batch × time, width] by the weights."""
    found = dimensions(lambda w, x: jnp.mean(jnp.tanh(x @ w)), shape(5, 7), shape(4, 6, 5))
    work = work_of(found)
    assert work.share_of((4 * 6, 7), [Lies(4, frozenset(["batch"]))]) == 1 / 4
    assert work.share_of((11, 7), [Lies(4, frozenset(["batch"]))]) == 1


def test_neighbours_in_space_send_edges() -> None:
    def loss(w: Any, x: Any) -> Any:
        y = jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.mean(y**2)

    found = dimensions(loss, shape(5, 3, 2, 4), shape(8, 16, 32, 2))
    work, (rows, columns) = work_of(found), (found.axes[1][1], found.axes[1][2])
    assert rows and columns
    one, sweeps, four = 8 * 32 * 2 * 4, 2, Lies(4, frozenset([rows]))  # an image's line; bytes
    assert work.edge_bytes([four]) == (5 - 1) * one * sweeps
    batch = Lies(2, frozenset(["batch"]))
    assert work.edge_bytes([four, batch]) == (5 - 1) * one * sweeps / 2
    assert work.edge_bytes([batch]) == 0
    assert work.edge_bytes([Lies(4, frozenset([columns]))]) == (3 - 1) * (one / 2) * sweeps


def test_parts_of_a_divided_axis_are_divided_too() -> None:
    def loss(w: Any, x: Any) -> Any:
        gate, value = jnp.split(x @ w, 2, -1)
        return jnp.mean(jax.nn.sigmoid(gate) * jnp.tanh(value))

    found = dimensions(loss, shape(6, 16), shape(32, 6))
    axis = work_of(found).with_parts(Lies(4, frozenset([found.axes[0][1] or ""])))
    inside = next(name for name, d in found.items() if d.size == 8)
    assert inside in axis.dimensions and "batch" not in axis.dimensions


def test_a_plan_tells_recomputation_only_where_something_is_made_again(
    search: LayoutSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = next(t for t in search.trials if t.layout and not t.division.recomputes)
    again = replace(plain, division=replace(plain.division, recomputes=True))
    monkeypatch.setattr(search, "trials", [again])
    found, (done, _) = search.find("1 GiB"), search.measured(plain, 0)
    assert isinstance(done, CompiledStep) and found.compiled.flops == done.flops
    assert found.division == plain.division


def test_estimated_arguments_are_the_compiled_ones(search: LayoutSearch) -> None:
    trials = [t for t in search.trials if t.division.microbatches == 1]
    for trial in [t for t in trials if not t.division.recomputes][:3]:
        done, _ = search.measured(trial, 0)
        assert isinstance(done, CompiledStep)
        assert done.program.argument_bytes == trial.argument_bytes
        assert done.program.donated_bytes >= done.program.output_bytes - 64  # the loss is left


# Candidates.


def test_microbatches_are_there_where_the_law_allows_them() -> None:
    def counts(loss: Any) -> set[int]:
        found = dimensions(loss, MLP, ROWS)
        law = shard.batch_law(loss, MLP, ROWS)
        return {c.microbatches for c in divisions(found, work_of(found), law, 2)}

    assert counts(mlp) == {1, 2, 4, 8, 16}
    assert counts(lambda p, x: jnp.var(x @ p["W1"] @ p["W2"])) == {1}


def test_dimensions_that_stand_nowhere_together_are_one_group() -> None:
    def loss(params: Any, x: Any) -> Any:
        h = jnp.tanh(x @ params["up"]) @ params["down"]
        return jnp.mean(jax.nn.logsumexp(jnp.tanh(h) @ params["head"], -1))

    params = {"up": shape(8, 64), "down": shape(64, 8), "head": shape(8, 32)}
    found = dimensions(loss, params, ROWS.update(shape=(128, 8)))
    divided = [c.divided.get("data") for c in divisions(
        found, work_of(found), shard.batch_law(loss, params, shape(128, 8)), 2)]  # fmt: skip
    assert ("up.1", "head.1") in divided or ("head.1", "up.1") in divided
    assert not any({"batch", "up.1"} <= set(names or ()) for names in divided)


# Plans.


@pytest.mark.parametrize("share", sampled([0.45, 0.6, 1.0], 2))
def test_a_plan_keeps_its_budget_and_the_numbers_of_one_device(
    search: LayoutSearch, share: float
) -> None:
    budget = int(share * search.alone.peak_bytes)
    plan = shard.TrainingPlan(search.find(budget))
    assert plan.peak_bytes <= budget

    def make(key: jax.Array) -> Any:
        return jax.tree.map(lambda s: jax.random.normal(key, s.shape, s.dtype) / 4, MLP)

    x = np.random.default_rng(0).normal(size=ROWS.shape).astype("float32")
    state, one = plan.init(make, 3), train.init(make, SGD, seed=3)
    assert footprint(plan.step, state, x).peak_bytes <= budget
    step = train.step(mlp, SGD)
    for batch in plan.feed([x, x]):
        state, logs = plan.step(state, batch)
        one, expected = step(one, x)
        np.testing.assert_allclose(logs["loss"], expected["loss"], rtol=1e-5)
    for mine, theirs in zip(jax.tree.leaves(state.params), jax.tree.leaves(one.params)):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)


def test_a_budget_uses_what_was_compiled_for_another(search: LayoutSearch) -> None:
    plan = shard.TrainingPlan(search.find(search.alone.peak_bytes))
    again = plan.within(search.alone.peak_bytes)
    assert again.result.compilations == 0 and again.result.division == plan.result.division


def test_all_programs_that_recomputation_takes_are_counted(
    search: LayoutSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = next(t for t in search.trials if t.layout and not t.division.recomputes)
    done, _ = search.measured(plain, 0)
    assert isinstance(done, CompiledStep) and (done.compilations, done.again) == (1, 1.0)
    again = replace(plain, division=replace(plain.division, recomputes=True))
    monkeypatch.setattr(search, "trials", [again])
    found = search.find(done.peak_bytes - 0.2 * done.program.temporary_bytes)
    assert found.compilations == 1 < found.programs == found.compiled.compilations
    assert f"1 candidate compiled in {found.programs} programs" in str(shard.TrainingPlan(found))


def test_a_plan_says_what_was_chosen_and_what_was_not(search: LayoutSearch) -> None:
    plan = shard.TrainingPlan(search.find(int(0.6 * search.alone.peak_bytes)))
    told = str(plan)
    assert str(plan.result.division) in told.replace("\n", " ")
    assert "Law of the batch: mean" in told and "compiled" in told
    report = plan.explain()
    sizes = [part.program.peak_bytes for part in report.smaller]
    assert [part.examples for part in report.smaller] == [128, 64, 32, 16]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == search.alone.peak_bytes
    assert "chosen" in report.text(200) and "smaller minibatch" in report.text(200)
    circles = ElementTree.fromstring(report.svg()).findall(".//{*}circle")
    kinds = [c.get("class") for c in circles]  # each stands in the legend, too
    assert kinds.count("chosen") == 2 and kinds.count("smaller") == len(report.smaller) + 1
    assert kinds.count("estimated") < len(search.trials)  # those that none beats
    assert report.svg() in report.html()


def test_a_roofline_of_the_person_gives_seconds() -> None:
    roofline = shard.Roofline(flops=1e6, link=1e3)
    plan = shard.plan(mlp, MLP, ROWS, optimizer=SGD, devices=2, memory="1 MiB", roofline=roofline)
    done = plan.result.compiled
    assert done.flops
    assert f"{done.flops / 1e6 + done.communication.bytes / 1e3:.3g} s at best" in str(plan)


def test_fit_takes_a_plan() -> None:
    plan = shard.plan(mlp, MLP, ROWS, optimizer=SGD, devices=2, memory="1 MiB")
    x = np.random.default_rng(0).normal(size=(256, 16)).astype("float32")
    params = jax.tree.map(lambda s: jnp.full(s.shape, 0.1, s.dtype), MLP)
    state, history = train.fit(mlp, params, x, optimizer=SGD, batch_size=128, epochs=2,
                               plan=plan, verbose=0, shuffle=False)  # fmt: skip
    alone, expected = train.fit(mlp, params, x, optimizer=SGD, batch_size=128, epochs=2,
                                verbose=0, shuffle=False)  # fmt: skip
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-5)
    assert len(state.params["W1"].sharding.device_set) == 2
    np.testing.assert_allclose(state.params["W1"], alone.params["W1"], rtol=1e-4, atol=1e-6)


# Errors.


@pytest.mark.long
def test_what_cannot_fit_is_told_with_its_floor(search: LayoutSearch) -> None:
    with pytest.raises(NothingFitsError, match="state and batch of mlp alone"):
        search.find(1024)
    smallest = min(t.argument_bytes for t in search.trials)
    with pytest.raises(NothingFitsError) as caught:
        search.find(int(smallest * 1.05))
    error = caught.value
    assert "too much" in error.got and "largest array" in error.got and "devices" in error.do
    assert error.least > smallest
    assert search.find(error.least).peak_bytes <= error.least


def test_devices_that_are_not_there_are_refused() -> None:
    for devices in (0, 64):
        with pytest.raises(PlanError, match="not so many devices"):
            shard.plan(mlp, MLP, ROWS, optimizer=SGD, devices=devices, memory="1 MiB")
    with pytest.raises(PlanError, match="no device"):
        shard.plan(mlp, MLP, ROWS, optimizer=SGD, devices=[], memory="1 MiB")


def test_a_mesh_of_the_person_is_used_as_it_is() -> None:
    mesh = jax.make_mesh((2, 2), ("rows", "units"), (jax.sharding.AxisType.Auto,) * 2,
                         devices=jax.devices()[:4])  # fmt: skip
    plan = shard.plan(mlp, MLP, ROWS, optimizer=SGD, devices=mesh, memory="1 MiB", recompute=False)
    assert plan.layout.mesh.axis_names == ("rows", "units")


def test_a_candidate_is_told_in_words() -> None:
    division = Division((("data", 4, ("batch",)), ("model", 2, ("a", "b"))), True, 2, True)
    assert str(division) == (
        "batch over 4, a + b over 2, parameters stored in parts, 2 microbatches, recomputation"
    )


@pytest.mark.long
@pytest.mark.parametrize("name", ["table", "wave", "experts", "vocabulary"])
def test_every_plan_keeps_its_budget(name: str) -> None:
    loss, params, batch = LOSSES[name]()
    search = LayoutSearch(loss, params, batch, optax.adam(1e-3), jax.devices()[:4])
    kept = 0
    for share in (0.9, 0.7, 0.5, 0.4, 0.3, 0.27, 0.26):
        budget = int(share * search.alone.peak_bytes)
        try:
            result = search.find(budget)
        except NothingFitsError as error:
            assert error.least > budget
            continue
        assert result.peak_bytes <= budget
        kept += 1
    assert kept >= 4


def test_a_plan_says_what_the_person_calls_it() -> None:
    """Dimensions bear the names of the loss's arguments; stored in parts is what is left."""

    def loss(weights: Any, rows: Any) -> Any:
        return jnp.mean(jnp.tanh(rows @ weights["hidden"]) ** 2)

    shape = jax.ShapeDtypeStruct
    found = shard.plan(
        loss, {"hidden": shape((64, 512), "float32")}, shape((32, 64), "float32"),
        optimizer=optax.sgd(0.1), devices=2, memory="1 MiB",
    )  # fmt: skip
    dimensions = found.result.search.dimensions
    assert {"weights['hidden']", "rows"} == {leaf.path for leaf in dimensions.leaves}
    tried = [trial.division for trial in found.result.search.trials]
    assert any(division.store for division in tried)
    for division in tried:
        divided = {name for _, _, names in division.axes for name in names}
        assert not (division.store and divided & {"hidden.1", dimensions.axes[0][0]})
