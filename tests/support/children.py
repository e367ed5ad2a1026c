"""Processes that a test may kill, forked by one that has imported everything: they start at once.

What they run is a function of a module, which is handed the writing end of a pipe.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["functional_bp.train.checkpoints", "orbax.checkpoint", "optax", "pytest"]
)


def start(function: Callable[..., Any], *args: Any) -> tuple[ForkServerProcess, Connection]:
    """The process of ``function(pipe, *args)``, and the end of the pipe where one reads."""
    reads, writes = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=function, args=(writes, *args))
    process.start()
    writes.close()
    return process, reads


def rest(reads: Connection) -> list[Any]:
    """What was sent until the process ended."""
    sent = []
    with reads:
        while True:
            try:
                sent.append(reads.recv())
            except EOFError:
                return sent
