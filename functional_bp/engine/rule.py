"""This file has the forms of a rule, the inputs that it is tested on, and the registry.

A rule stands for one primitive. Its signature names operands and outputs, and each operand's
pullback is a pure function whose **parameter names say what it needs**::

    rule(lax.mul_p, "x, y -> z", x=lambda z_bar, y: z_bar * y,  y=lambda z_bar, x: z_bar * x)

====================  ===================================================================
parameter             is given
====================  ===================================================================
``z_bar``             the cotangent of the output ``z``; with the default ``None`` it may be
                      absent, without it the engine fills in zeros if another output has one
``y``, ``z``          the value of an operand or output, **kept** from the forward sweep
``y_t``               its shape, dtype and sharding alone; nothing is kept
``r``                 an auxiliary after ``|`` in the signature, computed by ``forward``
``index``             which member of a starred operand (``*xs``) the cotangent is for
keyword-only names    the equation's parameters; one with a default may be missing there
``**name``            all of its parameters that have no name of their own in the list
====================  ===================================================================

A starred name is given as a list. What a graph keeps for its reverse sweep is thus known before
anything runs. A rule holds only mathematics: zeros, activity, un-broadcasting, dtypes and
accumulation belong to the engine (``sweeps.py``).

Test inputs stand beside the rules: what to call, on arrays of what shape and range. A case is data,
not arrays, so that importing a rule touches no device::

    case(lambda x, y: x @ y, real(3, 4), real(4, 2))
    case(lax.log, real(3, low=0.1, high=4))
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
from jax.extend.core import Primitive

from functional_bp.errors import RuleError

Kind = Literal["pullback", "joint", "structural", "piecewise constant", "no tangent space"]
Held = TypeVar("Held")  # a class of higher-order rules


@dataclass(frozen=True)
class Name:
    """This is one name of a signature; ``starred`` stands for any number of operands or outputs."""

    text: str
    starred: bool = False


@dataclass(frozen=True)
class Need:
    """A need is a parameter of a pullback: a cotangent, a value, a shape, or the member's index."""

    kind: Literal["cotangent", "value", "shape", "index"]
    name: str
    optional: bool = False


@dataclass(frozen=True)
class Pullback:
    """A pullback is a function with what its signature says it needs."""

    function: Callable[..., Any]
    needs: tuple[Need, ...]
    parameters: tuple[tuple[str, bool], ...]  # the equation's parameters; True where required
    wanted: bool = False  # a joint rule may ask which operands are wanted
    takes_all: bool = False  # ``**name``: every parameter of the equation

    def __call__(self, given: Callable[[Need], Any], parameters: Mapping[str, Any]) -> Any:
        """Call the function on what ``given`` has for each need, and the parameters it names."""
        if self.takes_all:
            named = {p: value for p, value in parameters.items() if p != "wanted"}
        else:
            named = {p: parameters[p] for p, must in self.parameters if must or p in parameters}
        if self.wanted:
            named["wanted"] = parameters["wanted"]
        return self.function(*map(given, self.needs), **named)

    @property
    def keeps(self) -> tuple[str, ...]:
        """``keeps`` names the values that this pullback wants from the forward sweep."""
        return tuple(need.name for need in self.needs if need.kind == "value")

    @property
    def cotangents(self) -> tuple[str, ...]:
        """``cotangents`` names the outputs whose cotangents it reads."""
        return tuple(need.name for need in self.needs if need.kind == "cotangent")


@dataclass(frozen=True, eq=False)
class Rule:
    """A rule says how the cotangents of a primitive's operands follow from those of its outputs."""

    primitive: Primitive
    kind: Kind
    operands: tuple[Name, ...] = ()
    outputs: tuple[Name, ...] = ()
    auxiliaries: tuple[str, ...] = ()
    pullbacks: Mapping[str, Pullback] = field(default_factory=dict)
    if_held: Mapping[str, Pullback] = field(default_factory=dict)
    joint: Pullback | None = None
    forward: Callable[..., Any] | None = None
    higher_order: type | None = None
    linear: tuple[tuple[str, ...], ...] = ()
    is_pointwise: bool = False
    pushforward: Pullback | None = None
    axes: Pullback | str | None = None
    why: str = ""
    kinks: str = ""
    cases: tuple[Any, ...] = ()
    file: str = ""
    line: int = 0

    @property
    def derivation(self) -> str:
        """``derivation`` is the mathematics in words: ``why``, or the pullbacks' docstrings."""
        functions = [p.function for p in (*self.pullbacks.values(), *self.if_held.values())]
        functions += [self.joint.function] if self.joint else []
        texts = [self.why, *(f.__doc__ or "" for f in functions)]
        texts += [(self.higher_order.__doc__ or "")] if self.higher_order else []
        return "\n\n".join(dict.fromkeys(inspect.cleandoc(text) for text in texts if text))


