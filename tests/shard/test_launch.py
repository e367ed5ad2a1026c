"""What started a process is found, processes meet, and what cannot run together is refused."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from several import free_port

from functional_bp import processes, shard
from functional_bp.errors import ProcessesError
from functional_bp.shard import launch

LAUNCHERS = ("OMPI_", "PMI_", "MV2_", "SLURM_", "KUBERNETES_", "JOB_COMPLETION_INDEX", "JAX_COORD")


@pytest.fixture(autouse=True)
def nothing_started_this(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(launch.os.environ):
        if name.startswith(LAUNCHERS):
            monkeypatch.delenv(name)
    monkeypatch.setattr(launch, "_connected", None)
    yield


def found(monkeypatch: pytest.MonkeyPatch, **variables: str) -> launch.Rank:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return launch._found({"coordinator": None, "count": None, "index": None})


def test_one_process_is_fine_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    connection = shard.connect()
    assert (connection.index, connection.count, connection.speaks) == (0, 1, True)
    assert capsys.readouterr().out == "one process (started by nothing that starts several)\n"
    assert shard.connect() is connection and capsys.readouterr().out == ""
    connection.same(jax.jit(jnp.sin).lower(1.0))
    with pytest.raises(ProcessesError, match="this process is connected already"):
        shard.connect("here:1234", 2, 1)


SLURM = {
    "SLURM_JOB_ID": "4097", "SLURM_STEP_NODELIST": "node[007-009],big1", "SLURM_NTASKS": "8",
    "SLURM_PROCID": "3", "SLURM_LOCALID": "1",
}  # fmt: skip


def test_srun_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    rank = found(monkeypatch, **SLURM, PMI_SIZE="8")  # as srun --mpi=pmi2 sets it
    host, port = rank.coordinator.split(":")
    assert (rank.started_by, rank.index, rank.count, host) == ("srun", 3, 8, "node007")
    assert found(monkeypatch, JAX_COORDINATOR_PORT="99").coordinator == "node007:99" != port


def test_a_batch_script_of_slurm_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    rank = found(monkeypatch, SLURM_JOB_ID="4097", SLURM_NTASKS="8", SLURM_PROCID="0")
    assert rank.count == 1


class World:
    """A communicator of MPI, as mpi4py has it, of four processes on one machine."""

    size = 4

    def Get_size(self) -> int:  # noqa: N802
        return self.size

    def Get_rank(self) -> int:  # noqa: N802
        return 2

    def Split_type(self, kind: int) -> World:  # noqa: N802
        return self

    def bcast(self, value: Any) -> Any:
        return value or "127.0.0.1:4000"


def with_mpi(monkeypatch: pytest.MonkeyPatch, mpi: Any) -> None:
    module: Any = ModuleType("mpi4py")
    module.MPI = mpi
    monkeypatch.setitem(sys.modules, "mpi4py", module)


def test_mpirun_is_found_inside_a_job_of_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    mpi: Any = ModuleType("MPI")
    mpi.COMM_WORLD, mpi.COMM_TYPE_SHARED = World(), 1
    with_mpi(monkeypatch, mpi)
    rank = found(monkeypatch, **SLURM, OMPI_COMM_WORLD_SIZE="4")
    assert rank == launch.Rank("mpirun", 2, 4, "127.0.0.1:4000")
    with pytest.raises(ProcessesError, match="mpi4py is of another MPI than mpirun"):
        found(monkeypatch, OMPI_COMM_WORLD_SIZE="5")
    assert found(monkeypatch, OMPI_COMM_WORLD_SIZE="1").count == 1


def test_mpirun_without_mpi4py_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ProcessesError, match="pip install 'functional-bp\\[mpi\\]'"):
        found(monkeypatch, OMPI_COMM_WORLD_SIZE="4")


class Cluster:
    """What JAX knows of Kubernetes: a job of three pods."""

    present = True

    @classmethod
    def is_env_present(cls) -> bool:
        return cls.present

    get_process_count, get_process_id = staticmethod(lambda: 3), staticmethod(lambda: 2)

    @staticmethod
    def get_coordinator_address(timeout_secs: int, override_coordinator_port: Any) -> str:
        return "job-0.pods:55527"


def test_an_indexed_job_of_kubernetes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch._jax, "find_helper", lambda path: Cluster)
    assert found(monkeypatch, KUBERNETES_SERVICE_HOST="10.0.0.1").count == 1  # any pod
    rank = found(monkeypatch, JOB_COMPLETION_INDEX="2")
    assert rank == launch.Rank("Kubernetes", 2, 3, "job-0.pods:55527")
    monkeypatch.setattr(Cluster, "present", False)
    with pytest.raises(ProcessesError, match="pip install kubernetes"):
        found(monkeypatch)


@pytest.mark.parametrize(
    "given", [("here:1", 2, None), ("here", 2, 0), ("here:1", 2, 2), (":1", 2, 0), (None, 2, 0)]
)
def test_arguments_that_give_no_rank_are_refused(given: Any) -> None:
    with pytest.raises(ProcessesError, match="the arguments give no place among processes"):
        shard.connect(*given)


def test_processes_that_are_not_alike_are_refused() -> None:
    star: Any = ModuleType("star")
    star.facts, parted = [{name: f"{name} {k % 2}"} for k in range(3) for name in ["JAX"]], []
    star.part = lambda: parted.append(True)
    with pytest.raises(ProcessesError) as raised:
        launch._check(star, ["JAX"], "start all alike")
    assert raised.value.got == "JAX 0 in processes 0, 2; JAX 1 in process 1" and parted
    assert set(launch.ALIKE) < launch._facts(launch.Rank("arguments", 1, 2)).keys()


def test_processes_of_one_machine_share_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    star: Any = ModuleType("star")
    star.facts, star.index = [{"host": host} for host in ("a", "b", "b", "c")], 2
    assert launch._local_devices(star) == [1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")  # the launcher has chosen
    assert launch._local_devices(star) is None
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    star.index = 3
    assert launch._local_devices(star) is None


# The processes' connections, between threads of this one.


def meet(ranks: list[tuple[int, int]], seconds: float = 10.0, **facts: Any) -> list[Any]:
    """A star of each (index, count), or what it raised."""
    address = f"127.0.0.1:{free_port()}"

    def star(rank: tuple[int, int]) -> Any:
        try:
            return processes.Star(*rank, address, {"pid": rank[0], "host": "h", **facts}, seconds)
        except ProcessesError as error:
            return error

    with ThreadPoolExecutor(len(ranks)) as pool:
        met = list(pool.map(star, ranks))
    _met.extend(star for star in met if isinstance(star, processes.Star))
    return met


_met: list[processes.Star] = []


@pytest.fixture(autouse=True)
def they_part() -> Iterator[None]:
    yield
    for star in _met:
        star.part()
    for star in _met:
        cut_off(star)
    _met.clear()


def cut_off(star: processes.Star) -> None:
    """As the system does with the connections of a process that was killed."""
    for peer in star._peers.values():
        with contextlib.suppress(OSError):  # is closed
            peer._connection.shutdown(socket.SHUT_RDWR)


def each(stars: list[Any], call: Callable[[Any], Any]) -> list[Any]:
    def tried(star: Any) -> Any:
        try:
            return call(star)
        except ProcessesError as error:
            return error

    with ThreadPoolExecutor(len(stars)) as pool:
        return list(pool.map(tried, stars))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What processes say that end at once; here they go on."""
    texts: list[str] = []
    monkeypatch.setattr(processes, "exit_at_once", texts.append)
    return texts


