"""``bp.explain``: a function at a point, with value and cotangent on every node of its graph."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from functional_bp.errors import CotangentError, NotDifferentiableError, compose, describe
from functional_bp.explain.sweeps import Sweeps, flatten_taken, plan_of, sweep
from functional_bp.graph import names
from functional_bp.graph.inline import inlined
from functional_bp.graph.parts import Equation, Variable
from functional_bp.graph.trace import trace
from functional_bp.graph.view import Graph
from functional_bp.structure import has_tangent

if TYPE_CHECKING:
    from functional_bp.explain.pictures.picture import PictureOptions, Style
    from functional_bp.explain.pictures.theme import ThemeName


class ByName(Mapping[str, Any]):
    """Arrays by the names of a graph's variables; an unknown name is answered with near ones."""

    def __init__(self, graph: Graph, arrays: Mapping[Variable, Any]) -> None:
        self._graph, self._arrays = graph, arrays

    def __getitem__(self, name: str | Variable) -> Any:
        variable = self._graph[name]
        if variable not in self._arrays:
            raise KeyError(f"{variable.name} has no cotangent: no path leads from it to the output")
        return self._arrays[variable]

    def __iter__(self) -> Iterator[str]:
        return (v.name for v in self._graph.variables if v in self._arrays and v.name != "_")

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"<{len(self)} arrays: {', '.join(self)}>"


class Explanation:
    """A function's graph at a point, with the forward value and the cotangent of every node.

    Attributes:
        graph: the flat graph: calls are opened, a ``cond`` is the branch that ran.
        value: forward values by name: ``explanation.value["h"]``.
        cotangent: cotangents by name; a value that no path joins to the output has none.
        values, bars: the same by variable of ``graph``.
        shares: what each use of a variable adds to its cotangent, by equation and operand.
        kept_bytes: for each variable that ``bp.grad`` keeps from its forward sweep, the bytes.
    """

    def __init__(self, graph: Graph, sweeps: Sweeps, seeds: Sequence[Any]) -> None:
        self.graph = graph
        self.values, self.bars, self.shares = sweeps
        self.seeds = tuple(seeds)
        self.value = ByName(graph, self.values)
        self.cotangent = ByName(graph, self.bars)

    @cached_property
    def kept_bytes(self) -> Mapping[Variable, int]:
        """Bytes that the reverse sweep of ``bp.grad`` needs from the forward sweep, by variable."""
        plan = plan_of(self.graph, [seed is not None for seed in self.seeds])
        kept = [self.graph.of_var[v] for v in plan.keep if v in self.graph.of_var]
        return {v: v.bytes for v in kept}

    def share(self, equation: Equation, operand: int) -> Any:
        """What one use of a variable adds to its cotangent; None where it adds nothing."""
        return self.shares.get((equation, operand))

    def svg(
        self, style: Style = "cs231n", theme: ThemeName = "light", **options: Unpack[PictureOptions]
    ) -> str:
        """A picture of the graph with its values and gradients, as the text of an SVG file.

        Args:
            style: "cs231n": values and gradients on the edges between operators; or "d2l": squares
                are variables with value above and gradient below, circles are operators.
            theme: "light", "dark", or "auto", as the viewer's own preference is.
            **options: ``direction`` ("right" or "down"), ``depth`` (scopes deeper than that are
                closed), ``gates`` (functions drawn as one operator, by name), ``branches`` (whether
                the edges of a value with several uses show "shares" or the "total"), ``engine`` of
                the layout ("graphviz" or "built-in").

        Raises:
            PictureError: too large for a picture, or a word that none of these knows.
        """
        from functional_bp.explain.pictures.picture import svg_of

        return svg_of(self, style, theme, **options)

    def save(
        self,
        path: str | os.PathLike[str],
        style: Style = "cs231n",
        theme: ThemeName = "light",
        **options: Unpack[PictureOptions],
    ) -> None:
        """Write the explanation to a file, in the format that its suffix says.

        Args:
            path: ``.svg``, ``.png``, ``.pdf`` for a picture; ``.html`` for a page in which scopes
                open; ``.md``, ``.tex``, ``.txt`` for the table of both sweeps.
            style: of a picture; see ``svg``.
            theme: of a picture or page.
            **options: of a picture.

        Raises:
            PictureError: another suffix, or too large for a still picture.
            PicturesExtraError: PNG or PDF without the extra ``pictures``.
        """
        from functional_bp.explain.pictures.files import save

        save(self, path, style, theme, **options)

    def _repr_svg_(self) -> str | None:
        from functional_bp.explain.pictures.picture import glance

        return glance(self)

    def __repr__(self) -> str:
        return f"<Explanation of {self.graph.name}: {len(self.graph)} equations>"


