"""``functional-bp check``, called wrongly: what the message says, and the exit status."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest
from checked_package import call


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        ("kit.opps", ["there is no module 'kit.opps'", "near it: ops"]),
        ("kitt", ["there is no module 'kitt'", "near it: kit"]),
        ("kit/opps.py", ["there is no file", "near it: ops.py"]),
        ("kit.ops:softpuls", ["kit.ops has no 'softpuls'", "near it: softplus"]),
        ("kit.ops:dense_", ["kit.ops has no 'dense_'", "near it: dense"]),
        ("functional_bp:tanhh", ["functional_bp has no 'tanhh'", "near it: tanh"]),
        ("kit.empty", ["nothing to check in kit.empty", "kit.empty:NAME"]),
        ("kit.raising", ["kit.raising cannot be imported", "raising.py:2", "ValueError: seven"]),
        ("kit.needing", ["kit.needing cannot be imported", "No module named 'no_such'"]),
        ("raising.py", ["there is no file"]),
        ("kit.ops:softplus", ["no inputs to check it on", "the signature softplus(x)",
                              "--shape x=f32[4,3]", "--inputs FILE.npz", "example_inputs()",
                              "@bp.checked"]),
        ("kit.ops:softplus --shape xx=f32[3]", ["kit.ops:softplus has no argument 'xx'",
                                                "expected: x", "near it: x"]),
        ("kit.ops:dense --shape x=f32[3]", ["nothing is given for w, b", "--shape w=f32[4,3]"]),
        ("kit.ops:softplus --shape f32[3]", ["--shape f32[3] cannot be read", "there is no ="]),
        ("kit.ops:softplus --shape x=4,3", ["4,3: say f32[4,3] for an array, or (4,3)"]),
        ("kit.ops:softplus --shape x=f32[a]", ["f32[a]: neither an array nor a Python literal"]),
        ("kit.ops:softplus --shape x=f31[3]", ["f31[3]: neither an array nor"]),
        ("kit.ops:softplus --inputs no.npz", ["no.npz cannot be read", "numpy.savez("]),
        ("kit.ops:softplus --inputs kit/ops.py", ["kit/ops.py has no inputs for kit.ops:softplus",
                                                  "example_inputs(name) for 'softplus'"]),
        ("kit.ops:softplus --inputs prose.npz", ["prose.npz cannot be read", "numpy.savez("]),
        ("kit.ops:softplus --inputs two.npz", ["the inputs do not fit kit.ops:softplus",
                                               "2 arguments: too many", "softplus(x)"]),
        ("kit.ops:softplus --inputs named.npz", ["kit.ops:softplus has no argument 'y'"]),
        ("kit --shape x=f32[3]", ["--shape is for one gradient", "6 in kit",
                                  "name it: kit.ops:marked, kit.ops:softplus", "…"]),
        ("kit --arg x", ["--arg is for one gradient"]),
        ("kit.ops:softplus --shape x=f32[3] --arg x", ["--arg and --argnums say", "add --of"]),
        ("kit.ops:loss_gradient --of kit.ops:loss --arg v", ["has no argument 'v'"]),
        ("kit.ops:loss_gradient --of kit.ops:loss --argnums x", ["--argnums cannot be read"]),
        ("kit.ops:loss_gradient --of kit.ops:los", ["kit.ops has no 'los'", "near it: loss"]),
        ("kit.ops:softplus --shape x=i32[3]", ["kit.ops:softplus cannot be checked",
                                               "ClaimError: ", "no argument is a real"]),
        ("kit.ops:softplus --shape x=f32[3] --output no/folder.html",
         ["no/folder.html cannot be written", "no folder no", "make its folder"]),
        ("kit.ops:softplus --shape x=f32[3] --output report.pdf",
         ["report.pdf says no format", "the ending .pdf", ".html", "--format"]),
        ("kit.ops:softplus --shape x=f32[3] --expect nonsense", ["'nonsense'"]),
    ],
)  # fmt: skip
def test_wrong_calls(
    ops: ModuleType, capsys: pytest.CaptureFixture[str], words: str, messages: list[str]
) -> None:
    folder = Path("kit")
    (folder / "empty.py").write_text("one = 1\n")
    np.savez("two.npz", np.zeros(2), np.zeros(2))
    Path("prose.npz").write_text("no archive")
    np.savez("named.npz", x=np.zeros(2), y=np.zeros(2))
    if "raising" in words or "needing" in words:
        (folder / "raising.py").write_text("\nraise ValueError('seven')\n")
        (folder / "needing.py").write_text("import no_such\n")
    status, out, err = call(capsys, *words.split(), *(["--quick"] if "--expect" in words else []))
    assert status == 2 and out == "", err
    assert err.startswith("functional-bp check: ")
    for message in messages:
        assert message in err


def test_a_dtype_that_is_switched_off(ops: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with jax.enable_x64(False):
        status, _, err = call(capsys, "kit.ops:softplus", "--shape", "x=f64[3]")
    assert status == 2 and "float64 is switched off" in err and "JAX_ENABLE_X64=1" in err


def test_a_module_in_which_nothing_has_inputs(
    ops: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("alone.py").write_text("import jax\nf = jax.custom_vjp(lambda x: x)\n"
                                "g = jax.custom_vjp(lambda x: x)\n")  # fmt: skip
    status, _, err = call(capsys, "alone.py")
    assert status == 2 and "alone:f: no inputs to check it on" in err
