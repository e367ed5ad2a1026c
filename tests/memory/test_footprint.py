"""``bp.footprint`` as a person meets it: what fills memory, how it grows, what fits."""

from __future__ import annotations

import functools
import inspect
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from html_document import Document
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import functional_bp as bp
from functional_bp import _jax, train
from functional_bp.memory.allocation import HloInstruction, program_of
from functional_bp.memory.attribution import (
    TEMPORARY,
    Provenance,
    Purpose,
    origin_of,
    usage_of,
)
from functional_bp.memory.footprint import FootprintError, parse_bytes
from functional_bp.memory.growth import SizeError
from functional_bp.tables.table import between

F = jnp.float32
ROWS, WIDTH = 256, 32


def shape(*sizes: int, dtype: Any = F, **options: Any) -> Any:
    return jax.ShapeDtypeStruct(sizes, dtype, **options)


def loss(params: Any, x: Any) -> Any:
    with jax.named_scope("encoder"):
        for k, w in enumerate(params["layers"]):
            with jax.named_scope(f"layer{k}"):
                x = bp.name(jnp.tanh(x @ w), "h")
    with jax.named_scope("loss"):
        return jnp.mean((x @ params["out"]) ** 2)


PARAMS = {"layers": [shape(WIDTH, WIDTH)] * 3, "out": shape(WIDTH, 1)}
PARAM_BYTES, BATCH_BYTES = 4 * (3 * WIDTH**2 + WIDTH), 4 * ROWS * WIDTH
X = shape(ROWS, WIDTH)


def test_training_and_prediction_are_told_beside_each_other() -> None:
    found = bp.footprint(loss, PARAMS, X)
    training, prediction = found.training, found.prediction
    assert training is not None and prediction is not None
    for usage in (training, prediction):
        assert usage.by_use[Purpose.PARAMETERS] == PARAM_BYTES
        assert usage.by_use[Purpose.BATCH] == BATCH_BYTES
        assert sum(usage.by_use.values()) == usage.peak_bytes
    assert training.by_use[Purpose.GRADIENTS] == PARAM_BYTES
    assert training.by_use[Purpose.KEPT] >= 2 * BATCH_BYTES  # tanh of layers before, by its rule
    assert prediction.by_use[Purpose.KEPT] == 0 == prediction.by_use[Purpose.GRADIENTS]
    assert prediction.peak_bytes < found.peak_bytes == training.peak_bytes


def test_what_is_kept_carries_scope_name_and_line() -> None:
    usage = bp.footprint(loss, PARAMS, X).training
    assert usage is not None
    kept = [s for s in usage.shares if s.use is Purpose.KEPT and s.bytes == BATCH_BYTES]
    assert {"encoder/layer0", "encoder/layer1"} <= {s.origin.scope for s in kept if s.origin}
    share = next(s for s in kept if s.origin and s.origin.scope == "encoder/layer0")
    assert share.name == "h" and share.type == f"f32[{ROWS},{WIDTH}]"
    assert share.origin and share.origin.operation == "tanh" and share.origin.source
    assert share.origin.source[0] == __file__
    assert usage.by_scope["encoder/layer0"] >= BATCH_BYTES


def test_an_optimizer_brings_its_state_and_takes_the_parameters_over() -> None:
    found = bp.footprint(loss, PARAMS, X, optimizer=optax.adam(1e-3))
    usage = found.training
    assert usage is not None
    assert usage.by_use[Purpose.OPTIMIZER] == 2 * PARAM_BYTES + 4  # two moments and a counter
    assert usage.by_use[Purpose.PARAMETERS] == PARAM_BYTES
    assert usage.by_use[Purpose.OUTPUTS] < 200  # what comes out lies where the old lay
    assert sum(usage.by_use.values()) == usage.peak_bytes


def test_an_optimizers_step_needs_no_more_than_one_written_by_hand() -> None:
    """What is donated goes to where it belongs: Adam's two moments and the parameters are alike."""
    adam, params = optax.adam(1e-3), {"table": shape(4000, 8), "out": shape(8, 1)}
    rows = shape(16, dtype=jnp.int32)

    def of_rows(params: Any, rows: Any) -> Any:
        return jnp.mean(jnp.tanh(params["table"][rows] @ params["out"]))

    def step(params: Any, state: Any, rows: Any) -> Any:
        value, bars = jax.value_and_grad(of_rows)(params, rows)
        updates, state = adam.update(bars, state, params)
        return optax.apply_updates(params, updates), state, value

    state = jax.eval_shape(adam.init, params)
    by_hand = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, rows).compile()
    found = bp.footprint(of_rows, params, rows, optimizer=adam).training
    assert found is not None
    assert found.temporary_bytes <= 1.02 * program_of(by_hand).temporary_bytes


