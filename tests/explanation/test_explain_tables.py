"""Both sweeps step by step: the textbooks' numbers, sums, what is remarkable, and every format."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from html_document import Document
from rich.cells import cell_len
from well_formed import check_latex

import functional_bp as bp
from functional_bp.explanation import tables
from functional_bp.explanation.formulas import writing
from functional_bp.explanation.numbers import state_of
from functional_bp.explanation.tables import ReverseRow, forward_rows, reverse_rows
from functional_bp.graph.graph import format_bytes
from functional_bp.tables.latex import PACKAGES
from functional_bp.tables.text import fitted


def product_of_sum(x: Any, y: Any, z: Any) -> Any:
    return bp.name(x + y, "p") * z


def neuron(w: Any, x: Any) -> Any:
    return 1 / (1 + jnp.exp(-(w[0] * x[0] + w[1] * x[1] + w[2])))


def network(params: Any, x: Any, y: Any) -> Any:
    h = bp.name(jax.nn.relu(x @ params["W1"] + params["b1"]), "h")
    with jax.named_scope("head"):
        p = jax.nn.softmax(h @ params["W2"])
    return -jnp.mean(jnp.sum(y * jnp.log(p), axis=-1)) + 0.1 * jnp.sum(params["W1"] ** 2)


@functools.cache
def explained_network() -> Any:
    rng = np.random.default_rng(0)
    params = {"W1": rng.normal(size=(3, 4)), "b1": np.zeros(4), "W2": rng.normal(size=(4, 2))}
    return bp.explain(network, params, rng.normal(size=(5, 3)), np.full((5, 2), 0.5))


def by_formula(explanation: Any) -> dict[str, ReverseRow]:
    return {str(row.formula): row for row in reverse_rows(explanation) if row.formula}


def numbers(row: ReverseRow) -> tuple[float, float, float]:
    (upstream,) = row.upstream
    return float(upstream), float(row.local), float(row.downstream)


# The textbooks' numbers


def test_dives_product_of_a_sum() -> None:
    explanation = bp.explain(product_of_sum, 1.0, 3.0, -3.0)
    ahead = [(row.formula.text(), float(row.values[0])) for row in forward_rows(explanation)]
    assert ahead == [("x", 1), ("y", 3), ("z", -3), ("p = x + y", 4), ("result = p z", -12)]
    rows = by_formula(explanation)
    bar = writing.barred("result")
    assert numbers(rows[f"p̄ = {bar} · z"]) == (1, -3, -3)
    assert numbers(rows[f"z̄ = {bar} · p"]) == (1, 4, 4)
    assert numbers(rows["x̄ = p̄"]) == numbers(rows["ȳ = p̄"]) == (-3, 1, -3)


def test_the_lectures_neuron() -> None:
    """CS231n's sigmoid neuron: every gradient of the slide, in its order, to its two digits."""
    explanation = bp.explain(neuron, jnp.array([2.0, -3.0, -3.0]), jnp.array([-1.0, -2.0]))
    rows = reverse_rows(explanation)
    scalars = [row for row in rows if row.local is not None and np.ndim(row.downstream) == 0]
    downstream = [round(float(row.downstream), 2) for row in scalars]
    assert downstream[:6] == [-0.53, -0.53, -0.2, 0.2, 0.2, 0.2]
    assert [round(float(row.local), 2) for row in scalars[:5]] == [-0.53, 1, 0.37, -1, 1]
    sums = {writing.written(row.variable): row for row in rows if row.kind == "sum"}
    assert np.round(sums["w̄"].downstream, 2).tolist() == [-0.2, -0.39, 0.2]
    assert np.round(sums["x̄"].downstream, 2).tolist() == [0.39, -0.59]
    assert len(sums["w̄"].parts) == 3


def test_upstream_times_local_is_downstream() -> None:
    """Wherever a local gradient is shown, for the whole of a program with many operations."""

    def fun(x: Any, s: Any) -> Any:
        a = jnp.tanh(x) * jnp.exp(s) + jnp.sqrt(jnp.abs(x)) / s
        return jnp.max(jax.nn.relu(a) ** 3) + jnp.sum(jnp.where(x > 0, a, s) * x)

    explanation = bp.explain(fun, jnp.array([0.5, -1.0, 2.0]), 1.3)
    shown = [row for row in reverse_rows(explanation) if row.local is not None]
    assert len(shown) > 10
    for row in shown:
        (upstream,) = row.upstream
        # one rounding of float32 more or less
        np.testing.assert_allclose(upstream * row.local, row.downstream, rtol=1e-6)


