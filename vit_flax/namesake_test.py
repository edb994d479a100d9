"""Another project of PyPI that is called vit-flax."""

import os
import subprocess
import sys
from pathlib import Path


def test_a_namesake_beside_this_package_is_told_at_import(tmp_path: Path) -> None:
    (tmp_path / "site-packages" / "vit_flax-0.3.dist-info").mkdir(parents=True)
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(tmp_path / "site-packages")])
    call = [sys.executable, "-c", "import vit_flax"]
    told = subprocess.run(call, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True)
    assert "pip uninstall vit-flax vit-linen" in told.stderr
