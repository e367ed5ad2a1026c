"""Importing the package loads nothing at all; using it, nothing that JAX does not need itself."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from sampling import sampled

import functional_bp as bp

HEAVY = ("rich", "optax", "chex", "sklearn", "IPython", "matplotlib", "hypothesis", "pytest")


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("module", ["functional_bp", "functional_bp.cli.main"])
def test_import_initialises_no_backend(module: str) -> None:
    # jax refuses to change the number of devices once a backend exists
    code = f"import jax, {module}; jax.config.update('jax_num_cpu_devices', 3); print('free')"
    assert run(code) == "free"


def test_the_witness_sees_an_initialised_backend() -> None:
    code = "import jax; jax.devices(); jax.config.update('jax_num_cpu_devices', 3)"
    with pytest.raises(subprocess.CalledProcessError) as failure:
        run(code)
    assert "should be updated before backends are initialized" in failure.value.stderr


@pytest.mark.parametrize("name", sampled(["grad", "trace", "rules", "check"], 4))
def test_use_loads_no_heavy_module(name: str) -> None:
    code = (
        "import sys, jax, jax.numpy; before = set(sys.modules); "
        f"import functional_bp as bp; bp.{name}; print(*(set(sys.modules) - before))"
    )
    loaded = {module for module in run(code).split() if not module.startswith("functional_bp")}
    assert not {module for module in loaded if module.startswith(HEAVY)}
    # The rest is the standard library and modules of JAX that the rules name.
    foreign = {n for n in loaded if n.split(".")[0] not in sys.stdlib_module_names}
    assert {n.split(".")[0] for n in foreign} <= {"jax", "jaxlib", "numpy", "scipy"}, foreign


# Names are imported when they are used


LIGHT = ["", ".cli.main", ".gradcheck", ".gradcheck.marks", ".gradcheck.plugin", ".cli.check"]


@pytest.mark.parametrize("module", LIGHT)
def test_import_alone_loads_no_jax(module: str) -> None:
    code = (
        f"import sys, functional_bp{module}; names = {{n.split('.')[0] for n in sys.modules}}; "
        "print(*(names & {'jax', 'jaxlib', 'numpy', 'scipy', 'rich'}))"
    )
    assert run(code) == ""


def test_the_witness_sees_that_jax_is_loaded() -> None:
    assert run("import sys, functional_bp as bp; bp.grad; print('jax' in sys.modules)") == "True"


def test_marking_and_help_need_no_jax() -> None:
    code = (
        "import sys; sys.modules['jax'] = None\n"
        "import functional_bp as bp; from functional_bp.cli.main import main\n"
        "bp.checked(1.0)(abs); bp.Report; assert main(['--help']) == 0\n"
        "assert main(['check', '--help']) == 0; print('done')"
    )
    assert run(code).endswith("done")


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(bp.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    }
    assert seen == bp._HOME and sorted(seen) == bp.__all__


@pytest.mark.parametrize("name", bp.__all__)
def test_every_name_is_what_its_module_has(name: str) -> None:
    assert name in dir(bp)
    assert getattr(bp, name) is getattr(importlib.import_module(bp._HOME[name]), name)


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="module 'functional_bp' has no attribute 'gradient'"):
        bp.gradient  # type: ignore[attr-defined]  # noqa: B018
    assert issubclass(bp.errors.WrongGradientError, bp.errors.BackpropError)


@pytest.mark.parametrize(
    "first",
    sampled(
        [
            "import functional_bp.gradcheck.report, functional_bp.vjps.shapes",
            "from functional_bp.gradcheck import check; from functional_bp.vjps import shapes",
            "from functional_bp import *",
            "from functional_bp import check, rules",
        ],
        4,
    ),
)
def test_whatever_is_imported_first(first: str) -> None:
    code = f"{first}\nimport functional_bp as bp; print(callable(bp.check), len(bp.rules) > 100)"
    assert run(code) == "True True"


@pytest.mark.parametrize(
    "first",
    sampled(
        [
            "from functional_bp.graph import trace",
            "from functional_bp.gradcheck.check import check",
            "import functional_bp.vjps",
            "import functional_bp as bp; bp.rule",
        ],
        4,
    ),
)
def test_whatever_differentiates_has_all_rules(first: str) -> None:
    code = f"{first}; from functional_bp.engine.rule import rules; print(len(rules))"
    assert run(code) == str(len(bp.rules))
