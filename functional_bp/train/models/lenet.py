"""LeNet-5: two convolutions with average pooling, and three dense layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from functional_bp.errors import TrainingError, compose

GLOROT = jax.nn.initializers.glorot_uniform()
LAYOUT = ("NHWC", "HWIO", "NHWC")
SMALLEST = 12  # pixels: the second kernel must fit into an image of half the size


def init(
    key: Any,
    size: tuple[int, int] = (28, 28),
    channels: int = 1,
    classes: int = 10,
    dtype: Any = jnp.float32,
) -> dict[str, jax.Array]:
    """Weights uniform by Glorot's rule, biases 0, as Keras' layers have them.

    Args:
        key: a random key.
        size: height and width of the images, 12 pixels at least.
        channels: of the images.
        classes: how many.
        dtype: of the parameters.

    Returns:
        Kernels ``K1: f32[5,5,channels,6]`` and ``K2: f32[5,5,6,16]``, weights
        ``W3: f32[16 h w,120]``, ``W4: f32[120,84]``, ``W5: f32[84,classes]``, biases b1 to b5.

    Raises:
        TrainingError: the images are too small.

    Example:
        >>> import jax
        >>> init(jax.random.key(0))["W3"].shape
        (400, 120)
    """
    if min(size) < SMALLEST:
        raise TrainingError(
            compose("the images are too small for LeNet's second convolution",
                    got=f"{size[0]} × {size[1]} pixels",
                    expected=f"at least {SMALLEST} × {SMALLEST}",
                    do="enlarge or pad them, or train an mlp on their pixels")
        )  # fmt: skip
    height, width = ((pixels // 2 - 4) // 2 for pixels in size)
    shapes = {
        "K1": (5, 5, channels, 6), "K2": (5, 5, 6, 16),
        "W3": (height * width * 16, 120), "W4": (120, 84), "W5": (84, classes),
    }  # fmt: skip
    params = {}
    for i, (name, shape) in enumerate(shapes.items(), start=1):
        params[name] = GLOROT(jax.random.fold_in(key, i), shape, dtype)
        params[f"b{i}"] = jnp.zeros(shape[-1], dtype)
    return params


def apply(
    params: dict[str, Any], x: Any, *, activation: Callable[[Any], Any] = jnp.tanh
) -> jax.Array:
    """h1 = pool σ(x ∗ K1 + b1),  h2 = pool σ(h1 ∗ K2 + b2),  then three dense layers.

    The first convolution keeps the images' size (two pixels of zeros around them), the second
    takes four pixels off; pool is the mean of 2 × 2 pixels.

    Args:
        params: of ``init``.
        x: images ``f32[b,height,width,channels]``, or without channels if there is one.
        activation: σ.

    Returns:
        Logits ``f32[b,classes]``.
    """
    h = x if x.ndim == 4 else x[..., None]
    h = _pool(activation(_convolve(h, params["K1"], "SAME") + params["b1"]))
    h = _pool(activation(_convolve(h, params["K2"], "VALID") + params["b2"]))
    h = h.reshape(h.shape[0], -1)
    h = activation(h @ params["W3"] + params["b3"])
    h = activation(h @ params["W4"] + params["b4"])
    return h @ params["W5"] + params["b5"]


def _convolve(x: jax.Array, kernel: Any, padding: str) -> jax.Array:
    """(x ∗ K)[i, j, o] = Σ_{u v c} x[i + u, j + v, c] K[u, v, c, o]."""
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=LAYOUT)


def _pool(x: jax.Array) -> jax.Array:
    """The mean of every 2 × 2 pixels; a last odd row or column falls off."""
    zero = np.zeros((), x.dtype)  # a constant: JAX knows no gradient of a window from another start
    return lax.reduce_window(x, zero, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
