"""A program that runs in several processes finds the others, whatever started them.

The devices are connected by ``jax.distributed``, and XLA's collectives run between them. Here is
found what ``jax.distributed`` is to be told, and what is said where the processes do not fit.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import socket
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from functional_bp import _jax, processes
from functional_bp.errors import ProcessesError

HEARTBEAT_SECONDS = 20  # of the runtime, by which a machine is noticed that vanishes or hangs
MPI_COUNTS = ("OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PMI_SIZE")
ALIKE = ("the versions of Python", "the versions of JAX", "the default dtypes",
         "the programs' files")  # fmt: skip
COLLECTIVES = {"gpu": "NCCL or RCCL", "tpu": "the TPU's own links"}


@dataclasses.dataclass(frozen=True)
class Rank:
    """A process is the ``index``-th of ``count``; process 0 listens at ``coordinator``."""

    started_by: str
    index: int = 0
    count: int = 1
    coordinator: str = ""


@dataclasses.dataclass(frozen=True)
class Connection:
    """The processes of a program are connected; ``print`` shows how.

    Attributes:
        started_by: what started this process: "mpirun", "srun", "Kubernetes", "arguments",
            "jax.distributed", or "nothing" for a process that is alone.
        index: of this process, from 0.
        count: of all processes.
    """

    started_by: str
    index: int
    count: int

    @property
    def speaks(self) -> bool:
        """This process prints, draws and writes files, for all: process 0."""
        return self.index == 0

    def same(self, program: Any, what: str = "the programs") -> None:
        """All processes are about to run the same program; all must call this.

        Args:
            program: what ``jax.jit(f).lower(...)`` or ``train.step(...).lower(...)`` returns, or a
                text.
            what: in the words of the error.

        Raises:
            ProcessesError: they are not; the message names the processes that differ.
        """
        processes.require_same_program(what, program)

    def __str__(self) -> str:
        if self.count == 1:
            return f"one process (started by {self.started_by})"
        first, here = jax.devices()[0], len(jax.local_devices())
        rows = [
            f"process {self.index} of {self.count}, started by {self.started_by}",
            f"  devices:     {here} here, {len(jax.devices())} in all: {first.device_kind}",
            f"  collectives: {_collectives(first.platform)}",
        ]
        return "\n".join(rows)


def _collectives(kind: str) -> str:
    if kind != "cpu":
        return COLLECTIVES.get(kind, kind)
    used = jax.config.jax_cpu_collectives_implementation  # pyright: ignore[reportAttributeAccessIssue]
    other = {"gloo": "mpi, which needs MPItrampoline", "mpi": "gloo"}.get(used, "gloo")
    return f"{used} (JAX_CPU_COLLECTIVES_IMPLEMENTATION changes it: {other})"


_connected: Connection | None = None


def connect(
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    *,
    heartbeat_seconds: int = HEARTBEAT_SECONDS,
    timeout_seconds: float = processes.PATIENCE_SECONDS,
    verbose: bool = True,
) -> Connection:
    """The processes of a program that was started several times find each other.

    Call it first, before JAX is used. Started by ``mpirun``, ``srun`` or as an indexed job of
    Kubernetes, it needs no arguments; a process that nothing of these started is alone, which is
    fine. A second call returns what the first one did.

    From then on the processes end together: where one is killed, crashes or raises an error that
    nobody catches, the others say which one and why and end with status 1, most often within a
    second; a machine that vanishes or hangs is noticed after ``heartbeat_seconds``.

    Several processes on one machine with GPUs get one each; one process gets all of them.

    Args:
        coordinator: "host:port", where process 0 can be reached, if nothing starts the processes
            that is known here; with ``count`` and ``index``.
        count: of all processes.
        index: of this one, from 0.
        heartbeat_seconds: after which ``jax.distributed`` gives up a process that is silent.
        timeout_seconds: until all processes must have come.
        verbose: whether process 0 prints what was found.

    Raises:
        ProcessesError: JAX was used before; a process never joins; the processes run different
            versions of Python or JAX, different files, or have different kinds of devices.
    """
    global _connected
    given = {"coordinator": coordinator, "count": count, "index": index}
    if _connected is None:
        rank = _found(given)
        if rank.count > 1:
            _start(rank, heartbeat_seconds, timeout_seconds)
        _connected = Connection(rank.started_by, rank.index, rank.count)
        if verbose and _connected.speaks:
            print(_connected, flush=True)
    elif coordinator is not None and (count, index) != (_connected.count, _connected.index):
        raise ProcessesError("this process is connected already", got=str(given),
                             expected=str(_connected))  # fmt: skip
    return _connected


# Which place this process has, by what started it.


def _found(given: Mapping[str, Any]) -> Rank:
    if any(value is not None for value in given.values()):
        return _of_arguments(**given)
    if jax.distributed.is_initialized():
        return _of_jax()
    is_step = "SLURM_STEP_NODELIST" in os.environ and "SLURM_PROCID" in os.environ
    by_mpi = [name for name in MPI_COUNTS if name in os.environ]
    if by_mpi and not (is_step and by_mpi == ["PMI_SIZE"]):  # which srun sets, too
        return _of_mpi(int(os.environ[by_mpi[0]]))
    if is_step:
        return _of_cluster("srun", "SlurmCluster")
    if "JOB_COMPLETION_INDEX" in os.environ and "KUBERNETES_SERVICE_HOST" in os.environ:
        return _of_cluster("Kubernetes", "K8sCluster")
    return Rank("nothing that starts several")


def _of_arguments(coordinator: Any, count: Any, index: Any) -> Rank:
    whole = isinstance(count, int) and isinstance(index, int) and 0 <= index < count
    text = coordinator if isinstance(coordinator, str) else ""
    if not whole or not text.rpartition(":")[2].isdigit() or text.startswith(":"):
        raise ProcessesError(
            "the arguments give no place among processes",
            got=f"coordinator={coordinator!r}, count={count!r}, index={index!r}",
            expected="where process 0 listens, 'host:port', how many there are, and 0 ≤ index < "
            "count"
        )  # fmt: skip
    return Rank("arguments", index, count, text)


def _of_mpi(count: int) -> Rank:
    if count == 1:
        return Rank("mpirun")
    try:
        from mpi4py import MPI  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ProcessesError(
            "mpirun started this process, and MPI cannot be imported", got=str(error),
            expected="mpi4py, of the same MPI", do="pip install 'functional-bp[mpi]'"
        ) from error  # fmt: skip
    world = MPI.COMM_WORLD
    if world.Get_size() != count:
        raise ProcessesError(
            "mpi4py is of another MPI than mpirun", got=f"{world.Get_size()} process",
            expected=f"{count}, as mpirun started",
            do="take mpirun and mpi4py of one environment: pip install 'functional-bp[mpi]'"
        )  # fmt: skip
    index, neighbours = world.Get_rank(), world.Split_type(MPI.COMM_TYPE_SHARED).Get_size()
    host = "127.0.0.1" if neighbours == count else socket.gethostname()
    address = f"{host}:{_port()}" if index == 0 else ""
    return Rank("mpirun", index, count, world.bcast(address))


def _of_cluster(name: str, kind: str) -> Rank:
    """What JAX knows of a cluster; its class must be asked before whether it is there."""
    cluster: Any = _jax.find_helper(f"clusters.{kind}")
    if not cluster.is_env_present():
        raise ProcessesError(f"{name} started this process, and JAX cannot ask it for the others",
                             do="pip install kubernetes, or give coordinator, count and "
                             "index")  # fmt: skip
    count, index = cluster.get_process_count(), cluster.get_process_id()
    if count == 1:
        return Rank(name)
    port = os.environ.get("JAX_COORDINATOR_PORT")
    address = cluster.get_coordinator_address(
        timeout_secs=int(processes.PATIENCE_SECONDS), override_coordinator_port=port
    )
    return Rank(name, index, count, address)


def _of_jax() -> Rank:
    """The program has called ``jax.distributed.initialize``, as on a TPU; the devices are there."""
    text = f"{socket.gethostname()}:{_port()}".encode().ljust(256)
    address = multihost_utils.broadcast_one_to_all(np.frombuffer(text, np.uint8))
    where = np.asarray(address).tobytes().decode().strip()
    return Rank("jax.distributed", jax.process_index(), jax.process_count(), where)


def _port(k: int = 0) -> int:
    """A port that is free now, or the k-th from the one of the environment on."""
    chosen = os.environ.get("JAX_COORDINATOR_PORT")
    if chosen:
        return int(chosen) + k
    with socket.create_server(("", 0)) as listening:
        return listening.getsockname()[1]


# The processes meet, and start JAX's runtime.


def _start(rank: Rank, heartbeat_seconds: int, timeout_seconds: float) -> None:
    star = processes.Star(rank.index, rank.count, rank.coordinator, _facts(rank), timeout_seconds)
    _check(star, ALIKE, "let all processes run one file in one environment")
    processes.join(star)
    if not jax.distributed.is_initialized():
        _initialize(star, rank, heartbeat_seconds, timeout_seconds)
    kinds: dict[int, set[str]] = {k: set() for k in range(star.count)}
    for device in jax.devices():
        kinds[device.process_index].add(device.device_kind)
    for index, names in kinds.items():
        star.facts[index]["the kinds of devices"] = ", ".join(sorted(names))
    _check(star, ["the kinds of devices"], "choose one kind with JAX_PLATFORMS")


def _facts(rank: Rank) -> dict[str, Any]:
    """What this process says of itself when it meets the others."""
    file = Path(sys.argv[0])
    command = f"{file.name} {processes.digest(file.read_bytes())}" if file.is_file() else ""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "port": _port(1) if rank.index == 0 else None,  # for JAX's runtime
        "the versions of Python": platform.python_version(),
        "the versions of JAX": f"{jax.__version__} with jaxlib {metadata.version('jaxlib')}",
        "the default dtypes": str(jax.dtypes.canonicalize_dtype(float)),
        "the programs' files": command,
    }


def _check(star: processes.Star, facts: Iterable[str], do: str) -> None:
    try:
        for what in facts:
            processes.refuse_differences(what, [said[what] for said in star.facts], do)
    except ProcessesError:
        star.part()  # every process raises this by itself
        raise


def _initialize(
    star: processes.Star, rank: Rank, heartbeat_seconds: int, timeout_seconds: float
) -> None:
    # With this service a process that is asked to end, by SIGTERM, goes on.
    jax.config.update("jax_enable_preemption_service", False)
    host = rank.coordinator.rpartition(":")[0]
    address = f"{host}:{star.facts[0]['port']}"
    try:
        jax.distributed.initialize(
            address, rank.count, rank.index, _local_devices(star),
            coordinator_bind_address=address if host in processes.LOOPBACK else None,
            cluster_detection_method="deactivate", initialization_timeout=int(timeout_seconds),
            heartbeat_timeout_seconds=heartbeat_seconds,
        )  # fmt: skip
    except RuntimeError as error:
        raise ProcessesError(
            "JAX cannot connect the processes", got=str(error),
            do="call shard.connect() at the top of the program, before any array is made and "
            "before jax.devices()"
        ) from error  # fmt: skip


def _local_devices(star: processes.Star) -> list[int] | None:
    """The GPU of this process, where several share a machine; None for all there are."""
    host = star.facts[star.index]["host"]
    neighbours = [k for k, facts in enumerate(star.facts) if facts["host"] == host]
    is_given = os.environ.get("CUDA_VISIBLE_DEVICES", "").isdigit()  # one, by the launcher
    return None if len(neighbours) == 1 or is_given else [neighbours.index(star.index)]
