"""The layers of the package: which files import which, and the libraries that an import loads."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent

# A file imports only from rows above its own; within a row, only from its own folder.
LAYERS = (
    ("chips", "suggestions", "config", "gpu_compiler", "host_memory", "array_writer", "presets"),
    ("microbatches", "models", "convert", "preprocessing", "reference"),
    ("size_changes",),
    ("tokenizing", "resizing", "classifier", "device_arrays", "preparing", "batching", "attention_weights"),
    ("reading", "writing", "image_sizes"),
    ("lora",),
    ("pretrained", "inference", "zero_shot", "model_card", "depth", "linear_depth"),
    ("hub",),
    ("train",),
    ("parity", "plan", "recipes", "evaluators"),
    ("export",),
    ("cli",),
)
ROW = {name: row for row, names in enumerate(LAYERS) for name in names}
# Imported only where they are needed, never by `import vit_flax`.
HEAVY = (
    "torch",
    "optax",
    "orbax",
    "grain",
    "sklearn",
    "scipy",
    "PIL",
    "datasets",
    "pyarrow",
    "array_record",
    "timm",
    "transformers",
    "tokenizers",
    "sentencepiece",
    "huggingface_hub",
)
FILES = [path for path in sorted(ROOT.rglob("*.py")) if not path.name.endswith("_test.py") and path.parent != ROOT]
FILES += [path for path in sorted(ROOT.glob("*.py")) if path.stem in ROW]


def _imported(source: str) -> list[str]:
    """Returns the modules that a file's text imports, at any depth."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def _wrong_arrows(owner: str, source: str) -> list[str]:
    wrong = []
    for module in _imported(source):
        parts = module.split(".")
        if parts[0] != "vit_flax" or len(parts) < 2 or parts[1] == owner:
            continue
        if parts[1] not in ROW:
            continue  # a public name of vit_flax itself, or a layer that the next test reports
        if ROW[parts[1]] > ROW[owner] or (ROW[parts[1]] == ROW[owner] and ROW[owner] > 0):
            wrong.append(module)
    return wrong


def _owner(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_every_file_belongs_to_a_layer() -> None:
    names = {_owner(path) for path in ROOT.rglob("*.py") if not path.name.endswith("_test.py")}
    names -= {"__init__", "__main__"}
    assert names <= set(ROW), f"not in LAYERS: {names - set(ROW)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_arrow_points_up(path: Path) -> None:
    assert _wrong_arrows(_owner(path), path.read_text()) == []


def test_the_arrow_test_can_fail() -> None:
    assert _wrong_arrows("models", "from vit_flax.parity import compare") == ["vit_flax.parity.compare"]
    assert _wrong_arrows("models", "def f():\n    import vit_flax.convert.files") == ["vit_flax.convert.files"]
    assert _wrong_arrows("cli", "from vit_flax.models import Block") == []


def test_convert_needs_neither_jax_nor_torch_and_models_do_no_io() -> None:
    for path in (ROOT / "convert").rglob("*.py"):
        if path.name.endswith("_test.py"):
            continue
        names = {module.split(".")[0] for module in _imported(path.read_text())}
        assert not names & {"jax", "flax"}, path
        # torch and the hub only inside the functions that read or write such files
        outside = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {module.split(".")[0] for node in outside for module in _imported(ast.unparse(node))}
        assert not names & set(HEAVY), path
    for path in (ROOT / "models").rglob("*.py"):
        if path.name.endswith("_test.py"):
            continue
        names = {module.split(".")[0] for module in _imported(path.read_text())}
        assert not names & {"os", "pathlib", "io", "torch", "safetensors", "optax"}, path


def _loaded_by(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = _loaded_by("from vit_flax import *")  # every public name: they are imported when first used
    assert "flax" in loaded
    assert not {"jax", "flax"} & _loaded_by("import vit_flax")
    assert not {"jax", "flax"} & _loaded_by("import vit_flax.recipes")  # a misspelt recipe is told at once
    # Flax itself imports optax or orbax in some versions: only what we add counts
    by_flax = _loaded_by("import flax.linen")
    assert not set(HEAVY) & loaded - by_flax
    assert "torch" not in loaded
    assert "vit_flax.presets.tables" not in loaded  # some nine hundred configs, for those who ask for one by name


def test_the_import_test_can_fail() -> None:
    assert "sqlite3" in _loaded_by("import sqlite3")
