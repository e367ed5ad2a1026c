"""Batches in a fixed order, from any epoch's any batch, and refusals of data of every bad kind."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from functional_bp.train.data import (
    DataError,
    check,
    check_count,
    check_labels,
    check_like,
    source,
    split,
)


class Pair(NamedTuple):
    x: Any
    y: Any


X = np.arange(22.0).reshape(11, 2)
Y = np.arange(11)


def labels(batches: Iterator[Any]) -> list[list[int]]:
    return [np.asarray(batch[1]).tolist() for batch in batches]


def stream(start: int = 0) -> Iterator[Any]:
    return ((np.full((2, 1), k), np.full(2, k)) for k in itertools.count(start))


def numbers(batches: Iterator[Any]) -> list[int]:
    return [int(batch[1][0]) for batch in batches]


# Arrays


def test_order_of_an_epoch_is_what_the_contract_says() -> None:
    for epoch in (0, 3):
        order = np.random.default_rng([7, epoch]).permutation(11)
        given = list(source((X, Y), batch_size=4, seed=7).epoch(epoch))
        assert [len(y) for _, y in given] == [4, 4, 3]
        np.testing.assert_array_equal(np.concatenate([y for _, y in given]), Y[order])
        np.testing.assert_array_equal(np.concatenate([x for x, _ in given]), X[order])


def test_orders_differ_by_epoch_and_seed_and_every_example_comes_once() -> None:
    orders = [
        sum(labels(source((X, Y), seed=s, batch_size=3).epoch(e)), [])
        for s in (0, 1)
        for e in (0, 1)
    ]
    assert len({tuple(order) for order in orders}) == 4
    assert all(sorted(order) == Y.tolist() for order in orders)


@pytest.mark.parametrize("steps", [None, 3, 7])
@pytest.mark.parametrize("drop_last", [False, True])
def test_an_epoch_that_starts_late_is_the_tail_of_the_whole(steps: Any, drop_last: bool) -> None:
    for epoch, start in itertools.product((0, 1, 5), range(4)):
        options = dict(batch_size=4, seed=3, steps=steps, drop_last=drop_last)
        whole = labels(source((X, Y), **options).epoch(epoch))
        assert labels(source((X, Y), **options).epoch(epoch, start)) == whole[start:]


def test_steps_per_epoch_go_on_where_the_last_epoch_stopped() -> None:
    batches = source((X, Y), batch_size=4, shuffle=False, steps=2)
    assert batches.steps == 2 and batches.examples is None
    assert [labels(batches.epoch(e)) for e in range(2)] == [
        [[0, 1, 2, 3], [4, 5, 6, 7]],
        [[8, 9, 10], [0, 1, 2, 3]],
    ]


def test_counts() -> None:
    whole, dropped = (source((X, Y), batch_size=4, drop_last=d) for d in (False, True))
    assert (whole.steps, whole.examples, dropped.steps, dropped.examples) == (3, 11, 2, 8)
    assert len(list(dropped.epoch(0))) == 2 and whole.state() is None


@pytest.mark.parametrize(
    "data",
    [Pair(X, Y), {"y": Y, "x": X}, (X.tolist(), Y.tolist()), (jnp.asarray(X), jnp.asarray(Y))],
    ids=["NamedTuple", "dict", "lists", "JAX"],
)
def test_any_pytree_of_arrays(data: Any) -> None:
    batches = source(data, batch_size=4, shuffle=False)
    batch = batches.first()
    assert jax.tree.structure(batch) == jax.tree.structure(next(batches.epoch(0)))
    parts = {np.asarray(a).ndim: a for a in jax.tree.leaves(batch)}
    assert all(isinstance(a, np.ndarray) for a in parts.values())
    np.testing.assert_array_equal(parts[1], Y[:4])
    np.testing.assert_array_equal(parts[2], X[:4])


def test_arrays_of_a_file_and_of_half_precision(tmp_path: Any) -> None:
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    batch = source((mapped, X.astype(ml_dtypes.bfloat16)), shuffle=False).first()
    assert type(batch[0]) is np.ndarray and batch[1].dtype == ml_dtypes.bfloat16
    assert float(jax.jit(jnp.sum)(batch[0])) == X.sum()


def test_data_frames() -> None:
    pandas = pytest.importorskip("pandas", reason="an optional library of a person's data")
    frame = pandas.DataFrame({"a": X[:, 0], "b": X[:, 1]})
    batch = source((frame, pandas.Series(Y)), batch_size=4, shuffle=False).first()
    np.testing.assert_array_equal(batch[0], X[:4])
    np.testing.assert_array_equal(batch[1], Y[:4])


def test_split_takes_the_last_examples() -> None:
    training, validation = split({"x": X, "y": Y}, 0.2)  # ⌊11 · 0.8⌋ = 8
    assert training["y"].tolist() == list(range(8)) and validation["y"].tolist() == [8, 9, 10]
    assert np.shares_memory(training["x"], X)


# Loaders


def test_a_generator_gives_every_batch_though_one_was_looked_at() -> None:
    batches = source(itertools.islice(stream(), 5))
    assert numbers(iter([batches.first(), batches.first()])) == [0, 0]
    assert numbers(batches.epoch(0)) == [0, 1, 2, 3, 4] and batches.steps is None
    with pytest.raises(DataError, match=r"cannot be passed over again\n.*epoch 2\n.*5 batches"):
        batches.epoch(1)


def test_an_endless_generator_is_cut_into_epochs_and_resumed() -> None:
    batches = source(stream(), steps=3)
    assert [numbers(batches.epoch(e)) for e in range(2)] == [[0, 1, 2], [3, 4, 5]]
    assert numbers(source(stream(), steps=3).epoch(4, start=1)) == [13, 14]
    with pytest.raises(DataError, match="cannot be passed over again"):
        list(batches.epoch(0))


def test_a_function_makes_a_pass_for_every_epoch() -> None:
    made: list[int] = []

    def by_epoch(epoch: int) -> Iterator[Any]:
        made.append(epoch)
        return itertools.islice(stream(10 * epoch), 3)

    batches = source(by_epoch)
    assert numbers(iter([batches.first()])) == [0]
    assert [numbers(batches.epoch(e)) for e in range(2)] == [[0, 1, 2], [10, 11, 12]]
    assert made == [0, 1]  # the pass that was looked into is the one that epoch 0 has
    assert numbers(source(by_epoch).epoch(2, start=1)) == [21, 22]
    assert numbers(source(lambda: itertools.islice(stream(), 2)).epoch(6)) == [0, 1]


def test_passes_follow_each_other_where_an_epoch_has_its_own_steps() -> None:
    by_pass = lambda number: itertools.islice(stream(10 * number), 3)
    whole = [0, 1, 2, 10, 11, 12, 20, 21]
    batches = source(by_pass, steps=4)
    assert numbers(batches.epoch(0)) + numbers(batches.epoch(1)) == whole
    assert numbers(source(by_pass, steps=4).epoch(1, start=2)) == whole[6:]


def test_a_list_of_batches_is_a_loader_of_known_length() -> None:
    batches = source([[np.ones((1, 1)), np.array([k])] for k in range(3)])  # each a list of parts
    assert labels(batches.epoch(0)) == [[0], [1], [2]]
    batches = source([([[1.0]], [k]) for k in range(3)])
    assert batches.steps == 3
    assert numbers(batches.epoch(0)) == numbers(batches.epoch(1)) == [0, 1, 2]
    assert numbers(batches.epoch(1, start=2)) == [2]


def test_arrays_on_a_device_stay_there() -> None:
    x = jnp.ones((2, 2))
    assert source([(x, np.ones(2))]).first()[0] is x


class Tensor:
    """As PyTorch's: no array, but makes one when it is detached and on the host."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def detach(self) -> Tensor:
        return self

    cpu = detach

    def numpy(self) -> np.ndarray:
        return np.asarray(self.value)


