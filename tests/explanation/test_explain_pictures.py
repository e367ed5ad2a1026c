"""Still pictures: nothing is cut or overlaps, files are what they say."""

from __future__ import annotations

import importlib.util
import io
import itertools
import struct
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bezier import overlap, points_of
from drawn_models import MODELS, normal
from sampling import sampled

import functional_bp as bp
from functional_bp.explanation.pictures.picture import PictureError, scene_of
from functional_bp.explanation.pictures.scene import (
    PicturesExtraError,
    Scene,
    Shape,
    Text,
    svg_text,
)
from functional_bp.explanation.pictures.symbols import plain

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def models() -> dict[str, bp.Explanation]:
    return {name: make() for name, make in MODELS.items()}


def faults(scene: Scene) -> list[str]:
    """Text over text, over a border that is not its own, over a wire, or outside the page."""
    found = []
    for text in scene.texts:
        left, top, right, bottom = text.extent
        if left < 0 or top < 0 or right > scene.width or bottom > scene.height:
            found.append(f"{plain(text.line)} leaves the page")
        for curve in scene.curves:
            x, y = points_of(curve.points).T
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
        if overlap(a.extent, b.extent)
    ]
    return found


def covers(shape: Shape, text: Text) -> bool:
    half_width, half_height = shape.width / 2, shape.height / 2
    around = (shape.x - half_width, shape.y - half_height, shape.x + half_width,
              shape.y + half_height)  # fmt: skip
    return overlap(around, text.extent)


WAYS = itertools.product(MODELS, ["cs231n", "d2l"], ["right", "down"])


@pytest.mark.parametrize(("name", "style", "direction"), sampled(WAYS, 7))
def test_no_text_is_cut_or_covered(
    models: dict[str, bp.Explanation], name: str, style: Any, direction: Any
) -> None:
    for depth in (None, 0):
        scene = scene_of(models[name], style, direction=direction, depth=depth)
        assert scene.texts and scene.curves
        assert faults(scene) == []


def test_the_witness_sees_what_is_cut_or_covered(models: dict[str, bp.Explanation]) -> None:
    scene = scene_of(models["neuron"])
    first, second = scene.texts[-2:]
    moved = [*scene.texts[:-1], second._replace(x=first.x, y=first.y)]
    assert any("overlaps" in f for f in faults(Scene("", scene.width, scene.height, [], [], moved)))
    assert any("leaves" in fault for fault in faults(Scene("", 50, 50, [], [], scene.texts)))
    curve = scene.curves[-1]
    lowered = curve._replace(points=tuple((x, y + 8) for x, y in curve.points))
    assert any("wire" in f for f in faults(Scene("", 1e4, 1e4, [lowered], [], scene.texts)))


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
    pytest.importorskip("matplotlib", reason="of the extra pictures")
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
    pytest.importorskip("matplotlib", reason="of the extra pictures")
    path = tmp_path / "neuron.pdf"
    models["neuron"].save(path, style="d2l")
    scene, data = scene_of(models["neuron"], "d2l"), path.read_bytes()
    assert data.startswith(b"%PDF") and len(data) > 5000
    assert f"/MediaBox [ 0 0 {scene.width} {scene.height} ]".encode() in data


def test_drawing_leaves_matplotlib_as_it_was(
    models: dict[str, bp.Explanation], tmp_path: Path
) -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="of the extra pictures")
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
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PicturesExtraError, match=r"pip install 'functional-bp\[pictures\]'"):
        models["neuron"].save(tmp_path / "neuron.png")
    models["neuron"].save(tmp_path / "neuron.svg")  # needs nothing
    assert not (tmp_path / "neuron.png").exists()


def test_an_empty_scene_is_a_page() -> None:
    assert ET.fromstring(svg_text(Scene("nothing", 10, 10))).get("width") == "10"


def coloured() -> bp.Explanation:
    def loss(params: Any, x: Any, y: Any) -> Any:
        h = bp.name(jnp.tanh(x @ params["W1"] + params["b1"]), "h")
        return jnp.mean((h @ params["W2"] - y) ** 2)

    sizes = {"W1": (4, 16), "b1": (16,), "W2": (16, 3)}
    params = {name: normal(*size) for name, size in sizes.items()}
    return bp.explain(loss, params, normal(32, 4), normal(32, 3))


@pytest.mark.parametrize("direction", ["right", "down"])
@pytest.mark.parametrize("style", ["cs231n", "d2l"])
def test_wires_bear_the_colours_of_dimensions(style: Any, direction: Any) -> None:
    e = coloured()
    dimensions = e.dimensions.rename({"W1.1": "hidden"})
    assert dimensions.names_of(e.graph["h"]) == ("batch", "hidden")
    scene = scene_of(e, style, direction=direction, dimensions=dimensions)
    assert faults(scene) == []
    assert sum(shape.role.startswith("swatch") for shape in scene.shapes) == 4
    assert {"batch 32", "hidden 16"} <= {plain(text.line) for text in scene.texts}
    bare = scene_of(e, style, direction=direction)
    assert not any(curve.role.startswith("stripe") for curve in bare.curves)
    stripes = [curve for curve in scene.curves if curve.role.startswith("stripe")]
    arguments, computed = 2 + 2 + 1 + 2 + 2, 2 * 6  # axes of x W b V y; XW, + b, tanh, hV, − y, ²
    assert len(stripes) == arguments + computed * (2 if style == "d2l" else 1)
    assert "stripe0" in svg_text(scene, "auto")


def test_dimensions_of_another_graph_are_refused() -> None:
    with pytest.raises(PictureError, match="explanation.dimensions"):
        coloured().svg(dimensions=coloured().dimensions)
