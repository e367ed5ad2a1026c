"""The numbers that the textbooks print, and the committed pictures of them.

CS231n's are from its notes on backpropagation and lecture 4. *Dive into Deep Learning* prints
formulas (5.3.2 to 5.3.14) instead of numbers: they are evaluated here by hand, in NumPy.
"""

from __future__ import annotations

import runpy
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fresh_process import python

import functional_bp as bp
from functional_bp.explanation.numbers import format_number, format_value

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "textbook_pictures.py"
COMMITTED = sorted((ROOT / "examples" / "pictures").glob("*.svg"))
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The functions of the script that draws the pictures."""
    before, sys.argv = sys.argv, ["", str(tmp_path_factory.mktemp("pictures"))]
    try:
        return runpy.run_path(str(SCRIPT))
    finally:
        sys.argv = before


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the script has run as a person starts it."""
    folder = tmp_path_factory.mktemp("drawn")
    done = python(SCRIPT, folder)
    assert done.returncode == 0, done.stderr
    return folder


def pairs(explanation: bp.Explanation) -> dict[str, tuple[str, str]]:
    """Value and gradient of every variable, as they are printed."""
    return {
        v.name: (format_value(explanation.values[v]), format_value(explanation.bars[v]))
        for v in explanation.graph.variables
    }


def edges(path: Path) -> list[tuple[str, str]]:
    """What stands above and below the edges of a picture, from left to right."""
    texts = [t for t in ET.parse(path).iter(f"{SVG}text") if t.get("class") != "ink"]

    def content(text: ET.Element) -> str:
        parts = (text.text or "", *(child.tail or "" for child in text))
        spans = [span.text or "" for span in text.iter(f"{SVG}tspan")]
        return "".join((*spans, *parts))

    found = []
    for text in texts:
        place = (float(text.get("x", 0)), float(text.get("y", 0)))
        below = [
            other
            for other in texts
            if other.get("class") == "gradient"
            and abs(float(other.get("x", 0)) - place[0]) < 0.1
            and 0 < float(other.get("y", 0)) - place[1] < 20
        ]
        if text.get("class") == "value":
            assert len(below) == 1
            found.append((place, content(text), content(below[0])))
    return [(value, gradient) for _, value, gradient in sorted(found)]


# CS231n


def test_sum_times_z_of_the_lecture(book: dict[str, Any]) -> None:
    explanation = bp.explain(book["g"], 1.0, 3.0, -3.0)
    assert pairs(explanation) == {
        "x": ("1.00", "−3.00"),
        "y": ("3.00", "−3.00"),
        "z": ("−3.00", "4.00"),
        "p": ("4.00", "−3.00"),
        "result": ("−12.00", "1.00"),
    }


def test_sum_times_z_of_the_notes(book: dict[str, Any]) -> None:
    explanation = bp.explain(book["f"], -2.0, 5.0, -4.0)
    assert pairs(explanation) == {
        "x": ("−2.00", "−4.00"),
        "y": ("5.00", "−4.00"),
        "z": ("−4.00", "3.00"),
        "q": ("3.00", "−4.00"),
        "result": ("−12.00", "1.00"),
    }


LEAVES = [
    ("2.00", "−0.20"),  # w0
    ("−1.00", "0.39"),  # x0
    ("−3.00", "−0.39"),  # w1
    ("−2.00", "−0.59"),  # x1
    ("−3.00", "0.20"),  # w2
]
PRODUCTS = [("−2.00", "0.20"), ("6.00", "0.20"), ("4.00", "0.20"), ("1.00", "0.20")]
PIECES = [("−1.00", "−0.20"), ("0.37", "−0.53"), ("1.37", "−0.53"), ("0.73", "1.00")]


def test_the_sigmoid_neuron_in_pieces(book: dict[str, Any]) -> None:
    explanation = bp.explain(book["neuron"], *book["WEIGHTS"])
    assert [e.operation for e in explanation.graph][4:] == ["neg", "exp", "add", "div"]
    assert list(pairs(explanation).values()) == [*LEAVES, *PRODUCTS, *PIECES]


def test_the_picture_of_the_neuron_has_the_numbers_of_the_lecture(drawn: Path) -> None:
    found = edges(drawn / "neuron.svg")
    assert sorted(found) == sorted([*LEAVES, *PRODUCTS, *PIECES])
    assert found[-5:] == [PRODUCTS[-1], *PIECES]