def test_what_is_not_elementwise_has_no_local_gradient() -> None:
    explanation = bp.explain(lambda x: jnp.sum(jnp.flip(x) * x), jnp.array([1.0, 2.0]))
    (row,) = [r for r in reverse_rows(explanation) if r.formula and "rev(" in r.formula.text()]
    assert row.local is None
    large = bp.explain(lambda x: jnp.sum(jnp.sin(x)), jnp.ones(9))
    locals_ = [row.local for row in reverse_rows(large) if row.kind == "share"]
    assert locals_ == [None, None]


def test_branches_sum() -> None:
    explanation = bp.explain(lambda x: x * x + 3 * x, 2.0)
    rows = [row for row in reverse_rows(explanation) if writing.written(row.variable) == "x̄"]
    assert [row.kind for row in rows] == ["share", "share", "share", "sum"]
    assert sum(float(part) for part in rows[-1].parts) == float(rows[-1].downstream) == 7.0
    text = explanation.text(100)
    assert "x̄ = 3.00 + 2.00 + 2.00" in text and text.count("x̄ += ") == 3
    assert "branches sum" in text
    assert "+=" not in bp.explain(jnp.sin, 1.0).text(100)


def test_an_output_that_is_used_again_adds_its_seed() -> None:
    def fun(x: Any) -> tuple[Any, Any]:
        y = jnp.sin(x)
        return y, y * y

    explanation = bp.explain(fun, 0.5, cotangent=(1.0, 1.0))
    (total,) = [row for row in reverse_rows(explanation) if row.kind == "sum"]
    assert len(total.parts) == 3
    assert float(sum(total.parts)) == pytest.approx(1 + 2 * np.sin(0.5), rel=1e-6)


def test_kept_bytes_and_sources() -> None:
    explanation = explained_network()
    rows = {row.formula.text().split(" = ")[0]: row for row in forward_rows(explanation)}
    let_through = 5 * 4  # one byte for each entry: relu keeps which are positive
    assert (
        rows["h"].kept == explanation.kept_bytes[explanation.graph["h"]] == 5 * 4 * 8 + let_through
    )
    assert rows["h"].source.startswith("test_explain_tables.py:") and rows["h"].inside
    assert any(row.scope == "head" for row in rows.values())


def test_what_stays_closed_is_one_row_with_what_is_inside() -> None:
    def fun(x: Any) -> Any:
        y = jax.lax.scan(lambda c, t: (c * t, c), x, jnp.array([1.0, 2.0]))[0]
        return jax.lax.while_loop(lambda v: v < 9, lambda v: v * v, y)

    explanation = bp.explain(fun, 2.0, max_steps=8)
    inside = [row.inside for row in forward_rows(explanation) if row.inside]
    assert len(inside) == 2 and inside[0].startswith("body × 2: ") and "mul" in inside[0]
    assert "body × ?: mul" in inside[1] and "condition" in inside[1]
    assert "body × 2" in explanation.text(180)


# What a reader must not overlook


def exploding(x: Any) -> Any:
    return jnp.exp(200 * x) * 0.0 + 1e-12 * x + 1e9 * x


def test_states() -> None:
    assert state_of(np.array([1.0, np.inf])) == "infinite"
    assert state_of(np.array([1.0, np.inf, np.nan])) == "nan"
    assert state_of(np.zeros(3), is_cotangent=True) == "zero" and state_of(np.zeros(3)) == ""
    assert state_of(np.full(3, 1e-9), is_cotangent=True) == "vanishing"
    assert state_of(np.full(3, 1e9), is_cotangent=True) == "exploding"
    assert state_of(np.ones(3), is_cotangent=True) == state_of(jax.random.key(0)) == ""
    assert state_of(np.arange(3)) == state_of(np.ones(0)) == ""


