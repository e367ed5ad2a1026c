"""A claim is what a person hands to ``bp.check``, read into a ``Subject`` whatever its form."""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.tree_util import keystr, tree_flatten_with_path

from functional_bp import _jax
from functional_bp.definitions import definition, unwrapped
from functional_bp.engine.operation import Operation
from functional_bp.engine.rule import Rule, rules
from functional_bp.engine.transforms import vjp
from functional_bp.errors import ClaimError, describe
from functional_bp.gradcheck.guard import Guard
from functional_bp.gradcheck.subject import Arrays, Flattening, Subject, active_outputs, output_bars
from functional_bp.graph import interpret
from functional_bp.graph.names import function_name

# What JAX raises where a function that is traced looks at a value.
LOOKING = (
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.ConcretizationTypeError,
)
KEPT_SECOND = {"cache", "res", "residuals", "resid", "ctx", "saved", "memory", "kept"}


def read(subject: Any, args: Sequence[Any]) -> Subject:
    """Return the claim that ``subject`` makes about its gradient at ``args``.

    Raises:
        ClaimError: it is nothing that claims a gradient.
    """
    made = _read(subject, args)
    with Guard("the claim, traced"):  # whatever else is wrong with it is found where it is run
        if made.traceable and not is_traceable(made.value, made):
            return run_each_time(made)
    return made


def run_each_time(subject: Subject) -> Subject:
    """Return the claim, of which Python looks at values, so that each call has to run."""
    return replace(subject, traceable=False, residuals=None, backward=None)


def _outside_jax(subject: Subject, numeric: Callable[..., Arrays], **changes: Any) -> Subject:
    """The claim about a NumPy function, of which differences are taken on the host."""
    return replace(run_each_time(subject), numeric=numeric, reference=None, **changes)


def _read(subject: Any, args: Sequence[Any]) -> Subject:
    keywords: dict[str, Any] = {}
    if isinstance(getattr(subject, "__wrapped__", None), jax.custom_vjp):  # under jax.jit
        subject = subject.__wrapped__
    if isinstance(subject, functools.partial) and isinstance(subject.func, jax.custom_vjp):
        subject, args, keywords = subject.func, (*subject.args, *args), subject.keywords
    if isinstance(subject, jax.custom_vjp):
        return _custom_vjp(subject, args, keywords)
    if isinstance(subject, jax.custom_jvp):
        static = tuple(subject.nondiff_argnums)
        return _callable(subject, args, reference=subject.fun, static=static)
    if isinstance(subject, Operation):
        return _operation(subject, args)
    if isinstance(subject, Primitive):
        subject = rules[subject]
    if isinstance(subject, Rule):
        return _rule(subject, args)
    if isinstance(subject, tuple) and len(subject) == 2 and all(map(callable, subject)):
        return _pair(*subject, args)
    if callable(subject):
        return _plain(subject, args)
    raise ClaimError(
        "bp.check cannot check this",
        got=type(subject).__name__,
        expected="a custom_vjp or custom_jvp function, an operation, a rule, a pair "
        "(forward, backward), or any JAX function",
        do="for a gradient function give the function it differentiates: of=loss",
    )


def _callable(
    fun: Callable[..., Any],
    args: Sequence[Any],
    *,
    reference: Callable[..., Any] | None,
    static: Sequence[int] = (),
    judged: Sequence[int] | None = None,
    transform: Callable[..., Any] = jax.vjp,
) -> Subject:
    """A function that JAX (or ``transform``) differentiates by the rule to be checked."""
    flat = Flattening(fun, args, judged, static)
    value = flat.outputs_of(fun)

    def pull(actives: Arrays, fixed: Arrays, bars: Arrays) -> tuple[Arrays, Arrays]:
        outs, pullback = transform(lambda *xs: value(xs, fixed), *actives)
        return outs, pullback(tuple(jnp.asarray(b, o.dtype) for b, o in zip(bars, outs)))

    return flat.subject(
        function_name(fun),
        value=value,
        pull=pull,
        reference=None if reference is None else flat.outputs_of(reference),
        by_transform=transform is jax.vjp,
        source=fun,
    )