def test_a_copy_of_an_argument_is_no_gradient() -> None:
    """Two donated arrays change places: XLA copies them to do so."""
    swap = jax.jit(lambda w, v: (v + 0.0, w), donate_argnums=(0, 1))
    program = program_of(swap.lower(shape(64, 64), shape(64, 64)).compile())
    copies = [b for b in program.temporaries if b.bytes == 4 * 64 * 64]
    assert copies and {copy.argument for copy in copies} <= {"w", "v"}
    usage = usage_of(program, lambda name: Purpose.PARAMETERS)
    shares = [s for s in usage.shares if s.use in TEMPORARY and s.bytes == 4 * 64 * 64]
    assert shares and all(s.origin and s.origin.operation == "copy" for s in shares)
    assert usage.by_use[Purpose.GRADIENTS] == 0


def test_a_training_step_is_compiled_as_it_is() -> None:
    step = train.step(lambda params, batch: loss(params, batch), optax.sgd(0.1))
    state = jax.eval_shape(lambda p: train.init(p, optax.sgd(0.1)), PARAMS)
    found = bp.footprint(step, state, X)
    assert found.training is not None and found.prediction is None
    assert found.training.by_use[Purpose.PARAMETERS] == PARAM_BYTES
    assert found.training.by_use[Purpose.BATCH] == BATCH_BYTES
    one_row = bp.footprint(step, state, shape(1, WIDTH)).training
    assert one_row is not None and one_row.by_use[Purpose.GRADIENTS] > 0  # read by the update


def test_what_a_hessian_needs_is_told_too() -> None:
    """D2L 5.3, exercise 4: the graph of second derivatives takes more."""
    first = bp.footprint(loss, PARAMS, X).peak_bytes
    tangent = PARAMS
    second = bp.footprint(
        lambda params, x, v: bp.hvp(lambda p: loss(p, x), (params,), (v,)), PARAMS, X, tangent
    )
    assert second.training is None and second.peak_bytes > first


def test_shardings_divide_the_figures() -> None:
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    whole = bp.footprint(loss, PARAMS, X)
    found = bp.footprint(loss, PARAMS, shape(ROWS, WIDTH, sharding=rows))
    assert found.devices == 4 and whole.devices == 1
    assert found.training and found.training.by_use[Purpose.BATCH] == BATCH_BYTES // 4
    assert found.training.by_use[Purpose.PARAMETERS] == PARAM_BYTES


def test_concrete_arguments_settings_and_auxiliary_outputs() -> None:
    def with_aux(x: Any, power: str, w: Any) -> Any:
        y = jnp.sum(jnp.sin(x @ w) ** (2 if power == "two" else 3))
        return y, {"y": y}

    w = jnp.ones((WIDTH, WIDTH), F)
    found = bp.footprint(with_aux, jnp.ones((ROWS, WIDTH), F), "two", w, argnums=2, has_aux=True)
    assert found.training and found.training.by_use[Purpose.PARAMETERS] == w.nbytes
    assert found.training.by_use[Purpose.BATCH] == BATCH_BYTES


def test_why_values_are_kept() -> None:
    """tanh keeps its output, which the next product names too; the rules say where they stand."""
    kept = bp.footprint(loss, PARAMS, X).kept
    (hidden,) = [k for k in kept if k.operation == "tanh"]
    assert (
        hidden.count == 3 and hidden.bytes == 3 * BATCH_BYTES and hidden.flops == 3 * ROWS * WIDTH
    )
    assert [name for name, _ in hidden.named_by] == ["tanh", "dot_general"]
    assert all(re.fullmatch(r"\w+\.py:\d+", where) for _, where in hidden.named_by)
    assert hidden.source and hidden.source[0] == __file__
    text = bp.footprint(loss, PARAMS, X).text(160)
    assert "Why: the rules name" in text and "tanh elementwise.py:" in text


def test_why_a_loop_keeps_its_stacks() -> None:
    """Each is told by what makes it inside, and on which line; 5 steps keep 5 of each."""

    def step(w: Any) -> Any:
        return lambda c, _: (jnp.sin(jnp.exp(c @ w)), None)

    recurrent = lambda w, x: jnp.sum(jax.lax.scan(step(w), x, None, length=5)[0])
    kept = [k for k in bp.footprint(recurrent, shape(WIDTH, WIDTH), X).kept if k.bytes > 1000]
    (operand,) = [k for k in kept if k.operation == "exp"]
    assert operand.type == f"f32[5,{ROWS},{WIDTH}]" and operand.bytes == 5 * BATCH_BYTES
    assert operand.flops == 5 * ROWS * WIDTH and [name for name, _ in operand.named_by] == ["scan"]
    assert operand.source == (__file__, inspect.getsourcelines(step)[1] + 1)
    assert all(k.type for k in kept)


