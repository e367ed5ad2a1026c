"""A small GPT learns to continue Python's own documentation, which ships with Python.

Two blocks of causal attention on characters; each batch is drawn anew from the text. It begins at
the entropy of a guess among all characters, and ends in words.

Run: python examples/small_gpt.py [steps]
"""

import sys
from pydoc_data.topics import topics

import gpt
import jax
import numpy as np
import optax

from functional_bp import train

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 600
CONTEXT, BATCH = 64, 16

text = "\n".join(topics[name] for name in sorted(topics))[:200_000]
characters = sorted(set(text))
code = {character: k for k, character in enumerate(characters)}
tokens = np.array([code[character] for character in text], np.int32)
held_out = tokens[-20_000:]


def batches(epoch):
    """Pieces of the text, and the same pieces one character on: both i32[b,t]."""
    rng = np.random.default_rng([0, epoch])
    while True:
        starts = rng.integers(0, len(tokens) - len(held_out) - CONTEXT - 1, BATCH)
        pieces = tokens[starts[:, None] + np.arange(CONTEXT + 1)]
        yield pieces[:, :-1], pieces[:, 1:]


pieces = held_out[: len(held_out) // (CONTEXT + 1) * (CONTEXT + 1)].reshape(-1, CONTEXT + 1)
params = gpt.init(jax.random.key(0), len(characters), width=64, layers=2, context=CONTEXT)
rate = optax.warmup_cosine_decay_schedule(0.0, 4e-3, 50, STEPS)
state, history = train.fit(
    train.supervised(gpt.apply, "cross_entropy", ["accuracy"]),
    params,
    batches,
    optimizer=optax.adamw(rate),
    clip_norm=1.0,
    steps_per_epoch=50,
    epochs=-(-STEPS // 50),
    validation_data=(pieces[:, :-1], pieces[:, 1:]),
)

start = "The import statement "
beginning = np.array([[code[character] for character in start]], np.int32)
written = gpt.generate(state.params, beginning, 200, jax.random.key(1), temperature=0.5)
print("".join(characters[k] for k in written[0]))
print(f"held-out loss {history['val_loss'][-1]:.2f} nats; a guess has {np.log(len(code)):.2f}")
assert history["val_loss"][-1] < 2.4  # a table of what follows each character has 2.48
