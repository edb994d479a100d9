"""The README.md of weights on a hub, from the files beside them: config, preprocessing, results, a parity report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_flax.convert import Layout, Wish, holds_text, open_checkpoint
from vit_flax.convert.folder import read_json
from vit_flax.preparing import find_preprocessing
from vit_flax.reading import Reading, read_model

CARD, RESULTS, RUN, PARITY = "README.md", "results.json", "train.json", "parity.json"
# fields of a config that a reader looks for first
_SHOWN = ("image_size", "patch_size", "embed_dim", "depth", "num_heads", "reg_tokens", "global_pool", "num_classes")
_ZERO_SHOT = "zero-shot-image-classification"
_LISTED = 100  # class names


def model_card(folder: Path, repository: str, licence: str | None = None) -> str:
    """Returns the text of a model card for a folder of weights, Markdown with the hub's front matter.

    Args:
        folder: as `save`, `convert` or training writes it; results.json and train.json are looked for in it and above
            it, where a run keeps them, parity.json (of `vit-flax compare --json`) in it.
        repository: owner/name on the hub.
        licence: the hub's identifier of the licence, such as apache-2.0.

    Raises:
        ConversionError: the folder holds no weights that can be loaded.
    """
    reading = read_model(open_checkpoint(folder, Wish()), Wish())
    owner = _owner(reading.layout)
    has_text = holds_text(reading.layout)
    classifies = reading.config.num_classes > 0 and not has_text
    task = _ZERO_SHOT if has_text else "image-classification" if classifies else "image-feature-extraction"
    front = {
        "library_name": owner,
        "pipeline_tag": task,
        "tags": ["vision-transformer", "jax", "flax", "vit_flax"],
        **({"license": licence} if licence else {}),
    }
    parts = [
        "---\n" + "\n".join(f"{key}: {json.dumps(value)}" for key, value in front.items()) + "\n---",
        f"# {repository.partition('/')[2]}",
        f"A Vision Transformer of {_millions(reading)} million parameters, in the names of `{reading.layout.name}`.",
        "## Use",
        *_use(owner, repository, task),
        "## Model",
        _table({"family": reading.config.family.name, **_fields(reading)}),
        *_images(reading),
        *_training(folder),
        *_parity(folder / PARITY),
        "---\nWritten by [vit_flax](https://pypi.org/project/vit-linen).",
    ]
    return "\n\n".join(parts) + "\n"


def _owner(layout: Layout) -> str:
    return "transformers" if layout.is_transformers else "timm" if layout.name == "timm" else "vit_flax"


def _millions(reading: Reading) -> str:
    count = sum(math.prod(shape) for shape in reading.checkpoint.shapes.values())
    return f"{count / 1e6:.1f}" if count >= 1e5 else f"{count / 1e6:.3f}"


def _use(owner: str, repository: str, task: str) -> list[str]:
    ours = f'import vit_flax\n\nmodel, params = vit_flax.load("hf://{repository}")'
    texts = [f"```python\n{ours}\n```"]
    commands = {"image-classification": ("predict", ""), _ZERO_SHOT: ("zeroshot", " --labels cat dog")}
    if task in commands:
        command, more = commands[task]
        texts.append(f"```sh\nvit-flax {command} hf://{repository} photo.jpg{more}\n```")
    if owner == "transformers":
        texts.append(f'```python\nfrom transformers import pipeline\n\nrun = pipeline("{task}", "{repository}")\n```')
    if owner == "timm":
        call = f'model = timm.create_model("hf-hub:{repository}", pretrained=True)'
        texts.append(f"```python\nimport timm\n\n{call}\n```")
    return texts


def _fields(reading: Reading) -> dict[str, object]:
    fields = reading.config.fields()
    return {name: fields[name] for name in _SHOWN if name in fields}


def _images(reading: Reading) -> list[str]:
    prepared = find_preprocessing(reading.checkpoint, None)
    if not prepared.is_told:
        return []
    value = prepared.value
    told = {"size": value.image_size, "mean": value.mean, "std": value.std, "interpolation": value.interpolation}
    parts = ["## Images", _table({name: item for name, item in told.items() if item is not None})]
    if value.class_names:
        names = list(value.class_names)
        shown = ", ".join(f"`{name}`" for name in names[:_LISTED])
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        parts.append(f"{len(names)} classes: {shown}{more}.")
    return parts


def _training(folder: Path) -> list[str]:
    home = next((place for place in (folder, folder.resolve().parent) if (place / RESULTS).is_file()), None)
    if home is None:
        return []
    results = _json(home / RESULTS)
    run = _json(home / RUN) if (home / RUN).is_file() else {}
    split, scores = results.get("split"), results.get("best") or results.get("scores") or {}
    told: dict[str, object] = {}
    if run.get("init_from"):
        told["initialised from"] = Path(str(run["init_from"])).name
    told["steps"] = results.get("step")
    told |= {f"images, {name}": count for name, count in (results.get("images") or {}).items()}
    if isinstance(scores.get("accuracy"), float):
        told[f"top-1, {split}"] = f"{scores['accuracy']:.2%}"
    if isinstance((results.get("test") or {}).get("accuracy"), float):
        told["top-1, test"] = f"{results['test']['accuracy']:.2%}"
    told["seconds"] = results.get("seconds") and round(results["seconds"])
    parts = ["## Training", _table({name: value for name, value in told.items() if value is not None})]
    if results.get("per_class"):
        parts.append(
            _table({name: f"{value:.2%}" for name, value in results["per_class"].items()}, "class", "accuracy")
        )
    return parts


def _parity(file: Path) -> list[str]:
    if not file.is_file():
        return []
    report = _json(file)
    verdict = "The same model as" if report.get("agrees") else "**Not the same model as**"
    lines = [
        f"- {'agrees' if check['agrees'] else '**differs**'}: {check['text']}" for check in report.get("checks", ())
    ]
    rows = sum(len(section) for section in report.get("sections", {}).values())
    versions = report.get("versions", {})
    told = ", ".join(
        f"{name} {versions[name]}" for name in ("torch", "jax", "timm", "transformers") if name in versions
    )
    return [
        "## Parity",
        f"{verdict} {report.get('title', 'the original')}: {rows} rows compared by `vit-flax compare` ({told}).",
        "\n".join(lines),
    ]


def _json(file: Path) -> dict[str, Any]:
    return dict(read_json(file))


def _table(rows: Mapping[str, object], name: str = "", value: str = "") -> str:
    lines = [f"| {name} | {value} |", "|---|---|"]
    for key, item in rows.items():
        text = " x ".join(map(str, item)) if isinstance(item, tuple) and key.endswith("size") else str(item)
        lines.append(f"| {key} | {text} |".replace("\n", " "))
    return "\n".join(lines)
