"""A function's graph, cut at named intermediates, and what people claim of their cotangents.

Every claimed intermediate h becomes a cut of the graph: its value is handed on as an independent
input. One VJP of the cut graph, seeded with the claimed h̄ at every cut and with 1 at the output,
then gives each node's cotangent *as it follows from the claims downstream of it*::

    z̄ = Σ (∂h/∂z)ᵀ h̄ over the claimed h that z reaches without passing another, + the way to J
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from functional_bp import _jax
from functional_bp.backprop import evaluate
from functional_bp.check import graphs
from functional_bp.check.arrays import Arrays, double
from functional_bp.check.claims import resolve
from functional_bp.check.flattening import Flattening, active_outputs
from functional_bp.errors import compose
from functional_bp.graph.names import function_name


class Cut:
    """The graph of a scalar function, cut at the intermediates that are claimed.

    Args:
        fun: the function.
        args: where it is called.
        claims: by name, of intermediates and arguments.

    Attributes:
        names: the arguments' names.
        actives: their values, in float64.
        order: the cuts' names, in the order in which they are computed.

    Raises:
        TypeError: the output is no scalar.
        ValueError: a claim is for a name that the function does not have.
    """

    def __init__(
        self, fun: Callable[..., Any], args: Sequence[Any], claims: Mapping[str, Any]
    ) -> None:
        flat = Flattening(fun, args)
        self.names, self.fixed_names = flat.names, flat.fixed_names
        self.actives, self.fixed = tuple(map(_wide, flat.actives)), tuple(map(_wide, flat.others))
        closed = jax.make_jaxpr(lambda a, f: active_outputs(fun(*flat.join(a, f))))(
            self.actives, self.fixed
        )
        self.jaxpr, self.consts = _jax.open_jaxpr(closed)
        shapes = [getattr(v.aval, "shape", None) for v in self.jaxpr.outvars]
        if shapes != [()]:
            raise TypeError(
                compose(
                    f"{function_name(fun)} has no single gradient to derive",
                    got=f"outputs of the shapes {shapes}",
                    expected="a real scalar",
                )
            )
        self.wanted = _wanted(claims, list(_tags(self.jaxpr)), flat.names)
        self.order = list(self._run(self.actives, {})[1])

    def _run(self, actives: Sequence[Any], cuts: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The output, and the cuts' values before they are replaced by ``cuts``."""
        before: dict[str, Any] = {}

        def step(eqn: JaxprEqn, operands: Sequence[Any]) -> Sequence[Any]:
            tag = _tag(eqn)
            if tag in self.wanted:
                before[tag] = operands[0]
                return [cuts.get(tag, operands[0])]
            inside = graphs.inner_graphs(eqn)
            if any(self.wanted & set(_tags(inner.jaxpr)) for inner in inside):
                return graphs.interpret(inside[0].jaxpr, inside[0].consts, operands, step)
            return evaluate(eqn, operands)

        (out,) = graphs.interpret(self.jaxpr, self.consts, [*actives, *self.fixed], step)
        return out, before

    def values(self, actives: Arrays | None = None) -> dict[str, np.ndarray]:
        """Arguments and cuts by name, at the given arguments or at others."""
        actives = self.actives if actives is None else actives
        named = {
            **dict(zip(self.names, actives)),
            **dict(zip(self.fixed_names, self.fixed)),
            **self._run(actives, {})[1],
        }
        return {name: np.asarray(value) for name, value in named.items()}

    def pull(self, bars: Mapping[str, Any], actives: Arrays | None = None) -> dict[str, np.ndarray]:
        """Every cotangent as it follows from the cuts' cotangents ``bars``."""
        actives = self.actives if actives is None else actives
        values = self._run(actives, {})[1]
        _, pullback = jax.vjp(self._run, actives, values)
        seeds = {t: jnp.asarray(bars[t], v.dtype).reshape(v.shape) for t, v in values.items()}
        on_arguments, on_cuts = pullback((jnp.ones(()), seeds))
        found = {**dict(zip(self.names, on_arguments)), **on_cuts}
        return {name: double(bar) for name, bar in found.items()}

    def true_bars(self) -> dict[str, np.ndarray]:
        """The true cotangents: each cut's from the output backwards, seeded with those before."""
        values = self.values()
        found = {t: np.zeros(values[t].shape) for t in self.order}
        for _ in range(len(self.order) + 1):
            found = self.pull({t: found[t] for t in self.order})
        return found

    def full_name(self, name: str) -> str:
        """The name that a person means by the whole of it or by its last part."""
        return name if name in self.order else resolve(name, self.names)