def test_the_same_neuron_with_the_sigmoid_as_one_gate(drawn: Path) -> None:
    assert edges(drawn / "neuron_gate.svg")[-2:] == [("1.00", "0.20"), ("0.73", "1.00")]
    assert sorted(edges(drawn / "neuron_gate.svg")) == sorted([*LEAVES, *PRODUCTS, PIECES[-1]])
    text = (drawn / "neuron_gate.svg").read_text()
    assert ">σ<" in text and ">exp<" not in text and ">exp<" in (drawn / "neuron.svg").read_text()


def test_add_distributes_multiply_swaps_max_routes(book: dict[str, Any]) -> None:
    explanation = bp.explain(book["patterns"], 3.0, -4.0, 2.0, -1.0)
    assert list(pairs(explanation).values()) == [
        ("3.00", "−8.00"),  # ∗ swaps: 2 · y
        ("−4.00", "6.00"),
        ("2.00", "2.00"),  # max routes
        ("−1.00", "0.00"),
        ("−12.00", "2.00"),  # + distributes
        ("2.00", "2.00"),
        ("−10.00", "2.00"),
        ("−20.00", "1.00"),
    ]


def test_branches_sum(book: dict[str, Any], drawn: Path) -> None:
    explanation = bp.explain(book["branches"], 3.0, -2.0)
    x = explanation.graph["x"]
    shares = [explanation.share(e, e.inputs.index(x)) for e in explanation.graph.uses("x")]
    assert [format_number(share) for share in shares] == ["−2.00", "1.00"]
    assert format_number(sum(shares)) == format_number(explanation.cotangent["x"]) == "−1.00"
    text = (drawn / "branches.svg").read_text()
    assert all(f">{number}<" in text for number in ("−2.00", "1.00", "−1.00"))


# Dive into Deep Learning, Fig. 5.3.1


@pytest.mark.parametrize("case", ["PLAIN", "BIASED"])
def test_the_network_of_dive_into_deep_learning(book: dict[str, Any], case: str) -> None:
    params, x, y = book[case]
    explanation = bp.explain(book["network"], params, x, y)
    W1, W2, x, y = (np.asarray(a, np.float64) for a in (params["W1"], params["W2"], x, y))
    rate = 0.1
    a = W1 @ x
    z = a + np.asarray(params.get("b1", 0.0))
    h = np.tanh(z)
    o = W2 @ h
    loss, s = np.sum((o - y) ** 2) / 2, rate / 2 * (np.sum(W1**2) + np.sum(W2**2))
    o_bar = o - y  # (5.3.10), of the squared error
    h_bar = W2.T @ o_bar  # (5.3.12)
    z_bar = h_bar * (1 - h**2)  # (5.3.13)
    expected = {
        "params['W1']": (W1, np.outer(z_bar, x) + rate * W1),  # (5.3.14)
        "params['W2']": (W2, np.outer(o_bar, h) + rate * W2),  # (5.3.11)
        "x": (x, W1.T @ z_bar),
        "y": (y, -o_bar),
        "z": (z, z_bar),
        "h": (h, h_bar),
        "o": (o, o_bar),
        "L": (loss, 1.0),  # (5.3.8)
        "s": (s, 1.0),
        "J": (loss + s, 1.0),
    }
    if case == "BIASED":
        expected |= {"a": (a, z_bar), "params['b1']": (np.asarray(params["b1"]), z_bar)}
    for name, (value, gradient) in expected.items():
        # the script's arrays are in single or double precision, 2⁻²³ at worst
        np.testing.assert_allclose(explanation.value[name], value, rtol=3e-6, err_msg=name)
        np.testing.assert_allclose(
            explanation.cotangent[name], gradient, rtol=3e-6, atol=1e-6, err_msg=name
        )


def test_the_network_is_drawn_as_in_the_book(drawn: Path) -> None:
    root = ET.parse(drawn / "network.svg").getroot()
    assert len([r for r in root.iter(f"{SVG}rect") if r.get("class") == "variable"]) == 10
    assert len([c for c in root.iter(f"{SVG}ellipse") if c.get("class") == "operator"]) == 6
    signs = {"".join(t.itertext()).split("\n")[-1] for t in root.iter(f"{SVG}text")}
    assert any(sign.endswith("φ") for sign in signs)


# The committed pictures


def test_every_picture_is_committed(drawn: Path) -> None:
    assert [path.name for path in COMMITTED] == sorted(path.name for path in drawn.iterdir())
    assert len(COMMITTED) >= 8


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_pictures_are_what_the_script_draws(path: Path, drawn: Path) -> None:
    assert path.read_text(encoding="utf-8") == (drawn / path.name).read_text(encoding="utf-8"), (
        "draw them again: python examples/textbook_pictures.py examples/pictures"
    )
