"""Still pictures: nothing is cut or overlaps, names are a book's, files are what they say."""

from __future__ import annotations

import io
import itertools
import struct
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_bp as bp
from functional_bp.explain.numbers import format_number
from functional_bp.explain.pictures import raster, svg
from functional_bp.explain.pictures.contents import contents
from functional_bp.explain.pictures.layout import has_graphviz
from functional_bp.explain.pictures.picture import PictureError, scene_of
from functional_bp.explain.pictures.scene import Scene, Shape, Text
from functional_bp.explain.pictures.typeset import plain, typeset_name, typeset_paths

SVG = "{http://www.w3.org/2000/svg}"
ENGINES = ["built-in", "graphviz"] if has_graphviz() else ["built-in"]


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


def neuron(w0: Any, x0: Any, w1: Any, x1: Any, w2: Any) -> Any:
    return 1 / (1 + jnp.exp(-(w0 * x0 + w1 * x1 + w2)))


def lstm(params: Any, x: Any, h: Any, c: Any) -> Any:
    i, f, g, o = jnp.split(params["W"] @ jnp.concatenate([x, h]) + params["b"], 4)
    c = bp.name(jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g), "c_1")
    return jnp.sum(bp.name(jax.nn.sigmoid(o) * jnp.tanh(c), "h_1"))


def layernorm(x: Any, gamma: Any, beta: Any) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * gamma + beta


def residual(params: Any, x: Any) -> Any:
    h = jax.jit(layernorm)(x, params["gamma"], params["beta"])
    h = jax.nn.gelu(h @ params["W1"] + params["b1"]) @ params["W2"]
    return jnp.sum(bp.name(x + h, "y") ** 2)


def softmax(W: Any, b: Any, x: Any, label: Any) -> Any:
    o = bp.name(x @ W + b, "o")
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(o) * label, -1))


def rnn(W: Any, xs: Any) -> Any:
    def step(h: Any, x: Any) -> Any:
        return bp.name(jnp.tanh(W * h + x), "h"), None

    return jax.lax.scan(step, 0.5, xs)[0]


def branches(x: Any, y: Any) -> Any:
    return x * x * y + x


BLOCK = {"W1": normal(4, 8), "b1": normal(8), "W2": normal(8, 4), "gamma": jnp.ones(4)}
MODELS: dict[str, Callable[[], bp.Explanation]] = {
    "neuron": lambda: bp.explain(neuron, 2.0, -1.0, -3.0, -2.0, -3.0),
    "lstm": lambda: bp.explain(
        lstm, {"W": normal(16, 7), "b": normal(16)}, normal(3), normal(4), normal(4) + 1
    ),
    "residual": lambda: bp.explain(residual, {**BLOCK, "beta": jnp.zeros(4)}, normal(2, 4)),
    "softmax": lambda: bp.explain(
        softmax, normal(5, 3), normal(3), normal(4, 5), jax.nn.one_hot(jnp.arange(4) % 3, 3)
    ),
    "rnn": lambda: bp.explain(rnn, 0.5, jnp.arange(3.0), unroll=True),
    "folded": lambda: bp.explain(rnn, 0.5, jnp.arange(3.0)),
    "branches": lambda: bp.explain(branches, 2.0, 3.0),
}


@pytest.fixture(scope="module")
def models() -> dict[str, bp.Explanation]:
    return {name: make() for name, make in MODELS.items()}


