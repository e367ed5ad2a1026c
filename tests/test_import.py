"""Importing the package touches no device and loads nothing that JAX itself does not need."""

import subprocess
import sys

import pytest

HEAVY = ("rich", "optax", "chex", "sklearn", "IPython", "matplotlib", "hypothesis", "pytest")


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("module", ["functional_bp", "functional_bp.cli"])
def test_import_initialises_no_backend(module: str) -> None:
    # jax refuses to change the number of devices once a backend exists
    code = f"import jax, {module}; jax.config.update('jax_num_cpu_devices', 3); print('free')"
    assert run(code) == "free"


def test_the_witness_sees_an_initialised_backend() -> None:
    code = "import jax; jax.devices(); jax.config.update('jax_num_cpu_devices', 3)"
    with pytest.raises(subprocess.CalledProcessError) as failure:
        run(code)
    assert "should be updated before backends are initialized" in failure.value.stderr


@pytest.mark.parametrize("module", ["functional_bp", "functional_bp.cli"])
def test_import_loads_no_heavy_module(module: str) -> None:
    code = (
        "import sys, jax, jax.numpy; before = set(sys.modules); "
        f"import {module}; print(*(set(sys.modules) - before))"
    )
    loaded = {name for name in run(code).split() if not name.startswith("functional_bp")}
    assert not {name for name in loaded if name.startswith(HEAVY)}
    # The rest is the standard library and modules of JAX that the rules name.
    foreign = {n for n in loaded if n.split(".")[0] not in sys.stdlib_module_names}
    assert {name.split(".")[0] for name in foreign} <= {"jax", "jaxlib", "numpy", "scipy"}, foreign
