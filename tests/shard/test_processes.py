"""Several real processes: one's numbers, one's order of data, one end for all, one checkpoint."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import several_program as program
from several import HAS_MPI, by_arguments, by_mpirun

PROGRAM = Path(program.__file__)
WITHIN_SECONDS = 30  # of a failure
ROUNDING = 1e-12  # of means that add up in another order, in float64


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same run in this process, on one device."""
    return program.numbers(*program.fitted(tmp_path_factory.mktemp("alone")))


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=ROUNDING, err_msg=name)


def trains_as_one(folder: Path, count: int, alone: dict[str, Any], spoken: list[str]) -> None:
    """So many processes have trained there; the first one's output, and the others'."""
    found = [json.loads((folder / f"found-{k}.json").read_text()) for k in range(count)]
    for k, each in enumerate(found):
        same({name: each[name] for name in alone}, alone)
        assert each["called"] == (2 if k == 0 else 0)
        assert each["parts"] and "result = NaN, in result = ln" in each["cause"]
    # Of a whole batch a process reads its part; in two epochs' orders a row falls to several.
    first = [set(each["read"]) for each in found]
    assert set.union(*first) == set(range(36)) and all(len(rows) < 36 for rows in first)
    np.testing.assert_allclose(found[0]["loader"], found[-1]["loader"], rtol=0)
    with (folder / "log.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1"]
    lines = [line for out in spoken for line in out.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 2


def test_two_processes_train_as_one(tmp_path: Path, alone: dict[str, Any]) -> None:
    ended = by_arguments(PROGRAM, 2, tmp_path, "train")
    assert [process.status for process in ended] == [0, 0], ended[0].err + ended[1].err
    assert ended[0].out.startswith("process 0 of 2, started by arguments\n  devices:     1 here, 2")
    assert "epoch" not in ended[1].out
    trains_as_one(tmp_path, 2, alone, [each.out for each in ended])
    assert program.reads_back(tmp_path)  # one process with eight devices reads parts of two


def dies(folder: Path, count: int, how: str, index: int) -> list[Any]:
    ended = by_arguments(PROGRAM, count, folder, how, index)
    lost = ended.pop(index)
    assert lost.status == (-9 if how == "kill" else 1)
    for process in ended:
        assert process.status == 1 and process.seconds < lost.seconds + WITHIN_SECONDS
        assert f"process {index} of {count} " in process.err
        assert ("ended without a word" if how == "kill" else "LookupError: a file") in process.err
    return [lost, *ended]


def goes_on(folder: Path, alone: dict[str, Any]) -> None:
    """What was saved before is continued by this process, to the same end."""
    begun = program.train.Checkpoints(folder / "run").steps()
    assert begun and begun[-1] in (4, 6)  # one that was being written may be lost
    same(program.numbers(*program.fitted(folder)), alone)


@pytest.mark.long
def test_a_killed_process_ends_the_others_and_one_goes_on(
    tmp_path: Path, alone: dict[str, Any]
) -> None:
    dies(tmp_path, 2, "kill", 1)
    goes_on(tmp_path, alone)


@pytest.mark.long
@pytest.mark.parametrize("how", ["kill", "raise"])
@pytest.mark.parametrize("index", [0, 1, 3])
def test_whichever_of_four_fails_the_others_end(
    tmp_path: Path, how: str, index: int, alone: dict[str, Any]
) -> None:
    dies(tmp_path, 4, how, index)
    ended = by_arguments(PROGRAM, 4 if how == "kill" else 2, tmp_path, "train")
    assert {process.status for process in ended} == {0}
    found = json.loads((tmp_path / "found-0.json").read_text())
    same({name: found[name] for name in alone}, alone)


@pytest.mark.long
def test_a_process_that_hangs_is_given_up_by_the_runtime(tmp_path: Path) -> None:
    ended = by_arguments(PROGRAM, 2, tmp_path, "hang")
    assert ended[0].status != 0 and ended[0].seconds < ended[1].seconds
    assert "heartbeat" in ended[0].err


@pytest.mark.long
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("late", "process 1 never joined\n  got:      process 0 of 2\n  expected: all of them wi"),
        ("used", "call shard.connect() at the top of the program"),
        ("differs", "the programs differ between processes"),
    ],
)
def test_processes_that_cannot_run_together_say_why(
    tmp_path: Path, what: str, message: str
) -> None:
    ended = by_arguments(PROGRAM, 2, tmp_path, what)
    assert [process.status for process in ended] == [1, 1]
    assert message in ended[0].err


@pytest.mark.skipif(not HAS_MPI, reason="MPI comes with the extra mpi")
@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.long)])
def test_mpirun_starts_them(tmp_path: Path, alone: dict[str, Any], count: int) -> None:
    ended = by_mpirun(PROGRAM, count, tmp_path, "train")
    assert ended.status == 0, ended.err
    assert f"process 0 of {count}, started by mpirun\n" in ended.out
    trains_as_one(tmp_path, count, alone, [ended.out])


@pytest.mark.long
@pytest.mark.skipif(not HAS_MPI, reason="MPI comes with the extra mpi")
def test_mpirun_ends_when_one_is_killed(tmp_path: Path) -> None:
    ended = by_mpirun(PROGRAM, 2, tmp_path, "kill", 1)
    assert ended.status != 0
    assert "signal 9" in ended.err