def _custom_vjp(fun: Any, args: Sequence[Any], keywords: Mapping[str, Any]) -> Subject:
    static, judged = tuple(fun.nondiff_argnums), range(len(args))
    args = _with_defaults(fun.fun, args, keywords)  # as JAX hands them to the rule
    subject = _callable(fun, args, reference=fun.fun, static=static, judged=judged)
    forward, backward = fun.fwd, fun.bwd
    if forward is None or backward is None:
        raise ClaimError(
            f"{subject.name} has no rule yet", do=f"call {subject.name}.defvjp(fwd, bwd)"
        )
    flat = Flattening(fun, args, judged, static)
    given = [args[i] for i in static]

    def run_forward(actives: Arrays, fixed: Arrays) -> tuple[Any, Any]:
        joined = flat.join(actives, fixed)
        if getattr(fun, "symbolic_zeros", False):
            joined = jax.tree.map(_Perturbed, joined)
        return forward(*joined)

    residuals, shapes = _residuals_of(run_forward, returned_names(forward))

    def pull_back(kept: Any, fixed: Arrays, bars: Arrays) -> Arrays:
        found = backward(*given, unnamed(kept), output_bars(shapes[0], bars))
        return flat.cotangents(found, flat.actives)

    return replace(
        subject, residuals=residuals, backward=pull_back, source=backward,
        symbolic_zeros=bool(getattr(fun, "symbolic_zeros", False)),
    )  # fmt: skip


def _residuals_of(
    run: Callable[[Arrays, Arrays], tuple[Any, Any]], names: Sequence[str]
) -> tuple[Callable[..., Named], list[Any]]:
    """What a forward pass keeps, by name; and a list that then holds the shapes of its output."""
    shapes: list[Any] = []

    def residuals(actives: Arrays, fixed: Arrays) -> Named:
        out, kept = run(actives, fixed)
        shapes[:] = [jax.tree.map(jax.typeof, out)]
        return named(kept, names)

    return residuals, shapes


def _with_defaults(
    fun: Callable[..., Any], args: Sequence[Any], keywords: Mapping[str, Any]
) -> tuple[Any, ...]:
    """The arguments by position, completed by the defaults of the function's parameters."""
    try:
        bound = inspect.signature(fun).bind(*args, **keywords)
    except (TypeError, ValueError):  # no signature, or arguments that do not fit: told later
        return tuple(args)
    bound.apply_defaults()
    return tuple(args) if bound.kwargs else bound.args


class _Perturbed:
    """What JAX gives the forward pass of a rule with symbolic zeros, for each leaf."""

    def __init__(self, value: Any) -> None:
        self.value, self.perturbed = value, True


def _operation(operation: Operation, args: Sequence[Any]) -> Subject:
    plain = lambda *operands: operation.values(operands)[0]
    subject = _callable(operation, args, reference=plain)
    flat = Flattening(plain, args)
    judged = [operation.operands[flat.owners[k]].text for k in flat.active]

    def residuals(actives: Arrays, fixed: Arrays) -> Any:
        return operation.named_values(flat.join(actives, fixed))

    def backward(kept: Any, fixed: Arrays, bars: Arrays) -> Arrays:
        found = [operation.cotangent(name, kept, bars) for name in judged]
        return tuple(jnp.zeros_like(kept[n]) if f is None else f for n, f in zip(judged, found))

    first = next(iter(operation.pullbacks.values()), None)
    source = first.function if first else operation.forward
    names = tuple(judged)
    return replace(
        subject, names=names, residuals=residuals, backward=backward, source=source,
        symbolic_zeros=True,
    )  # fmt: skip


def _rule(rule: Rule, args: Sequence[Any]) -> Subject:
    """A rule, called as its first case does that takes as many arguments."""
    called = [case.function for case in rule.cases if len(case.specs) == len(args)]
    fun = called[0] if called else lambda *operands: rule.primitive.bind(*operands)
    made = by_our_rules(fun, args)
    names = [name.text for name in rule.operands]
    fits = len(names) == len(made.names) == len(args)
    return replace(made, name=rule.primitive.name, names=tuple(names) if fits else made.names)


