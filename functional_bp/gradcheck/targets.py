"""Targets are what there is to check in a module: named, marked, or found by kind and name."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functional_bp.engine.operation import Operation
from functional_bp.engine.rule import rules
from functional_bp.errors import SHORT_DTYPES, BackpropError
from functional_bp.gradcheck.guard import Guard
from functional_bp.gradcheck.marks import marks_in
from functional_bp.graph.names import misfit

PAIRS = (("_fwd", "_bwd"), ("_forward", "_backward"))  # foo_fwd, foo_bwd: a pullback of foo
MAIN = "__main__"
PLUGIN = "functional_bp.gradcheck.plugin"  # needs pytest, and has no gradient in it


class TargetError(BackpropError, LookupError):
    """What is to be checked cannot be found or imported."""


@dataclass(frozen=True, eq=False)
class Target:
    """A target is something to check.

    Attributes:
        name: what a person calls it, as in ``mypackage.ops:layer_norm``.
        subject: what ``functional_bp.check`` is given; None where there is an ``error``.
        module: where it stands.
        arguments: the inputs of its mark; see ``Mark``.
        options: of ``functional_bp.check``.
        brings_inputs: whether it is checked without being given any (a rule has cases).
        line: of its mark; 0 where it has none.
        error: why it cannot be checked, for a module of a package that cannot be imported.
    """

    name: str
    subject: Any = None
    module: ModuleType | None = None
    arguments: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    brings_inputs: bool = False
    line: int = 0
    error: str = ""

    @property
    def short_name(self) -> str:
        """Return its name in the module."""
        return self.name.rpartition(":")[2]


def find(text: str) -> Sequence[Target]:
    """Find what ``MODULE:NAME``, ``FILE.py:NAME``, ``MODULE`` or ``FILE.py`` stands for.

    Raises:
        TargetError: there is no such module or name, or the module cannot be imported.
    """
    where, colon, name = text.rpartition(":")
    if not colon or name.endswith(".py") or os.sep in name:  # the colon of a drive's letter
        where, name = text, ""
    module = load(where)
    return [_named(module, name)] if name else list(everything_in(module))


def load(where: str) -> ModuleType:
    """Import a module by its dotted name or its file.

    Raises:
        TargetError: it is not there, or raises an exception.
    """
    if where.endswith(".py") or os.sep in where:
        return load_file(Path(where))
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as ``python -m`` does
    return _import(where)


def load_file(path: Path) -> ModuleType:
    """Import a Python file: by its dotted name if it stands in a package, else by itself."""
    path = path.resolve()
    if not path.is_file():
        near = _near(path.name, [file.name for file in path.parent.glob("*.py")])
        raise TargetError(f"there is no file {os.fspath(path)}", do=near)
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) == os.fspath(path) and module.__name__ != MAIN:
            return module
    parts, folder = [path.stem], path.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    if os.fspath(folder) not in sys.path:
        sys.path.insert(0, os.fspath(folder))
    if len(parts) > 1:
        return _import(".".join(parts[:-1] if path.stem == "__init__" else parts))
    taken = path.stem in sys.modules or path.stem in sys.stdlib_module_names
    name = f"_checked_{path.stem}" if taken else path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # it is a .py file
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    is_loaded = False
    try:
        with Guard(f"importing {path}") as ran:
            spec.loader.exec_module(module)
            is_loaded = True
            return module
    finally:  # also where it was interrupted
        if not is_loaded:
            del sys.modules[name]
    raise _broken(os.fspath(path), ran.error) from ran.error


def _import(name: str) -> ModuleType:
    with Guard(f"importing {name}") as ran:
        return importlib.import_module(name)
    missing = getattr(ran.error, "name", None) or ""
    is_there = name != missing and not name.startswith(missing + ".")
    if not isinstance(ran.error, ModuleNotFoundError) or is_there:
        raise _broken(name, ran.error) from ran.error
    parent, _, last = missing.rpartition(".")
    path = getattr(sys.modules.get(parent), "__path__", []) if parent else [os.getcwd()]
    near = _near(last, [entry.name for entry in pkgutil.iter_modules(path)])
    raise TargetError(
        f"there is no module {missing!r}", where=f"{os.getcwd()} and sys.path", do=near
    ) from ran.error


def _broken(name: str, error: Exception | None) -> TargetError:
    frames = traceback.extract_tb(error.__traceback__) if error else []
    frames = [frame for frame in frames if "importlib" not in frame.filename] or [*frames]
    where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    got = f"{type(error).__name__}: {error}"
    return TargetError(f"{name} cannot be imported", where=where, got=got)


def everything_in(module: ModuleType) -> Iterator[Target]:
    """Find all there is to check in a module, or in all modules of a package, each once."""
    seen: set[int] = set()
    for part in _modules(module):
        targets = [part] if isinstance(part, Target) else subjects_in(part)
        for target in targets:
            if target.error or target.arguments or id(target.subject) not in seen:
                seen.add(id(target.subject))
                yield target


def _modules(module: ModuleType) -> Iterator[ModuleType | Target]:
    yield module
    path = getattr(module, "__path__", None)
    if path is None:
        return
    prefix = module.__name__ + "."
    for entry in pkgutil.walk_packages(path, prefix, onerror=lambda name: None):
        if entry.name.rpartition(".")[2] == MAIN or entry.name.startswith(PLUGIN):
            continue
        try:
            yield _import(entry.name)
        except TargetError as error:
            yield Target(entry.name, error=error.message)


def subjects_in(module: ModuleType) -> list[Target]:
    """Find marks, then custom VJPs and JVPs, operations, (forward, backward) pairs, rules."""
    found = list(marked_in(module))
    taken = {id(target.subject) for target in found}
    for name, value in list(vars(module).items()):
        value = _without_jit(value)
        if _in_a_case(module, value):
            continue
        if _has_own_gradient(value) and _defined_in(module, value) and id(value) not in taken:
            taken.add(id(value))
            found.append(Target(f"{module.__name__}:{name}", value, module))
    found += _pairs(module, found)
    found += [
        Target(f"{module.__name__}:{rule.primitive.name}", rule, module, brings_inputs=True)
        for rule in _rules(module)
    ]
    return found


def marked_in(module: ModuleType) -> Iterator[Target]:
    """Tell what ``functional_bp.checked`` marks in a module."""
    bound = {id(value): name for name, value in reversed(list(vars(module).items()))}
    names: dict[str, int] = {}
    for mark in marks_in(module):
        own = getattr(mark.subject, "__name__", "") or f"line {mark.line}"
        name = mark.options.get("name") or bound.get(id(mark.subject), own)
        names[name] = names.get(name, 0) + 1
        times = f"[{names[name]}]" if names[name] > 1 else ""
        options = {key: value for key, value in mark.options.items() if key != "name"}
        yield Target(
            f"{module.__name__}:{name}{times}",
            mark.subject,
            module,
            mark.arguments,
            options,
            line=mark.line,
        )


def lookup(text: str, module: ModuleType | None = None) -> Any:
    """Find the object that ``MODULE:NAME`` or ``FILE.py:NAME`` stands for, or ``NAME`` of a module.

    Raises:
        TargetError: there is no such module or name.
    """
    where, _, name = text.rpartition(":")
    home = load(where) if where else module
    value = _attribute(home, name)
    if home is None or value is None:
        near = _near(name, list(vars(home))) if home else "write MODULE:NAME"
        raise TargetError(f"{home.__name__ if home else text} has no {name!r}", do=near)
    return value


def _attribute(module: Any, name: str) -> Any:
    value = module
    for part in name.split("."):
        value = getattr(value, part, None)
    return value


def _named(module: ModuleType, name: str) -> Target:
    full = f"{module.__name__}:{name}"
    marked, pairs, rules = list(marked_in(module)), _pairs(module, []), _rules(module)
    value = _without_jit(_attribute(module, name))
    for target in (*marked, *([] if _has_own_gradient(value) else pairs)):
        if target.short_name == name:
            return target
    if value is not None:
        return Target(full, value, module)
    for rule in rules:
        if rule.primitive.name == name:
            return Target(full, rule, module, brings_inputs=True)
    names = [*vars(module), *(rule.primitive.name for rule in rules)]
    names += [target.short_name for target in (*marked, *pairs)]
    near = _near(name.split(".")[0], names)
    raise TargetError(f"{module.__name__} has no {name!r}", do=near)


def _pairs(module: ModuleType, found: Sequence[Target]) -> list[Target]:
    """``foo_fwd`` and ``foo_bwd``, unless they are a custom VJP's own or marked already."""
    names = dict(vars(module))
    own = [value for value in names.values() if _has_own_gradient(value)]
    used = {id(getattr(value, part, None)) for value in own for part in ("fwd", "bwd")}
    for target in found:
        parts = target.subject if isinstance(target.subject, tuple) else (target.subject,)
        used |= {id(part) for part in parts}
    pairs: list[Target] = []
    for forward_end, backward_end in PAIRS:
        for name, forward in names.items():
            base = name.removesuffix(forward_end)
            backward = names.get(base + backward_end)
            if base == name or not callable(forward) or not callable(backward):
                continue
            if not used & {id(forward), id(backward), id(names.get(base, forward))}:
                reference = names.get(base)
                options = {"reference": reference} if callable(reference) else {}
                full = f"{module.__name__}:{base}"
                pairs.append(Target(full, (forward, backward), module, options=options))
    return pairs