def explain(
    fun: Callable[..., Any],
    *args: Any,
    cotangent: Any = None,
    unroll: bool = False,
    max_steps: int | None = None,
) -> Explanation:
    """The graph of ``fun`` at ``args``, with value and gradient on every node.

    Args:
        fun: a JAX function of arrays and pytrees.
        *args: where it is looked at.
        cotangent: of the output, like it; by default 1, for which the output must be a real
            scalar. Of a tuple or dict of outputs it says which of them is differentiated.
        unroll: write ``scan`` loops out, step by step.
        max_steps: the bound of loops that decide when to stop (``while_loop``).

    Raises:
        NotDifferentiableError: the output is no real scalar, and no ``cotangent`` was given.
        CotangentError: ``cotangent`` does not fit the output.

    Example:
        >>> import functional_bp as bp
        >>> e = bp.explain(lambda x, y, z: bp.name(x + y, "p") * z, 1.0, 3.0, -3.0)
        >>> float(e.value["p"]), float(e.cotangent["p"]), float(e.cotangent["z"])
        (4.0, -3.0, 4.0)
    """
    graph = trace(fun, *args)
    leaves = [jnp.asarray(x) for x in jax.tree.leaves(args) if names.leaf_is_array(x)]
    flat = flatten_taken(graph, leaves, unroll)
    seeds = _seeds(graph, cotangent)
    return Explanation(flat, sweep(flat, leaves, seeds, max_steps), seeds)


def _seeds(graph: Graph, cotangent: Any) -> list[Any]:
    """One cotangent per output; 1 for a real scalar that is the only output."""
    outs = graph.outputs
    if cotangent is None:
        (only, *others) = outs or (None,)
        floats = only is not None and only.shape == () and np.issubdtype(only.dtype, np.floating)
        if others or only is None or not floats:
            raise NotDifferentiableError(
                compose(
                    f"{graph.name} has no single gradient to explain",
                    got="the output " + (", ".join(v.type for v in outs) or "()"),
                    expected="a real scalar",
                    do="give the output's cotangent: bp.explain(fun, *args, cotangent=y_bar)",
                )
            )
        return [jnp.ones((), only.dtype)]
    bars = jax.tree.leaves(cotangent, is_leaf=lambda x: x is None)
    fits = len(bars) == len(outs) and all(
        bar is None or np.shape(bar) == v.shape for bar, v in zip(bars, outs)
    )
    if not fits:
        raise CotangentError(
            compose(
                f"the cotangent does not fit the output of {graph.name}",
                got=", ".join("None" if bar is None else describe(bar) for bar in bars) or "()",
                expected=", ".join(v.type for v in outs),
            )
        )
    on = [bar is not None and has_tangent(v.aval) for bar, v in zip(bars, outs)]
    return [jnp.asarray(b, v.dtype) if o else None for b, v, o in zip(bars, outs, on)]


def cotangents(
    fun: Callable[..., Any], names_: Sequence[str], *, max_steps: int | None = None
) -> Callable[..., dict[str, Any]]:
    """A function with the arguments of ``fun`` that returns h̄ = ∂ fun/∂h for each named value.

    Args:
        fun: returns a real scalar.
        names_: names of intermediates (``bp.name``) or of arguments, as ``bp.trace`` shows them.
        max_steps: the bound of loops that decide when to stop.

    Returns:
        A pure function, to be called under ``jit``, ``vmap`` and the like: a dict by name. A value
        that does not reach the output has zeros.

    Raises:
        UnknownVariableError: the graph has no variable of that name; near names are listed.
        NotDifferentiableError: the output is no real scalar.

    Example:
        >>> import jax, jax.numpy as jnp, functional_bp as bp
        >>> loss = lambda x: jnp.sum(bp.name(jnp.sin(x), "h") ** 2)
        >>> jax.jit(bp.cotangents(loss, ["h"]))(jnp.zeros(2))["h"].tolist()
        [0.0, 0.0]
    """

    def cotangents_fun(*args: Any) -> dict[str, Any]:
        graph = trace(fun, *args)
        flat = inlined(graph)
        leaves = [jnp.asarray(x) for x in jax.tree.leaves(args) if names.leaf_is_array(x)]
        wanted = {name: flat[name] for name in names_}
        bars = sweep(flat, leaves, _seeds(graph, None), max_steps).bars
        return {n: bars[v] if v in bars else jnp.zeros(v.shape, v.dtype) for n, v in wanted.items()}

    return cotangents_fun