def by_our_rules(
    fun: Callable[..., Any], args: Sequence[Any], reference: Callable[..., Any] | None = None
) -> Subject:
    """Return ``fun`` as ``bp.vjp`` differentiates it, against JAX's gradient of ``reference``."""
    return _callable(fun, args, reference=reference or fun, transform=vjp)


def _pair(
    forward: Callable[..., Any], backward: Callable[..., Any], args: Sequence[Any]
) -> Subject:
    """``forward(*args) -> out, residuals`` and ``backward(residuals, out_bar) -> cotangents``.

    ``backward(out_bar, cache)`` is understood by the second parameter's name, and
    ``forward(*args) -> out`` with ``backward(*args, out_bar)`` by the number of parameters.
    """
    flat = Flattening(forward, args)
    parameters = _positional(backward)
    from_arguments = (
        len(parameters) == len(args) + 1
        and parameters[:-1] == _positional(forward)
        and not (len(args) == 1 and _returns_two(forward, args))
    )
    swapped = len(parameters) == 2 and parameters[1].lower() in KEPT_SECOND

    def run(actives: Arrays, fixed: Arrays) -> tuple[Any, Any]:
        joined = flat.join(actives, fixed)
        return (forward(*joined), joined) if from_arguments else _two(forward(*joined), forward)

    def call(kept: Any, out: Any, bars: Arrays, actives: Arrays) -> Arrays:
        bar = output_bars(out, bars)
        if from_arguments:
            found = backward(*kept, bar)
        else:
            found = backward(bar, kept) if swapped else backward(kept, bar)
        found = found if isinstance(found, tuple | list) else (found,)
        return flat.cotangents(found, actives)

    def pull(actives: Arrays, fixed: Arrays, bars: Arrays) -> tuple[Arrays, Arrays]:
        out, kept = run(actives, fixed)
        return active_outputs(out), call(kept, out, bars, actives)

    residuals, shapes = _residuals_of(run, returned_names(forward))

    def pull_back(kept: Any, fixed: Arrays, bars: Arrays) -> Arrays:
        return call(unnamed(kept), shapes[0], bars, flat.actives)

    value = lambda actives, fixed: active_outputs(run(actives, fixed)[0])
    subject = flat.subject(
        function_name(forward),
        value=value,
        pull=pull,
        reference=value,
        residuals=residuals,
        backward=pull_back,
        source=backward,
    )
    if is_traceable(value, subject):
        return subject
    on_host = lambda *parts: jax.tree.map(jax.device_get, parts)
    numpy_value = lambda actives, fixed: active_outputs(run(*on_host(actives, fixed))[0])
    numpy_pull = lambda *parts: pull(*on_host(*parts))
    return _outside_jax(subject, numpy_value, value=numpy_value, pull=numpy_pull)


def _plain(fun: Callable[..., Any], args: Sequence[Any]) -> Subject:
    """A JAX function: its custom rules against their bodies, or finite differences alone."""
    subject = _callable(fun, args, reference=None)
    if not is_traceable(subject.value, subject):
        return subject
    jaxpr, _ = _jax.open_jaxpr(jax.make_jaxpr(subject.value)(subject.actives, subject.fixed))
    if not interpret.holds_custom_rules(jaxpr):
        return subject

    def reference(actives: Arrays, fixed: Arrays) -> Arrays:
        leaves, tree = jax.tree.flatten((actives, fixed))
        bare = interpret.without_custom_rules(
            lambda *xs: subject.value(*jax.tree.unflatten(tree, xs))
        )
        return tuple(bare(*leaves))

    return replace(subject, reference=reference)


def is_traceable(value: Callable[..., Any], subject: Subject) -> bool:
    """Tell whether JAX can trace a flat function; a NumPy function cannot be."""
    try:
        jax.eval_shape(value, subject.actives, subject.fixed)
    except LOOKING:
        return False
    return True


def looks_at_values(subject: Subject) -> bool:
    """Tell whether Python branches on values in the rule, forwards or backwards; it is traced."""
    with Guard("the claim, traced") as ran:  # what else is wrong with it is found where it is run
        outs = jax.eval_shape(subject.value, subject.actives, subject.fixed)
        jax.eval_shape(subject.pull, subject.actives, subject.fixed, outs)
    return isinstance(ran.error, LOOKING)