def _rules(module: ModuleType) -> list[Any]:
    """The rules that are declared in a module's file; all of them for this package itself."""
    every = module.__name__ == "functional_bp"
    here = [rule for rule in rules.values() if every or rule.file == module.__file__]
    differentiated = lambda rule: rule.pullbacks or rule.joint or rule.higher_order
    return [rule for rule in here if rule.cases and differentiated(rule)]


def _in_a_case(module: ModuleType, value: Any) -> bool:
    """Whether it is a function of this package that only a rule's case calls."""
    return module.__name__.startswith("functional_bp.vjps") and not isinstance(value, Operation)


def _has_own_gradient(value: Any) -> bool:
    return isinstance(value, jax.custom_vjp | jax.custom_jvp | Operation)


def _without_jit(value: Any) -> Any:
    """The function inside ``jax.jit``, if it has a gradient of its own."""
    inner = getattr(value, "__wrapped__", None)
    is_jitted = hasattr(value, "lower") and hasattr(value, "trace")
    return inner if is_jitted and _has_own_gradient(inner) else value


def _defined_in(module: ModuleType, value: Any) -> bool:
    """Whether it is the module's own, not imported from the one that it says it comes from."""
    home = getattr(value, "__module__", None)
    other = sys.modules.get(home) if isinstance(home, str) else None
    return other in (None, module) or all(known is not value for known in vars(other).values())


