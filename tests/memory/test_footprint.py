"""``bp.footprint`` as a person meets it: what fills memory, how it grows, what fits."""

from __future__ import annotations

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
from functional_bp import train
from functional_bp.memory.allocation import HloInstruction
from functional_bp.memory.attribution import Provenance, Purpose, origin_of
from functional_bp.memory.footprint import FootprintError, parse_bytes
from functional_bp.memory.growth import SizeError

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


def test_a_training_step_is_compiled_as_it_is() -> None:
    step = train.step(lambda params, batch: loss(params, batch), optax.sgd(0.1))
    state = jax.eval_shape(lambda p: train.init(p, optax.sgd(0.1)), PARAMS)
    found = bp.footprint(step, state, X)
    assert found.training is not None and found.prediction is None
    assert found.training.by_use[Purpose.PARAMETERS] == PARAM_BYTES
    assert found.training.by_use[Purpose.BATCH] == BATCH_BYTES
    assert found.training.by_use[Purpose.GRADIENTS] > 0  # read by the update


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
    text = bp.footprint(loss, PARAMS, X).text(120)
    assert "Why: the rules name" in text and "tanh elementwise.py:" in text
    step = lambda w: lambda c, _: (jnp.sin(c @ w), None)
    recurrent = lambda w, x: jnp.sum(jax.lax.scan(step(w), x, None, length=5)[0])
    scanned = bp.footprint(recurrent, shape(WIDTH, WIDTH), X)
    assert scanned.kept[0].operation == "scan" and scanned.kept[0].bytes >= 5 * BATCH_BYTES


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
    assert "table (constants)" in found.text(120)


def test_growth_is_exact_where_memory_is_linear() -> None:
    found = bp.footprint(loss, PARAMS, X)
    slope = found.growth()["x.shape[0]"]
    assert slope.is_linear and slope.sizes == (ROWS, 2 * ROWS, 3 * ROWS)
    again = bp.footprint(loss, PARAMS, shape(5 * ROWS, WIDTH)).peak_bytes
    assert slope.fixed_bytes + 5 * ROWS * slope.bytes_per_unit == pytest.approx(
        again, rel=0.03
    )  # XLA's scratch
    assert "x.shape[0]" in str(found.growth())


def test_the_largest_batch_is_compiled_and_the_next_larger_does_not_fit() -> None:
    found = bp.footprint(loss, PARAMS, X)
    largest = found.largest("2 MiB", "x.shape[0]")
    peak = lambda rows: bp.footprint(loss, PARAMS, shape(rows, WIDTH)).peak_bytes
    assert largest.bytes == peak(largest.size) <= 2 * 2**20 < peak(largest.size + 1)
    smaller = found.largest(found.peak_bytes // 2)
    assert 1 <= smaller.size < ROWS and smaller.bytes <= found.peak_bytes // 2


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


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("jit(f)/transpose(jvp(encoder))/layer3/dot", ("encoder/layer3", "dot", True)),
        ("jit(loss)/transpose(encoder)/layer3/add", ("encoder/layer3", "add", True)),
        ("jit(f)/jvp(MLP)/Dense_0/jit(relu)/max", ("MLP/Dense_0", "max", False)),
        ("jit(f)/while/body/closed_call/jit(mine)/tanh", ("mine", "tanh", False)),
        ("jit(f)/a/mul;jit(f)/b/add", ("a", "mul", False)),
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
