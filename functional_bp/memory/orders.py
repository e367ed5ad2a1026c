"""How a function's derivatives grow with their order: equations, operations, bytes and seconds.

D2L 5.3, exercise 4: what happens to the computational graph of second derivatives, and how long do
they take? Each order differentiates the whole graph of the one before, forward and reverse sweep
together. Along a direction v, they are

    f,   ∇f,   ∇(∇f · v),   ∇(∇(∇f · v) · v),   …

of which the third is the Hessian's product with v.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from functional_bp.engine.transforms import grad
from functional_bp.graph import names
from functional_bp.graph.graph import format_bytes, format_count
from functional_bp.graph.inline import inlined
from functional_bp.graph.trace import trace
from functional_bp.memory.allocation import program_of
from functional_bp.memory.footprint import FootprintError, FootprintSubject
from functional_bp.tables import html as html_tables
from functional_bp.tables import text as text_tables
from functional_bp.tables.table import Cell, Column, Line, Table

RUNS = 5  # of which the fastest is told


class DerivativeOrder(NamedTuple):
    """One order of differentiation, and what it takes.

    Attributes:
        order: 0 is the function itself, 1 its gradient.
        equations: of its graph, calls written out.
        flops: of the graph (``graph.flops``).
        bytes: that the compiled program needs at once.
        compile_seconds: to trace and to compile it.
        run_seconds: of the fastest of some runs; None where arguments are shapes.
    """

    order: int
    equations: int
    flops: int
    bytes: int
    compile_seconds: float
    run_seconds: float | None


class DerivativeOrders(tuple[DerivativeOrder, ...]):
    """The orders of a function's derivatives, from 0; printed, a table."""

    name = ""

    def table(self) -> Table:
        """Return them as a table."""
        headings = "order", "equations", "flops", "bytes", "compiled in", "run in"
        lines = [Line("", tuple(map(Cell, _texts(order)))) for order in self]
        columns = tuple(Column(heading, "right") for heading in headings)
        return Table(f"Derivatives of {self.name}", columns, tuple(lines)).used()

    def __str__(self) -> str:
        return text_tables.text((self.table(),))

    def _repr_html_(self) -> str:
        return html_tables.html((self.table(),))


def _texts(made: DerivativeOrder) -> tuple[str, ...]:
    run = "" if made.run_seconds is None else _seconds(made.run_seconds)
    amounts = format_count(made.flops), format_bytes(made.bytes), _seconds(made.compile_seconds)
    return str(made.order), f"{made.equations:,}", *amounts, run


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def orders(
    fun: Callable[..., Any], *args: Any, up_to: int = 3, argnums: int = 0
) -> DerivativeOrders:
    """Tell how equations, operations, bytes and seconds grow with the order of differentiation.

    Args:
        fun: returns a real scalar.
        *args: its arguments: arrays, or ``jax.ShapeDtypeStruct`` in their place, for which nothing
            runs.
        up_to: the highest order.
        argnums: the argument that is differentiated, along a direction of its shape: ones.

    Raises:
        FootprintError: no real scalar comes out, or an order is no whole number from 0.

    Example:
        >>> import functional_bp as bp
        >>> zero, one, two = bp.orders(lambda x: jnp.sum(jnp.sin(x)), jnp.ones(5), up_to=2)
        >>> two.equations > one.equations > zero.equations == 2
        True
    """
    if isinstance(up_to, bool) or not isinstance(up_to, int) or up_to < 0:
        raise FootprintError("this is no order of a derivative", got=repr(up_to),
                             expected="a whole number from 0")  # fmt: skip
    subject = FootprintSubject(fun, args, {}, None, argnums, has_aux=False)
    if not subject.is_loss:
        raise FootprintError(
            f"{subject.name} has no gradient to differentiate again",
            got="a function that returns no real scalar", expected="a real scalar",
            do="sum what it returns",
        )  # fmt: skip
    found = DerivativeOrders(_measured(subject, order, args) for order in range(up_to + 1))
    found.name = subject.name
    return found


def _derivative(fun: Callable[..., Any], order: int, trained: int) -> Callable[..., Any]:
    """Return ``(v, *args)`` ↦ the derivative of an order along v."""
    if order == 0:
        return lambda v, *args: fun(*args)
    if order == 1:
        return lambda v, *args: grad(fun, trained)(*args)
    before = _derivative(fun, order - 1, trained)

    def along(v: Any, *args: Any) -> Any:
        products = jax.tree.map(lambda a, b: jnp.sum(a * b), before(v, *args), v)
        return sum(jax.tree.leaves(products))

    return grad(along, 1 + trained)


def _measured(subject: FootprintSubject, order: int, args: Sequence[Any]) -> DerivativeOrder:
    fun = _derivative(subject.fun, order, subject.trained)
    direction = subject.args[subject.trained]
    graph = inlined(trace(fun, direction, *subject.args))
    started = time.perf_counter()
    compiled = jax.jit(fun).lower(direction, *subject.args).compile()
    seconds = time.perf_counter() - started
    size = program_of(compiled).peak_bytes
    run = None
    if not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(args)):
        arrays = [arg for arg in args if all(map(names.leaf_is_array, jax.tree.leaves(arg)))]
        ones = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), direction)
        run = min(_run_seconds(compiled, (ones, *arrays)) for _ in range(RUNS))
    return DerivativeOrder(order, len(graph), graph.flops, size, seconds, run)


def _run_seconds(compiled: Any, args: Sequence[Any]) -> float:
    started = time.perf_counter()
    jax.block_until_ready(compiled(*args))
    return time.perf_counter() - started
