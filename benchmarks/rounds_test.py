"""Races: contestants must compute the same, and the rows hold their timings."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from benchmarks.cases import Case
from benchmarks.checkout import checkout
from benchmarks.races import table
from benchmarks.rounds import TOLERANCE, Contestant, Process, _check, race

CASE = Case("T", 1, "float32", "inference")


def test_a_race_of_two() -> None:
    result = race(CASE, [Contestant("vit_flax", "vit_flax"), Contestant("linen", "linen")], rounds=2, seconds=0.01)
    ours, linen = result["rows"]["vit_flax"], result["rows"]["linen"]
    assert linen["difference"] < TOLERANCE["float32"]
    assert linen["ratio_low"] <= linen["ratio"] <= linen["ratio_high"]
    assert ours["ratio"] == 1
    assert ours["peak_bytes"] > 2**27
    assert len(ours["round_seconds"]) == 2
    assert "linen" in table(result)


def test_a_contestant_that_computes_something_else_is_not_timed(tmp_path: Path) -> None:
    def process(name: str, outputs: list[float]) -> Process:
        np.save(tmp_path / f"{name}.npy", np.asarray(outputs))
        return cast(Any, SimpleNamespace(contestant=Contestant(name, name), outputs=tmp_path / f"{name}.npy"))

    ours, rows = process("ours", [1.0, 2.0]), {"same": {}, "other": {}}
    _check(CASE, ours, process("same", [1.0, 2.0 + 1e-5]), rows)
    with pytest.raises(SystemExit, match=r"other computes something else: relative difference 4\.5e-04"):
        _check(CASE, ours, process("other", [1.0, 2.001]), rows)


def test_another_commit_runs_its_own_code(tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").touch()
    (tmp_path / "benchmarks" / "worker.py").write_text('print(\'{"error": "of that commit"}\')')
    process = Process(Contestant("vit_flax@then", "vit_flax", root=tmp_path), CASE, tmp_path)
    process.close()
    assert process.ready == {"error": "of that commit"}


def test_a_checkout_holds_the_files_of_a_commit() -> None:
    with checkout("HEAD") as folder:
        assert (folder / "benchmarks" / "worker.py").exists()
    assert not folder.exists()
    with pytest.raises(ValueError, match="no files of 'nowhere'"), checkout("nowhere"):
        pass