def _two(returned: Any, forward: Callable[..., Any]) -> tuple[Any, Any]:
    if isinstance(returned, tuple | list) and len(returned) == 2:
        return returned[0], returned[1]
    raise ClaimError(
        f"{function_name(forward)} is the forward function of a pair",
        got=f"a return value of type {type(returned).__name__}",
        expected="(output, residuals), and backward(residuals, output_bar); or an output alone "
        "and backward(*arguments, output_bar)",
    )


def _returns_two(forward: Callable[..., Any], args: Sequence[Any]) -> bool:
    """Whether a forward function returns residuals beside its output."""
    found = None
    with Guard("the forward pass, by its shapes"):
        found = jax.eval_shape(forward, *args)
    if found is None:  # a NumPy function
        found = forward(*args)
    return isinstance(found, tuple | list) and len(found) == 2


def _positional(fun: Callable[..., Any]) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        return [p.name for p in inspect.signature(fun).parameters.values() if p.kind in kinds]
    except (TypeError, ValueError):
        return []


class Named(dict[str, Any]):
    """A pytree of residuals by name, which knows the pytree that they came from."""

    tree: Any = None


jax.tree_util.register_pytree_node(
    Named,
    lambda kept: (tuple(kept.values()), (tuple(kept), kept.tree)),
    lambda aux, leaves: _renamed(dict(zip(aux[0], leaves)), aux[1]),
)


def _renamed(values: Mapping[str, Any], tree: Any) -> Named:
    made = Named(values)
    made.tree = tree
    return made


def named(kept: Any, names: Sequence[str]) -> Named:
    """Name a residual pytree's leaves: by the forward function's return, or by paths."""
    pairs, tree = tree_flatten_with_path(kept)
    tops = len(kept) if isinstance(kept, tuple | list) else 0
    found: dict[str, Any] = {}
    for path, leaf in pairs:
        if tops and len(names) == tops:
            label = names[getattr(path[0], "idx", 0)] + keystr(path[1:])
        elif len(path) == 1 and hasattr(path[0], "key"):
            label = str(path[0].key)
        else:
            label = names[0] if len(names) == 1 and not path else "residuals" + keystr(path)
        found[label if label not in found else f"{label}#{len(found)}"] = leaf
    return _renamed(found, tree)


def unnamed(kept: Named) -> Any:
    """Return the pytree that ``named`` was given."""
    return jax.tree.unflatten(kept.tree, list(kept.values()))


def returned_names(forward: Callable[..., Any]) -> list[str]:
    """Tell what a forward function calls its residuals, read off ``return out, (x_hat, r)``."""
    found = definition(unwrapped(forward))
    nodes = list(ast.walk(found.node)) if found is not None else []
    returns = [node.value for node in nodes if isinstance(node, ast.Return)]
    lambdas = [node.body for node in nodes if isinstance(node, ast.Lambda)]
    for value in (returns or lambdas)[::-1]:
        if isinstance(value, ast.Tuple) and len(value.elts) == 2:
            second = value.elts[1]
            items = second.elts if isinstance(second, ast.Tuple | ast.List) else [second]
            if all(isinstance(item, ast.Name | ast.Attribute) for item in items):
                return [ast.unparse(item) for item in items]
    return []


# Claims that are not rules: a gradient function, numbers on paper; references; declarations.