def curve_points(points: tuple[tuple[float, float], ...]) -> np.ndarray:
    t = np.linspace(0, 1, 40)[:, None]
    pieces = []
    for i in range(0, len(points) - 1, 3):
        a, b, c, d = np.array(points[i : i + 4])
        pieces.append(
            (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t**2 * c + t**3 * d
        )
    return np.concatenate(pieces)


def faults(scene: Scene) -> list[str]:
    """Text over text, over a border that is not its own, over a wire, or outside the page."""
    found = []
    for text in scene.texts:
        left, top, right, bottom = text.extent
        if left < 0 or top < 0 or right > scene.width or bottom > scene.height:
            found.append(f"{plain(text.line)} leaves the page")
        for curve in scene.curves:
            x, y = curve_points(curve.points).T
            if np.any((left < x) & (x < right) & (top + 1 < y) & (y < bottom - 1)):
                found.append(f"a wire goes over {plain(text.line)}")
        found += [
            f"{plain(text.line)} overlaps a border"
            for shape in scene.shapes
            if covers(shape, text) and (shape.x, shape.y) != (text.x, text.y)
        ]
    found += [
        f"{plain(a.line)} overlaps {plain(b.line)}"
        for a, b in itertools.combinations(scene.texts, 2)
        if common(a.extent, b.extent)
    ]
    return found


def common(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return min(a[2], b[2]) - max(a[0], b[0]) > 0.5 and min(a[3], b[3]) - max(a[1], b[1]) > 0.5


def covers(shape: Shape, text: Text) -> bool:
    half_width, half_height = shape.width / 2, shape.height / 2
    around = (shape.x - half_width, shape.y - half_height, shape.x + half_width,
              shape.y + half_height)  # fmt: skip
    return common(around, text.extent)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("direction", ["right", "down"])
@pytest.mark.parametrize("style", ["cs231n", "d2l"])
@pytest.mark.parametrize("name", MODELS)
def test_no_text_is_cut_or_covered(
    models: dict[str, bp.Explanation], name: str, style: Any, direction: Any, engine: Any
) -> None:
    for depth in (None, 0):
        scene = scene_of(models[name], style, direction=direction, depth=depth, engine=engine)
        assert scene.texts and scene.curves
        assert faults(scene) == []


def test_the_witness_sees_what_is_cut_or_covered(models: dict[str, bp.Explanation]) -> None:
    scene = scene_of(models["neuron"], engine="built-in")
    first, second = scene.texts[-2:]
    moved = [*scene.texts[:-1], second._replace(x=first.x, y=first.y)]
    assert any("overlaps" in f for f in faults(Scene("", scene.width, scene.height, [], [], moved)))
    assert any("leaves" in fault for fault in faults(Scene("", 50, 50, [], [], scene.texts)))
    curve = scene.curves[-1]
    lowered = curve._replace(points=tuple((x, y + 8) for x, y in curve.points))
    assert any("wire" in f for f in faults(Scene("", 1e4, 1e4, [lowered], [], scene.texts)))


# What is drawn


def signs(explanation: bp.Explanation, **options: Any) -> list[str]:
    return [plain(n.label) for n in contents(explanation, **options).nodes if n.kind != "leaf"]


def test_constants_are_part_of_the_sign(models: dict[str, bp.Explanation]) -> None:
    assert signs(models["neuron"]) == ["∗", "∗", "+", "+", "∗−1", "exp", "+1", "1/x"]

    def chain(x: Any) -> Any:
        return jnp.maximum(((2 - x) / 4 - 3) ** 2, 0.5) ** 0.3

    assert signs(bp.explain(chain, 1.0)) == ["2−x", "/4", "−3", "x^2", "max 0.5", "x^0.3"]


def test_what_only_carries_a_value_is_part_of_the_wire() -> None:
    def f(x: Any, b: Any) -> Any:
        return jnp.sum(x.reshape(2, 3) * b[:, None])

    explanation = bp.explain(f, normal(6), normal(2))
    shown = contents(explanation)
    assert [plain(node.label) for node in shown.nodes] == ["x", "b", "∗", "Σ"]
    (use,) = shown.uses[explanation.graph["b"]]
    np.testing.assert_array_equal(use.share, explanation.cotangent["b"])


def test_what_no_output_depends_on_is_left_out() -> None:
    def f(x: Any) -> Any:
        jnp.cos(x)
        return jnp.sin(x)

    assert signs(bp.explain(f, 1.0)) == ["sin"]


def test_uses_sum_to_the_cotangent(models: dict[str, bp.Explanation]) -> None:
    for explanation in models.values():
        for depth in (None, 0):
            for variable, uses in contents(explanation, depth).uses.items():
                ends = [s for v, s in zip(explanation.graph.outputs, explanation.seeds)
                        if v is variable]  # fmt: skip
                shares = [u.share for u in uses if u.share is not None] + ends
                if variable in explanation.bars and shares:
                    np.testing.assert_allclose(
                        np.sum([np.asarray(s) for s in shares], axis=0),
                        explanation.bars[variable],
                        rtol=1e-5,  # sums of float32 in another order
                        atol=1e-5,
                    )


def test_gates_and_closed_scopes(models: dict[str, bp.Explanation]) -> None:
    @jax.jit
    def sigmoid(x: Any) -> Any:
        return 1 / (1 + jnp.exp(-x))

    twice = bp.explain(lambda x: sigmoid(2 * sigmoid(x)), 0.5)
    assert signs(twice, gates=("sigmoid",)) == ["σ", "∗2", "σ"]
    assert signs(twice, depth=0) == ["sigmoid (4)", "∗2", "sigmoid_2 (4)"]
    assert len(signs(twice)) == 9
    assert signs(models["residual"], depth=0)[0] == "layernorm (16)"


def test_the_arguments_of_a_closed_scope_are_drawn_as_one() -> None:
    def block(p: Any, x: Any) -> Any:
        with jax.named_scope("block"):
            return jnp.tanh(x @ p["W"] + p["b"]) * p["gamma"] + p["beta"]

    params = [{"W": normal(4, 4), "b": normal(4), "gamma": normal(4), "beta": normal(4)}] * 2
    explanation = bp.explain(lambda params, x: jnp.sum(block(params[0], x)), params, normal(2, 4))
    scene = scene_of(explanation, depth=0)
    texts = {plain(t.line) for t in scene.texts}
    assert {"params_0 (4)", "x", "block (8)"} <= texts
    bars = [explanation.cotangent[f"params[0]['{n}']"] for n in ("W", "b", "gamma", "beta")]
    norm = np.linalg.norm(np.concatenate([np.ravel(bar) for bar in bars]))
    assert f"‖·‖ = {format_number(norm)}" in texts
    assert "params_0 (4)" not in {plain(t.line) for t in scene_of(explanation).texts}


def test_a_loop_is_folded_with_its_length_or_unrolled(models: dict[str, bp.Explanation]) -> None:
    assert signs(models["folded"]) == ["step × 3"]
    assert signs(models["rnn"]).count("tanh") == 3
    scene = scene_of(models["rnn"], "d2l", engine="built-in")
    places = {plain(t.line): t.x for t in scene.texts}
    assert places["h"] < places["h_2"] < places["h_3"]  # time goes right
    assert sum(plain(t.line) == "W" for t in scene.texts) == 1  # shared, drawn once


def test_branches_show_shares_or_the_total(models: dict[str, bp.Explanation]) -> None:
    def red(**options: Any) -> list[str]:
        scene = scene_of(models["branches"], **options)
        return sorted(plain(t.line) for t in scene.texts if t.role == "gradient")

    shares = ["13.00", "6.00", "6.00", "1.00", "3.00", "1.00", "4.00", "1.00"]
    assert red() == sorted(shares)  # of x: 13 = 6 + 6 + 1
    assert red(branches="total") == sorted(["13.00"] * 3 + ["3.00", "1.00", "4.00", "1.00"])


def test_nameless_values_are_drawn_without_a_name(models: dict[str, bp.Explanation]) -> None:
    for style in ("cs231n", "d2l"):
        scene = scene_of(models["neuron"], style)
        names = {plain(t.line) for t in scene.texts if t.role == "ink"}
        assert names == {"w_0", "x_0", "w_1", "x_1", "w_2", "neuron", *signs(models["neuron"])}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("x", "x"), ("W1", "W_1"), ("w_0", "w_0"), ("alpha", "α"), ("lambda_2", "λ_2"),
        ("Gamma", "Γ"), ("x_hat", "x̂"), ("h_t", "h_t"), ("hidden", "hidden"), ("loss_2", "loss_2"),
        ("_", "_"), ("hidden_layer", "hidden_layer"), ("W_q_1", "W_q,1"),
    ],
)  # fmt: skip
def test_names_as_a_book_prints_them(name: str, expected: str) -> None:
    assert plain(typeset_name(name)) == expected