def _near(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, sorted(set(names)), n=4)
    return f"near it: {', '.join(near)}" if near else ""


# The inputs that a target is checked on: given, described, or the module's own.

DTYPES = {short: name for name, short in SHORT_DTYPES.items()}
HIGHEST_INTEGER = 3  # of those drawn without a range: small enough to be an index
ARRAY = re.compile(
    r"(?P<dtype>[a-z]+[0-9]*)(?:\[(?P<shape>[0-9, ]*)\])?"
    r"(?::(?P<low>[-+.e0-9]+?)\.\.(?P<high>[-+.e0-9]+))?"
)
WAYS = (
    "give --shape x=f32[4,3] for every argument, or --inputs FILE.npz with an array for each;\n"
    "            or write example_inputs() into the module, which returns a tuple of arguments;\n"
    "            or mark it with @bp.checked(x, ...)"
)


class InputsError(BackpropError, ValueError):
    """There are no inputs to check something on, or they do not fit it."""


def inputs_for(
    target: Target,
    *,
    file: str | None = None,
    shapes: Sequence[str] = (),
    seed: int = 0,
    what: str = "check it on",
    is_shape: bool = False,
) -> tuple[Any, ...]:
    """Return the arguments to check a target on, by the first of these ways that there is.

    Args:
        target: what is checked.
        file: an ``.npz`` file with an array for every argument, or a ``.py`` file with a function
            ``example_inputs``.
        shapes: ``x=f32[4,3]``, for every argument that has no default.
        seed: of the random numbers.
        what: is done with them, for the message.
        is_shape: make no array of ``shapes``, but ``jax.ShapeDtypeStruct``.

    Returns:
        From the file, from the shapes, of the target's mark, from ``example_inputs`` of its
        module, or the defaults of its parameters where all have one.

    Raises:
        InputsError: there are none, or they do not fit.
    """
    function = signed_function(target)
    if file is not None:
        return _checked(target, function, _from_file(target, function, file))
    if shapes:
        return _checked(target, function, _from_shapes(target, function, shapes, seed, is_shape))
    if target.arguments:
        (first, *others) = target.arguments
        if not others and callable(first):
            made = first()
            first, others = (made[0], made[1:]) if isinstance(made, tuple) and made else (made, ())
        return _checked(target, function, (first, *others))
    if target.brings_inputs:
        return ()
    example = _from_module(target)
    if example is None:
        example = _defaults(function)
    if example is None:
        raise InputsError(
            f"{target.name}: no inputs to {what}",
            got=f"the signature {target.short_name}{_signature(function) or '(…)'}",
            do=WAYS,
        )
    return _checked(target, function, example)


