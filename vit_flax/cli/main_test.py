"""All commands: one line for every error, its exit status, and nothing else on standard error."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vit_flax.cli import inspect
from vit_flax.cli.main import INTERNAL, main
from vit_flax.cli.parser import Parser
from vit_flax.cli.spelling import options_of, spelled
from vit_flax.cli.startup import hide_absent_accelerators
from vit_flax.convert import LAYOUTS, write_checkpoint
from vit_flax.presets import PRESETS, TWO_TOWERS
from vit_flax.recipes import RECIPES
from vit_flax.train.data import SOURCES

# libtpu and the CUDA plugins write to standard error from C++ when they are loaded.
NOISE = "import os; os.write(2, b'no such accelerator')\n"


def _failed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Returns the one line of a command line that cannot be used."""
    try:
        status = main(arguments)
    except SystemExit as error:  # argparse's way
        status = error.code
    out, err = capsys.readouterr()
    assert status == 2, (arguments, out, err)
    assert len(err.splitlines()) == 1, (arguments, err)
    assert out == ""
    return err.strip()


def _environment(**more: str) -> dict[str, str]:
    left_out = ("JAX_PLATFORMS", "XLA_FLAGS", "VIT_FLAX_DEBUG")  # as a user has it
    return {name: value for name, value in os.environ.items() if name not in left_out} | more