class Registry(Mapping[Primitive, Rule]):
    """The registry has all rules by primitive: ``bp.rules[lax.mul_p]``, ``len(bp.rules)``."""

    def __init__(self) -> None:
        self._rules: dict[Primitive, Rule] = {}
        self.changed: list[Callable[[], None]] = []  # caches of plans, emptied when a rule changes
        self.foreign: Any = None  # the structure of a primitive whose rule its author gave to JAX

    def __getitem__(self, primitive: Primitive) -> Rule:
        return self._rules[primitive]

    def __iter__(self) -> Iterator[Primitive]:
        return iter(self._rules)

    def __len__(self) -> int:
        return len(self._rules)

    def __repr__(self) -> str:
        return f"<{len(self)} rules: {', '.join(sorted(p.name for p in self))}>"

    def add(self, rule: Rule) -> Rule:
        """Register a rule; a second one for the same primitive replaces the first."""
        self._rules[rule.primitive] = rule
        for callback in self.changed:
            callback()
        return rule

    def remove(self, primitive: Primitive) -> Rule:
        """Take a rule out again; what JAX has registered for the primitive then applies."""
        rule = self._rules.pop(primitive)
        for callback in self.changed:
            callback()
        return rule


rules = Registry()


def rule(
    primitive: Primitive | None,
    signature: str,
    *,
    joint: Callable[..., Any] | None = None,
    forward: Callable[..., Any] | None = None,
    linear: str = "",
    pointwise: bool = False,
    pushforward: Callable[..., Any] | None = None,
    if_held: Mapping[str, Callable[..., Any]] = {},
    axes: Callable[..., Any] | str | None = None,
    why: str = "",
    kinks: str = "",
    cases: Sequence[Any] = (),
    **pullbacks: Callable[..., Any],
) -> Rule | None:
    """Declare the VJP rule of ``primitive``: one pullback per operand, named by the operand.

    Args:
        primitive: the primitive; ``None`` (this JAX does not have it) declares nothing.
        signature: ``"x, y -> z"``, ``"*xs -> y"``, ``"x -> y | r"``. An operand without a
            pullback has no cotangent.
        joint: one function for all operands, where they share work; it is given the keyword
            ``wanted`` (a set of operand names) if it asks for it, and returns a dict by operand.
        forward: replaces the primitive in a forward sweep that needs an auxiliary: given operands
            and parameters, returns ``(output or list of outputs, auxiliary or tuple of them)``.
        linear: the operands in which the operation is linear: ``"x, y"`` in both together (a
            sum), ``"x; y"`` in each while the other is fixed (a product). Forward mode is then the
            operation itself.
        pointwise: an entry of the output depends on the same entry of the operands alone, so that
            each pullback is its own transpose, and forward mode.
        pushforward: forward mode of an operation of one operand ``x``, where it is simpler than
            the transpose of the pullback: a function of ``x_dot`` and of what a pullback may name.
        if_held: pullbacks by operand that take the place of the others where what they keep costs
            no memory: the inputs of the function that is differentiated.
        axes: how the axes of operands and outputs belong together (``axes.py``); by default by
            position, as those of an elementwise operation.
        why: the derivation, where the pullbacks' docstrings do not give it.
        kinks: the convention at points without a derivative.
        cases: inputs that the rule is tested on (``case``).
        **pullbacks: ``operand=function``; the function's parameters name what it is given.

    Raises:
        RuleError: a pullback's name or one of its parameters is not in the signature.
    """
    if primitive is None:
        return None
    operands, outputs, auxiliaries = parse_signature(signature, primitive.name)
    names = [*operands, *outputs]
    cotangents = {name.text + "_bar": name for name in outputs}
    parse = lambda f: parse_pullback(f, names, cotangents, auxiliaries, primitive.name)
    unknown = {*pullbacks, *if_held} - {name.text for name in operands}
    if unknown:
        raise RuleError(
            f"rule for {primitive.name!r}: pullback for {sorted(unknown)[0]!r}, which is not an "
            f"operand of the signature {signature!r}"
        )
    groups = tuple(tuple(n.strip() for n in g.split(",")) for g in linear.split(";") if g.strip())
    if strange := {n for group in groups for n in group} - {name.text for name in operands}:
        raise RuleError(
            f"rule for {primitive.name!r}: linear={linear!r} names {sorted(strange)[0]!r}, which "
            f"is not an operand of the signature {signature!r}"
        )
    if joint is not None and any(name.starred for name in operands):
        raise RuleError(f"rule for {primitive.name!r}: a joint rule has no starred operands")
    push = None
    if pushforward is not None:
        if len(operands) != 1 or any(name.starred for name in operands):
            raise RuleError(f"rule for {primitive.name!r}: a pushforward is of one operand")
        incoming = {name.text + "_dot": name for name in operands}
        push = parse_pullback(pushforward, names, incoming, auxiliaries, primitive.name)
    frame = sys._getframe(1)
    return rules.add(
        Rule(
            primitive=primitive,
            kind="joint" if joint else "pullback",
            operands=operands,
            outputs=outputs,
            auxiliaries=auxiliaries,
            pullbacks={name: parse(function) for name, function in pullbacks.items()},
            if_held={name: parse(function) for name, function in if_held.items()},
            joint=parse(joint) if joint else None,
            forward=forward,
            linear=groups,
            is_pointwise=pointwise,
            pushforward=push,
            axes=parse_axes(axes, names, primitive.name),
            why=why,
            kinks=kinks,
            cases=tuple(cases),
            file=frame.f_code.co_filename,
            line=frame.f_lineno,
        )
    )


