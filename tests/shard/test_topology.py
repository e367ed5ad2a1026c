"""Plans and footprints for TPUs that are not there: compiled, never run."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import SingleDeviceSharding

import functional_bp as bp
from functional_bp import shard
from functional_bp.cli.main import main
from functional_bp.layouts.topology import devices_of

shape = jax.ShapeDtypeStruct
WEIGHTS = {"in": shape((256, 4096), "float32"), "out": shape((4096, 64), "float32")}
BATCH = {"x": shape((2048, 256), "float32"), "y": shape((2048, 64), "float32")}


def loss(weights: Any, batch: Any) -> Any:
    h = jnp.tanh(batch["x"] @ weights["in"])
    return jnp.mean((h @ weights["out"] - batch["y"]) ** 2)


def planned(devices: Any, memory: str) -> Any:
    return shard.plan(
        loss, WEIGHTS, BATCH, optimizer=optax.adam(1e-3), devices=devices, memory=memory
    )


def test_without_its_compiler_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(shard.PlanError, match=r"functional-bp\[tpu-topology\]"):
        planned("v5e:2x2", "16 GiB")


@pytest.fixture
def compiler() -> None:
    pytest.importorskip("libtpu", reason="libtpu comes with the extra tpu-topology")


@pytest.mark.usefixtures("compiler")
def test_a_plan_keeps_its_budget_and_says_where() -> None:
    plan = planned("v5e:2x2", "10 MiB")
    alone = plan.result.search.alone.program
    assert plan.peak_bytes <= 10 * 2**20 < alone.peak_bytes
    assert plan.layout.mesh.size == 4
    text = " ".join(str(plan).split())
    assert "TPU v5 lite" in text and "CPU" not in text
    with pytest.raises(shard.PlanError, match="not here"):
        plan.init(WEIGHTS)
    with pytest.raises(shard.PlanError, match="4 × TPU v5 lite"):
        plan.feed([BATCH])


@pytest.mark.usefixtures("compiler")
def test_a_footprint_says_that_sums_alone_are_told() -> None:
    place = SingleDeviceSharding(devices_of("v6e:1x1", shard.PlanError)[0])
    on = lambda tree: jax.tree.map(lambda x: shape(x.shape, x.dtype, sharding=place), tree)
    found = bp.footprint(loss, on(WEIGHTS), on(BATCH), optimizer=optax.adam(1e-3))
    assert "TPU v6 lite, as compiled by XLA, whose compiler tells sums alone" in found.text(200)
    arguments = sum(x.size * 4 for x in (*WEIGHTS.values(), *WEIGHTS.values(), *BATCH.values()))
    assert found.training.program.argument_bytes >= arguments


@pytest.mark.usefixtures("compiler")
def test_a_topology_that_there_is_not() -> None:
    with pytest.raises(shard.PlanError, match='such as "v5e:2x2"'):
        planned("v5e:3by3", "16 GiB")


@pytest.mark.usefixtures("compiler")
def test_the_command_takes_a_topology(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.py"
    file.write_text(
        "import jax.numpy as jnp\ndef loss(w, x):\n    return jnp.mean(jnp.tanh(x @ w))\n"
    )
    words = ["--devices", "v5e:2x2", "--memory", "16GiB", "--shape", "w=f32[256,256]"]
    assert main(["plan", f"{file}:loss", *words, "--shape", "x=f32[512,256]"]) == 0
    assert "TPU v5 lite" in capsys.readouterr().out