def test_letters_tell_arrays_from_numbers() -> None:
    assert typeset_name("W1", is_array=True)[0].face == "bold"
    assert typeset_name("w1")[0].face == "italic"
    assert typeset_name("W1")[1].script == -1


def test_paths_are_as_short_as_they_can_be_told_apart() -> None:
    paths = ["params['enc']['W']", "params['dec']['W']", "params['b']", "batch.x", "state[0]"]
    lines = typeset_paths({path: False for path in paths})
    assert [plain(line) for line in lines.values()] == ["enc.W", "dec.W", "b", "x", "state_0"]


# Files


@pytest.mark.parametrize("theme", ["light", "dark", "auto"])
@pytest.mark.parametrize("style", ["cs231n", "d2l"])
def test_svg_is_one_valid_file(models: dict[str, bp.Explanation], style: Any, theme: Any) -> None:
    text = models["lstm"].svg(style, theme)
    root = ET.fromstring(text)
    assert root.tag == f"{SVG}svg"
    assert root.get("viewBox") == f"0 0 {root.get('width')} {root.get('height')}"
    assert "href" not in text and "url(" not in text and "<script" not in text
    assert ("prefers-color-scheme" in text) == (theme == "auto")
    titles = ["".join(t.itertext()) for t in root.iter(f"{SVG}title")]
    assert any("gradient" in t and "kept for the reverse sweep" in t for t in titles)
    assert text == models["lstm"].svg(style, theme)


def test_svg_holds_names_that_xml_would_misread() -> None:
    explanation = bp.explain(lambda x: jnp.sum(jnp.where(x < 0.5, x, 2 * x)), normal(3))
    texts = [
        "".join(t.itertext()).splitlines()[-1]
        for t in ET.fromstring(explanation.svg()).iter(f"{SVG}text")
    ]
    assert any(text.endswith("<0.5") for text in texts)