def _command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vit_flax", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=_environment(**environment), check=False)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file whose layout is known and whose config is not."""
    rng = np.random.default_rng(0)
    shapes = {"patch_embed.proj.weight": (8, 3, 4, 4), "patch_embed.proj.bias": (8,), "norm.weight": (8,),
              "norm.bias": (8,), "cls_token": (1, 1, 8), "pos_embed": (1, 5, 8), "head.weight": (3, 8),
              "head.bias": (3,), "blocks.0.attn.qkv.weight": (24, 8), "blocks.0.attn.qkv.bias": (24,),
              "blocks.0.attn.proj.weight": (8, 8), "blocks.0.attn.proj.bias": (8,), "blocks.0.norm1.weight": (8,),
              "blocks.0.norm1.bias": (8,), "blocks.0.norm2.weight": (8,), "blocks.0.norm2.bias": (8,),
              "blocks.0.mlp.fc1.weight": (32, 8), "blocks.0.mlp.fc1.bias": (32,),
              "blocks.0.mlp.fc2.weight": (8, 32), "blocks.0.mlp.fc2.bias": (8,)}  # fmt: skip
    path = tmp_path_factory.mktemp("weights") / "a.npz"
    write_checkpoint(path, {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}, {})
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["inspct", "a.npz"], "no command 'inspct'; did you mean 'inspect'?"),
        (["help"], "no command 'help'; there are compare, convert"),
        ([], "the following arguments are required: COMMAND; see vit-flax --help"),
        (["--versoin"], "see vit-flax --help"),
        (["inspect"], "required: source; see vit-flax inspect --help"),
        (["inspect", "a.npz", "b.npz"], "'b.npz' is one argument too many"),
        (["inspect", "a.npz", "num_heads=3"], "one argument too many; did you mean --set num_heads=3?"),
        (["inspect", "a.npz", "--num-heads", "3"], "no option --num-heads; did you mean --set num_heads=3?"),
        (["convert", "a.npz", "b.npz", "--image_size=60,100"], "did you mean --set image_size=60,100?"),
        (["train", "digits", "--embed_dim", "64"], "did you mean --set model.embed_dim=64?"),
        (["predict", "a.npz", "a.png", "--interpolaton", "bilinear"], "did you mean --interpolation?"),
        (["convert", "a.npz", "b.npz", "--layout", "tim"], "unknown layout 'tim'; did you mean 'timm'?"),
        (["convert", "a.npz", "b.npz", "--from", "Dino_v2"], "did you mean 'dinov2'?"),
        (["convert", "a.npz", "b.npz", "--layout", "resnet"], "vit-flax list layouts"),
        (["inspect", "a.npz", "--source-grid", "14"], "'14' is not of the form HEIGHTxWIDTH, for example 14x14"),
        (["inspect", "a.npz", "--set", "depth"], "'depth' is not of the form FIELD=VALUE"),
        (["inspect", "a.npz", "--set"], "argument --set: expected one argument"),
        (["predict", "a.npz", "a.png", "--batch-size", "many"], "invalid int value: 'many'"),
        (["list", "preset"], "invalid choice: 'preset' (choose from"),
        (["train", "digts"], "no recipe named 'digts'; did you mean 'digits'?"),
        (["plan", "vit_bas", "--topology", "v5e:2x2"], "no preset named 'vit_bas'; did you mean 'vit_base"),
        (["evaluate", "a.npz"], "the following arguments are required: --data"),
        (["inspect", "nowhere.pth"], "nowhere.pth: no such file or folder"),
        (["inspect", "google/vit-base-patch16-224"], "did you mean hf://google/vit-base-patch16-224?"),
        (["evaluate", "a.npz", "--data", "image_folder"], "a.npz: no such file"),
        (["train", "finetune"], "needs --set checkpoint=... --set folder=..."),
        (["train", "digits", "--set", "lr=0.1"], "did you mean 'optimizer.learning_rate'?"),
        (["compare", "--mutate", "gelu_tahn"], "did you mean 'gelu_tanh'?"),
        (["compare", "--config", "vit_tiny_patch16_224"], "--config needs a checkpoint"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_the_way_out(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    line = _failed(arguments, capsys)
    assert line.startswith("vit-flax")
    assert said in line
    assert "(choose from 'beit'" not in line


def test_advice_is_in_the_command_lines_spelling(weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = _failed(["predict", weights, "a.png"], capsys)
    assert "--set num_heads=" in line
    assert "--set image_size=" in line
    assert "--config" in line
    assert "`" not in line
    told = ["--set", "num_heads=2", "--set", "image_size=8,8", "--layout", "deit"]  # as it says
    assert main(["inspect", weights, *told]) == 0
    capsys.readouterr()
    assert main(["inspect", weights]) == 1
    out = capsys.readouterr().out
    assert "pass --set num_heads=" in out
    assert "--layout deit" in out
    assert main(["inspect", weights, "--json"]) == 1
    assert "--set num_heads=" in json.loads(capsys.readouterr().out)["problems"][0]
    assert "--from deit" in _failed(["convert", weights, "b.npz"], capsys)


def test_arguments_become_options() -> None:
    parser = Parser()
    parser.add_argument("--from", dest="source_layout")
    parser.add_argument("-g", "--source-grid")
    parser.add_argument("--entry")
    options = options_of(parser)
    for message, expected in {
        "pass `layout='deit'` or `layout=`": "pass --from deit or --from",
        "pass `source_grid=(HEIGHT, WIDTH)`": "pass --source-grid HEIGHTxWIDTH",
        "pass `source_grid=(2, 3)`, `image_size=(60, 100)`": "pass --source-grid 2x3, --set image_size=60,100",
        "say which with `entry='ema model'`": "say which with --entry 'ema model'",
        "`norm_eps=1e-6` and `class_token=False`": "--set norm_eps=1e-6 and --set class_token=False",
        "the model has in_chans=3": "the model has in_chans=3",  # a fact, no advice
    }.items():
        assert spelled(message, options) == expected
    # of `train`, whose recipes have parameters of their own
    told = spelled("pass `depth=2`, `layout='deit'` or `source_grid=(2, 3)`", {}, "model.")
    assert told == "pass --set model.depth=2, --set layout=deit or --set source_grid=2,3"
    assert spelled("`entry` and `depth` are not `of`", options) == "--entry and `depth` are not `of`"


def test_an_internal_failure_is_neither_yes_nor_no(monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def run(_options: object) -> int:
        raise RuntimeError("operator torchvision::nms\n does not exist")

    monkeypatch.setattr(inspect, "run", run)
    monkeypatch.delenv("VIT_FLAX_DEBUG", raising=False)
    assert main(["inspect", "a.npz"]) == INTERNAL == 70
    err = capsys.readouterr().err
    assert err.startswith("vit-flax inspect: internal error: RuntimeError: operator torchvision::nms does not exist;")
    assert len(err.splitlines()) == 1
    monkeypatch.setenv("VIT_FLAX_DEBUG", "1")
    assert main(["inspect", "a.npz"]) == INTERNAL
    assert "Traceback" in capsys.readouterr().err


def test_versions_of_what_is_installed_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    import flax
    import jax

    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("vit-flax 0.")
    assert f"jax {jax.__version__}" in out
    assert f"flax {flax.__version__}" in out
    assert len(out.splitlines()) == 1


@pytest.mark.parametrize(
    ("what", "names"),
    [("presets", {**PRESETS, **TWO_TOWERS}), ("layouts", LAYOUTS), ("recipes", RECIPES), ("sources", SOURCES)],
)
def test_names_are_listed(what: str, names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", what, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(names)
    word = list(names)[-1]
    assert main(["list", what, word.upper()]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("name ")
    assert [line.split()[0] for line in lines] == [row["name"] for row in rows if word in str(row.values())]
    assert main(["list", what, word, "nothing of that kind"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_help_does_not_list_every_name(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("convert", "inspect", "compare", "predict", "evaluate"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        out = capsys.readouterr().out
        assert "huggingface_dinov2_memory" not in out
        assert "vit-flax list layouts" in out


def test_a_reader_that_leaves_is_no_error(weights: str) -> None:
    # more than a pipe holds, so that writing fails before the command is through
    command = f"{sys.executable} -m vit_flax list presets --json | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=_environment(), check=True)
    assert done.stdout == "[\n141\n"
    assert done.stderr == ""


def test_absent_accelerators_say_nothing(weights: str, tmp_path: Path) -> None:
    installed = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin", "jax_plugins/xla_cuda12", "jax_plugins/xla_cuda13")
    for name in installed:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "__init__.py").write_text(NOISE)
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    if any(Path("/dev").glob("nvidia*")) or any(Path("/dev").glob("accel*")):
        pytest.skip("this machine has an accelerator")
    show = "import jax; print(jax.devices())"
    hide = "from vit_flax.cli.startup import hide_absent_accelerators; hide_absent_accelerators(); "
    loud, quiet = (
        subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            env=_environment(PYTHONPATH=path),
            check=True,
        )
        for script in (show, hide + show)
    )
    assert "no such accelerator" in loud.stderr  # or the test could not fail
    assert quiet.stderr == ""
    assert quiet.stdout.startswith("[CpuDevice")


def test_accelerators_that_are_there_are_left_alone(tmp_path: Path, monkeypatch: Any) -> None:
    devices, bus = tmp_path / "dev", tmp_path / "bus"
    hidden: list[str] = []
    monkeypatch.setattr("vit_flax.cli.startup._hide", hidden.extend)
    monkeypatch.setattr(sys, "modules", {name: m for name, m in sys.modules.items() if name != "jax"})
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)

    def found() -> set[str]:
        hidden.clear()
        hide_absent_accelerators(devices, bus)
        return {name.split("_")[0] for name in hidden}

    assert found() == {"libtpu", "jax"}
    for file, expected in (("nvidiactl", {"libtpu"}), ("vfio/0", {"jax"}), ("accel0", {"jax"})):
        (devices / file).parent.mkdir(parents=True, exist_ok=True)
        (devices / file).touch()
        assert found() == expected
        (devices / file).unlink()
    for chip, expected in (("0x0042", {"libtpu", "jax"}), ("0x0063", {"jax"})):  # a network card of Google's, a v5e
        (bus / "a").mkdir(parents=True, exist_ok=True)
        (bus / "a" / "vendor").write_text("0x1ae0\n")
        (bus / "a" / "device").write_text(f"{chip}\n")
        assert found() == expected
    monkeypatch.setenv("TPU_LIBRARY_PATH", "libtpu.so")
    assert found() == {"jax"}
    assert "TPU_LIBRARY_PATH" in os.environ
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    (bus / "a" / "device").unlink()
    assert found() == {"jax"}  # JAX loads the CUDA plugin all the same
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    assert found() == set()
