"""What a graph consists of: variables, equations, the graphs inside them, the rules for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from jax.extend.core import JaxprEqn
from jax.interpreters import ad

import functional_bp.rules  # noqa: F401  (registers the rules that are looked up below)
from functional_bp import costs
from functional_bp.errors import describe
from functional_bp.rule import Rule, rules

if TYPE_CHECKING:
    from functional_bp.graph.view import Graph


@dataclass(frozen=True, eq=False)
class Variable:
    """One value of a graph. Two variables are equal only if they are the same one.

    Attributes:
        name: unique in its graph: an argument's path, a tag, an output's path, or letters.
        aval: JAX's abstract value: shape, dtype, sharding.
        kind: "input", "constant", "intermediate" or "literal".
        tag: what ``bp.name`` called it, None if it was not tagged.
        value: of a literal or a constant; None otherwise.
    """

    name: str
    aval: Any
    kind: str
    tag: str | None = None
    value: Any = field(default=None, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape; () for what has none, such as a token."""
        return tuple(getattr(self.aval, "shape", ()))

    @property
    def dtype(self) -> Any:
        """Its dtype; None for what has none."""
        return getattr(self.aval, "dtype", None)

    @property
    def size(self) -> int:
        """The number of its elements."""
        return int(getattr(self.aval, "size", 0)) if self.dtype is not None else 0

    @property
    def bytes(self) -> int:
        """Its size in bytes, on one device."""
        return self.size * self.dtype.itemsize if self.dtype is not None else 0

    @property
    def type(self) -> str:
        """Dtype and shape, as ``f32[3,5]``."""
        return describe(self.aval)

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<{self.name}: {self.type}>"


class RuleOf(NamedTuple):
    """Who differentiates an equation.

    Attributes:
        kind: the kind of our rule ("pullback", "joint", "structural", "piecewise constant",
            "no tangent space"), "registered with JAX by its author", or "none".
        where: our rule's file and line as ``(file, line)``, None where it is not ours.
        rule: our rule, None where it is not ours.
    """

    kind: str
    where: tuple[str, int] | None = None
    rule: Rule | None = None


@dataclass(frozen=True, eq=False)
class Nested:
    """A graph inside an equation.

    Attributes:
        label: "body", "condition", "branch 1", "solve", …
        graph: the graph, with its own variables.
        runs: how often it runs when the equation runs once; None where that is not known before.
            Of the branches of a ``cond`` only one runs.
        operands: for each input of ``graph``, the operand outside that (first) feeds it, or None.
    """

    label: str
    graph: Graph
    runs: int | None
    operands: tuple[Variable | None, ...]


@dataclass(frozen=True, eq=False)
class Recomputed:
    """A call of ``jax.checkpoint`` that was opened: the reverse sweep runs its equations again.

    Attributes:
        eqn: the call.
    """

    eqn: JaxprEqn


@dataclass(frozen=True, eq=False)
class Equation:
    """One operation of a graph: ``outputs = operation(inputs, parameters)``.

    Attributes:
        index: its position in its graph.
        operation: the primitive's name.
        label: the name of the function inside, for ``jit``, ``scan`` and their like; else "".
        inputs, outputs: variables; literals stand among the inputs.
        parameters: those that say something, in a short form.
        nested: the graphs inside, in the order in which they run.
        scope: the ``jax.named_scope`` path, "" at the top.
        source: the person's ``(file, line)``, None if unknown.
        eqn: the jaxpr's own equation.
        recomputed: the calls of ``jax.checkpoint`` that it came out of, outermost first.
    """

    index: int
    operation: str
    label: str
    inputs: tuple[Variable, ...]
    outputs: tuple[Variable, ...]
    parameters: Mapping[str, str]
    nested: tuple[Nested, ...]
    scope: str
    source: tuple[str, int] | None
    eqn: JaxprEqn
    recomputed: tuple[Recomputed, ...] = ()

    @property
    def rule(self) -> RuleOf:
        """The rule that differentiates it, looked up now."""
        rule = rules.get(self.eqn.primitive)
        if rule is not None:
            return RuleOf(rule.kind, (rule.file, rule.line), rule)
        known = self.eqn.primitive in ad.primitive_jvps
        return RuleOf("registered with JAX by its author" if known else "none")

    @cached_property
    def flops(self) -> int:
        """Estimated floating-point operations (``functional_bp.costs``), nested graphs × runs.

        A loop without a known trip count counts once, a ``cond`` its dearest branch.
        """
        if self.nested:
            return self._total(lambda graph: graph.flops)
        return costs.flops(self.eqn)

    @cached_property
    def bytes_read(self) -> int:
        """Bytes of its distinct inputs; for nested graphs, what their equations read × runs."""
        if self.nested:
            return self._total(lambda graph: graph.bytes_read)
        return sum(v.bytes for v in dict.fromkeys(self.inputs) if v.kind != "literal")

    @cached_property
    def bytes_written(self) -> int:
        """Bytes of its outputs; for nested graphs, what their equations write × runs."""
        if self.nested:
            return self._total(lambda graph: graph.bytes_written)
        return sum(v.bytes for v in self.outputs)

    @property
    def bytes(self) -> int:
        """Bytes read and written, before any fusion."""
        return self.bytes_read + self.bytes_written

    def _total(self, cost: Callable[[Graph], int]) -> int:
        each = [cost(n.graph) * (1 if n.runs is None else n.runs) for n in self.nested]
        return max(each, default=0) if self.operation == "cond" else sum(each)

    def __repr__(self) -> str:
        outs = ", ".join(f"{v.name}: {v.type}" for v in self.outputs)
        return f"<{outs} = {self.operation}({', '.join(map(str, self.inputs))})>"
