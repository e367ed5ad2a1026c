"""``operation`` makes a fused operation with hand-derived pullbacks an ordinary JAX callable."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import JaxprEqn

from functional_bp import _jax
from functional_bp.engine.rule import Need, Pullback, parse_pullback, parse_signature
from functional_bp.engine.sweeps import match_axes, match_sharding, unbroadcast, vary, zeros
from functional_bp.errors import RuleError, compose, describe


def operation(
    signature: str, forward: Callable[..., Any], *, why: str = "", **pullbacks: Callable[..., Any]
) -> Operation:
    """Declare a function with hand-written pullbacks, as a rule is declared.

    Args:
        signature: ``"x, scale -> y | x_hat, rstd"``: operands, outputs, and what ``forward``
            computes beside them for the pullbacks.
        forward: takes the operands and keyword-only parameters; returns the output (a tuple where
            the signature has several), or ``(output, auxiliaries)`` where it names any.
        why: the derivation.
        pullbacks: one per operand; parameter names say what is kept (``engine.rule``).

    Returns:
        A callable that works under ``bp.grad``, ``jax.grad``, ``jit``, ``vmap``, ``scan`` and
        ``shard_map``, and differentiates again. Keyword arguments are static parameters.

    Raises:
        RuleError: a pullback asks for a name that is not in the signature, or returns a
            cotangent of the wrong shape.

    Example:
        >>> import functional_bp as bp, jax, jax.numpy as jnp
        >>> softplus = bp.operation(
        ...     "x -> y", lambda x: jnp.logaddexp(x, 0.0),
        ...     x=lambda y_bar, x: y_bar * jax.nn.sigmoid(x), why="d log(1+eˣ) = σ(x) dx")
        >>> print(bp.grad(softplus)(0.0))
        0.5
    """
    return Operation(signature, forward, why, pullbacks)


class Operation:
    """``operation`` returns this callable of arrays."""

    def __init__(
        self,
        signature: str,
        forward: Callable[..., Any],
        why: str,
        pullbacks: dict[str, Callable[..., Any]],
    ) -> None:
        name = getattr(forward, "__name__", "operation")
        self.operands, self.outputs, self.auxiliaries = parse_signature(signature, name)
        names = [*self.operands, *self.outputs]
        if any(n.starred for n in names):
            raise RuleError(f"operation {name!r}: an operation has a fixed number of operands")
        unknown = set(pullbacks) - {n.text for n in self.operands}
        if unknown:
            raise RuleError(f"operation {name!r}: {sorted(unknown)[0]!r} is not an operand")
        self.signature, self.forward, self.why = signature, forward, why
        cotangents = {n.text + "_bar": n for n in self.outputs}
        self.pullbacks: dict[str, Pullback] = {
            key: parse_pullback(function, names, cotangents, self.auxiliaries, name)
            for key, function in pullbacks.items()
        }
        self.__name__ = name
        functools.update_wrapper(self, forward)

    def __call__(self, *operands: Any, **parameters: Any) -> Any:
        """Compute the operation's output."""
        if len(operands) != len(self.operands):
            raise TypeError(
                compose(f"{self.__name__} takes {len(self.operands)} operands",
                        got=str(len(operands)), expected=self.signature)
            )  # fmt: skip
        arrays = [jnp.asarray(x) for x in operands]
        axes = frozenset[str]().union(*(_jax.varying_axes(jax.typeof(x)) for x in arrays))
        # What is shared by the devices is made to vary outside the operation, where the adjoint,
        # the sum of their cotangents, is a rule's.
        arrays = [vary(x, axes) for x in arrays]
        return self._with_parameters(tuple(sorted(parameters.items())))(*arrays)

    @functools.lru_cache(maxsize=256)  # noqa: B019  (operations are made once and live on)
    def _with_parameters(self, items: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
        parameters = dict(items)
        run = lambda *operands: self.values(operands, **parameters)[0]
        run.__name__ = self.__name__
        made = jax.custom_vjp(run)
        forward = lambda *primals: self._forward(primals, parameters)
        made.defvjp(forward, _Backward(self, parameters), symbolic_zeros=True)
        return made

    def values(self, operands: Sequence[Any], **parameters: Any) -> tuple[Any, tuple[Any, ...]]:
        """Return the output, and the tuple of auxiliaries that ``forward`` computes beside it."""
        result = self.forward(*operands, **parameters)
        if not self.auxiliaries:
            return result, ()
        out, extra = result
        return out, extra if isinstance(extra, tuple) else (extra,)

    def named_values(self, operands: Sequence[Any], **parameters: Any) -> dict[str, Any]:
        """Return operands, outputs and auxiliaries by their names in the signature."""
        return self._by_name(operands, *self.values(operands, **parameters))

    def _by_name(self, operands: Sequence[Any], out: Any, extra: Sequence[Any]) -> dict[str, Any]:
        outs = out if len(self.outputs) > 1 else (out,)
        names = [*(n.text for n in (*self.operands, *self.outputs)), *self.auxiliaries]
        return dict(zip(names, (*operands, *outs, *extra), strict=True))

    def cotangent(
        self, name: str, values: Mapping[str, Any], bars: Sequence[Any], **parameters: Any
    ) -> Any:
        """Return what the pullback of the operand ``name`` returns; None where there is none.

        Args:
            name: the operand.
            values: as ``named_values`` returns them.
            bars: one cotangent per output.
            **parameters: those of the call.
        """
        if name not in self.pullbacks:
            return None
        shapes = _Hidden({n: jax.typeof(v) for n, v in values.items()})
        named = {n.text: bar for n, bar in zip(self.outputs, bars, strict=True)}
        return self._call(name, named, _Kept(dict(values), (), shapes), parameters)

    def _forward(self, primals: Sequence[Any], parameters: dict[str, Any]) -> tuple[Any, Any]:
        """Return the output, and what the pullbacks of the wanted operands name."""
        operands = [p.value for p in primals]
        out, extra = self.values(operands, **parameters)
        values = self._by_name(operands, out, extra)
        wanted = tuple(
            p.perturbed and n.text in self.pullbacks for p, n in zip(primals, self.operands)
        )
        keep = {k for w, n in zip(wanted, self.operands) if w for k in self.pullbacks[n.text].keeps}
        shapes = {n: jax.typeof(v) for n, v in values.items()}
        return out, _Kept({n: values[n] for n in sorted(keep)}, wanted, _Hidden(shapes))

    def _reverse(self, kept: _Kept, bars: Any, parameters: dict[str, Any]) -> tuple[Any, ...]:
        """Return a cotangent per operand, None where it is not wanted."""
        bars = bars if len(self.outputs) > 1 else (bars,)
        named = {
            n.text: None if isinstance(bar, SymbolicZero) else bar
            for n, bar in zip(self.outputs, bars, strict=True)
        }
        return tuple(
            self._call(operand.text, named, kept, parameters) if wanted else None
            for operand, wanted in zip(self.operands, kept.wanted)
        )

    def _call(
        self, name: str, bars: dict[str, Any], kept: _Kept, parameters: dict[str, Any]
    ) -> Any:
        pullback, shapes = self.pullbacks[name], kept.shapes.value
        if all(bars[read] is None for read in pullback.cotangents):
            return None

        def given(need: Need) -> Any:
            if need.kind == "value":
                return kept.values[need.name]
            if need.kind == "shape":
                return shapes[need.name]
            absent = bars[need.name] is None and not need.optional
            return zeros(shapes[need.name]) if absent else bars[need.name]

        bar, expected = pullback(given, parameters), shapes[name]
        if bar is None:
            return None
        fitted = unbroadcast(bar, expected.shape) if hasattr(bar, "shape") else None
        if fitted is None:
            raise RuleError(
                compose(f"the pullback of {self.__name__} for {name!r} returned the wrong shape",
                        got=describe(bar), expected=describe(expected))
            )  # fmt: skip
        return match_axes(match_sharding(fitted.astype(expected.dtype), expected), expected)


class _Backward:
    """This is the backward function of an operation, in a graph that holds a call of it."""

    def __init__(self, operation: Operation, parameters: dict[str, Any]) -> None:
        self.operation, self.parameters = operation, parameters

    def __call__(self, kept: _Kept, bars: Any) -> tuple[Any, ...]:
        return self.operation._reverse(kept, bars, self.parameters)


def operation_of(eqn: JaxprEqn) -> Operation | None:
    """Return the operation that an equation calls, None if it calls none."""
    backward = _jax.custom_backward(eqn)
    return backward.operation if isinstance(backward, _Backward) else None


class _Hidden:
    """A pytree carries this value without looking at it."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hidden) and self.value == other.value

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.value)))


@jax.tree_util.register_dataclass
@dataclass(eq=False)
class _Kept:
    """An operation's residuals are a pytree that knows what they stand for."""

    values: dict[str, Any]
    wanted: tuple[bool, ...] = field(metadata={"static": True})
    shapes: _Hidden = field(metadata={"static": True})
