"""Eight simulated devices, quick compilations, double precision, reproducible random programs."""

import gc
import os
from collections.abc import Iterator
from importlib.metadata import version

# What the tests cost is compiling, on arrays of a dozen elements: XLA optimises as little as it
# can. A level that XLA_FLAGS already holds stays, so that a run as users have it is
# XLA_FLAGS=--xla_backend_optimization_level=3 python -m pytest
FLAGS = ["--xla_force_host_platform_device_count=8"]
if "xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
    FLAGS += ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
    if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):  # newer ones lack the flag
        FLAGS += ["--xla_cpu_use_fusion_emitters=false"]
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS]).strip()

import comparisons  # noqa: E402
import jax  # noqa: E402  (reads XLA_FLAGS)
import pytest  # noqa: E402
from checked_package import calls, ops  # noqa: E402, F401  (fixtures)
from hypothesis import settings  # noqa: E402
from keras_on_jax import keras  # noqa: E402, F401  (a fixture)
from sampling import leave_to_long  # noqa: E402

from functional_bp.gradcheck import guard  # noqa: E402

guard.OWN_FAULTS_RAISE = True
jax.config.update("jax_enable_x64", True)
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(autouse=True, scope="module")
def few_compiled_programs() -> Iterator[None]:
    """Hundreds of compiled programs in memory slow down whatever comes after them."""
    yield
    jax.clear_caches()


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    leave_to_long(items)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # what is imported by now stays: no collection has to look at it again


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    comparisons.count(report)


def pytest_sessionfinish(session: pytest.Session) -> None:
    comparisons.fail_if_silent(session)