pointwise = functools.partial(rule, pointwise=True)
linear = functools.partial(rule, linear="x")


def _without_cotangent(
    kind: Kind,
    primitive: Primitive | None,
    why: str,
    cases: Sequence[Any] = (),
    axes: Callable[..., Any] | str | None = None,
) -> None:
    """Declare that there is no cotangent, so that nothing is kept."""
    frame = sys._getframe(1)
    if primitive is not None:
        rules.add(
            Rule(primitive, kind, why=why, cases=tuple(cases),
                 axes=parse_axes(axes, (), primitive.name), file=frame.f_code.co_filename,
                 line=frame.f_lineno)
        )  # fmt: skip


# The derivative is zero wherever there is one.
piecewise_constant = functools.partial(_without_cotangent, "piecewise constant")
# Outputs are integers, booleans, keys or tokens.
no_tangent_space = functools.partial(_without_cotangent, "no tangent space")


def higher_order(
    primitive: Primitive | None,
    *,
    axes: Callable[..., Any] | str | None = None,
    why: str = "",
    kinks: str = "",
    cases: Sequence[Any] = (),
) -> Callable[[type[Held]], type[Held]]:
    """Declare a class (``HigherOrder``) as the rule of an operation that holds a graph."""
    frame = sys._getframe(1)
    file, line = frame.f_code.co_filename, frame.f_lineno

    def register(cls: type[Held]) -> type[Held]:
        if primitive is not None:
            rules.add(
                Rule(primitive, "structural", higher_order=cls, why=why, kinks=kinks,
                     axes=parse_axes(axes, (), primitive.name), cases=tuple(cases), file=file,
                     line=line)
            )  # fmt: skip
        return cls

    return register


def parse_signature(
    signature: str, owner: str
) -> tuple[tuple[Name, ...], tuple[Name, ...], tuple[str, ...]]:
    """Split ``"x, *ys -> z | r"`` into operands, outputs and auxiliaries."""
    head, arrow, tail = signature.partition("->")
    if not arrow:
        raise RuleError(f'rule for {owner!r}: signature {signature!r} has no "->"')
    outs, _, extra = tail.partition("|")
    split = lambda text: [part.strip() for part in text.split(",") if part.strip()]
    to_name = lambda part: Name(part.lstrip("*"), part.startswith("*"))
    operands, outputs = tuple(map(to_name, split(head))), tuple(map(to_name, split(outs)))
    for group in (operands, outputs):
        if sum(name.starred for name in group) > 1:
            raise RuleError(f"rule for {owner!r}: more than one starred name in {signature!r}")
    texts = [name.text for name in (*operands, *outputs)]
    if len(set(texts)) < len(texts):
        raise RuleError(f"rule for {owner!r}: a name stands twice in the signature {signature!r}")
    return operands, outputs, tuple(split(extra))


def parse_pullback(
    function: Callable[..., Any],
    names: Sequence[Name],
    incoming: Mapping[str, Name],
    auxiliaries: Sequence[str],
    owner: str,
) -> Pullback:
    """Read what a function of a rule needs off its parameter names.

    ``incoming`` has the outputs by their cotangents' names, or the operand by its tangent's.
    """
    values = {name.text for name in names} | set(auxiliaries)
    needs: list[Need] = []
    parameters: list[tuple[str, bool]] = []
    wanted = takes_all = False
    for parameter in inspect.signature(function).parameters.values():
        text, optional = parameter.name, parameter.default is not parameter.empty
        if parameter.kind is parameter.KEYWORD_ONLY:
            wanted |= text == "wanted"
            parameters += [] if text == "wanted" else [(text, not optional)]
        elif parameter.kind is parameter.VAR_KEYWORD:
            takes_all = True
        elif text in incoming:
            starred = incoming[text].starred
            needs.append(Need("cotangent", incoming[text].text, optional or starred))
        elif text in values:
            needs.append(Need("value", text))
        elif text.endswith("_t") and text[:-2] in values:
            needs.append(Need("shape", text[:-2]))
        elif text == "index":
            needs.append(Need("index", text))
        else:
            raise RuleError(
                f"rule for {owner!r}: nothing is called {text!r}; a parameter is one of "
                f"{', '.join(sorted(incoming))}, a value ({', '.join(sorted(values))}), one of "
                f"those with _t, or keyword-only (an equation's parameter)"
            )
    return Pullback(function, tuple(needs), tuple(parameters), wanted, takes_all)