def gradient_function(
    claimed: Callable[..., Any],
    args: Sequence[Any],
    of: Callable[..., Any],
    argnums: int | Sequence[int] | None,
) -> Subject:
    """Return the claim that ``claimed(*args)`` is the gradient of the scalar ``of(*args)``.

    Args:
        claimed: returns the gradient, or ``(value, gradient)``, as ``jax.value_and_grad`` does.
        args: arguments of both.
        of: the function that is differentiated; a real scalar.
        argnums: which arguments the gradient is for; read off its structure by default.
    """
    shape = _scalar_of(of, args)
    sample = claimed(*args)
    with_value, positions = _positions(sample, args, argnums, shape)
    flat = Flattening(of, args, judged=positions)
    value = flat.outputs_of(of)

    def found(actives: Arrays, fixed: Arrays) -> Arrays:
        result = claimed(*flat.join(actives, fixed))
        bars = result[1] if with_value else result
        is_tuple_of_one = isinstance(bars, tuple | list) and len(bars) == 1
        single = isinstance(argnums, int) or len(positions) == 1 and not is_tuple_of_one
        full: list[Any] = [None] * len(args)
        for i, bar in zip(positions, (bars,) if single else bars, strict=True):
            full[i] = bar
        return flat.cotangents(full, actives)

    def pull(actives: Arrays, fixed: Arrays, bars: Arrays) -> tuple[Arrays, Arrays]:
        outs = value(actives, fixed)
        if with_value:
            outs = active_outputs(claimed(*flat.join(actives, fixed))[0])
        return outs, tuple(bars[0] * bar for bar in found(actives, fixed))

    subject = flat.subject(
        function_name(claimed),
        value=value,
        pull=pull,
        reference=value,
        residuals=lambda actives, fixed: dict(zip(flat.names, actives)),
        backward=lambda kept, fixed, bars: pull(tuple(kept.values()), fixed, bars)[1],
        source=claimed,
    )
    if not is_traceable(value, subject):
        return _outside_jax(subject, value)
    return subject if is_traceable(found, subject) else run_each_time(subject)


def _scalar_of(of: Callable[..., Any], args: Sequence[Any]) -> Any:
    try:
        shape = jax.eval_shape(of, *args)
    except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError, TypeError):
        shape = of(*args)
    if np.shape(shape) != () and getattr(shape, "shape", None) != ():
        raise ClaimError(
            f"of={function_name(of)} has no gradient",
            got=f"an output {jax.tree.map(describe, shape)}",
            expected="a real scalar, as for jax.grad",
            do="check a custom_vjp function or a pair (forward, backward) instead",
        )
    return shape


def _positions(
    sample: Any, args: Sequence[Any], argnums: int | Sequence[int] | None, shape: Any
) -> tuple[bool, tuple[int, ...]]:
    """Whether the result has the value beside the gradient, and for which arguments it is."""
    chosen = (argnums,) if isinstance(argnums, int) else None if argnums is None else tuple(argnums)
    structure = jax.tree.structure
    candidates = [(False, sample)]
    if isinstance(sample, tuple) and len(sample) == 2 and np.shape(sample[0]) == ():
        candidates.append((True, sample[1]))
    for with_value, bars in candidates:
        if chosen is not None:
            wanted = args[chosen[0]] if isinstance(argnums, int) else tuple(args[i] for i in chosen)
            if structure(bars) == structure(wanted):
                return with_value, chosen
        elif structure(bars) == structure(args[0]):
            return with_value, (0,)
        elif isinstance(bars, tuple | list):
            if structure(tuple(bars)) == structure(tuple(args)):
                return with_value, tuple(range(len(args)))
            if structure(tuple(bars)) == structure(tuple(args[: len(bars)])):
                return with_value, tuple(range(len(bars)))
    raise ClaimError(
        "the gradient function returns something that is no gradient of the arguments",
        got=str(structure(sample)),
        expected=f"{structure(args[0])} for the first argument, or a tuple with one entry "
        "per argument",
        do="say for which arguments it is: argnums=",
    )


def on_paper(fun: Callable[..., Any], args: Sequence[Any], claims: Mapping[str, Any]) -> Subject:
    """Return the claim that the gradient of the scalar ``fun`` at ``args`` has these values.

    Args:
        fun: the function that was differentiated by hand.
        args: the point at which it was.
        claims: the gradient by argument: ``{"W1": array}``; names as in ``bp.trace``, or their
            last part. A function in place of an array is called with ``args``.

    Raises:
        ClaimError: the claims are not by name, or ``fun`` is not scalar.
    """
    _scalar_of(fun, args)
    every = Flattening(fun, args)
    if not isinstance(claims, Mapping):
        raise ClaimError(
            "claims= wants gradients by argument",
            got=type(claims).__name__,
            expected=f"a dict with names of {', '.join(every.names)}",
            do=f"write claims={{{every.names[0]!r}: …}}" if every.names else "",
        )
    by_name = {resolve(name, every.names): value for name, value in claims.items()}
    flat = Flattening(fun, args, only=tuple(by_name))
    values = [by_name[name] for name in flat.names]
    value = flat.outputs_of(fun)

    def pull(actives: Arrays, fixed: Arrays, bars: Arrays) -> tuple[Arrays, Arrays]:
        joined = flat.join(actives, fixed)
        found = [
            jnp.asarray(v(*joined) if callable(v) else v, x.dtype) for v, x in zip(values, actives)
        ]
        return value(actives, fixed), tuple(bars[0] * bar for bar in found)

    return flat.subject(
        function_name(fun),
        value=value,
        pull=pull,
        reference=value,
        only_here=not all(map(callable, values)),
        rounding=tuple(roundings_of(values)),
        source=fun,
    )


