"""Scopes that open in place, in a browser: what is there, where it stands, and the way back."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_explain_browser import BROWSER, CATCH, shown

import functional_bp as bp

pytestmark = pytest.mark.skipif(not BROWSER, reason="no Chromium on this machine")

LAYERS = ("layer_0", "layer_1", "layer_2")

# What the tests ask of a page: boxes on the screen, as the drawing has them, and what overlaps.
ASK = """
const at_path = (path) => byPath.get(path);
const press = (element, key, more = {}) =>
  element.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, ...more }));
const click = (element, detail = 1) =>
  element.dispatchEvent(new MouseEvent("click", { bubbles: true, detail }));
const cardFor = (path) => cardElements[cardOf(at_path(path))];
const paths = (scopes) => scopes.map((s) => DATA.scopes[s].p);
function overlapping() {
  const rims = [...world.querySelectorAll(".card > .rim")].map((rim) => {
    const card = shown.cards[rim.parentNode.dataset.card], box = rim.getBBox();
    return { card, left: box.x, right: box.x + box.width, top: box.y, bottom: box.y + box.height };
  });
  const inside = (a, b) => b.card.k === "frame" && ancestors(a.card.of).includes(b.card.s)
    && a.left > b.left && a.right < b.right && a.top > b.top + TITLE && a.bottom < b.bottom;
  return rims.flatMap((a, i) => rims.slice(i + 1).filter((b) =>
    a.left < b.right - 0.1 && b.left < a.right - 0.1
    && a.top < b.bottom - 0.1 && b.top < a.bottom - 0.1
    && !inside(a, b) && !inside(b, a)).map((b) => [a.card.id, b.card.id]));
}
const tell = (found) => (document.title = "told " + JSON.stringify(found));
"""


def deep(params, x):
    with jax.named_scope("network"):
        for name, (w, b) in zip(LAYERS, params):
            with jax.named_scope(name):
                with jax.named_scope("linear"):
                    z = x @ w + b
                with jax.named_scope("norm"):
                    z = (z - z.mean()) / jnp.sqrt(((z - z.mean()) ** 2).mean() + 1.0)
                x = bp.name(jnp.tanh(z) * z, f"h_{name}")
    with jax.named_scope("loss"):
        return jnp.sum(x**2) + 0.1 * sum(jnp.sum(w**2) for w, _ in params)


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    params = [(np.full((3, 3), 0.1 * i), np.ones(3)) for i in (1, 2, 3)]
    file = tmp_path_factory.mktemp("opening") / "page.html"
    text = bp.explain(deep, params, np.ones(3)).html()
    file.write_text(text.replace("<head>", "<head>" + CATCH), encoding="utf-8")
    return file


def told(page: Path, script: str, **wish: str):
    """What a script in the page tells."""
    document = shown(page, script=ASK + "{" + script + "}", **wish)
    found = re.search("<title>told (.*?)</title>", document)
    assert found, document[:200]
    return json.loads(found[1].replace("&lt;", "<").replace("&amp;", "&"))


def test_a_click_opens_a_scope_where_it_stands(page):
    before, after, names, address = told(
        page,
        """const outer = shown.cards.map((card) => card.id);
        click(cardFor("network"));
        const drawn = [...world.querySelectorAll(".card")].map((e) => e.dataset.card);
        const inner = drawn.map((i) => shown.cards[i].id);
        tell([outer, inner, paths(shown.levels.map((l) => l.s)), location.hash]);""",
    )
    assert set(before) < set(after)
    assert names == ["", "network"] and address == "#open=network"


def test_closed_again_the_picture_is_the_same(page):
    one, two, same = told(
        page,
        """const where = () => world.getAttribute("transform");
        const former = world.innerHTML, before = where();
        click(cardFor("network"));
        const opened = world.innerHTML;
        click(world.querySelector('.card.frame [data-do="close"] rect'));
        tell([former === world.innerHTML, former === opened, before === where()]);""",
    )
    assert one and not two and same


def test_enter_opens_and_closes_and_keeps_the_focus(page):
    found = told(
        page,
        """cardFor("network").focus();
        press(document.activeElement, "Enter");
        const first = [paths(opened()), document.activeElement === cardFor("network")];
        press(document.activeElement, "Enter");
        tell([first, paths(opened()), document.activeElement === cardFor("network")]);""",
    )
    assert found == [[["network"], True], [], True]


def test_shift_enter_and_two_clicks_show_a_scope_alone(page):
    found = told(
        page,
        """press(cardFor("loss"), "Enter", { shiftKey: true });
        const first = [view().p, location.hash];
        up();
        const card = cardFor("network");
        click(card), click(cardFor("network"), 2);
        tell([first, view().p, paths(opened())]);""",
    )
    assert found == [["loss", "#in=loss"], "network", []]


def test_the_title_of_a_frame_leads_into_its_scope(page):
    script = """click(world.querySelector('.frame [data-do="alone"] rect'));
    tell([view().p, shown.cards.length]);"""
    path, count = told(page, script, open="network/layer_1")
    assert path == "network" and count > 3


@pytest.mark.parametrize("wish", ["network", "network/layer_0", "network/layer_2/norm", "*"])
def test_nothing_overlaps(page, wish):
    assert told(page, "tell(overlapping())", open=wish) == []


def test_the_witness_of_overlaps_sees_one(page):
    script = """const [a, b, ...others] = shown.cards;
    drawPicture({ ...shown, cards: [{ ...a, x: b.x, y: b.y }, b, ...others] });
    tell(overlapping());"""
    assert told(page, script)


def test_two_scopes_side_by_side_and_one_inside_do_not_overlap(page):
    names, bad = told(
        page,
        """const wanted = ["network", "loss", "network/layer_0", "network/layer_0/norm"];
        for (const path of wanted) toggle(at_path(path));
        tell([paths(opened()), overlapping()]);""",
    )
    assert set(names) == {"network", "loss", "network/layer_0", "network/layer_0/norm"}
    assert bad == []


def test_what_was_left_and_above_stays_and_sizes_are_kept(page):
    moved, sizes = told(
        page,
        """const former = new Map(shown.cards.map((c) => [c.id, c])), s = at_path("network");
        const { x, y, w, h } = shown.cards[cardOf(s)];
        toggle(s);
        const now = shown.cards.filter((c) => former.has(c.id) && c.s !== s);
        const strayed = (c, old) =>
          (old.x <= x - w / 2 && old.x !== c.x) || (old.y <= y - h / 2 && old.y !== c.y);
        tell([now.filter((c) => strayed(c, former.get(c.id))).length,
          now.every((c) => c.w === former.get(c.id).w && c.h === former.get(c.id).h)]);""",
    )
    assert moved == 0 and sizes


def test_wires_go_on_inside_to_the_cards_that_stand_for_their_values(page):
    found = told(
        page,
        """const inner = shown.wires.filter((wire) => wire.inner);
        const frame = shown.cards[cardOf(at_path("network"))];
        tell(inner.map(({ a, b, v, points }) => {
          const ends = [shown.cards[a], shown.cards[b]];
          const stub = ends.find((c) => c.k === "stub" && c.of === frame.s);
          const [first, last] = [points[0], points.at(-1)];
          const [end, edge] = stub.side === "in" ? [last, first] : [first, last];
          const touches = (c, [x, y]) =>
            Math.abs(x - c.x) <= c.w / 2 + 1 && Math.abs(y - c.y) <= c.h / 2 + 1;
          return stub.v === v[0] && touches(stub, end) && touches(frame, edge);
        }));""",
        open="network",
    )
    assert len(found) >= 4 and all(found)


def test_the_ends_of_wires_are_at_their_cards(page):
    far = told(
        page,
        """const off = (c, [x, y]) =>
          Math.max(Math.abs(x - c.x) - c.w / 2, Math.abs(y - c.y) - c.h / 2);
        tell(shown.wires.flatMap(({ a, b, points, inner }) => inner ? [] :
          [off(shown.cards[a], points[0]), off(shown.cards[b], points.at(-1))]));""",
        open="*",
    )
    assert max(map(abs, far)) < 3.0


def test_all_open_and_all_closed(page):
    every, shown_first, shown_then, count, address, none = told(
        page,
        """const hidden = () => [$("open-all").hidden, $("close-all").hidden], first = hidden();
        $("open-all").click();
        const found = [DATA.scopes.length - 1, first, hidden(), opened().length, location.hash];
        press(document.body, "c");
        tell([...found, opened().length]);""",
    )
    assert every == count and address == "#open=*" and none == 0
    assert shown_first == [False, True] and shown_then == [True, False]


def test_a_graph_too_large_is_not_opened_at_once(page):
    script = """DATA.scopes[1].cards = Array(500).fill(DATA.scopes[1].cards[0]);
    controls(); press(document.body, "e"); tell([$("open-all").hidden, opened().length]);"""
    assert told(page, script) == [True, 0]


def test_the_address_restores_what_is_open(page):
    script = "writeHash(); tell([paths(opened()), location.hash])"
    names, address = told(page, script, open="network/layer_1")
    assert names == ["network", "network/layer_1"]
    assert address == "#open=network/layer_1"
    script = """toggle(at_path("network/layer_0/norm")); history.back();
    setTimeout(() => tell([view().p, paths(opened())]), 300);"""
    both = {"in": "network", "open": "network/layer_0"}
    assert told(page, script, **both) == ["network", ["network/layer_0"]]


def test_an_address_with_a_name_that_is_not_there_shows_the_whole(page):
    assert told(page, "tell([view().p, opened().length])", open="decoder") == ["", 0]


def test_a_found_value_opens_the_scopes_around_it(page):
    names, chosen, panel = told(
        page,
        """find("h_layer_1"); document.querySelector("#found li").click();
        const card = shown.cards[world.querySelector(".chosen").dataset.card];
        tell([paths(opened()), DATA.scopes[card.of].p, $("panel").textContent]);""",
    )
    assert names == ["network", "network/layer_1"] and chosen == "network/layer_1"
    assert "made by" in panel


def test_what_is_selected_lights_its_wires_through_frames(page):
    script = """const lit = () => shown.wires.filter((_, i) =>
      wireElements[i].classList.contains("lit"));
    select({ v: DATA.variables.findIndex((v) => v.n === "h_layer_0") });
    const none = lit().filter((w) => w.inner).length;
    select({ e: MAKER[state.selected.v] });
    tell([none, lit().filter((w) => w.inner).length, paths(opened())]);"""
    _, through, names = told(page, script, open="network/layer_0")
    assert through == 1 and names == ["network", "network/layer_0"]


def test_escape_closes_the_scope_around(page):
    script = """const inner = shown.cards.findIndex((c) => c.of === at_path("network"));
    press(cardElements[inner], "Escape"); tell(paths(opened()));"""
    assert told(page, script, open="network") == []


def test_colours_are_those_of_what_is_inside(page):
    found = told(
        page,
        """const tinted = [...world.querySelectorAll(".tinted")];
        tell([tinted.filter((e) => e.classList.contains("frame")).length,
          tinted.filter((e) => shown.cards[e.dataset.card].of > 0).length]);""",
        open="network",
        colour="memory",
    )
    assert found[0] == 0 and found[1] > 3


def test_the_map_is_there_where_the_picture_is_larger_than_the_window(page):
    script = """const small = $("map").classList.contains("needed");
    openAll();
    place({ k: 1, x: 0, y: 0 });
    const seen = () => Number($("map").lastChild.getAttribute("y")), first = seen();
    const box = $("map").getBoundingClientRect();
    $("map").setPointerCapture = () => {};
    const clientX = box.left + box.width / 2, clientY = box.top + box.height / 2;
    $("map").dispatchEvent(new PointerEvent("pointerdown", { clientX, clientY }));
    const middle = (room.height / 2 - at.y) / at.k / shown.h;
    tell([small, $("map").classList.contains("needed"), seen() > first, middle.toFixed(2)]);"""
    assert told(page, script) == [False, True, True, "0.50"]


def test_spans_get_their_size_and_nothing_comes_closer(page):
    script = """const spans = [[0, 10, 100], [4, 30, 60], [50, 60, 40], [52, 58, 40], [99, 110, 5]];
    const map = stretched(spans), xs = Array.from({ length: 121 }, (_, x) => x - 5);
    tell([spans.every(([a, b, size]) => map(b) - map(a) >= size - 1e-9),
      xs.slice(1).every((x, i) => map(x) - map(xs[i]) >= 1 - 1e-9), map(-5), map(115) - 115]);"""
    wide, apart, before, grown = told(page, script)
    assert wide and apart and before == -5
    assert grown == pytest.approx(90 + 34)  # what overlaps them is large enough by it
