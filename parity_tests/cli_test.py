"""The command line as a user runs it: exit status, output, files, and one line for every bad input."""

import json
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from parity_tests.random_weights import randomise
from vit_flax.cli.main import main
from vit_flax.parity.mutations import MUTATIONS
from vit_flax.parity.stage_mutations import STAGE_MUTATIONS
from vit_flax.parity.tower_mutations import TOWER_MUTATIONS
from vit_flax.parity.window_mutations import WINDOW_MUTATIONS
from vit_flax.reference import ViT_Model

SET = ["--set", "num_heads=4", "--set", "image_size=8,12"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    module = randomise(ViT_Model((3, 8, 12), 4, 24, 5, 4, depth=2)).float()
    save_file(module.state_dict(), tmp_path / "tutorial.safetensors")
    return tmp_path / "tutorial.safetensors"


def test_compare_agrees_and_writes_its_files(tmp_path: Path) -> None:
    page, figures = tmp_path / "report.html", tmp_path / "report.json"
    command = [sys.executable, "-m", "vit_flax", "compare", "--steps", "4", "--html", str(page), "--json", str(figures)]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # as a user runs it
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    out = done.stdout
    assert done.returncode == 0, out
    assert "1,797 of 1,797 digits get the same label" in out
    assert out.rstrip().splitlines()[-1].startswith("The two models are the same")
    report = json.loads(figures.read_text())
    assert report["agrees"] is True
    assert report["first_divergence"] is None
    assert len(report["torch_losses"]) == len(report["flax_losses"]) == 4
    assert {*report["sections"]} == {"components", "intermediates", "stressed", "gradients", "steps"}
    assert "<html" in page.read_text()


QUICK = ("no_value_skip",)  # mutations_test.py has others of every section


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MUTATIONS]
)
def test_a_mutation_exits_with_1_and_its_component(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    mutation = MUTATIONS[name]
    assert main(["compare", "--mutate", name, "--steps", "3" if mutation.section == "steps" else "0"]) == 1
    out, err = capsys.readouterr()
    first = re.fullmatch(
        r"The models differ\. First diverging component: (?:backbone\.)?(\S+) \((\w+)\)\.", out.splitlines()[-1]
    )
    assert first is not None, out
    assert first.groups() == (mutation.first, mutation.section)
    assert all(line.startswith("... ") for line in err.splitlines())


def test_mutations_are_listed_and_a_wrong_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--mutate", "list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == [*MUTATIONS, *TOWER_MUTATIONS, *WINDOW_MUTATIONS, *STAGE_MUTATIONS]
    assert main(["compare", "--mutate", "rel_pos_left_ot"]) == 2
    assert "did you mean 'rel_pos_left_out'?" in capsys.readouterr().err
    assert main(["compare", "--mutate", "gelu_tahn"]) == 2
    assert main(["compare", "--html", "/no/such/folder/x.html"]) == 2
    assert main(["compare", "--steps", "1", "--mutate", "adam_eps"]) == 2


def test_inspect_tells_everything(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(checkpoint), *SET]) == 0
    out = capsys.readouterr().out
    assert "explained (has backbone.blocks.0.neuralnet." in out
    assert "num_heads" in out
    assert "given" in out
    assert "tensor shapes" in out
    assert "-> blocks_1/attn/qkv/kernel" in out
    assert main(["inspect", str(checkpoint), "--json", *SET]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["config"]["patch_size"] == [4, 4]
    assert described["origins"]["num_heads"] == "given"
    assert main(["inspect", str(checkpoint)]) == 1
    assert "num_heads, image_size" in capsys.readouterr().out


def test_convert_there_and_back(checkpoint: Path, tmp_path: Path) -> None:
    assert main(["convert", str(checkpoint), str(tmp_path / "a.npz"), *SET]) == 0
    assert main(["convert", str(tmp_path / "a.npz"), str(tmp_path / "b.safetensors"), *SET]) == 0
    assert main(["convert", str(tmp_path / "b.safetensors"), str(tmp_path / "c.pth")]) == 0  # carries its config
    from safetensors.torch import load_file

    first, last = load_file(checkpoint), torch.load(tmp_path / "c.pth", weights_only=True)
    assert first.keys() == last.keys()
    assert all(torch.equal(tensor, last[name]) for name, tensor in first.items())


def test_another_image_size_is_resized_as_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from parity_tests.peers import import_timm

    model = import_timm().create_model("vit_tiny_patch16_224", depth=1, img_size=(32, 48), num_classes=2)
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    told = ["--config", "vit_tiny_patch16_224"]
    for field in ("depth=1", "num_classes=2", "image_size=64"):
        told += ["--set", field]
    assert main(["inspect", str(tmp_path / "a.safetensors"), *told]) == 1
    assert "pass --source-grid HEIGHTxWIDTH" in capsys.readouterr().out
    told += ["--source-grid", "2x3", "--resample", "bilinear"]
    assert main(["inspect", str(tmp_path / "a.safetensors"), *told]) == 0
    assert "resized 2x3 -> 4x4, bilinear" in capsys.readouterr().out
    assert main(["convert", str(tmp_path / "a.safetensors"), str(tmp_path / "b.npz"), *told]) == 0
    assert np.load(tmp_path / "b.npz")["pos_embed"].shape == (1, 17, 192)
    assert main(["inspect", str(tmp_path / "a.safetensors"), *told, "--resample", "nearest"]) == 2
    assert "unknown resampling mode 'nearest'" in capsys.readouterr().err


class _RunsCode:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/vit_flax_was_run",)


def _bad_files(folder: Path, checkpoint: Path) -> dict[str, Path]:
    paths = {name: folder / f"{name}.bin" for name in ("empty", "text", "truncated", "huge_header", "code", "zip_code")}
    paths["empty"].write_bytes(b"")
    paths["text"].write_text("these are no weights\n" * 9)
    whole = checkpoint.read_bytes()
    paths["truncated"].write_bytes(whole[: len(whole) // 2])
    paths["huge_header"].write_bytes(struct.pack("<Q", 1 << 60) + b'{"a":' + b" " * 64)
    paths["code"].write_bytes(pickle.dumps(_RunsCode()))
    with zipfile.ZipFile(paths["zip_code"], "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"weight": _RunsCode()}))
    paths["objects"] = folder / "objects.npz"
    np.savez(paths["objects"], a=np.array([{}, []], dtype=object))
    paths["folder"] = folder / "folder"
    paths["folder"].mkdir()
    paths["nothing"] = folder / "nothing.safetensors"
    return paths


# All in one process, which a small one starts, because a child counts its parent's memory as its own peak until it has
# grown past it.
READER = """
import contextlib, io, json, resource, sys, time
from vit_flax.cli.main import main
for arguments in json.loads(sys.argv[1]):
    start, out, err = time.perf_counter(), io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps([status, out.getvalue(), err.getvalue(), time.perf_counter() - start, peak]))
"""
LAUNCHER = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode)"


@pytest.mark.parametrize("command", ["inspect", "convert"])
def test_bad_files_end_with_2_and_one_line(command: str, checkpoint: Path, tmp_path: Path) -> None:
    paths = _bad_files(tmp_path, checkpoint)
    target = [str(tmp_path / "out.safetensors")] if command == "convert" else []
    told = json.dumps([[command, str(path), *target] for path in paths.values()])
    reader = [sys.executable, "-c", LAUNCHER, sys.executable, "-c", READER, told]
    done = subprocess.run(reader, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for (name, path), line in zip(paths.items(), done.stdout.splitlines(), strict=True):
        status, out, err, seconds, peak = json.loads(line)
        assert status == 2, (name, out, err)
        assert len(err.splitlines()) == 1, (name, err)
        assert str(path) in err, (name, err)
        assert "Traceback" not in err
        assert out == ""
        assert peak < 500e6, (name, peak)
        assert seconds < 20, (name, seconds)  # a hang, not a measurement: the machine may be busy
    assert not (tmp_path / "out.safetensors").exists()
    assert not Path("/tmp/vit_flax_was_run").exists()


def test_a_field_that_does_not_exist_is_refused(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(checkpoint), "--set", "num_haeds=4"]) == 2
    assert "did you mean 'num_heads'" in capsys.readouterr().err
