"""Checkpoints that are damaged, foreign, or of another state: told, never read for good."""

import json
import logging
import re
import shutil
import warnings
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from test_train_checkpoint import same_bits, state_of

from functional_bp.errors import CheckpointError, TrainingError
from functional_bp.train import storage
from functional_bp.train.checkpoints import Checkpoints, MismatchError

STATE = state_of({"b": jnp.arange(3.0), "w": jnp.arange(2000, dtype=jnp.float32)})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two checkpoints, of steps 10 and 20; the second is better."""
    folder = tmp_path_factory.mktemp("saved")
    with Checkpoints(folder) as checkpoints:
        for step in (10, 20):
            state = STATE.replace(step=jnp.int32(step))
            checkpoints.save(step, state, {"epoch": step}, metrics={"val_loss": 1 / step})
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def deleted(path):
    path.unlink()


def halved(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path):
    path.write_bytes(b"")


def garbled(path):
    path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))


def flipped(path):
    words = bytearray(path.read_bytes())
    words[len(words) // 3] ^= 4
    path.write_bytes(words)


@pytest.mark.parametrize("damage", [deleted, halved, emptied, garbled, flipped])
def test_damage_to_any_file_is_found_and_named(folder, damage):
    newest = folder / "000002-step-20"
    names = {str(path.relative_to(newest)) for path in newest.rglob("*") if path.is_file()}
    assert len(names) > 8 and storage.MANIFEST in names
    unread = {"_CHECKPOINT_METADATA", "commit_success.txt", "arrays/commit_success.txt"}
    for name in sorted(names):
        kept = (newest / name).read_bytes()
        damage(newest / name)
        if name in unread:  # Orbax's notes to itself
            same_bits(Checkpoints(folder).restore(STATE).state, STATE.replace(step=jnp.int32(20)))
            continue
        message = rf"(?s)checkpoint of step 20 is not whole.*{re.escape(str(newest / name))}.*"
        message += r"fallback=True.*\[10\].*delete the folder 000002-step-20"
        checkpoints = Checkpoints(folder)
        for step in (None, 20, "best"):
            with pytest.raises(CheckpointError, match=message):
                checkpoints.restore(STATE, step=step)
        (newest / name).write_bytes(kept)
    assert checkpoints.restore(STATE).step == 20  # mended


@pytest.mark.parametrize("name", ["manifest.json", "arrays/manifest.ocdbt"])
@pytest.mark.parametrize("step", [None, 20, "best"])
def test_on_request_the_newest_whole_one_is_taken_with_a_warning(folder, name, step):
    halved(folder / "000002-step-20" / name)
    checkpoints = Checkpoints(folder)
    with pytest.warns(UserWarning, match=r"(?s)step 20 is not whole.*taken instead:.*step 10"):
        found = checkpoints.restore(STATE, step=step, fallback=True)
    assert found.step == int(found.state.step) == found.loop["epoch"] == 10
    assert (folder / "000002-step-20").exists()  # nothing of a person is deleted
    checkpoints.save(11, STATE)  # and the run goes on
    assert checkpoints.latest() == 11 and checkpoints.restore(STATE).step == 11


def test_where_nothing_is_broken_fallback_says_nothing(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Checkpoints(folder).restore(STATE, fallback=True).step == 20


def test_where_nothing_is_whole_every_reason_is_given(folder):
    for entry in folder.iterdir():
        halved(entry / "arrays" / "manifest.ocdbt")
    with pytest.raises(CheckpointError, match=r"(?s)no checkpoint here is whole.*20.*step 10 is"):
        Checkpoints(folder).restore(STATE, fallback=True)


def test_an_unread_manifest_hides_no_best_and_is_never_deleted(folder):
    emptied(folder / "000001-step-10" / "manifest.json")
    checkpoints = Checkpoints(folder, keep=1)
    with pytest.raises(CheckpointError, match="checkpoint of step 10 is not whole"):
        checkpoints.restore(STATE, step="best")  # it might have been that one
    with pytest.warns(UserWarning, match="taken instead: the checkpoint of step 20"):
        assert checkpoints.restore(STATE, step="best", fallback=True).step == 20
    assert checkpoints.best() == 20
    checkpoints.save(30, STATE)
    checkpoints.save(40, STATE)
    assert checkpoints.steps() == [10, 20, 40]


def test_every_bit_of_the_manifest_counts(folder):
    path = folder / "000002-step-20" / "manifest.json"
    whole, draw = path.read_bytes(), np.random.default_rng(0)
    found = 0
    for _ in range(200):
        words = bytearray(whole)
        words[draw.integers(len(words))] ^= 1 << draw.integers(8)
        path.write_bytes(words)
        try:
            restored = Checkpoints(folder).restore(STATE)
        except CheckpointError as error:
            found += "step 20" in str(error)
        else:  # a space that became another one
            same_bits(restored.state, STATE.replace(step=jnp.int32(20)))
            assert restored.loop == {"epoch": 20}
            found += 1
    assert found == 200


def test_what_orbax_cannot_read_is_told_as_the_rest(folder, monkeypatch):
    newest = folder / "000002-step-20"
    content = json.loads((newest / "manifest.json").read_text())["content"]
    garbled(newest / "arrays" / "manifest.ocdbt")
    content["files"] = storage._sums(newest / "arrays")  # as if it had been written so
    storage.write_manifest(newest / "manifest.json", content)
    with pytest.raises(CheckpointError, match="(?s)step 20 is not whole.*20/arrays.*Orbax writes"):
        Checkpoints(folder).restore(STATE)


@pytest.mark.parametrize(
    "content", [{"format": "another", "version": 1}, {"format": storage.FORMAT, "version": 99}]
)
def test_a_manifest_of_another_program_or_version(folder, content):
    storage.write_manifest(folder / "000002-step-20" / "manifest.json", content)
    with pytest.raises(CheckpointError, match=f"(?s)got.*{content['format']}.*expected.*version 1"):
        Checkpoints(folder).restore(STATE)


def test_a_manifest_that_is_json_but_no_manifest(folder):
    path = folder / "000002-step-20" / "manifest.json"
    for text in (
        "[]",
        "3",
        "null",
        '{"crc32": 0}',
        f'{{"content": 3, "crc32": {zlib.crc32(b"3")}}}',
    ):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=r"step 20 is not whole"):
            Checkpoints(folder).restore(STATE)


def test_folders_without_checkpoints(tmp_path, folder):
    def restore(path):
        Checkpoints(path).restore(STATE)

    with pytest.raises(CheckpointError, match="(?s)no checkpoint.*no such folder"):
        restore(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()  # nor made by looking
    (tmp_path / "none").mkdir()
    with pytest.raises(CheckpointError, match="(?s)no checkpoint.*got: +nothing"):
        restore(tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"(?s)got: +a checkpoint itself.*lies in, .*run"):
        restore(folder / "000001-step-10")
    with ocp.CheckpointManager(tmp_path / "other") as other:
        other.save(3, args=ocp.args.StandardSave({"w": jnp.ones(3)}))
    with pytest.raises(CheckpointError, match="(?s)got: +3.*expected: +folders such as"):
        restore(tmp_path / "other")
    (tmp_path / "file").write_text("text")
    with pytest.raises(CheckpointError, match="(?s)need a folder.*a file"):
        restore(tmp_path / "file")


def test_a_foreign_folder_keeps_what_it_held(tmp_path):
    (tmp_path / "3").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    checkpoints = Checkpoints(tmp_path, keep=1)
    for k in range(3):
        checkpoints.save(k, STATE)
    assert checkpoints.steps() == [2]
    assert {path.name for path in tmp_path.iterdir()} == {"3", "notes.txt", "000003-step-2"}


def test_a_step_that_is_not_there(folder):
    with pytest.raises(CheckpointError, match=r"(?s)of step 15.*steps \[10, 20\]"):
        Checkpoints(folder).restore(STATE, step=15)
    with pytest.raises(CheckpointError, match=r"(?s)no best checkpoint by 'mae'.*\[10, 20\]"):
        Checkpoints(folder, best="mae").restore(STATE, step="best")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"params": {"b": jnp.arange(3.0), "w": jnp.zeros((2, 3), jnp.float32)}},
         r"\.params\['w'\]: f32\[2000\] in the checkpoint, f32\[2,3\] in the given"),
        ({"params": {"b": jnp.zeros(3, jnp.float32), "w": STATE.params["w"]}},
         r"\.params\['b'\]: f64\[3\] in the checkpoint, f32\[3\] in the given"),
        ({"params": {"b": STATE.params["b"]}},
         r"\.params\['w'\]: f32\[2000\] in the checkpoint, nothing in the given"),
        ({"model_state": {"mean": jnp.ones(2)}},
         r"\.model_state\['mean'\]: nothing in the checkpoint, f64\[2\] in the given"),
        ({"rng": jax.random.key(0, impl="rbg")},
         r"\.rng: key<fry>\[\] in the checkpoint, key<rbg>\[\] in the given"),
        ({"step": 20}, r"\.step: i32\[\] in the checkpoint, a number of Python, int in the given"),
        ({"params": {str(k): jnp.ones(2) for k in range(20)}}, r"\.\.\. and 14 more"),
    ],
)  # fmt: skip
def test_another_state_is_told_by_its_paths(folder, changes, message):
    with pytest.raises(MismatchError, match=f"(?s)step 20 is of another state.*{message}"):
        Checkpoints(folder).restore(STATE.replace(**changes), fallback=True)  # no fault of the disk


@pytest.mark.parametrize(
    "leaf, message",
    [
        ("text", r"params\['w'\].*str.*arrays of numbers"),
        (np.array(["text"]), r"params\['w'\].*<U4.*arrays of numbers"),
        (object(), r"params\['w'\].*object"),
    ],
)
def test_leaves_that_are_no_numbers(tmp_path, leaf, message):
    with pytest.raises(CheckpointError, match=f"(?s)cannot hold a leaf.*{message}"):
        Checkpoints(tmp_path).save(1, state_of({"w": leaf}))


def test_leaves_that_are_gone_or_not_there_yet(tmp_path):
    checkpoints, w = Checkpoints(tmp_path), jnp.ones(3)
    jax.jit(lambda w: w + 1, donate_argnums=0)(w)
    with pytest.raises(CheckpointError, match=r"(?s)params\['w'\].*donated.*that a step returned"):
        checkpoints.save(1, state_of({"w": w}))
    with pytest.raises(CheckpointError, match=r"(?s)params\['w'\].*being traced.*outside of jit"):
        jax.jit(lambda w: checkpoints.save(1, state_of({"w": w})))(jnp.ones(3))


def test_what_json_or_a_skeleton_cannot_hold(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(CheckpointError, match="(?s)JSON cannot hold.*not JSON serializable.*extra"):
        checkpoints.save(1, STATE, {"loss": jnp.float32(1)})
    for extra, path in [({"a": [STATE]}, r"extra\['a'\]\[0\]"), ({3: jnp.ones(2)}, "extra")]:
        with pytest.raises(CheckpointError, match=f"(?s)told from its leaves.*{path}.*tree.leaves"):
            checkpoints.save(1, STATE, extra=extra)
    for step in (-1, 1.0, "1"):
        with pytest.raises(CheckpointError, match=f"(?s)named by its step.*{step}"):
            checkpoints.save(step, STATE)
    assert checkpoints.steps() == []


def test_double_precision_is_not_shortened_in_silence(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state_of({}), extra={"sum": jnp.float64(1)})
    with jax.enable_x64(False):
        like = state_of({})
        with pytest.raises(CheckpointError, match=r"(?s)shorten.*extra\['sum'\].*f64\[\].*x64"):
            checkpoints.restore(like)


def test_orbax_is_quiet_and_others_are_heard(tmp_path, caplog):
    with caplog.at_level(logging.DEBUG, "absl"):
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, STATE)
            checkpoints.restore(STATE)
        with storage._quiet():
            logging.getLogger("absl").info("another's")
    assert [record.message for record in caplog.records] == ["another's"]
    assert not logging.getLogger("absl").filters


def test_a_training_error_is_no_checkpoint_error():
    assert not issubclass(TrainingError, CheckpointError)