def test_what_is_remarkable_is_said_and_coloured() -> None:
    explanation = bp.explain(exploding, jnp.float32(3.0))
    plain, coloured = explanation.text(140), explanation.text(140, color=True)
    for word in ("NaN", "infinite", "exploding", "zero gradient"):
        assert word in plain
    assert "\x1b[" not in plain and "\x1b[1;31m" in coloured and "\x1b[1;35m" in coloured
    assert "\x1b[33m" in coloured
    page = explanation.table_html()
    for state in ("nan", "infinite", "exploding", "zero"):
        assert re.search(rf'<td class="(number )?{state}">', page)
    assert r"\textcolor{red}{NaN}" in explanation.latex() and "⚠ NaN" in explanation.markdown()


def test_values_that_are_no_numbers() -> None:
    def fun(key: Any, x: Any) -> Any:
        return jnp.sum(x * jax.random.uniform(key, (3,)))

    explanation = bp.explain(fun, jax.random.key(0), jnp.ones(3))
    assert "key<fry>" in explanation.text(140) and "NaN" not in explanation.text(140)


# Formats


@pytest.mark.parametrize("width", [60, 80, 120, 180])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    for explanation in (explained_network(), bp.explain(neuron, jnp.ones(3), jnp.ones(2))):
        lines = explanation.text(width).splitlines()
        assert max(map(cell_len, lines)) <= width
        assert any(line.startswith("formula") for line in lines)
        assert not any("…" == line.strip()[-1:] for line in lines), "nothing is cut"


def test_columns_go_as_the_width_shrinks() -> None:
    table = tables.tables(explained_network())[1]
    wide, narrow = fitted(table, 240), fitted(table, 60)
    assert [c.heading for c in wide.columns][-2:] == ["source", "note"] or len(wide.columns) == 5
    kept = [c.heading for c in narrow.columns]
    assert kept[0] == "formula" and "downstream" in kept and "source" not in kept


def test_markdown_is_a_table() -> None:
    blocks = explained_network().markdown().strip().split("\n\n")
    assert len(blocks) == 4
    for table in blocks[1::2]:
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(counts) == 1, "every row has the same number of cells"
    assert r"test\_explain\_tables.py" in blocks[1]


def test_latex_is_well_formed() -> None:
    explanation = explained_network()
    text = explanation.latex(standalone=True)
    assert text.count(r"\begin{") == text.count(r"\end{")
    for package in PACKAGES:
        assert rf"\usepackage{{{package}}}" in text
    rows = [line for line in explanation.latex().splitlines() if line.endswith(r"\\")]
    assert len(rows) > 30
    for row in rows:
        formulas = re.findall(r"(?<!\\)\$(.*?)(?<!\\)\$", row)
        for formula in formulas:
            check_latex(formula)
        outside = re.sub(r"(?<!\\)\$.*?(?<!\\)\$", "", row)
        assert outside.isascii() and not re.search(r"(?<!\\)[%#_^~]", outside), outside
        if not row.startswith((r"\multicolumn", r"\toprule")):
            columns = len(re.findall(r"(?<!\\)&", outside)) + 1
            assert columns in (6, 5)
    assert r"$h = \mathrm{relu}\left(z\right)$" in text or r"\mathrm{relu}" in text


def test_html_is_a_fragment() -> None:
    page = explained_network().table_html()
    assert {"div", "style", "table", "tr", "td"} <= Document(page).tags
    assert "prefers-color-scheme: dark" in page and "<body" not in page and "http" not in page
    assert '<span class="bar">result</span>' in page and "&lt;" not in page
    assert "&lt;lambda&gt;" in bp.explain(lambda x: x * x, 1.0).table_html()


def test_a_line_of_totals_tells_what_footprint_does() -> None:
    explanation = bp.explain(product_of_sum, 1.0, 3.0, -3.0)
    needs = bp.footprint(product_of_sum, 1.0, 3.0, -3.0)
    assert needs.training and needs.prediction
    kept = format_bytes(sum(explanation.kept_bytes.values()))
    training, prediction = (format_bytes(u.peak_bytes) for u in needs.usages.values())
    said = f"{kept} are kept in all; compiled, training needs {training} and prediction needs "
    assert said + prediction in " ".join(explanation.text(140).split())
    assert said in explanation.table_html() and said in explanation.markdown()
    assert explanation.footprint.peak_bytes == needs.peak_bytes
    vector = bp.explain(lambda i, x: x[i] * 2.0, 1, jnp.ones(3), cotangent=1.0)
    assert "training needs" in vector.totals  # of x: an index is not trained
    assert "prediction" in bp.explain(jnp.sin, jnp.ones(2), cotangent=jnp.ones(2)).totals
    looks = bp.explain(lambda x: x if x > 0 else 2 * x, 1.0)
    assert "not compiled: <lambda> cannot be compiled for these arguments" in looks.totals


