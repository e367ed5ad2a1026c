"""The graphs of two textbooks, drawn with every value and every gradient.

Run: python examples/textbook_pictures.py [FOLDER]   (examples/pictures holds what it writes)
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp

import functional_bp as bp


def g(x, y, z):  # CS231n, lecture 4
    p = bp.name(x + y, "p")
    return p * z


def f(x, y, z):  # CS231n, notes on backpropagation
    q = bp.name(x + y, "q")
    return q * z


def neuron(w0, x0, w1, x1, w2):  # the same: a sigmoid neuron, in pieces or with a gate
    with jax.named_scope("sigmoid"):
        return 1 / (1 + jnp.exp(-(w0 * x0 + w1 * x1 + w2)))


def neuron_gate(w0, x0, w1, x1, w2):
    s = w0 * x0 + w1 * x1 + w2
    with jax.named_scope("sigmoid"):
        return 1 / (1 + jnp.exp(-s))


def patterns(x, y, z, w):  # the same: + distributes, ∗ swaps, max routes
    return 2 * (x * y + jnp.maximum(z, w))


def branches(x, y):  # what several uses contribute is summed
    return x * y + x


def network(params, x, y, rate=0.1):  # Dive into Deep Learning, Fig. 5.3.1
    z = params["W1"] @ x
    if "b1" in params:
        z = bp.name(z, "a") + params["b1"]
    with jax.named_scope("phi"):
        h = bp.name(jnp.tanh(bp.name(z, "z")), "h")
    o = bp.name(params["W2"] @ h, "o")
    with jax.named_scope("l"):
        loss = bp.name(jnp.sum((o - y) ** 2) / 2, "L")
    with jax.named_scope("l2"):
        s = rate / 2 * (jnp.sum(params["W1"] ** 2) + jnp.sum(params["W2"] ** 2))
    return bp.name(loss + bp.name(s, "s"), "J")


W1 = jnp.array([[0.5, -0.2, 0.1], [-0.3, 0.8, 0.4], [0.2, 0.1, -0.6], [0.7, -0.5, 0.3]])
W2 = jnp.array([[0.4, -0.7, 0.2, 0.5], [-0.1, 0.3, 0.6, -0.8]])
PLAIN = {"W1": W1, "W2": W2}, jnp.array([1.0, -0.9, -0.75]), jnp.array([1.0, 0.0])
BIASED = {**PLAIN[0], "b1": jnp.array([0.1, 0.0, -0.2, 0.3])}, *PLAIN[1:]
WEIGHTS = (2.0, -1.0, -3.0, -2.0, -3.0)
GATES = ("phi", "l", "l2")
PICTURES = {  # file: function, where, style, gates
    "sum_times_z": (g, (1.0, 3.0, -3.0), "cs231n", ()),
    "sum_times_z_cs231n": (f, (-2.0, 5.0, -4.0), "cs231n", ()),
    "neuron": (neuron, WEIGHTS, "cs231n", ()),
    "neuron_gate": (neuron_gate, WEIGHTS, "cs231n", ("sigmoid",)),
    "patterns": (patterns, (3.0, -4.0, 2.0, -1.0), "cs231n", ()),
    "branches": (branches, (3.0, -2.0), "cs231n", ()),
    "network": (network, PLAIN, "d2l", GATES),
    "network_bias": (network, BIASED, "d2l", GATES),
}
folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
for file, (function, args, style, gates) in PICTURES.items():
    explanation = bp.explain(function, *args)
    explanation.save(folder / f"{file}.svg", style, "auto", gates=gates)
assert bp.explain(neuron, *WEIGHTS).cotangent["x1"].round(2) == -0.59
