"""Benchmarks that anyone can run: ``python -m benchmarks engine``, ``check`` and ``train``."""
