"""The benchmark of memory: what it measures does not vary, so its figures are gates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.losses import LOSSES, Made, Placement
from benchmarks.memory import EXPERTS, REPORTED, Row, Side, Way, ahead, curves, measure
from benchmarks.memory_curves import svg
from functional_bp.memory.compiled_flops import compiled_flops


@pytest.mark.long
def test_a_stack_of_layers_keeps_its_budgets_at_few_operations() -> None:
    most = {0.7: 1.07, 0.5: 1.2, 0.35: 1.35}
    plain, ours, *rows = measure("gelu_stack", tuple(most), placements=())
    assert plain.memory == plain.flops == 1.0
    assert ours.memory == pytest.approx(1.0, abs=0.01)
    for row in rows:
        share = row.way.budget
        assert share and row.memory and row.flops
        assert row.memory <= share and row.flops <= most[share]


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_a_gradient_at_its_shapes(name: str) -> None:
    loss, args = LOSSES[name](Placement(jax.checkpoint, by_segments=True))
    value, bars = jax.eval_shape(jax.value_and_grad(loss), *args)
    assert value.shape == () and jax.tree.structure(bars) == jax.tree.structure(args[0])


def _drawn(args: Any) -> Any:
    rng = np.random.default_rng(0)

    def draw(shape: Any) -> Any:
        is_position = shape.dtype == jnp.int32
        drawn = rng.integers(0, 512, shape.shape) if is_position else rng.normal(size=shape.shape)
        return jnp.asarray(drawn if is_position else 0.1 * drawn, shape.dtype)

    return jax.tree.map(draw, args)


@pytest.mark.long
@pytest.mark.parametrize("name", EXPERTS)
def test_what_an_expert_wrote_is_the_same_loss(name: str) -> None:
    with jax.enable_x64(False):
        plain, args = REPORTED[name](Placement())
        lean, same = REPORTED[name](Placement(by_segments=True))
        assert args == same and lean is not plain
        values = _drawn(args)
        expected = float(jax.jit(plain)(*values))
        assert float(jax.jit(lean)(*values)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("by_segments", "blocks", "steps"), [(False, 10, 1), (True, 4, 1)])
def test_a_placement_changes_no_value(by_segments: bool, blocks: int, steps: int) -> None:
    wrapped: list[Any] = []

    def wrap(block: Any) -> Any:
        return lambda *args: wrapped.append(block) or block(*args)

    place, ws = Placement(wrap, by_segments), jnp.linspace(0.5, 2.0, 10)
    block = lambda w, x: jnp.sin(w * x)
    expected = Placement().chain(block, list(ws), jnp.float64(1))
    assert place.chain(block, list(ws), jnp.float64(1)) == expected
    assert len(wrapped) == blocks
    step = lambda x, w: block(w, x)
    assert float(place.scan(step, jnp.float64(1), ws)) == pytest.approx(float(expected))
    assert len(wrapped) == blocks + steps  # a loop is traced once


def _compiled(fun: Any, *args: Any) -> Any:
    return jax.jit(fun).lower(*args).compile()


def test_operations_of_code_without_loops_are_those_that_xla_counts() -> None:
    loss = lambda w, x: jnp.sum(jnp.tanh(x @ w) ** 2) + jnp.max(x)
    compiled = _compiled(jax.grad(loss), jnp.ones((8, 4)), jnp.ones((16, 8)))
    told = compiled.cost_analysis()
    assert compiled_flops(compiled) == told["flops"] + told["transcendentals"]


def test_operations_of_a_loop_are_counted_for_every_step() -> None:
    w, x = jnp.ones((8, 8)), jnp.ones((32, 8))
    looped = _compiled(lambda w, x: jax.lax.fori_loop(0, 12, lambda _, x: x @ w, x), w, x)
    product = 2 * 32 * 8 * 8
    assert 12 * product <= compiled_flops(looped) <= 12 * (product + 8)  # the counter's own
    endless = _compiled(lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x + x, x), x)
    with pytest.raises(ValueError, match="how often"):
        compiled_flops(endless)


def _row(side: Side, memory: float | None, flops: float, placement: str = "") -> Row:
    return Row("mlp", Way(side, placement, "nothing" if placement else ""), memory, flops)


def test_who_is_ahead() -> None:
    lean = _row(Side.CHECKPOINT, 0.3, 1.1, "segments")
    even = _row(Side.CHECKPOINT, 0.5, 1.1, "blocks")  # lean betters it
    met = _row(Side.CHECKPOINT, 0.6, 1.0, "whole")
    ours = [_row(Side.RECOMPUTE, 0.4, 1.1), _row(Side.BP, 0.6, 1.0)]
    below = _row(Side.RECOMPUTE, None, 0.0)
    assert ahead([*ours, below, lean, even, met]) == [lean]
    assert ahead([*ours, lean._replace(loss="other"), met]) == [lean._replace(loss="other")]


def test_a_picture_holds_every_figure_inside_its_frame() -> None:
    rows = [_row(Side.BP, 1.0, 1.0), _row(Side.RECOMPUTE, 0.5, 1.1),
            _row(Side.CHECKPOINT, 3.0, 1.2, "blocks")]  # fmt: skip
    picture = ElementTree.fromstring(svg(curves(rows)))
    found = [element.get("class") for element in picture[2].iter()]
    assert found.count("budget") == 2 and found.count("mark") == 1
    width = float(picture.get("width", 0))
    xs = [float(element.get("cx", 0)) for element in picture[2].iter()]
    assert max(xs) < width / 4  # of four columns


def tiny(place: Placement) -> Made:
    """Three layers of one width."""
    shape, layer = jax.ShapeDtypeStruct, lambda w, x: jnp.tanh(x @ w)
    args = [shape((8, 8), "float32")] * 3, shape((256, 8), "float32")
    return lambda ws, x: jnp.mean(place.chain(layer, ws, x) ** 2), args


@pytest.mark.long
def test_what_is_printed(capsys: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(LOSSES, "tiny", tiny)
    picture, few = tmp_path / "curves.svg", ["memory", "--losses", "tiny", "--repeats"]
    assert main([*few, "1", "--budgets", "0.1", "--plot", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "bp.recompute 0.1" in out and "below the floor" in out and "run 1.00" in out
    assert "jax.checkpoint blocks, dots saved" in out and "tiny" in picture.read_text()
    assert main([*few, "0", "--budgets", "--json"]) == 0
    told = capsys.readouterr().out
    rows = [Row(**row) for row in json.loads(told)]
    assert rows[0].way[0] == "jax.value_and_grad" and rows[0].run is None
    assert {row.way[2] for row in rows} >= {"nothing", "dots", "everything"}
    (file := tmp_path / "rows.json").write_text(told)
    assert main(["memory", "--rows", str(file), "--markdown"]) == 0
    head, _, table = capsys.readouterr().out.splitlines()
    assert head.count("|") == table.count("|") and table.startswith("| tiny | 1.00 · 1.00 |")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--losses", "mlq"], "no loss 'mlq'"),
        (["--budgets", "1.5"], "a share between 0 and 1"),
        (["--repeats", "-1"], "--repeats"),
    ],
)
def test_called_wrongly(words: list[str], text: str, capsys: Any) -> None:
    assert main(["memory", *words]) == 2
    assert text in capsys.readouterr().err