def test_tensors_become_arrays_and_a_list_of_parts_a_tuple() -> None:
    batch = source(iter([[Tensor([[1.0]]), Tensor([3])]])).first()
    assert (
        isinstance(batch, tuple) and isinstance(batch[0], np.ndarray) and batch[1].tolist() == [3]
    )


def test_pytorch_loaders() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is gigabytes, and only a loader here")
    data = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    batches = source(torch.utils.data.DataLoader(data, batch_size=4))
    assert batches.steps == 3
    assert (
        labels(batches.epoch(0))
        == labels(batches.epoch(1))
        == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    )
    half = source(iter([(torch.ones(2, 2, dtype=torch.bfloat16), torch.ones(2))])).first()
    assert half[0].dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize("kind", ["DataLoader", "IterDataset"])
@pytest.mark.parametrize("steps", [None, 4])
def test_grain_loaders_resume_by_their_own_state(kind: str, steps: Any) -> None:
    grain = pytest.importorskip("grain", reason="an optional loader")

    def loader() -> Any:
        if kind == "IterDataset":
            return grain.MapDataset.range(20).shuffle(seed=4).batch(3).to_iter_dataset()
        sampler = grain.samplers.IndexSampler(20, shuffle=True, seed=4, num_epochs=1)
        return grain.DataLoader(
            data_source=list(range(20)), sampler=sampler, operations=[grain.transforms.Batch(3)]
        )

    whole, resumed = source(loader(), steps=steps), source(loader(), steps=steps)
    epoch = whole.epoch(0)
    whole.first()
    taken = [next(epoch).tolist() for _ in range(3)]
    state, rest = whole.state(), [batch.tolist() for batch in epoch]
    assert state is not None and len(sum(taken + rest, [])) == (20 if steps is None else 12)
    resumed.restore(json.loads(json.dumps(state)))
    assert [batch.tolist() for batch in resumed.epoch(0, start=3)] == rest
    assert [b.tolist() for b in source(loader(), steps=steps).epoch(0, start=3)] == rest


