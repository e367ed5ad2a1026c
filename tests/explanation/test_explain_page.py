"""The page: one valid file without network, with every equation, in bounded size."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from html_document import Document

import functional_bp as bp
from functional_bp.explanation.page import frame, page

NASTY = """<b>&"x'</script><!--"""


def network(params, x):
    with jax.named_scope("encoder"):
        h = bp.name(jnp.tanh(x @ params[NASTY]), "h")
    with jax.named_scope("loss"):
        return jnp.mean((h - 0.5) ** 2)


def explained(size: int = 3) -> bp.Explanation:
    params = {NASTY: np.linspace(-1, 1, 2 * size).reshape(size, 2)}
    return bp.explain(network, params, np.linspace(0, 1, 2 * size).reshape(2, size))


def data_of(text: str) -> dict:
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(Document(text).texts["data"], parse_constant=refuse)


def test_the_witness_sees_a_tag_that_is_not_closed():
    with pytest.raises(AssertionError):
        Document("<main><p></main>")


def test_the_page_is_one_document_and_its_ids_are_unique():
    found = Document(page(explained())).found
    assert [tag for tag, _ in found].count("html") == 1
    ids = [attrs["id"] for _, attrs in found if attrs.get("id")]
    assert len(ids) == len(set(ids))


def test_nothing_is_fetched():
    text = page(explained())
    loads = [(tag, a) for tag, attrs in Document(text).found for a in attrs if a in ("src", "href")]
    assert not loads
    code = text.replace("http://www.w3.org/2000/svg", "")  # a name, not an address
    assert not re.findall(r"https?://|//cdn|@import|fetch\(|XMLHttpRequest|\bimport\(", code)
    assert set(re.findall(r"url\(([^)]*)\)", code)) <= {"#tip", "#tip-lit", "#hatch"}


def test_names_cannot_end_the_data_or_the_title():
    e = explained()
    text = page(e, title=NASTY)
    document = Document(text)
    assert document.texts["title"] == NASTY
    assert data_of(text)["title"] == NASTY
    assert "b" not in document.tags and text.count("</script>") == 2
    assert e.graph.inputs[0].name in {v["n"] for v in data_of(text)["variables"]}


def test_every_equation_and_every_variable_is_there():
    e = explained()
    data = data_of(page(e))
    assert [q["o"] for q in data["equations"]] == [q.operation for q in e.graph]
    assert data["scopes"][0]["e"] == [q.index for q in e.graph]
    assert [v["n"] for v in data["variables"]][: len(e.graph.variables)] == [
        v.name for v in e.graph.variables
    ]


def test_every_equation_leads_to_a_card_that_is_drawn():
    data = data_of(page(explained()))
    for equation in data["equations"]:
        home, drawn = equation["d"]
        assert drawn in [card.get("e") for card in data["scopes"][home]["cards"]]


def test_cards_and_wires_refer_to_what_exists():
    data = data_of(page(explained()))
    for scope in data["scopes"]:
        for card in scope["cards"]:
            assert card.get("v", -1) < len(data["variables"])
            assert card.get("s", 0) < len(data["scopes"])
            assert 0 < card["x"] - card["w"] / 2 + 1 and card["x"] + card["w"] / 2 < scope["w"] + 1
            assert 0 < card["y"] - card["h"] / 2 + 1 and card["y"] + card["h"] / 2 < scope["h"] + 1
        for wire in scope["wires"]:
            assert wire["a"] < len(scope["cards"]) > wire["b"] and wire["v"]


def test_the_gradient_on_the_page_is_the_gradient():
    e = explained()
    x = next(v for v in data_of(page(e))["variables"] if v["n"] == "x")
    params = {NASTY: np.linspace(-1, 1, 6).reshape(3, 2)}
    true = jax.grad(network, 1)(params, np.linspace(0, 1, 6).reshape(2, 3))
    _, entries, shape = x["g"]
    shown = [float(entry.replace("−", "-")) for entry in entries]
    assert shape == [2, 3]
    np.testing.assert_allclose(shown, np.ravel(true), rtol=1e-4)  # five digits are shown