def signed_function(target: Target) -> Any:
    """Return the function whose parameters are meant: of a pair, the reference or the forward."""
    if not isinstance(target.subject, tuple):
        return target.subject
    return target.options.get("reference") or target.subject[0]


def positions(target: Target, names: Sequence[str]) -> tuple[int, ...]:
    """Return the positions of the arguments with these names.

    Raises:
        InputsError: there is no argument of that name.
    """
    parameters = _parameters(target, signed_function(target))
    _no_strangers(target, names, parameters)
    return tuple(list(parameters).index(name) for name in names)


def draw(text: str, rng: np.random.Generator, is_shape: bool = False) -> Any:
    """Draw an array after ``f32[4,3]``, ``f32[4,3]:0..1``, ``i32[5]:0..9``; or read a literal.

    With ``is_shape`` it is a ``jax.ShapeDtypeStruct``, however large.

    Floats are normally distributed, or uniform in their range; integers are drawn from 0 to 3, or
    from their range with both ends; complex numbers have a range for either part.

    Raises:
        ValueError: it is neither, or asks for a dtype that is switched off.
    """
    match = ARRAY.fullmatch(text.strip())
    if match is None or match["dtype"] not in {*DTYPES, *DTYPES.values(), "key"}:
        return _literal(text)
    shape = tuple(int(size) for size in (match["shape"] or "").split(",") if size.strip())
    limits = (float(match["low"]), float(match["high"])) if match["low"] else None
    if match["dtype"] == "key":
        keys = jax.random.split(jax.random.key(int(rng.integers(2**31))), shape or (1,))
        return keys if shape else keys[0]
    name = DTYPES.get(match["dtype"], match["dtype"])
    return jax.ShapeDtypeStruct(shape, name) if is_shape else _array(shape, name, limits, rng)


def _array(
    shape: tuple[int, ...], name: str, limits: tuple[float, float] | None, rng: np.random.Generator
) -> Any:
    dtype = jnp.dtype(name)
    if dtype.itemsize // (2 if dtype.kind == "c" else 1) > 4 and not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        raise ValueError(f"{name} is switched off: set the environment variable JAX_ENABLE_X64=1")
    if dtype.kind == "b":
        return jnp.asarray(rng.integers(0, 2, shape), bool)
    if dtype.kind in "iu":
        low, high = limits or (0, HIGHEST_INTEGER)
        return jnp.asarray(rng.integers(int(low), int(high) + 1, shape), dtype)
    reals = lambda: rng.uniform(*limits, shape) if limits else rng.standard_normal(shape)
    values = reals() + 1j * reals() if dtype.kind == "c" else reals()
    return jnp.asarray(np.asarray(values).astype(dtype))


def _literal(text: str) -> Any:
    """``-1``, ``"relu"``, ``(0, 1)``, ``None``."""
    if re.fullmatch(r"[0-9 ]+(,[0-9 ]+)+", text):
        raise ValueError(f"{text}: say f32[{text}] for an array, or ({text}) for a tuple")
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{text}: neither an array nor a Python literal") from error