# Refusals


def refused(message: str, data: Any, **options: Any) -> None:
    with pytest.raises(DataError, match=message):
        batches = source(data, **options)
        batches.first()
        for epoch in range(3):
            list(batches.epoch(epoch))


WITH_NAN = np.where(np.arange(22).reshape(11, 2) == 15, np.nan, X)
REFUSED = [
    (r"the training data has no array\n.*None", None),
    (r"has no array\n.*tuple", ()),
    (r"has no example\n.*x: f64\[0,2\], y: i64\[0\]", (X[:0], Y[:0])),
    (r"different numbers of examples\n.*x: f64\[11,2\], y: i64\[10\]", (X, Y[:10])),
    (r"y of the training data does not hold numbers\n.*<U1\[11\], text", (X, np.array(["a"] * 11))),
    (
        r"x\['a'\] of .*\n.*object\[2\], Python objects",
        ({"a": np.array([[1], None], object)}, Y[:2]),
    ),
    (r"x of the training data makes no array\n.*inhomogeneous", ([[1, 2], [3]], Y[:2])),
    (r"x of the training data is not an array\n.*str", "images"),
    (r"y of the training data is not an array\n.*range(.|\n)*put into a loader", (X, range(11))),
    (r"x of the training data is not an array\n(.|\n)*pass the generator alone", (stream(), Y)),
    (r"y of the training data has no axis of examples\n.*f64\[\]", (X, 1.0)),
    (r"x of the training data holds random keys", (jax.random.split(jax.random.key(0), 11), Y)),
    (r"x\[7, 1\] = nan, the first one(.|\n)*nan_to_num\(x\)", (WITH_NAN, Y)),
    (r"x\[2\] = inf", np.array([0, 1, np.inf])),
    (r"the training data gave no batch", iter(())),
    (r"the training data gave no batch", lambda: iter(())),
    (r"function that returned no batches\n.*int 3", lambda: 3),
]


@pytest.mark.parametrize(("message", "data"), REFUSED, ids=[m[:40] for m, _ in REFUSED])
def test_bad_data_is_refused(message: str, data: Any) -> None:
    refused(message, data)


def test_bad_options_are_refused() -> None:
    refused(r"batch_size cannot be used\n.*batch_size = 0\n.*1 or more", (X, Y), batch_size=0)
    refused(r"batch_size = 2.5", (X, Y), batch_size=2.5)
    refused(r"seed = -1\n.*0 or more", (X, Y), seed=-1)
    refused(r"steps_per_epoch = True", (X, Y), steps=True)
    refused(r"no whole batch\n.*11 examples, batch_size = 32", (X, Y), drop_last=True)
    refused(r"ran out of batches\n.*5 batches\n.*6 up to", itertools.islice(stream(), 5), steps=3)
    assert check_count("epochs", np.int32(3)) == 3


def test_the_first_number_that_is_not_finite_is_found_in_large_arrays() -> None:
    large = np.zeros((3, 1 << 20), np.float32)
    large[2, 17] = -np.inf
    with pytest.raises(DataError, match=re.escape("x[2, 17] = -inf")):
        check(large)
    assert check(large[:2]) == 2


@pytest.mark.parametrize(
    ("fraction", "data", "message"),
    [
        (1.0, (X, Y), "validation_split = 1.0 of 11 examples"),
        (0.5, (X[:1], Y[:1]), "validation_split = 0.5 of 1 examples"),
        (-0.1, (X, Y), "between 0 and 1"),
        (0.1, stream(), "can only be cut from arrays\n.*generator"),
    ],
)
def test_a_split_that_leaves_nothing_is_refused(fraction: float, data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        split(data, fraction)


def test_labels_outside_the_classes_are_refused() -> None:
    check_labels(Y, 11)
    check_labels(Y.astype(float) - 5, 3)  # no labels
    with pytest.raises(
        DataError, match=r"y\[10\] = 10; labels from 0 to 10, 10 outputs(.|\n)*11 out"
    ):
        check_labels(Y, 10)
    with pytest.raises(DataError, match=r"y\[10\] = 11(.|\n)*y - 1"):
        check_labels(Y + 1, 11)
    with pytest.raises(DataError, match=r"y\[0, 1\] = -1(.|\n)*weight 0"):
        check_labels(np.array([[0, -1]]), 3)


def test_validation_data_must_be_like_the_training_data() -> None:
    check_like((X[:2].astype(np.float32), Y[:2]), (X, Y, np.ones(11)))
    with pytest.raises(DataError, match=r"same arrays(.|\n)*got: +x\n.*x, y"):
        check_like(X, (X, Y))
    with pytest.raises(
        DataError, match=r"x of the validation data(.|\n)*f64\[11,1\](.|\n)*f64\[11,2\]"
    ):
        check_like((X[:, :1], Y), (X, Y))
    with pytest.raises(DataError, match=r"y of .*\n.*f64\[11\]\n.*like i64\[11\]"):
        check_like((X, Y.astype(float)), (X, Y))
