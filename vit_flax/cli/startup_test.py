"""The set-up of commands that compute, and the message about a missing library."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vit_flax.cli import train
from vit_flax.cli.main import main
from vit_flax.cli.startup import cache_folder

SHOW = """
import os, sys
from vit_flax.cli import startup
if sys.argv[1:]:
    import jax
kept = []
startup.keep_host_memory = lambda: kept.append(True)
startup.set_up_process()
print(len(kept), os.environ.get("JAX_COMPILATION_CACHE_DIR"))
"""


def _shown(environment: dict[str, str], *arguments: str) -> list[str]:
    names = ("JAX_COMPILATION_CACHE_DIR", "VIT_FLAX_NO_CACHE")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", SHOW, *arguments], env=clean | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_before_jax_memory_and_compiled_programs_are_kept(tmp_path: Path) -> None:
    cache = {"XDG_CACHE_HOME": str(tmp_path)}
    count, folder = _shown(cache)
    assert count == "1"
    assert Path(folder).is_dir()
    assert Path(folder).parent == tmp_path / "vit_flax" / "xla"
    assert _shown(cache, "with jax") == ["0", "None"]  # JAX was imported before


def test_the_environment_decides_about_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.delenv("VIT_FLAX_NO_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() is not None
    monkeypatch.setenv("VIT_FLAX_NO_CACHE", "1")
    assert cache_folder() is None
    monkeypatch.delenv("VIT_FLAX_NO_CACHE")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    assert cache_folder() is None
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")  # as a home that cannot be written to
    assert cache_folder() is None


def test_a_missing_library_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(options: object) -> int:
        raise ModuleNotFoundError("No module named 'grain.python'", name="grain.python")

    monkeypatch.setattr(train, "run", run)
    assert main(["train", "digits"]) == 2
    assert capsys.readouterr().err == "vit-flax train: grain is not installed: pip install 'vit-linen[train]'\n"
