"""What there is to check in a module: named by a person, marked, or found by its kind and name."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import pkgutil
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from functional_bp.check.marks import marks_in
from functional_bp.errors import BackpropError, compose

PAIRS = (("_fwd", "_bwd"), ("_forward", "_backward"))  # foo_fwd, foo_bwd: a pullback of foo
MAIN = "__main__"
WITHOUT_GRADIENT = ("no tangent space", "piecewise constant")  # declared, not derived
CORPUS = "functional_bp.bench.corpus"  # what the check itself is measured on
PLUGIN = "functional_bp.check.plugin"  # needs pytest, and has no gradient in it


class TargetError(BackpropError, LookupError):
    """What is to be checked cannot be found or imported."""


@dataclass(frozen=True, eq=False)
class Target:
    """Something to check.

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
        """Its name in the module."""
        return self.name.rpartition(":")[2]


def find(text: str) -> Sequence[Target]:
    """What ``MODULE:NAME``, ``FILE.py:NAME``, ``MODULE`` or ``FILE.py`` stands for.

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
        raise TargetError(compose(f"there is no file {os.fspath(path)}", do=near))
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
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, Exception):
            raise _broken(os.fspath(path), error) from error
        raise
    return module


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name != missing and not name.startswith(missing + "."):
            raise _broken(name, error) from error
        parent, _, last = missing.rpartition(".")
        path = getattr(sys.modules.get(parent), "__path__", []) if parent else [os.getcwd()]
        near = _near(last, [entry.name for entry in pkgutil.iter_modules(path)])
        raise TargetError(
            compose(f"there is no module {missing!r}", where=f"{os.getcwd()} and sys.path", do=near)
        ) from error
    except Exception as error:
        raise _broken(name, error) from error


def _broken(name: str, error: Exception) -> TargetError:
    frames = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in frames if "importlib" not in frame.filename] or [*frames]
    where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    got = f"{type(error).__name__}: {error}"
    return TargetError(compose(f"{name} cannot be imported", where=where, got=got))


def everything_in(module: ModuleType) -> Iterator[Target]:
    """All there is to check in a module, or in all modules of a package, each once."""
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
        if entry.name.rpartition(".")[2] == MAIN or entry.name.startswith((PLUGIN, CORPUS)):
            continue
        try:
            yield _import(entry.name)
        except TargetError as error:
            yield Target(entry.name, error=str(error))


def subjects_in(module: ModuleType) -> list[Target]:
    """Marked first, then custom VJPs and JVPs, operations, (forward, backward) pairs, rules."""
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
    """What ``functional_bp.checked`` marks in a module."""
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
    """The object that ``MODULE:NAME`` or ``FILE.py:NAME`` stands for; ``NAME`` of a module given.

    Raises:
        TargetError: there is no such module or name.
    """
    where, _, name = text.rpartition(":")
    home = load(where) if where else module
    value = _attribute(home, name)
    if home is None or value is None:
        near = _near(name, list(vars(home))) if home else "write MODULE:NAME"
        raise TargetError(compose(f"{home.__name__ if home else text} has no {name!r}", do=near))
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
    raise TargetError(compose(f"{module.__name__} has no {name!r}", do=near))


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
    from functional_bp import rules

    every = module.__name__ == "functional_bp"
    here = [rule for rule in rules.values() if every or rule.file == module.__file__]
    return [rule for rule in here if rule.cases and rule.kind not in WITHOUT_GRADIENT]


def _in_a_case(module: ModuleType, value: Any) -> bool:
    """Whether it is a function of this package that only a rule's case calls."""
    from functional_bp.operation import Operation

    return module.__name__.startswith("functional_bp.rules") and not isinstance(value, Operation)


def _has_own_gradient(value: Any) -> bool:
    import jax

    from functional_bp.operation import Operation

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
