"""The fixture of tests that compare with Keras."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def keras(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Keras, which chooses its backend when it is imported."""
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    import keras

    assert keras.backend.backend() == "jax"
    before = keras.config.floatx()
    keras.config.set_floatx("float32")
    yield keras
    keras.config.set_floatx(before)