def test_processes_that_meet_hear_each_other(told: list[str]) -> None:
    stars = meet([(k, 3) for k in range(3)])
    assert all([facts["pid"] for facts in star.facts] == [0, 1, 2] for star in stars)
    for word in ("first", "second"):
        said = each(stars, lambda star, word=word: star.exchange(word, f"{word} {star.index}"))
        assert said == [[f"{word} {k}" for k in range(3)]] * 3
    each(stars, lambda star: star.leave())
    assert told == []


def test_processes_at_different_places_say_so() -> None:
    stars = meet([(0, 2), (1, 2)])
    for error in each(stars, lambda star: star.exchange(f"step {star.index}", "")):
        assert error.what == "the places in the program differ between processes"
        assert error.got == "step 0 in process 0; step 1 in process 1"


def test_a_process_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    stars = meet([(0, 2), (1, 2)])
    monkeypatch.setattr(processes, "PATIENCE_SECONDS", 0.1)
    with pytest.raises(ProcessesError, match="not all processes came to a step"):
        stars[1].exchange("a step", "")


def test_processes_that_never_join_are_named() -> None:
    first, second = meet([(0, 4), (2, 4)], seconds=0.5)
    assert first.what == "processes 1, 3 never joined" and first.got == "processes 0, 2 of 4"
    assert second.what.startswith("processes 1, 3 never joined")
    (alone,) = meet([(1, 2)], seconds=0.2)
    assert alone.what == "process 1 cannot reach process 0"


@pytest.mark.parametrize("stray", [(1, 3), (2, 4)])
def test_a_process_of_another_run_is_refused(stray: tuple[int, int]) -> None:
    first, *others = meet([(0, 3), (1, 3), stray], seconds=3.0)
    assert first.what == "the processes are not those of one run"
    assert f"one more process {stray[0]} of" in first.got or "one more process 1 of" in first.got
    assert all(isinstance(error, ProcessesError) for error in others)


def wait_for(texts: list[str], count: int) -> None:
    until = time.monotonic() + 10
    while len(texts) < count and time.monotonic() < until:
        time.sleep(0.01)
    assert len(texts) == count


@pytest.mark.parametrize("lost", [0, 2])
def test_a_lost_process_is_told_by_all_others(told: list[str], lost: int) -> None:
    stars = meet([(k, 3) for k in range(3)])
    stars[lost].part()  # a killed process says nothing any more
    cut_off(stars[lost])
    wait_for(told, 2)
    for text in told:
        assert f"process {lost} of 3 (pid {lost} on h) ended without a word" in text


def test_a_failure_is_told_with_its_reason(told: list[str]) -> None:
    stars = meet([(k, 3) for k in range(3)])
    stars[1].fail("LookupError: no such file")
    wait_for(told, 2)
    assert all("process 1 of 3 failed: LookupError: no such file" in text for text in told)


def test_without_connect_processes_are_told_to_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.jax, "process_count", lambda: 2)
    with pytest.raises(ProcessesError, match="shard.connect()"):
        processes.exchange("anything", "")


def test_what_other_threads_write_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    release = threading.Event()
    thread = threading.Thread(target=lambda: (release.wait(5), written.append("all")))
    monkeypatch.setattr(processes.os, "_exit", lambda status: written.append(f"exit {status}"))
    thread.start()
    threading.Timer(0.1, release.set).start()
    processes.exit_at_once()
    assert written == ["all", "exit 1"]
