"""The folder is the flow: imports go one way, down the list of layers to the ones above."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "functional_bp"
FILES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted(Path(__file__).parent.rglob("*.py"))

# A module may import from its own layer and from those above it in this list.
LAYERS = [
    ["errors", "_jax"],
    ["cases", "rule"],
    ["structure"],
    ["steps"],
    ["plan"],
    ["residuals"],
    ["backprop"],
    ["define_by_run"],
    ["tangents"],
    ["rules"],
    ["staging"],
    ["recording"],
    ["costs", "graph"],
    ["transforms"],
    ["jacobians"],
    ["operation"],
    ["ops"],
    ["check"],
    ["explain"],
    ["memory"],
    ["shard"],
    ["train"],
    ["demo"],
    ["functional_bp"],  # the package itself, which gathers the public names
    ["bench", "commands"],
    ["cli"],
    ["__main__"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

# Imports inside a function that look down the list, because a registry is filled from below.
LAZY = {
    ("structure", "rules"): "a primitive without a rule of ours gets the structure in rules/",
    ("rules", "transforms"): "an improvement of a second derivative is stated with our own grad",
}


def layer(module: str) -> str:
    """The entry of LAYERS that a dotted name belongs to: the part below the package."""
    package, _, rest = module.partition(".")
    first = rest.split(".")[0]
    is_module = (PACKAGE / first).is_dir() or (PACKAGE / f"{first}.py").exists()
    return first if first and is_module else package


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path) -> Iterator[tuple[str, int, bool]]:
    """The names that a file imports anywhere, with the line, and whether inside a function."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, node.col_offset > 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}:{node.lineno}: relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno, node.col_offset > 0


def looks_down(importer: str, imported: str) -> bool:
    """Whether an import goes against the order of the layers."""
    return LEVEL[layer(imported)] > LEVEL[layer(importer)]


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_imports_go_one_way(file: Path) -> None:
    importer = module_name(file)
    assert layer(importer) in LEVEL, f"add {layer(importer)!r} to LAYERS"
    for imported, line, inside in imports(file):
        if imported.split(".")[0] == "functional_bp":
            lazy = inside and (layer(importer), layer(imported)) in LAZY
            assert lazy or not looks_down(importer, imported), (
                f"{importer}:{line} imports {imported}, which stands below it"
            )


def test_the_order_can_be_violated() -> None:
    assert looks_down("functional_bp.errors", "functional_bp.rule.Rule")
    assert looks_down("functional_bp.rules.shapes", "functional_bp.grad")  # from functional_bp
    assert not looks_down("functional_bp.rules.shapes", "functional_bp.rule.rule")


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_private_jax_is_imported_in_one_module_only(file: Path) -> None:
    if file.name != "_jax.py":
        assert not [at for name, *at in imports(file) if name.startswith("jax._src")]


@pytest.mark.parametrize("file", [*FILES, *TESTS], ids=module_name)
def test_files_stay_short(file: Path) -> None:
    assert len(file.read_text().splitlines()) < 800