def picked(w: Any, x: Any, ids: Any) -> Any:
    chosen = jax.vmap(lambda row, i: jnp.where(row > 0, row, -row)[i])(x @ w, ids)
    scores = jax.nn.log_softmax(chosen @ w[:1])
    return -jnp.mean(jnp.take_along_axis(scores, ids, 1))


PICKED = inspect.getsourcelines(picked)[1]


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint])
def test_places_are_lines_of_the_function_and_never_of_its_caller(wrap: Any) -> None:
    args = shape(8, 8), shape(ROWS, 8), shape(ROWS, 1, dtype=jnp.int32)
    found = bp.footprint(wrap(picked), *args)
    assert found.training and found.prediction
    shares = [*found.training.shares, *found.prediction.shares]
    places = {s.origin.operation: s.origin.source for s in shares if s.origin and s.origin.source}
    places |= {k.operation: k.source for k in found.kept if k.source}
    assert len(places) > 5
    assert {file for file, _ in places.values()} == {__file__}
    assert {line - PICKED for _, line in places.values()} <= {1, 2, 3}
    scattered = [
        i.source for i in found.training.program.instructions if i.path.endswith("scatter-add")
    ]
    assert {source[1] - PICKED for source in scattered if source} <= {1, 3} and any(scattered)


def test_places_of_a_layer_of_a_library_are_those_that_call_it() -> None:
    installed = ("/x/lib/python3.11/site-packages/flax/linen/linear.py", 287)
    ours = _jax.__file__.replace("_jax", "memory/footprint"), 1
    assert _jax.innermost([installed, ("/project/model.py", 9), ours]) == ("/project/model.py", 9)
    assert _jax.innermost([installed, ours, ("/project/script.py", 3)]) == installed
    assert _jax.innermost([ours, ("/project/script.py", 3)]) is None is _jax.innermost([])


def test_lines_inside_a_loop_of_a_library_are_those_that_call_it() -> None:
    """The frames of a loop's body end where the library begins it."""
    line = inspect.getsourcelines(library_loss)[1] + 2
    graph = bp.trace(library_loss, shape(2, 5, 3), jnp.zeros((2, 5)), jnp.ones((2, 2), int))
    (loop,) = [v.equation for v in graph.walk() if v.equation.operation == "scan"]
    inside = [e for e in loop.nested[0].graph if e.operation == "logaddexp" or not e.nested]
    assert len(inside) > 5 and {e.source for e in inside} == {(__file__, line)}
    kept = bp.footprint(library_loss, shape(2, 5, 3), shape(2, 5), shape(2, 2, dtype=int)).kept
    assert {k.source and k.source[0] for k in kept} == {__file__}


def library_loss(logits: Any, padding: Any, labels: Any) -> Any:
    none = jnp.zeros(labels.shape)
    return jnp.mean(optax.ctc_loss(logits, padding, labels, none))


def test_a_function_with_a_rule_of_its_own_is_called_by_its_name() -> None:
    kept = bp.footprint(lambda w, x: jnp.sum(jax.nn.relu(x @ w) @ w), shape(4, 4), shape(3, 4)).kept
    assert {name for k in kept for name, _ in k.named_by} == {"relu", "dot_general"}


def test_a_stack_is_named_by_what_is_written_there() -> None:
    """y + z is the same in every entry: XLA writes a broadcast number, over zeros."""

    def total(x: Any, ys: Any) -> Any:
        z = jnp.ones((64, 64), F)
        step = lambda total, y: (total + x * (y + z), None)
        return jnp.mean(jax.lax.scan(step, jnp.zeros_like(z), ys)[0])

    usage = bp.footprint(total, shape(), shape(24)).training
    assert usage is not None
    (stack,) = [s for s in usage.shares if s.bytes == 24 * 64 * 64 * 4]
    assert stack.use is Purpose.KEPT and stack.type == "f32[24,64,64]" and stack.origin
    assert stack.origin.operation == "add"
    assert stack.origin.source == (__file__, inspect.getsourcelines(total)[1] + 2)