def test_formulas_are_the_rules():
    equations = data_of(page(explained()))["equations"]
    (tanh,) = [q for q in equations if q["o"] == "tanh"]
    assert tanh["f"].startswith("h = tanh")
    ((operand, formula, _),) = tanh["p"]
    assert operand == 0 and "h̄" in formula and "h²" in formula
    assert tanh["s"] == "encoder" and tanh["w"].startswith("test_explain_page.py:")


def test_what_is_not_finite_is_valid_json():
    e = bp.explain(lambda x: jnp.sum(jnp.log(x)), np.array([0.0, -1.0, 1.0]))
    text = page(e)
    assert {v.get("z") for v in data_of(text)["variables"]} & {"inf", "nan"}


def test_large_arrays_are_summarised():
    e = bp.explain(lambda x: jnp.sum(jnp.sin(x) * x), np.ones((1000, 1000)))
    assert len(page(e)) < 100_000


def test_the_size_grows_with_the_number_of_equations_alone():
    def chain(x, steps):
        for _ in range(steps):
            x = jnp.sin(x) * x + 0.1
        return jnp.sum(x)

    sizes = [len(page(bp.explain(lambda x, n=n: chain(x, n), np.ones(8)))) for n in (50, 100)]
    assert (sizes[1] - sizes[0]) / 150 < 2000  # bytes for each further equation


def test_a_notebook_shows_the_page_in_a_frame_of_its_own():
    e = explained()
    shown = e._repr_html_()
    assert shown is not None and shown == frame(e)
    ((tag, attributes),) = Document(shown).found
    assert tag == "iframe" and attributes["srcdoc"] == page(e)


def test_a_large_graph_is_no_burden_for_a_notebook():
    def chain(x):
        for _ in range(450):
            x = jnp.sin(x) * 2
        return jnp.sum(x)

    e = bp.explain(chain, 1.0)
    assert e._repr_html_() is None and len(e.graph) > 800


def test_save_writes_the_page(tmp_path):
    e = explained()
    e.save(tmp_path / "network.html")
    assert (tmp_path / "network.html").read_text(encoding="utf-8") == e.html()


def broken(x, w):
    h = bp.name(jnp.log(x), "h")
    return jnp.sum(jnp.where(x > 0, h, 0.0) * w)


def test_the_first_nan_is_told_with_its_equation():
    e = bp.explain(broken, np.array([1.0, 0.0]), np.array([1.0, 2.0]))
    first = data_of(page(e))["first"]
    assert first["what"] == "gradient" and first["entry"] == "x̄[1] = NaN"
    assert e.graph.equations[first["e"]].operation == "log"
    assert first["rows"]["line"].startswith("test_explain_page.py:")


def test_a_nan_inside_a_loop_leads_to_the_loop():
    def loop(x):
        return jax.lax.scan(lambda h, t: (jnp.sqrt(h - t), None), x, jnp.array([0.1, 9.0]))[0]

    e = bp.explain(loop, 4.0)
    first = data_of(page(e))["first"]
    assert e.graph.equations[first["e"]].operation == "scan"
    assert "step 1" in first["rows"]["inside"]


def test_what_is_notable_is_told_by_variable():
    e = bp.explain(broken, np.array([1.0, 2.0]), np.array([0.0, 0.0]))
    data = data_of(page(e))
    assert "first" not in data
    told = [[kind, data["variables"][v]["n"]] for kind, v, *_ in data["signals"]]
    assert told == [[s.kind, s.name] for s in e.signals()] and ["dead", "x"] in told


def test_a_histogram_shows_where_entries_lie():
    e = bp.explain(lambda x: jnp.sum(x * x), np.repeat([0.0, 1.0, 2.0], [80, 20, 40]))
    x = next(v for v in data_of(page(e))["variables"] if v["n"] == "x")
    _, described, bars = x["v"]
    assert described == "from 0.00 to 2.00, 80 of 140 zero"
    assert [(i, int(bar)) for i, bar in enumerate(bars) if bar != "0"] == [(0, 9), (12, 3), (24, 5)]
