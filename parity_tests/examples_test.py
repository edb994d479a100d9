"""Every example runs, and none is longer than 40 lines."""

import runpy
from pathlib import Path

import pytest

from parity_tests.peers import import_timm

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.usefixtures("_float32")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_runs(example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_timm()  # which imports torchvision, whichever build of it there is
    assert len(example.read_text().splitlines()) <= 40
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(example), run_name="__main__")
