"""Eight simulated devices, double precision and reproducible random programs for every test."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()

import jax  # noqa: E402  (reads XLA_FLAGS)
from checked_package import calls, ops  # noqa: E402, F401  (fixtures)
from hypothesis import settings  # noqa: E402
from keras_on_jax import keras  # noqa: E402, F401  (a fixture)

jax.config.update("jax_enable_x64", True)
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")