def roundings_of(claims: Sequence[Any]) -> list[float]:
    """Tell how far each claim on paper may be off for having been rounded when it was written down.

    Where the numbers of all have two to six decimals, they count as rounded to those, by half a
    unit of the last: beside 0.39, −0.2 is −0.20. Arrays in float32 with more may carry the rounding
    error of a computation in float32.
    """
    arrays = [None if callable(claim) else np.asarray(claim) for claim in claims]
    decimals = [None if array is None else _decimals(array) for array in arrays]
    most = max((d for d in decimals if d is not None), default=0)
    found: list[float] = []
    for array, written in zip(arrays, decimals):
        rounding = 0.5 * 10.0**-most if written is not None and most >= 2 else 0.0
        if array is not None and _is_single(array):
            size = float(np.max(np.abs(array.astype(np.complex128)), initial=0.0))
            rounding = max(rounding, 1e-5 * size)
        found.append(rounding)
    return found


def _decimals(array: np.ndarray) -> int | None:
    """The decimals that all entries are written with; None where they have all their digits."""
    wide = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
    for decimals in range(5 if _is_single(array) else 7):
        if np.array_equal(np.round(wide, decimals).astype(array.dtype), array):
            return decimals
    return None


def _is_single(array: np.ndarray) -> bool:
    return array.dtype.kind in "fc" and np.finfo(array.dtype).bits < 64


def resolve(name: str, names: Sequence[str]) -> str:
    """Return the name among ``names`` that a person means: the whole of it, or its last part.

    Raises:
        ClaimError: there is none, or more than one.
    """
    if name in names:
        return name
    ends = (f"['{name}']", f".{name}", f"[{name}]")
    matching = [full for full in names if full.endswith(ends)]
    if len(matching) == 1:
        return matching[0]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    raise ClaimError(
        f"no value is called {name!r}" if not matching else f"{name!r} is the end of several",
        got=name,
        expected=" or ".join(matching or near or names) or "a name",
    )


def with_reference(subject: Subject, reference: Any, args: Sequence[Any]) -> Subject:
    """Return the subject judged against a JAX, NumPy or PyTorch function of the same arguments.

    ``False`` withholds the reference: finite differences of the forward pass alone.
    """
    if reference is False:
        return replace(subject, reference=None, reference_pull=None)
    flat = Flattening(reference, args)
    if len(flat.active) != len(subject.actives):  # some arguments are held fixed
        flat = Flattening(reference, args, only=[n for n in flat.all_names if n in subject.names])
    fun = flat.outputs_of(reference)
    with Guard("the reference in JAX") as in_jax:
        jax.eval_shape(fun, subject.actives, subject.fixed)
        return replace(subject, reference=fun, reference_pull=None)
    on_host = lambda actives, fixed: fun(*jax.tree.map(jax.device_get, (actives, fixed)))
    with Guard("the reference in NumPy") as in_numpy:
        on_host(subject.actives, subject.fixed)
        return replace(subject, reference=None, reference_pull=None, numeric=on_host)
    made = _in_torch(reference, flat, subject)
    if made is not None:
        return made
    problem = in_jax if isinstance(in_jax.error, TypeError) else in_numpy
    raise ClaimError(
        f"the reference {function_name(reference)} cannot be called with the given arguments",
        got=f"{problem.raised}: {problem.message}",
        expected="a JAX, NumPy or PyTorch function of the same arguments",
        do="for a PyTorch function install it: pip install 'functional-bp[torch]'"
        if find_spec("torch") is None
        else "",
    )


