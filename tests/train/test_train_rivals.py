"""The other sides of ``bench train`` train the same models; run with ``-m libraries``."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import jax
import pytest

from benchmarks.train import AGREED, FITS, SIDES
from benchmarks.trainers import tasks

pytestmark = [
    pytest.mark.libraries,
    # PyTorch's compiler calls what PyTorch has deprecated, and looks at gradients of results.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]

SMALL = {
    "mlp": lambda: tasks.mlp_task(inputs=6, hidden=8, batch_size=4),
    "lenet": lambda: tasks.lenet_task(pixels=16, batch_size=2),
    "lstm": lambda: tasks.lstm_task(length=5, inputs=3, units=4, batch_size=2),
    "gpt": lambda: tasks.gpt_task(length=6, width=16, vocabulary=11, batch_size=2),
}


@pytest.fixture(autouse=True)
def single(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Single precision, as the command runs in, and Keras on JAX."""
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with jax.enable_x64(False):
        yield


@pytest.mark.parametrize("side", [side for side in SIDES if SIDES[side].package])
@pytest.mark.parametrize("name", SMALL)
def test_the_same_loss_after_steps(name: str, side: str) -> None:
    package = SIDES[side].package
    if package and not find_spec(package):
        pytest.skip(f"{package} is not installed: PyTorch is gigabytes, and only a rival here")
    task = SMALL[name]()
    # Adam divides by √v: where a gradient is nearly zero its rounding decides about a whole step
    # of 1e-3, in one of hundreds of parameters.
    assert SIDES[side].trainer(task)(AGREED) == pytest.approx(
        SIDES["jax"].trainer(task)(AGREED), rel=1e-4
    )


@pytest.mark.parametrize("fit", FITS)
def test_fits_call_back_after_every_epoch(fit: str) -> None:
    calls: list[int] = []
    epochs, _ = FITS[fit]
    seconds = epochs(SMALL["mlp"](), 3, 2, lambda: calls.append(len(calls)))
    assert calls == [0, 1] and len(seconds) == 2 and min(seconds) > 0
