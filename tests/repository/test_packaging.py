"""An installed autotune is found from every folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_a_folder_named_autotune_hides_nothing(tmp_path: Path) -> None:
    """The folder that holds a clone has one: it must not be taken for a package without files."""
    (tmp_path / "autotune" / "autotune").mkdir(parents=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    code = "import autotune; print(sorted(autotune.load_study_file('digits').model_dump())[0])"
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (output.returncode, output.stdout.strip()) == (0, "backbone"), output.stderr