def test_a_fused_value_is_named_by_what_makes_it() -> None:
    """A softmax over the last axis: its greatest entries are a column, and no square."""
    weights = lambda p: jnp.sum(jnp.sin(jax.nn.softmax(jnp.cos(p @ p.T))) ** 2)
    usage = bp.footprint(weights, shape(128, 128)).training
    assert usage is not None
    made = {s.origin.operation for s in usage.shares if s.type == "f32[128,128]" and s.origin}
    assert made and not {name for name in made if name.startswith("reduce_")}


def test_what_is_closed_over_is_counted_by_name() -> None:
    """XLA makes it part of the program, transposed where that suits it."""
    table, unused = jax.random.normal(jax.random.key(0), (WIDTH, 7 * WIDTH), F), jnp.ones(5, F)

    def closed(params: Any, x: Any) -> Any:
        return loss(params, x @ jnp.sin(table) @ table.T) + jnp.sum(unused[:0])

    found = bp.footprint(closed, PARAMS, X)
    assert found.training and found.prediction
    for usage in (found.training, found.prediction):
        assert usage.by_use[Purpose.CONSTANTS] >= table.nbytes
        assert "table" in {share.name for share in usage.shares if share.use is Purpose.CONSTANTS}
        assert sum(usage.by_use.values()) == usage.peak_bytes
    assert "table (constants)" in found.text(140)


def test_growth_is_exact_where_memory_is_linear() -> None:
    found = bp.footprint(loss, PARAMS, X)
    slope = found.growth()["x.shape[0]"]
    assert slope.is_linear and slope.sizes == (ROWS, 2 * ROWS, 3 * ROWS)
    again = bp.footprint(loss, PARAMS, shape(5 * ROWS, WIDTH)).peak_bytes
    assert slope.fixed_bytes + 5 * ROWS * slope.bytes_per_unit == pytest.approx(
        again, rel=0.03
    )  # XLA's scratch
    assert "x.shape[0]" in str(found.growth())


@pytest.mark.long
def test_axes_that_grow_together_are_one_dimension() -> None:
    """4 tasks of 8 rows, 4 features, 8 outputs: sizes are alike by accident, and told apart."""
    fit = lambda w, x, y: jnp.mean((jnp.einsum("trf,fo->tro", x, w) - y) ** 2)
    found = bp.footprint(fit, shape(4, 8), shape(4, 8, 4), shape(4, 8, 8))
    axes = {tuple(map(str, s.dimension.axes)) for s in found.growth().slopes}
    assert axes == {
        ("x.shape[0]", "y.shape[0]"), ("x.shape[1]", "y.shape[1]"),
        ("x.shape[2]", "w.shape[0]"), ("y.shape[2]", "w.shape[1]"),
    }  # fmt: skip
    assert found.largest("1 MiB").dimension.name == "x.shape[0]"
    per_row = lambda p, x: jnp.sum(x * p["depth"] ** 2)
    found = bp.footprint(per_row, {"depth": shape(512, 1)}, shape(512, 3))
    assert found.largest("1 MiB").dimension.name == "x.shape[0]"  # the parameters grow with it


@pytest.mark.long
def test_growth_that_is_no_line_has_no_fixed_part() -> None:
    found = bp.footprint(lambda w, x: jnp.sum(jnp.exp(w * x @ x.T)), shape(), shape(128, 8))
    slope = found.growth()["x.shape[0]"]
    assert not slope.is_linear and slope.course == "more than linear"
    assert "−" not in found.growth().text(100) and "more than linear" in found.growth().text(100)


def test_a_function_of_one_size() -> None:
    found = bp.footprint(lambda w, x: jnp.sum(w * (x + np.ones((3, 5), "f"))), shape(), shape(3, 5))
    assert "takes no other size" in str(found.growth())
    with pytest.raises(SizeError, match="nothing can be made larger"):
        found.largest("1 GiB")


