"""``bp.explain`` shows a function at a point, with value and cotangent on every node."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from jax.core import Tracer

from functional_bp import _jax
from functional_bp.errors import BackpropError, NotDifferentiableError, compose, describe
from functional_bp.explanation.formulas.transliteration import escaped
from functional_bp.explanation.full_sweeps import Sweeps, flatten_taken, seeds_of, sweep
from functional_bp.explanation.nonfinite import FirstNonfinite, first_nonfinite
from functional_bp.explanation.page import frame, page
from functional_bp.explanation.pictures.picture import PictureOptions, Style, glance, save, svg_of
from functional_bp.explanation.pictures.scene import ThemeName
from functional_bp.explanation.record import EvaluatedGraph
from functional_bp.explanation.signals import Signals, signals
from functional_bp.explanation.tables import in_latex, tables
from functional_bp.graph import names
from functional_bp.graph.graph import Graph, Variable, format_bytes
from functional_bp.graph.trace import trace
from functional_bp.layouts.dimensions import Dimensions, dimensions_in, leaves_of
from functional_bp.memory.footprint import Footprint, footprint
from functional_bp.tables import html, latex, markdown, text

TEXT_WIDTH = 120  # characters of a line, in a file
MOST_ROWS = 200  # of a table that is printed without being asked for all of it


class NoValuesError(BackpropError, TypeError):
    """A function was to be explained at arguments that have no values."""


class Explanation(EvaluatedGraph):
    """An explanation is a function's graph at a point, with every node's value and cotangent.

    Attributes:
        graph: the flat graph: calls are opened, a ``cond`` is the branch that ran.
        value: forward values by name: ``explanation.value["h"]``.
        cotangent: cotangents by name; a value that no path joins to the output has none.
        values, bars: the same by variable of ``graph``.
        shares: what each use of a variable adds to its cotangent, by equation and operand.
        kept_bytes: for each variable that ``bp.grad`` keeps from its forward sweep, the bytes.
    """

    def __init__(
        self,
        graph: Graph,
        sweeps: Sweeps,
        seeds: Sequence[Any],
        max_steps: int | None,
        compiled: Callable[[], Footprint],
        joined: Callable[[], Dimensions],
    ) -> None:
        super().__init__(graph, sweeps, seeds, max_steps)
        self._compiled, self._joined = compiled, joined

    @cached_property
    def footprint(self) -> Footprint:
        """Tell what fills memory in training and in prediction (``bp.footprint`` of the function).

        It is compiled when this, or a table, is first asked for; training is that of the first
        argument that can be differentiated.

        Raises:
            FootprintError: the function cannot be compiled as a whole: its Python looks at values.
        """
        return self._compiled()

    @cached_property
    def dimensions(self) -> Dimensions:
        """Find which axes belong together: batch, width, heads (``shard.dimensions``)."""
        return self._joined()

    @cached_property
    def totals(self) -> str:
        """Say in a line how many bytes are kept in all, and what the compiled programs need."""
        kept = f"{format_bytes(sum(self.kept_bytes.values()))} are kept in all"
        try:
            usages = self.footprint.usages.items()
        except BackpropError as error:
            return f"{kept}; not compiled: {error.what}"
        needs = (f"{name} needs {format_bytes(usage.peak_bytes)}" for name, usage in usages)
        return f"{kept}; compiled, {' and '.join(needs)}"

    def first_nonfinite(self) -> FirstNonfinite | None:
        """Find the equation that first makes a NaN or an infinity, and why; None if all is finite.

        Forward, what makes the output not finite; else what makes a cotangent so, as the masked
        logarithm does; else a value that is masked out and harmless. An infinity that is put in, as
        a mask of −∞, is no fault as long as nothing else becomes infinite from it. Loops are run
        step by step: the step is named, and the equation in it.

        Returns:
            A frozen dataclass that prints well, with the equation, the entries that it reads, the
            values of its inputs, the cause, what to do, and the source line.

        Example:
            >>> import jax.numpy as jnp, functional_bp as bp
            >>> e = bp.explain(lambda x: jnp.log(x)[1], jnp.array([1.0, 0.0]))
            >>> found = e.first_nonfinite()
            >>> found.operation, str(found.operands[0]), found.cause
            ('log', 'x[1] = 0.0', 'ln 0.0 = −∞: a pole')
        """
        return first_nonfinite(self)

    def signals(self) -> Signals:
        """Say what is notable about the gradients of inputs, parameters and named values.

        ================  ========================================================================
        kind              is said of a variable whose gradient
        ================  ========================================================================
        ``nan``           has a NaN (or whose value has); the first one of the graph is named
        ``infinite``      has an infinity
        ``dead``          is all zero, though a path leads to the output; where it ends is named
        ``underflow``     is zero in float16 and is not once the loss is scaled by 4096
        ``exploding``     has a norm above 1000 × the usual one and 10⁴ × the value's, or grows
                          10⁶-fold through a ``scan``
        ``vanishing``     has a norm below 10⁻⁶ × the greatest one and 10⁻⁶ × the value's, or
                          shrinks 10⁻⁶-fold through a ``scan``, or is too small for its dtype
        ``partly dead``   is zero for units (columns of a weight) that a relu or its like has shut
                          in all n examples, clearly and for more units than 2 in n + 1
        ================  ========================================================================

        The usual norm is the median over the cotangents of all intermediate values, the greatest
        one that of the variables looked at: the loss's own scale does not matter. What is small
        only since it cancels, as a key's bias in attention, does not vanish. Of each variable the
        gravest is told.

        Returns:
            A sequence, gravest first, empty where nothing is notable; it prints as a list.

        Example:
            >>> import jax, jax.numpy as jnp, functional_bp as bp
            >>> loss = lambda b: jnp.sum(jax.nn.relu(jnp.ones(3) + b))
            >>> [(s.kind, s.name) for s in bp.explain(loss, jnp.full(3, -100.0)).signals()]
            [('dead', 'b')]
        """
        return signals(self)

    def svg(
        self, style: Style = "cs231n", theme: ThemeName = "light", **options: Unpack[PictureOptions]
    ) -> str:
        """Draw the graph with its values and gradients, as the text of an SVG file.

        Args:
            style: "cs231n": values and gradients on the edges between operators; or "d2l": squares
                are variables with value above and gradient below, circles are operators.
            theme: "light", "dark", or "auto", as the viewer's own preference is.
            **options: ``direction`` ("right" or "down"), ``depth`` (scopes deeper than that are
                closed), ``gates`` (functions drawn as one operator, by name), ``branches`` (whether
                the edges of a value with several uses show "shares" or the "total"), ``dimensions``
                (``explanation.dimensions``, or these renamed: wires are coloured by them).

        Raises:
            PictureError: too large for a picture, or a word that none of these knows.
        """
        return svg_of(self, style, theme, **options)

    def html(self, title: str | None = None) -> str:
        """Write a page for a browser, a file that needs no network, in which scopes open and close.

        Args:
            title: of the page; by default the function's name.
        """
        return page(self, title)

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
        written = {
            ".html": self.html,
            ".md": self.markdown,
            ".tex": lambda: self.latex(standalone=True),
            ".txt": lambda: self.text(width=TEXT_WIDTH),
        }
        save(self, path, written, style, theme, **options)

    def _repr_html_(self) -> str | None:
        return frame(self)

    def _repr_svg_(self) -> str | None:
        return glance(self)

    def text(self, width: int | None = None, color: bool = False, rows: int | None = None) -> str:
        """Write both sweeps step by step, as tables for a terminal.

        Args:
            width: characters per line; by default the terminal's.
            color: with a terminal's colours: red for what is not finite, yellow for dead gradients.
            rows: of each table at most, the first and the last ones; None for all of them.
        """
        return text.text(tables(self, rows, self.totals), width, color)

    def markdown(self, rows: int | None = None) -> str:
        """Write both sweeps step by step, as Markdown tables of at most so many rows."""
        return markdown.markdown(tables(self, rows, self.totals))

    def latex(self, standalone: bool = False, rows: int | None = None) -> str:
        """Write both sweeps step by step, as LaTeX tables; a whole document if ``standalone``."""
        return latex.latex(tables(self, rows, self.totals), escaped, in_latex, standalone)

    def table_html(self, rows: int | None = None) -> str:
        """Write both sweeps step by step, as a piece of HTML for light and dark pages."""
        return html.html(tables(self, rows, self.totals))

    def __str__(self) -> str:
        """The tables, of a large graph their first and last rows; ``text()`` has all."""
        return self.text(rows=MOST_ROWS)

    def __repr__(self) -> str:
        return f"<Explanation of {self.graph.name}: {len(self.graph)} equations>"


def explain(
    fun: Callable[..., Any],
    *args: Any,
    cotangent: Any = None,
    unroll: bool = False,
    max_steps: int | None = None,
) -> Explanation:
    """Return the graph of ``fun`` at ``args``, with value and gradient on every node.

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
        NoValuesError: an argument is traced by ``jit``, ``vmap`` or another transform, or a shape.

    Example:
        >>> import functional_bp as bp
        >>> e = bp.explain(lambda x, y, z: bp.name(x + y, "p") * z, 1.0, 3.0, -3.0)
        >>> float(e.value["p"]), float(e.cotangent["p"]), float(e.cotangent["z"])
        (4.0, -3.0, 4.0)
    """
    graph = trace(fun, *args)
    leaves = [x for x in jax.tree.leaves(args) if names.leaf_is_array(x)]
    for variable, leaf in zip((*graph.inputs, *graph.constants), (*leaves, *graph.consts)):
        _check_value(graph, variable, leaf)
    if _jax.makes_references(graph.jaxpr):
        raise NotDifferentiableError(
            compose(
                f"{graph.name} cannot be explained: a mutable reference has no single value",
                got="jax.new_ref in the function",
                expected="a function of values",
                do="write x = x.at[i].set(y) in the reference's place; bp.grad takes both",
            )
        )
    arrays = [jnp.asarray(leaf) for leaf in leaves]
    do = "give the output's cotangent: bp.explain(fun, *args, cotangent=y_bar)"
    seeds = seeds_of(graph, cotangent, do)
    flat = flatten_taken(graph, arrays, unroll)
    sweeps = sweep(flat, arrays, seeds, max_steps)
    joined = lambda: dimensions_in(flat, leaves_of(fun, args, flat))
    return Explanation(flat, sweeps, seeds, max_steps, lambda: _footprint(fun, args), joined)


def _footprint(fun: Callable[..., Any], args: Sequence[Any]) -> Footprint:
    """Compile the function for the first argument of floating or complex arrays to be trained."""
    dtypes = [[jnp.result_type(x) for x in jax.tree.leaves(arg)] for arg in args]
    trained = [k for k, of_arg in enumerate(dtypes)
               if of_arg and all(jnp.issubdtype(d, jnp.inexact) for d in of_arg)]  # fmt: skip
    return footprint(fun, *args, argnums=trained[0] if trained else 0)


def _check_value(graph: Graph, variable: Variable, leaf: Any) -> None:
    """Raise if an input or a constant is no array but stands for one."""
    if isinstance(leaf, Tracer):
        got = f"{describe(leaf)}, traced by jit, vmap or another transform"
        do = "call bp.explain outside the transform; bp.cotangents works inside"
    elif isinstance(leaf, jax.ShapeDtypeStruct):
        got, do = f"the shape {describe(leaf)}", "draw one, as in jax.random.normal(key, shape)"
    else:
        return
    what = f"{graph.name} cannot be explained here: {variable} has no value"
    raise NoValuesError(compose(what, got=got, expected="an array", do=do))
