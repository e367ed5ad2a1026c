"""PyTorch, eager and compiled: the same models of its modules.

Its threads wait for each other after every operation, which costs more than they bring where a
model is small or a core is busy. So it runs with one thread or all of them, whichever is faster.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.trainers import RATE, Trainer, cycle
from benchmarks.trainers.tasks import Task


def eager(task: Task) -> Trainer:
    """Forward, ``backward`` and ``torch.optim.Adam``, one operation after the other."""
    return _trainer(task, compiled=False, threads=faster_threads(task))


def compiled(task: Task) -> Trainer:
    """The same with the model and its loss under ``torch.compile``."""
    return _trainer(task, compiled=True, threads=faster_threads(task))


def faster_threads(task: Task) -> int:
    """With how many threads eager steps are faster: one, or as many as PyTorch takes itself."""
    import torch  # pyright: ignore[reportMissingImports]

    own, seconds = torch.get_num_threads(), {}
    for threads in {1, own}:
        take = _trainer(task, compiled=False, threads=threads)
        take(2)
        start = time.perf_counter()
        take(5)
        seconds[threads] = time.perf_counter() - start
    torch.set_num_threads(own)
    return min(seconds, key=seconds.__getitem__)


def _trainer(task: Task, compiled: bool, threads: int) -> Trainer:
    import torch  # pyright: ignore[reportMissingImports]

    model = MODELS[task.name](torch, task)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=RATE)

    def loss(x: Any, y: Any) -> Any:
        logits = model(x)
        return torch.nn.functional.cross_entropy(logits.flatten(0, -2), y.flatten())

    objective = torch.compile(loss) if compiled else loss
    batch = cycle([_batch(torch, task, x, y) for x, y in task.batches()])

    def take(count: int) -> float:
        value: Any = None
        own = torch.get_num_threads()
        torch.set_num_threads(threads)
        for _ in range(count):
            optimizer.zero_grad()
            value = objective(*batch())
            value.backward()
            optimizer.step()
        torch.set_num_threads(own)
        return float(value.detach())

    return take


def _batch(torch: Any, task: Task, x: np.ndarray, y: np.ndarray) -> tuple[Any, Any]:
    """Channels first, as PyTorch's convolutions have them, and labels as ``int64``."""
    x = np.ascontiguousarray(np.moveaxis(x, -1, 1)) if task.name == "lenet" else x
    inputs = torch.from_numpy(x)
    return inputs if inputs.is_floating_point() else inputs.long(), torch.from_numpy(y).long()


def _set(torch: Any, parameter: Any, value: Any) -> None:
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(np.array(value)).reshape(parameter.shape))


def _dense(torch: Any, kernel: Any, bias: Any = None) -> Any:
    kernel = np.asarray(kernel)
    layer = torch.nn.Linear(*kernel.shape, bias=bias is not None)
    _set(torch, layer.weight, kernel.T)
    if bias is not None:
        _set(torch, layer.bias, bias)
    return layer


def _mlp(torch: Any, task: Task) -> Any:
    p, layers = task.params, []
    for i in range(1, len(p) // 2 + 1):
        layers += [_dense(torch, p[f"W{i}"], p[f"b{i}"]), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def _lenet(torch: Any, task: Task) -> Any:
    nn, p = torch.nn, task.params

    def convolution(i: int, padding: int) -> Any:
        kernel = np.asarray(p[f"K{i}"])
        layer = nn.Conv2d(*kernel.shape[2:], 5, padding=padding)
        _set(torch, layer.weight, kernel.transpose(3, 2, 0, 1))
        _set(torch, layer.bias, p[f"b{i}"])
        return layer

    side = (task.x.shape[1] // 2 - 4) // 2  # pixels, and channels come first here
    first = np.asarray(p["W3"]).reshape(side, side, 16, -1).transpose(2, 0, 1, 3)
    return nn.Sequential(
        convolution(1, 2), nn.Tanh(), nn.AvgPool2d(2), convolution(2, 0), nn.Tanh(),
        nn.AvgPool2d(2), nn.Flatten(), _dense(torch, first.reshape(p["W3"].shape), p["b3"]),
        nn.Tanh(), _dense(torch, p["W4"], p["b4"]), nn.Tanh(), _dense(torch, p["W5"], p["b5"]),
    )  # fmt: skip


def _lstm(torch: Any, task: Task) -> Any:
    p = task.params
    layer = torch.nn.LSTM(p["W"].shape[0], p["U"].shape[0], batch_first=True)
    _set(torch, layer.weight_ih_l0, np.asarray(p["W"]).T)
    _set(torch, layer.weight_hh_l0, np.asarray(p["U"]).T)
    _set(torch, layer.bias_ih_l0, p["b"])
    _set(torch, layer.bias_hh_l0, np.zeros(p["b"].shape, np.float32))
    layer.bias_hh_l0.requires_grad_(False)  # a second bias, which no one else has

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = layer, _dense(torch, p["V"], p["d"])

        def forward(self, x: Any) -> Any:
            return self.head(self.lstm(x)[0][:, -1])

    return Classifier()


def _gpt(torch: Any, task: Task) -> Any:
    nn, p = torch.nn, task.params
    layers, d, heads, _ = p["blocks"]["WQ"].shape

    def norm(gain: Any, shift: Any) -> Any:
        layer = nn.LayerNorm(d, eps=1e-5)
        _set(torch, layer.weight, gain)
        _set(torch, layer.bias, shift)
        return layer

    class Block(nn.Module):
        def __init__(self, b: Any) -> None:
            super().__init__()
            join = lambda kind, n: [np.asarray(b[kind + i]).reshape(*n, d) for i in "QKV"]
            self.qkv = _dense(torch, np.concatenate(join("W", [d]), 1),
                              np.concatenate(join("b", [])))  # fmt: skip
            self.out = _dense(torch, np.asarray(b["WO"]).reshape(d, d), b["bO"])
            self.norm1, self.norm2 = norm(b["g1"], b["s1"]), norm(b["g2"], b["s2"])
            self.up, self.down = _dense(torch, b["W1"], b["b1"]), _dense(torch, b["W2"], b["b2"])

        def forward(self, x: Any) -> Any:
            split = self.qkv(self.norm1(x)).unflatten(-1, (3, heads, d // heads))
            q, k, v = split.permute(2, 0, 3, 1, 4)
            h = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(h.transpose(1, 2).flatten(2))
            h = nn.functional.gelu(self.up(self.norm2(x)), approximate="tanh")
            return x + self.down(h)

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.positions = nn.Embedding(*p["E"].shape), nn.Embedding(*p["P"].shape)
            _set(torch, self.tokens.weight, p["E"])
            _set(torch, self.positions.weight, p["P"])
            each = [{k: leaf[i] for k, leaf in p["blocks"].items()} for i in range(layers)]
            self.blocks = nn.Sequential(*map(Block, each))
            self.norm, self.head = norm(p["g"], p["s"]), _dense(torch, p["W"])

        def forward(self, tokens: Any) -> Any:
            x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
            return self.head(self.norm(self.blocks(x)))

    return GPT()


MODELS = {"mlp": _mlp, "lenet": _lenet, "lstm": _lstm, "gpt": _gpt}