def test_png_has_the_size_of_the_picture(models: dict[str, bp.Explanation], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    scene = scene_of(models["neuron"])
    for theme, page in (("light", 255), ("dark", 13)):
        path = tmp_path / f"{theme}.png"
        models["neuron"].save(path, theme=theme)
        data = path.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", data[16:24])
        assert (width, height) == (2 * scene.width, 2 * scene.height)  # 144 dots per inch
        from matplotlib.image import imread

        pixels = imread(io.BytesIO(data), format="png")[..., :3] * 255
        assert np.all(np.round(pixels[0, :, 0]) == page)  # nothing at the border
        green, red = pixels[..., 1] - pixels[..., 0], pixels[..., 0] - pixels[..., 1]
        assert np.sum(green > 50) > 100 and np.sum(red > 50) > 100


def test_pdf_has_one_page_of_the_right_size(
    models: dict[str, bp.Explanation], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "neuron.pdf"
    models["neuron"].save(path, style="d2l")
    scene, data = scene_of(models["neuron"], "d2l"), path.read_bytes()
    assert data.startswith(b"%PDF") and len(data) > 5000
    assert f"/MediaBox [ 0 0 {scene.width} {scene.height} ]".encode() in data


def test_drawing_leaves_matplotlib_as_it_was(
    models: dict[str, bp.Explanation], tmp_path: Path
) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    before = dict(matplotlib.rcParams)
    models["neuron"].save(tmp_path / "neuron.png")
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("suffix", [".svg", ".html", ".md", ".tex", ".txt"])
def test_files_by_their_suffix(
    models: dict[str, bp.Explanation], tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"neuron{suffix}"
    models["neuron"].save(path)
    begins = {".svg": "<svg", ".html": "<!doctype html>", ".tex": "\\documentclass"}
    text = path.read_text(encoding="utf-8")
    assert text.startswith(begins.get(suffix, "")) and "0.73" in text


def test_a_notebook_shows_a_picture_that_can_be_taken_in() -> None:
    assert ET.fromstring(MODELS["neuron"]()._repr_svg_() or "").tag == f"{SVG}svg"

    @jax.jit
    def many(x: Any) -> Any:
        for _ in range(100):
            x = jnp.sin(x)
        return x

    assert "many (100)" in (bp.explain(lambda x: many(2 * x), 0.5)._repr_svg_() or "")
    assert bp.explain(many.__wrapped__, 0.5)._repr_svg_() is None


# Errors


def deep(x: Any) -> Any:
    with jax.named_scope("deep"):
        for _ in range(401):
            x = jnp.sin(x)
    return x


def test_too_large_a_picture_says_what_to_do(tmp_path: Path) -> None:
    explanation = bp.explain(deep, 0.5)
    with pytest.raises(PictureError) as caught:
        explanation.save(tmp_path / "deep.svg")
    message = str(caught.value)
    assert "deep is too large for a still picture" in message
    assert "401 operations to draw" in message and "at most 400" in message
    assert "depth=0" in message and ".html" in message
    assert "deep (401)" in explanation.svg(depth=0)


def test_an_unknown_suffix_lists_the_known(
    models: dict[str, bp.Explanation], tmp_path: Path
) -> None:
    with pytest.raises(PictureError) as caught:
        models["neuron"].save(tmp_path / "neuron.gif")
    assert "neuron.gif names no format" in str(caught.value) and "'.gif'" in str(caught.value)
    assert ".svg, .png, .pdf, .html, .md, .tex, .txt" in str(caught.value)


@pytest.mark.parametrize(
    ("option", "word"), [("style", "d2"), ("theme", "blue"), ("direction", "up"), ("branches", "x")]
)
def test_unknown_words_list_the_known(
    models: dict[str, bp.Explanation], option: str, word: str
) -> None:
    with pytest.raises(PictureError, match=f"there is no {option} '{word}' of a picture"):
        models["neuron"].svg(**{option: word})  # pyright: ignore[reportArgumentType]


def test_png_without_matplotlib_names_the_extra(
    models: dict[str, bp.Explanation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raster.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(raster.PicturesExtraError, match=r"pip install 'functional-bp\[pictures\]'"):
        models["neuron"].save(tmp_path / "neuron.png")
    models["neuron"].save(tmp_path / "neuron.svg")  # needs nothing
    assert not (tmp_path / "neuron.png").exists()


def test_an_empty_scene_is_a_page() -> None:
    assert ET.fromstring(svg.write(Scene("nothing", 10, 10))).get("width") == "10"