def test_the_largest_batch_is_compiled_and_the_next_larger_does_not_fit() -> None:
    found = bp.footprint(loss, PARAMS, X)
    largest = found.largest("2 MiB", "x.shape[0]")
    peak = lambda rows: bp.footprint(loss, PARAMS, shape(rows, WIDTH)).peak_bytes
    assert largest.bytes == peak(largest.size) <= 2 * 2**20 < peak(largest.size + 1)
    smaller = found.largest(found.peak_bytes // 2)
    assert 1 <= smaller.size < ROWS and smaller.bytes <= found.peak_bytes // 2


@pytest.mark.long
def test_the_largest_where_memory_is_more_than_linear() -> None:
    square = bp.footprint(lambda p: jnp.sum(jnp.tanh(p @ p)), shape(64, 64))
    sizes = [square.largest(memory).size for memory in ("100 kB", "1 MB", "4 MB")]
    assert sizes == sorted(sizes) and sizes[0] < sizes[1] < sizes[2]
    peak = lambda n: bp.footprint(lambda p: jnp.sum(jnp.tanh(p @ p)), shape(n, n)).peak_bytes
    assert peak(sizes[1]) <= 1e6 < peak(sizes[1] + 1)


def test_what_is_printed_is_read_in_half_a_minute() -> None:
    for width in (60, 100):
        text = bp.footprint(loss, PARAMS, X).text(width)
        lines = text.splitlines()
        assert len(lines) < 65 and all(len(line) <= width for line in lines)
    for word in ("training", "prediction", "kept for the reverse sweep", "peak of the program"):
        assert word in text
    assert bp.footprint(loss, PARAMS, X).markdown().count("| :--") >= 2


def test_pictures_and_pages() -> None:
    found = bp.footprint(loss, PARAMS, X)
    page = Document(found.html())
    assert {"svg", "table", "path"} <= page.tags
    assert "reverse sweep" in page.text and "encoder" in page.text
    assert "prefers-color-scheme: dark" in found.svg() and "<html" not in found._repr_html_()
    Document(found._repr_html_())
    drawn = [e for e in Document(found.svg()).found if e[0] == "text"]
    assert len(drawn) > 8


def test_the_peak_is_marked_where_the_picture_is_highest() -> None:
    """A long program is drawn in stretches; the peak stands anywhere in one."""
    deep = lambda w, x: jnp.sum(functools.reduce(lambda h, _: jnp.sin(h @ w), range(60), x) ** 2)
    picture = bp.footprint(deep, shape(8, 8), shape(64, 8)).svg()
    marked = re.search(r'class="peak" cx="([\d.]+)" cy="([\d.]+)"', picture)
    corners = re.findall(r"([HV])([\d.]+)", picture)
    highest = min(float(at) for kind, at in corners if kind == "V")
    assert marked and float(marked[2]) <= highest
    at = next(k for k, (kind, y) in enumerate(corners) if kind == "V" and float(y) == highest)
    assert 0 <= float(marked[1]) - float(corners[at - 1][1]) < 100


@pytest.mark.parametrize(
    ("scopes", "expected"),
    [
        (["net/block0/mlp", "net/block1/mlp", "net/block2/mlp"], "net/block0…2/mlp"),
        (["a/x", "b/x"], "a…b/x"),
        (["a", "b/c"], "a … b/c"),
        (["a"], "a"),
        ([], ""),
    ],
)
def test_scopes_of_layers_are_written_as_one(scopes: list[str], expected: str) -> None:
    assert between(scopes) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("jit(f)/transpose(jvp(encoder))/layer3/dot", ("encoder/layer3", "dot", True)),
        ("jit(loss)/transpose(encoder)/layer3/add", ("encoder/layer3", "add", True)),
        ("jit(f)/jvp(MLP)/Dense_0/jit(relu)/max", ("MLP/Dense_0", "max", False)),
        ("jit(f)/while/body/closed_call/jit(mine)/tanh", ("mine", "tanh", False)),
        ("jit(f)/a/mul;jit(f)/b/add", ("a", "mul", False)),
        ("jit(f)/while/body/jit(eval_jaxpr)/a/bq,kq->bk/dot_general", ("a", "dot_general", False)),
        ("", ("", "fusion", False)),
    ],
)  # fmt: skip
def test_name_stacks_are_read(path: str, expected: tuple[str, str, bool]) -> None:
    scope, operation, is_reverse = expected
    found = origin_of(HloInstruction("x", "fusion", path, None))
    assert found == Provenance(scope, operation, None, is_reverse)


@pytest.mark.parametrize("size", ["lots", "", "-3 GiB", 0, "16 QiB", "1..2 MB", True])
def test_sizes_that_are_none(size: Any) -> None:
    with pytest.raises(FootprintError, match="no size of a memory"):
        parse_bytes(size)


def test_errors_say_what_to_do() -> None:
    with pytest.raises(FootprintError, match="cannot be compiled for these arguments"):
        bp.footprint(loss, PARAMS, shape(ROWS, WIDTH + 1))
    with pytest.raises(FootprintError, match="an optimizer trains a loss"):
        bp.footprint(lambda x: x * 2, X, optimizer=optax.sgd(0.1))
    with pytest.raises(FootprintError, match="argnums"):
        bp.footprint(loss, PARAMS, X, argnums=2)
    found = bp.footprint(loss, PARAMS, X)
    with pytest.raises(SizeError, match=r"x.shape\[0\]"):
        found.largest("1 GiB", "x.shape[7]")
    with pytest.raises(SizeError, match="no size"):
        found.largest(1000)