def parse_axes(
    axes: Callable[..., Any] | str | None, names: Sequence[Name], owner: str
) -> Pullback | str | None:
    """Read what a relation of axes needs to know off its parameter names: types alone."""
    if axes is None or isinstance(axes, str):
        return axes
    every = [Name("operands", True), Name("outputs", True)]
    parsed = parse_pullback(axes, [*names, *every], {}, (), owner)
    if parsed.keeps:
        raise RuleError(f"rule for {owner!r}: axes= asks for {parsed.keeps[0]!r}; it is given "
                        f"types, {parsed.keeps[0]}_t")  # fmt: skip
    return parsed


# Test inputs.


@dataclass(frozen=True)
class Spec:
    """A spec is an array to be drawn: shape, dtype kind, range, or fixed ``values``."""

    shape: tuple[int, ...]
    kind: str = "real"  # "real", "complex", "integer", "boolean"
    low: float = -2.0
    high: float = 2.0
    values: Any = None
    make: Callable[[np.ndarray], np.ndarray] | None = None  # for example, to make it symmetric

    def draw(self, rng: np.random.Generator, dtype: Any = np.float64) -> np.ndarray:
        """Draw the array; ``dtype`` is that of the real and complex specs' real part."""
        if self.values is not None:
            given = np.asarray(self.values)
            if self.kind == "complex":
                return given.astype(np.result_type(dtype, np.complex64))
            return given.astype(dtype) if self.kind == "real" else given
        if self.kind == "integer":
            return rng.integers(int(self.low), int(self.high), self.shape).astype(np.int32)
        if self.kind == "boolean":
            return rng.integers(0, 2, self.shape).astype(bool)
        drawn = rng.uniform(self.low, self.high, self.shape)
        if self.kind == "complex":
            drawn = drawn + 1j * rng.uniform(self.low, self.high, self.shape)
        if self.make is not None:
            drawn = self.make(drawn)
        if self.kind == "complex":
            return drawn.astype(np.result_type(dtype, np.complex64))
        return drawn.astype(dtype)

    @property
    def differentiable(self) -> bool:
        """Say whether a cotangent exists for it."""
        return self.kind in ("real", "complex")


def _kind(kind: str, low: float, high: float) -> Callable[..., Spec]:
    """Make the constructor of one kind of spec: of a shape, in a range, or with fixed values."""

    def spec(
        *shape: int,
        low: float = low,
        high: float = high,
        values: Any = None,
        make: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> Spec:
        return Spec(shape if values is None else np.shape(values), kind, low, high, values, make)

    return spec


real = _kind("real", -2.0, 2.0)  # uniform in [low, high)
cplx = _kind("complex", -2.0, 2.0)  # so are its real and its imaginary part
integer = _kind("integer", 0, 4)  # fixed values keep their dtype
boolean = _kind("boolean", 0, 2)


@dataclass(frozen=True)
class Case:
    """A case is a call of one primitive: the function, and what to draw for its arguments.

    Attributes:
        function: takes arrays, returns an array or a pytree of arrays.
        specs: one per argument.
        reference: a JAX function with the same values, to differentiate instead where ``jax.vjp``
            of ``function`` is missing, wrong or imprecise; None where JAX's own gradient is right.
        second_order: False where the second derivative is not defined or not finite.
        half: False where half precision is not supported or meaningless for the operation.
        batchable: False where JAX itself cannot ``vmap`` the operation.
        note: why any of these is False, or what the case is for.
    """

    function: Callable[..., Any]
    specs: tuple[Spec, ...]
    reference: Callable[..., Any] | None = None
    second_order: bool = True
    half: bool = True
    batchable: bool = True
    note: str = ""

    def draw(self, seed: int = 0, dtype: Any = np.float64) -> list[np.ndarray]:
        """Draw the arguments as NumPy arrays."""
        rng = np.random.default_rng(seed)
        return [spec.draw(rng, dtype) for spec in self.specs]


def case(function: Callable[..., Any], *specs: Spec, **how: Any) -> Case:
    """Make a call to test a rule on, with what else a ``Case`` may say."""
    return Case(function, specs, **how)
