"""What the README says is so: its code runs, its commands and names exist."""

import re
import subprocess
from pathlib import Path

import pytest
from fresh_process import python

import functional_bp as bp
from functional_bp.cli import main

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def run(blocks: list[str], folder: Path, **options: bool) -> subprocess.CompletedProcess[str]:
    """Run the blocks one after the other as a reader does."""
    (folder / "readme.py").write_text("\n".join(blocks))
    return python("-W", "error", "readme.py", cwd=folder, **options)


def test_code_runs(tmp_path: Path) -> None:
    fewer_layers = [block.replace("* 8\n", "* 5\n") for block in BLOCKS]  # in half the time
    assert fewer_layers != BLOCKS
    done = run(fewer_layers, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_code_runs_as_it_stands(tmp_path: Path) -> None:
    done = run(BLOCKS, tmp_path, optimised=True)
    assert done.returncode == 0, done.stderr


def test_a_wrong_statement_would_be_noticed(tmp_path: Path) -> None:
    changed = next(block for block in BLOCKS if "== 12.0" in block).replace("== 12.0", "== 13.0")
    assert "AssertionError" in run([BLOCKS[0], changed], tmp_path).stderr


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
