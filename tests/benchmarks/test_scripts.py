"""The scripts of benchmarks/ are seldom run: what they use of autotune must still be there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: What mypy says of a name, a module or an argument that is not there.
GONE = ("[attr-defined]", "[name-defined]", "[import-not-found]", "[call-arg]")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_scripts_use_what_there_is(tmp_path: Path) -> None:
    folder = ROOT / "benchmarks"
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "setup.cfg")]
    command += [f"--cache-dir={tmp_path}", "--follow-imports=silent", "--implicit-reexport"]
    checked = subprocess.run(
        [*command, *map(str, folder.rglob("*.py"))],
        cwd=folder,
        env={**os.environ, "MYPYPATH": f"{ROOT}:{folder}"},
        capture_output=True,
        text=True,
    )
    assert "checked" in checked.stdout, checked.stdout[-2000:] + checked.stderr
    assert not [line for line in checked.stdout.splitlines() if line.endswith(GONE)]
