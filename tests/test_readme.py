"""What the README says is so: its code runs, its commands and names exist."""

import re
from pathlib import Path
from typing import Any

import pytest

import functional_bp as bp
from functional_bp.cli import main

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def execute(blocks: list[str]) -> dict[str, Any]:
    """Run the blocks one after the other, as a reader would, in one namespace."""
    namespace: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    return namespace


def test_code_runs() -> None:
    assert "weights_bar" in execute(BLOCKS)


def test_a_wrong_statement_would_be_noticed() -> None:
    changed = [block.replace("== 12.0", "== 13.0") for block in BLOCKS]
    assert changed != BLOCKS
    with pytest.raises(AssertionError):
        execute(changed)


def test_names_exist() -> None:
    names = set(re.findall(r"\bbp\.(\w+)", TEXT))
    for row in re.findall(r"^\| (`[^|]*`) \|", TEXT, re.MULTILINE):
        names |= {name for name in re.findall(r"`([^`]+)`", row) if " " not in name}
    assert {"grad", "hvp", "trace"} <= names
    assert not {name for name in names if not hasattr(bp, name)}


def test_commands_exist() -> None:
    commands = set(re.findall(r"functional-bp (\w+)", TEXT))
    assert commands == set(main.COMMANDS)


def test_linked_files_exist() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", TEXT)
    assert links and all((ROOT / link).exists() for link in links)