def _from_file(target: Target, function: Any, file: str) -> tuple[Any, ...]:
    if file.endswith(".py"):
        example = _from_module(dataclasses.replace(target, module=load_file(Path(file))))
        if example is None:
            raise InputsError(
                f"{file} has no inputs for {target.name}",
                expected=f"example_inputs(), or example_inputs(name) for {target.short_name!r}",
                do="let it return a tuple of arguments",
            )
        return example
    try:
        with np.load(file) as stored:
            arrays = {name: jnp.asarray(stored[name]) for name in stored.files}
    except (OSError, ValueError) as error:
        raise InputsError(
            f"{file} cannot be read as an .npz file",
            got=f"{error}",
            do='write it with numpy.savez("inputs.npz", x=x, scale=scale)',
        ) from error
    if arrays and all(name == f"arr_{i}" for i, name in enumerate(arrays)):
        return tuple(arrays.values())  # numpy.savez(file, x, scale): in their order
    nested: dict[str, Any] = {}
    for name, array in arrays.items():  # params/W1 is the entry W1 of the argument params
        *outer, last = name.split("/")
        inside = nested
        for part in outer:
            inside = inside.setdefault(part, {})
        inside[last] = array
    return _in_order(target, function, nested)


def _from_shapes(
    target: Target, function: Any, shapes: Sequence[str], seed: int, is_shape: bool
) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    values: dict[str, Any] = {}
    for text in shapes:
        name, equals, description = text.partition("=")
        try:
            if not equals:
                raise ValueError("there is no =")
            values[name.strip()] = draw(description, rng, is_shape)
        except ValueError as error:
            raise InputsError(
                f"--shape {text} cannot be read",
                got=str(error),
                expected="--shape x=f32[4,3], also i32[5], bool[3], f32[4,3]:0..1, axis=-1",
            ) from error
    return _in_order(target, function, values)


def _from_module(target: Target) -> tuple[Any, ...] | None:
    example = getattr(target.module, "example_inputs", None)
    if not callable(example):
        return None
    made = example(target.short_name) if _parameter_count(example) else example()
    if isinstance(made, Mapping):
        made = made.get(target.short_name)
    if made is None:
        return None
    return tuple(made) if isinstance(made, tuple | list) else (made,)


def _defaults(function: Any) -> tuple[Any, ...] | None:
    parameters = _positional(function) or {}
    defaults = tuple(parameter.default for parameter in parameters.values())
    lacking = any(default is inspect.Parameter.empty for default in defaults)
    return None if lacking or not defaults else defaults


def _in_order(target: Target, function: Any, values: Mapping[str, Any]) -> tuple[Any, ...]:
    """Values by name as positional arguments; defaults fill the places between."""
    parameters = _parameters(target, function)
    _no_strangers(target, list(values), parameters)
    missing = [
        name for name, p in parameters.items() if name not in values and p.default is p.empty
    ]
    if missing:
        raise InputsError(
            f"{target.name}: nothing is given for {', '.join(missing)}",
            got=", ".join(values),
            expected=", ".join(parameters),
            do=f"add --shape {missing[0]}=f32[4,3], or its array to the file",
        )
    last = max((list(parameters).index(name) for name in values), default=-1)
    return tuple(values.get(name, p.default) for name, p in list(parameters.items())[: last + 1])


def _no_strangers(target: Target, names: Sequence[str], parameters: Mapping[str, Any]) -> None:
    for name in names:
        if name not in parameters:
            near = difflib.get_close_matches(name, list(parameters), n=3)
            raise InputsError(
                f"{target.name} has no argument {name!r}",
                expected=", ".join(parameters),
                do=f"near it: {', '.join(near)}" if near else "",
            )


def _parameters(target: Target, function: Any) -> dict[str, inspect.Parameter]:
    """The positional parameters by name."""
    found = _positional(function)
    if found is None:
        raise InputsError(
            f"{target.name}: the names of its arguments are not known",
            got=f"{type(function).__name__} without a signature",
            do="give the arguments in order: numpy.savez(file, x, scale), or @bp.checked",
        )
    return found


def _positional(function: Any) -> dict[str, inspect.Parameter] | None:
    signature = _signature(function)
    if signature is None:
        return None
    keyword_only = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
    return {n: p for n, p in signature.parameters.items() if p.kind not in keyword_only}


def _checked(target: Target, function: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments, if the signature takes so many."""
    if (found := misfit(function, arguments)) is not None:
        signature, why = found
        raise InputsError(
            f"the inputs do not fit {target.name}",
            got=f"{len(arguments)} arguments: {why}",
            expected=f"{target.short_name}{signature}",
        )
    return arguments


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


def _parameter_count(function: Callable[..., Any]) -> int:
    signature = _signature(function)
    return 0 if signature is None else len(signature.parameters)
