"""Training with own gradients: a jit-compiled step on optax, and a first complete run."""
