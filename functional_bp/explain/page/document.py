"""The page as one HTML file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from importlib import resources
from typing import Any

from functional_bp.errors import BackpropError, compose
from functional_bp.explain.explanation import Explanation
from functional_bp.explain.page.drawing import Drawer
from functional_bp.explain.page.facts import (
    equation_facts,
    first_facts,
    graph_symbols,
    signal_facts,
    variable_facts,
)
from functional_bp.explain.pictures.contents import Contents, contents
from functional_bp.explain.pictures.svg import spans
from functional_bp.explain.pictures.theme import DARK, LIGHT
from functional_bp.explain.scopes import Scope, scopes, views
from functional_bp.graph.parts import Equation, Variable

NAME_SIZE = 14.0
MOST_IN_NOTEBOOK = 800  # equations; about a megabyte
SCRIPTS = (
    "unfolding.js",
    "picture.js",
    "map.js",
    "opening.js",
    "colour.js",
    "panel.js",
    "page.js",
)


class PageError(BackpropError, ValueError):
    """A page that cannot be made as it was asked for."""


def page(
    explanation: Explanation,
    title: str | None = None,
    colours: Mapping[str, str] | None = None,
) -> str:
    """One self-contained HTML file: the graph, scope by scope, with values and gradients.

    Args:
        explanation: the function at a point.
        title: of the page; by default the function's name.
        colours: a category (a device, a stage) by the name of a variable or the path of a scope;
            the page colours by it and explains the colours.

    Raises:
        PageError: ``colours`` names what is not in the graph.

    Example:
        >>> import functional_bp as bp
        >>> text = page(bp.explain(lambda x, y: x * y, 2.0, 3.0))
        >>> text.startswith("<!doctype html>"), "http://" in text.replace("http://www.w3.org", "")
        (True, False)
    """
    shown = contents(explanation)
    root = scopes(shown)
    title = title or explanation.graph.name
    data = _data(explanation, shown, root, title, colours or {})
    # a "</script>" or "<!--" inside a name would end the data
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    parts = {
        "title": escape(title),
        "style": f"{_palette()}\n{_own('page.css')}",
        "script": "\n".join(map(_own, SCRIPTS)),
        "data": text.replace("<", "\\u003c"),
    }
    document = _own("page.html")
    pieces = document.split("{{")
    return pieces[0] + "".join(
        parts[key] + rest for key, _, rest in (piece.partition("}}") for piece in pieces[1:])
    )


def frame(explanation: Explanation) -> str | None:
    """The page inside a notebook; None where it is too large for the notebook's file.

    A notebook then shows the still picture, with scopes closed.
    """
    if len(explanation.graph) > MOST_IN_NOTEBOOK:
        return None
    return (
        f'<iframe srcdoc="{escape(page(explanation))}" title="{escape(explanation.graph.name)}" '
        'style="width:100%;height:620px;border:1px solid #8884;border-radius:8px"></iframe>'
    )


def _own(file: str) -> str:
    """A file that stands beside this one."""
    return resources.files("functional_bp.explain.page").joinpath(file).read_text(encoding="utf-8")


def _palette() -> str:
    """The colours of still pictures as properties of the page."""
    rules = []
    for selector, theme in ((":root", LIGHT), (':root[data-theme="dark"]', DARK)):
        colors = ";".join(f"--{role}:{color}" for role, color in theme._asdict().items())
        rules.append(f"{selector}{{{colors}}}")
    return "\n".join(rules)


def _data(
    explanation: Explanation,
    shown: Contents,
    root: Scope,
    title: str,
    colours: Mapping[str, str],
) -> dict[str, Any]:
    graph = explanation.graph
    literals = [v for v in shown.maker if v.kind == "literal"]
    variables = [*graph.variables, *literals]
    number = {v: i for i, v in enumerate(variables)}
    every = list(root.walk())
    scope_number = {scope: i for i, scope in enumerate(every)}
    drawn = _drawn(explanation, shown)
    home = {node: scope for scope in every for node in scope.items if not isinstance(node, Scope)}
    held = _held(graph.equations, drawn, home, root)
    counts = {scope: len(found) for scope, found in held.items()}
    drawer = Drawer(explanation, shown, number, scope_number, counts)
    seen = views(root, shown)
    known = graph_symbols(explanation)
    first = first_facts(explanation)
    lines = {v: spans(line, NAME_SIZE) for v, line in shown.names.items()}
    equations = [equation_facts(explanation, e, number, known) for e in graph]
    for equation, facts in zip(graph, equations):
        node = drawn.get(equation)
        if node is not None:
            facts["d"] = [scope_number[home[node]], node.equations[0].index]
    return {
        "title": title,
        "name": graph.name,
        "variables": [variable_facts(explanation, v, lines.get(v, "")) for v in variables],
        "equations": equations,
        "scopes": [
            {
                "p": scope.path,
                "n": scope.name,
                "u": scope_number[scope.parent] if scope.parent else -1,
                "e": [e.index for e in held[scope]],
                **({"note": scope.note} if scope.note else {}),
                **drawer.draw(seen[scope]),
            }
            for scope in every
        ],
        **({"first": first} if first else {}),
        "signals": signal_facts(explanation, number),
        **({"colours": _categories(explanation, every, colours)} if colours else {}),
    }


def _drawn(explanation: Explanation, shown: Contents) -> dict[Equation, Any]:
    """The operator that stands for an equation: of what is part of a wire, the next that is drawn.

    What no output depends on has none.
    """
    drawn = {n.equations[0]: n for n in shown.nodes if n.kind == "operator"}
    users: dict[Variable, list[Equation]] = {}
    for equation in explanation.graph:
        for v in equation.inputs:
            users.setdefault(v, []).append(equation)
    for equation in reversed(explanation.graph.equations):
        if equation not in drawn:
            after = (u for v in equation.outputs for u in users.get(v, ()) if u in drawn)
            before = (shown.maker.get(v) for v in equation.inputs)
            operators = (n for n in before if n is not None and n.kind == "operator")
            found = next((drawn[u] for u in after), None) or next(operators, None)
            if found is not None:
                drawn[equation] = found
    return drawn


def _held(
    equations: tuple[Equation, ...],
    drawn: Mapping[Equation, Any],
    home: Mapping[Any, Scope],
    root: Scope,
) -> dict[Scope, list[Equation]]:
    """The equations of each scope, with those of the scopes inside; all are in the whole graph."""
    held: dict[Scope, list[Equation]] = {scope: [] for scope in root.walk()}
    for equation in equations:
        node = drawn.get(equation)
        for scope in (home[node] if node is not None else root).chain:
            held[scope].append(equation)
    return held


def _categories(
    explanation: Explanation, every: list[Scope], colours: Mapping[str, str]
) -> dict[str, str]:
    """The categories, by the names that variables and scopes have in the page."""
    graph = explanation.graph
    paths = {scope.path for scope in every} | {e.scope for e in graph}
    paths |= {path.rpartition("/")[0] for path in paths}
    found: dict[str, str] = {}
    for name, category in colours.items():
        if name not in graph and name not in paths:
            raise PageError(
                compose(
                    f"no variable and no scope of {graph.name} is called {name!r}",
                    got=f"colours={{{name!r}: {category!r}, …}}",
                    expected="names as bp.explain(…).graph shows them",
                )
            )
        found[graph[name].name if name in graph else name] = str(category)
    return found