def evaluate_claims(claims: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Claims as arrays; functions are called once what their parameters name is there.

    Args:
        claims: by full name, in any order.
        values: arguments and intermediates by name.
    """
    done: dict[str, np.ndarray] = {}
    waiting = dict(claims)
    while waiting:
        ready = [n for n, c in waiting.items() if not callable(c) or not missing(c, values, done)]
        if not ready:
            first = next(iter(waiting))
            raise ValueError(
                compose(
                    f"the claim for {first!r} asks for "
                    + ", ".join(missing(waiting[first], values, done)),
                    expected="values by name, or cotangents that are claimed too, with _bar: "
                    + ", ".join([*map(short, values), *(f"{short(n)}_bar" for n in claims)]),
                )
            )
        for name in ready:
            claim = waiting.pop(name)
            if callable(claim):
                claim = claim(**{p: given(p, values, done) for p in parameters(claim)})
            done[name] = double(claim)
    return done


def missing(
    claim: Callable[..., Any], values: Mapping[str, Any], bars: Mapping[str, Any]
) -> list[str]:
    """The parameters of a claim that nothing is there for yet."""
    return [p for p in parameters(claim) if given(p, values, bars) is None]


def given(parameter: str, values: Mapping[str, Any], bars: Mapping[str, Any]) -> Any:
    """The value or claimed cotangent that a claim's parameter names, None if there is none."""
    if parameter.endswith("_bar"):
        stem = parameter.removesuffix("_bar")
        for name, bar in bars.items():
            if stem in (name, short(name)):
                return jnp.asarray(bar)
    for name, value in values.items():
        if parameter in (name, short(name)):
            return jnp.asarray(value)
    return None


def parameters(claim: Callable[..., Any]) -> list[str]:
    """The names of a claim's parameters."""
    return list(inspect.signature(claim).parameters)


def short(name: str) -> str:
    """``W1`` of ``params['W1']``."""
    return name.rstrip("']").replace("['", ".").replace("[", ".").rsplit(".", 1)[-1]


def _wide(x: Any) -> Any:
    return jnp.asarray(double(x)) if jnp.issubdtype(x.dtype, jnp.inexact) else x


def _tag(eqn: JaxprEqn) -> str | None:
    eqn = _jax.as_checkpoint(eqn)
    return eqn.params["name"] if eqn.primitive.name == "name" else None


def _tags(jaxpr: Jaxpr) -> Iterable[str]:
    for eqn in graphs.equations(jaxpr):
        tag = _tag(eqn)
        if tag is not None and not isinstance(eqn.outvars[0], Literal):
            yield tag


def _wanted(claims: Iterable[str], tags: Sequence[str], names: Sequence[str]) -> set[str]:
    """The claimed names that are intermediates; the others must be arguments."""
    wanted = {name for name in claims if name in tags}
    for name in claims:
        if name in tags and tags.count(name) > 1:
            raise ValueError(f"two intermediates are called {name!r}; give each its own name")
        if name not in tags:
            try:
                resolve(name, names)
            except ValueError:
                raise ValueError(
                    compose(
                        f"nothing is called {name!r}",
                        got=f"a claim for {name!r}",
                        expected="an intermediate or an argument: " + ", ".join([*tags, *names]),
                        do=f'name the intermediate in the function: bp.name(value, "{name}")',
                    )
                ) from None
    return wanted
