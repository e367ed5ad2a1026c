"""The folder is the flow: imports go one way, down the list of folders, and there is no circle."""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "functional_bp"
TESTS = sorted(Path(__file__).parent.rglob("*.py"))

# A file may import from its own folder and from those above it in this list.
ORDER = [
    "_jax", "errors", "processes", "definitions", "tables", "engine", "vjps", "graph", "layouts",
    "memory", "gradcheck", "explanation", "train", "shard", "functional_bp", "cli", "__main__",
]  # fmt: skip


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def module_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def place(module: str) -> int:
    """Where in ``ORDER`` a module stands; the package itself gathers the public names."""
    return ORDER.index((module.split(".") + ["functional_bp"])[1 if "." in module else 0])


def imported(file: Path) -> Iterator[str]:
    """All that a file imports, in function bodies and for types too."""
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}:{node.lineno}: relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES or node.module is None else node.module


def inside(module: str) -> set[str]:
    """Which modules of the package a module imports."""
    return {name for name in imported(MODULES[module]) if name in MODULES and name != module}


GRAPH = {module: inside(module) for module in MODULES}


def test_imports_go_down_the_list() -> None:
    upwards = [
        f"{module} imports {name}"
        for module, names in GRAPH.items() if module != "functional_bp"
        for name in names if place(name) > place(module)
    ]  # fmt: skip
    assert not upwards


def circle(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_there_is_no_circle() -> None:
    assert not circle({m: names for m, names in GRAPH.items() if m != "functional_bp"})
    assert circle({**GRAPH, "functional_bp.errors": {"functional_bp.engine.rule"}})


def test_private_jax_is_imported_in_one_file_only() -> None:
    found = {m for m, file in MODULES.items() if any("jax._src" in n for n in imported(file))}
    assert found == {"functional_bp._jax"}


def test_files_are_one_idea_long() -> None:
    lines = {f: len(f.read_text().splitlines()) for f in [*MODULES.values(), *TESTS]}
    assert not [str(file) for file, count in lines.items() if count >= 800]


def test_a_public_class_has_a_name_of_its_own() -> None:
    owners: dict[str, list[str]] = {}
    for module, file in MODULES.items():
        for node in parsed(file).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                owners.setdefault(node.name, []).append(module)
    assert len(owners) > 100
    assert not {name: modules for name, modules in owners.items() if len(modules) > 1}


# A command bears the name of what it runs, a format of reports that of a format of tables.
SAME_THING = {"check", "footprint", "html", "markdown", "plan", "text", "__init__"}


def test_a_file_has_a_name_of_its_own() -> None:
    stems = [file.stem for file in MODULES.values() if file.stem not in SAME_THING]
    assert not {stem for stem in stems if stems.count(stem) > 1}
