"""Several processes of one program, on this machine, and what they printed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import fresh_process

AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
HAS_MPI = find_spec("mpi4py") is not None
LIMIT_SECONDS = 300  # after which a process is killed, and the test fails by what it left undone


class Ended(NamedTuple):
    """A process has ended: with this status, after so many seconds, and printed this."""

    status: int
    seconds: float
    out: str
    err: str


def free_port() -> int:
    with socket.create_server(("", 0)) as listening:
        return listening.getsockname()[1]


def environment() -> dict[str, str]:
    root = str(Path(__file__).parent.parent.parent)
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return fresh_process.environment() | AS_ROOT | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path}


def by_arguments(program: Path, count: int, *words: Any) -> list[Ended]:
    """Started one by one: ``program ADDRESS COUNT INDEX WORDS``."""
    address = f"127.0.0.1:{free_port()}"
    return run([[program, address, count, index, *words] for index in range(count)])


def by_mpirun(program: Path, count: int, *words: Any) -> Ended:
    """Started by ``mpirun`` of this environment: ``program - COUNT - WORDS``."""
    mpirun = Path(sys.executable).with_name("mpirun")
    found = str(mpirun) if mpirun.exists() else str(shutil.which("mpirun"))
    line = [found, "--oversubscribe", "-n", str(count), sys.executable, program, "-", count, "-"]
    return run([[*line, *words]], with_python=False)[0]


def run(lines: Sequence[Sequence[Any]], with_python: bool = True) -> list[Ended]:
    first, began = [sys.executable] if with_python else [], time.monotonic()

    def one(line: Sequence[Any]) -> Ended:
        words = [*first, *map(str, line)]
        with subprocess.Popen(words, env=environment(), stdout=-1, stderr=-1, text=True) as process:
            try:
                out, err = process.communicate(timeout=LIMIT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                out, err = process.communicate()
        return Ended(process.returncode, time.monotonic() - began, out, err)

    with ThreadPoolExecutor(len(lines)) as pool:
        return list(pool.map(one, lines))