def _in_torch(reference: Callable[..., Any], flat: Flattening, subject: Subject) -> Subject | None:
    """Have ``reference`` judge ``subject`` on tensors; None where it is no PyTorch function."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None

    def tensor(array: Any) -> Any:
        host = np.array(array)
        if host.dtype == jnp.bfloat16:  # NumPy has it from JAX, PyTorch does not read it from there
            return torch.from_numpy(host.astype(np.float32)).to(torch.bfloat16)
        return torch.from_numpy(host)

    def array(tensor: Any) -> np.ndarray:
        tensor = tensor.detach().resolve_conj()
        if tensor.dtype == torch.bfloat16:
            return tensor.float().numpy().astype(jnp.bfloat16)
        return tensor.numpy()

    def tensors(arrays: Any, judged: bool) -> list[Any]:
        return [tensor(a).requires_grad_() if judged else tensor(a) for a in arrays]

    def outputs(actives: list[Any], fixed: list[Any]) -> list[Any]:
        found = jax.tree.leaves(reference(*flat.join(actives, fixed)))
        return [t for t in found if t.is_floating_point() or t.is_complex()]

    def values(actives: Any, fixed: Any) -> list[np.ndarray]:
        with torch.no_grad():
            return [array(t) for t in outputs(tensors(actives, False), tensors(fixed, False))]

    def pulled(actives: Any, fixed: Any, bars: Any) -> list[np.ndarray]:
        inputs = tensors(actives, True)
        outs = outputs(inputs, tensors(fixed, False))
        seeds = [tensor(b).to(o.dtype) for b, o in zip(bars, outs)]
        conjugate = [s.conj() if s.is_complex() else s for s in seeds]
        found = torch.autograd.grad(outs, inputs, conjugate, allow_unused=True)
        kept = [torch.zeros_like(x) if f is None else f for x, f in zip(inputs, found)]
        return [np.conj(array(t)) for t in kept]  # PyTorch's complex gradients are conjugated

    with Guard("the reference on tensors") as ran:
        values(subject.actives, subject.fixed)
    if ran.error is not None:  # it is no PyTorch function of these arguments either
        return None

    def value(actives: Arrays, fixed: Arrays) -> Arrays:
        like = jax.eval_shape(subject.value, actives, fixed)
        return tuple(jax.pure_callback(values, list(like), actives, fixed))

    def pull(actives: Arrays, fixed: Arrays, bars: Arrays) -> tuple[Arrays, Arrays]:
        like = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in actives]
        found = jax.pure_callback(pulled, like, actives, fixed, bars)
        return value(actives, fixed), tuple(found)

    return replace(subject, reference=value, reference_pull=pull)


def declared(subject: Subject, expect: Any, args: Sequence[Any]) -> Subject:
    """Return the subject held to a gradient that is false on purpose.

    Args:
        subject: the claim.
        expect: ``"straight-through"`` (x̄ = ȳ); a number c (x̄ = c · the true x̄; −1 is a gradient
            reversal); or a function of the same arguments whose gradient the claim has.
        args: the given arguments.
    """
    if isinstance(expect, int | float) and not isinstance(expect, bool):
        reference = subject.reference or subject.value

        def scaled(actives: Arrays, fixed: Arrays, bars: Arrays) -> tuple[Arrays, Arrays]:
            outs, pullback = jax.vjp(lambda *xs: reference(xs, fixed), *actives)
            return outs, tuple(expect * bar for bar in pullback(tuple(bars)))

        return replace(subject, reference=reference, reference_pull=scaled)
    if expect == "straight-through":
        surrogate = lambda actives, fixed: (actives[0],)
    elif callable(expect):
        surrogate = Flattening(expect, args).outputs_of(expect)
    else:
        raise ClaimError(
            "expect= declares a gradient that is false on purpose",
            got=repr(expect),
            expected='"straight-through", a number that multiplies the true gradient, or a '
            "function whose gradient it is",
        )
    value = subject.reference or subject.value

    def pull(actives: Arrays, fixed: Arrays, bars: Arrays) -> tuple[Arrays, Arrays]:
        _, pullback = jax.vjp(lambda *xs: surrogate(xs, fixed), *actives)
        return value(actives, fixed), pullback(tuple(bars))

    return replace(subject, reference=value, reference_pull=pull)