def test_str_is_the_table() -> None:
    explanation = bp.explain(product_of_sum, 1.0, 3.0, -3.0)
    assert str(explanation) == explanation.text()
    assert str(explanation).startswith("product_of_sum: forward sweep")


def long_chain(x):
    for i in range(50):
        with jax.named_scope(f"block{i // 10}"):
            x = jnp.sin(x)
    return x


@pytest.mark.long
def test_of_a_long_table_the_first_and_last_rows_are_shown() -> None:
    explanation = bp.explain(long_chain, 0.5)
    text = explanation.text(width=120, rows=6)
    ahead, back = text.split("reverse sweep")
    assert "⋮ 45 rows are left out ⋮" in ahead and "⋮ 45 rows are left out ⋮" in back
    numbers = [line.split()[0] for line in ahead.splitlines() if "sin" in line]
    assert numbers == ["1", "2", "48", "49", "50"]
    assert "left out" not in explanation.text(width=120)
    assert explanation.text(width=120, rows=51) == explanation.text(width=120)
    assert explanation.markdown(rows=4).count("\n| ") < explanation.markdown().count("\n| ")
    assert "rows are left out" in explanation.latex(rows=3)
    assert "rows are left out" in explanation.table_html(rows=0)


def test_printing_a_large_graph_takes_its_ends(monkeypatch) -> None:
    module = sys.modules["functional_bp.explanation.explanation"]
    monkeypatch.setattr(module, "MOST_ROWS", 10)
    explanation = bp.explain(long_chain, 0.5)
    assert str(explanation).count("left out") == 2
    assert str(explanation) == explanation.text(rows=10)


def test_a_rule_is_read_anew_for_other_parameters() -> None:
    texts = [str(bp.explain(lambda x, n=n: jax.lax.integer_pow(x, n), 3.0)) for n in (2, 3, 2)]
    assert texts[0] == texts[2]
    assert "2 x" in texts[0] and "3 x²" in texts[1]


def test_latex_is_as_wide_as_the_page() -> None:
    def pieces(x):
        a, b, c, d = jnp.split(x * x, 4)
        return jnp.sum(a * b + c * d)

    text = bp.explain(pieces, jnp.linspace(1.0, 2.0, 64)).latex(standalone=True)
    assert r">{\raggedright\arraybackslash}p{" in text or r">{\raggedleft\arraybackslash}p{" in text
    assert r"\textless{}lambda\textgreater{}" in bp.explain(lambda x: x * x, 2.0).latex()


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no LaTeX on this machine")
def test_latex_compiles(tmp_path) -> None:
    for k, explanation in enumerate((explained_network(), bp.explain(lambda x: x * x, 2.0))):
        file = tmp_path / f"sweeps{k}.tex"
        file.write_text(explanation.latex(standalone=True))
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", file.name]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout[-500:]
        assert file.with_suffix(".pdf").exists()


def test_an_operation_shows_its_own_pullbacks() -> None:
    def softplus(x, *, scale=1.0):
        return scale * jnp.logaddexp(x, 0.0)

    fused = bp.operation(
        "x -> y", softplus, x=lambda y_bar, x, *, scale=1.0: y_bar * scale * jax.nn.sigmoid(x)
    )
    explanation = bp.explain(lambda x: bp.name(fused(x, scale=3.0), "h") ** 2, 1.0)
    text = explanation.text(width=140)
    assert "h = softplus(x)" in text
    (row,) = [line for line in text.splitlines() if line.startswith("x̄ = ")]
    assert "h̄" in row and "σ(x)" in row and "as the person wrote it" not in text
    assert "operation.py" not in text and text.count("test_explain_tables.py") >= 2
