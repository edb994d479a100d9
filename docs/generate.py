"""Reference pages written from the package itself: models, layouts, recipes, commands and the public names.

Sphinx calls `write_pages` before it reads the pages. A public name without a docstring stops the build.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import math
import sys
import textwrap
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from vit_flax.cli.list import first_line
from vit_flax.cli.main import build_parser
from vit_flax.config import ModelConfig, TextConfig, TwoTowersConfig, ViTConfig, ViTFamily
from vit_flax.convert import LAYOUTS
from vit_flax.models import build_model
from vit_flax.models.text_transformer import TextTransformer
from vit_flax.presets import PRESETS, TWO_TOWERS, Preset
from vit_flax.recipes import RECIPES
from vit_flax.train import TrainConfig
from vit_flax.train.config.nested import dotted_paths
from vit_flax.train.data import SOURCES
from vit_flax.train.flops import count_flops

_LISTED = 30  # keys of a table
# modules whose `__all__` is public, in reading order, and the introduction of each
PUBLIC = {
    "vit_flax": "What most programs need.",
    "vit_flax.config": "A model is a frozen config; a family is a pair of its parts.",
    "vit_flax.models": "Linen modules, one for each PyTorch component.",
    "vit_flax.presets": "Named configurations.",
    "vit_flax.convert": "Checkpoints, layouts and what is read from them.",
    "vit_flax.train": "Steps, state and the loop.",
    "vit_flax.train.data": "Sources of images.",
    "vit_flax.recipes": "Named training runs.",
    "vit_flax.parity": "Proof that two models are equal.",
    "vit_flax.plan": "What a step needs on a TPU or GPU.",
    "vit_flax.export": "Programs that run without this library.",
    "vit_flax.reference": "The PyTorch components that all is judged by. Needs torch.",
}


def write_pages(folder: Path) -> None:
    """Writes every generated page into `folder`, leaving alone what has not changed.

    Raises:
        ValueError: a public name has no docstring.
    """
    folder.mkdir(exist_ok=True)
    pages = {
        "models": models_page(),
        "layouts": layouts_page(),
        "recipes": recipes_page(),
        "commands": commands_page(),
        "api": api_page(),
    }
    pages |= {f"api_{module.replace('.', '_')}": module_page(module, text) for module, text in PUBLIC.items()}
    for name, text in pages.items():
        file = folder / f"{name}.md"
        if not file.exists() or file.read_text() != text:
            file.write_text(text)


def table(header: list[str], rows: list[list[str]]) -> str:
    """Returns a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


# --- models -----------------------------------------------------------------------------------------------------------


def models_page() -> str:
    """Returns the list of presets: parameters, operations, input, layouts and published weights of each."""
    architectures: dict[str, dict[str, Preset]] = {}
    for name, preset in PRESETS.items():
        architectures.setdefault(name.partition(".")[0], {})[name] = preset
    families: dict[str, list[list[str]]] = {}
    for architecture, presets in architectures.items():
        families.setdefault(_family_of(architecture), []).append(_architecture_row(architecture, presets))
    header = ["name", "parameters, M", "GFLOPs", "image", "layouts", "published weights: `.tag`, licence"]
    parts = [
        "# Models",
        f"{len(PRESETS)} presets of `vit_flax.create_model` and `--config`, counted from the models themselves. A name "
        "stands for the model, name and tag (`vit_base_patch16_224.augreg_in21k`) for the model of those weights: its "
        "classes, and how images are prepared. Parameters are in millions; GFLOPs are the products of one image "
        "forward, two operations a multiplication with its addition. The layouts are those that can hold it. The "
        "weights are not part of this package: read the licence where they are.",
    ]
    for family, rows in sorted(families.items()):
        parts += [f"## {family}", table(header, rows)]
    header = [
        "name",
        "parameters, M: image + text",
        "GFLOPs: image, text",
        "image",
        "context",
        "layouts",
        "published weights",
    ]
    parts += [
        "## Images and texts",
        f"{len(TWO_TOWERS)} presets of both towers: the image tower's name and `_with_text`. GFLOPs are of one image "
        "and of one text of the whole context, which is how many tokens the text tower reads.",
        table(header, [_towers_row(name, preset) for name, preset in sorted(TWO_TOWERS.items())]),
    ]
    return "\n\n".join(parts) + "\n"


def _family_of(name: str) -> str:
    """Returns the owner in a hub repository's name, or the part of a timm name before its first underscore."""
    return name.partition("/")[0] if "/" in name else name.partition("_")[0]


def _architecture_row(architecture: str, presets: dict[str, Preset]) -> list[str]:
    first = next(iter(presets.values()))
    millions, giga = _size_of(first.config)
    weights = []
    for name, preset in presets.items():
        tag = name.partition(".")[2]
        if preset.source and (tag or len(presets) == 1):  # the bare name stands for the first tag
            weights.append(_weights_of(preset, f".{tag}" if tag else "weights"))
    size = "x".join(map(str, first.config.image_size))
    layouts = ", ".join(_layouts_of(first.config)) or "none"
    return [f"`{architecture}`", f"{millions:.1f}", f"{giga:.1f}", size, layouts, ", ".join(weights)]


def _weights_of(preset: Preset, text: str) -> str:
    """Returns the link to published weights, with their licence."""
    source = preset.source or ""
    address = source if "://" in source else f"https://huggingface.co/{source}"
    return f"[{text}]({address}) {preset.licence or ''}".rstrip()


def _towers_row(name: str, preset: Preset[TwoTowersConfig]) -> list[str]:
    config = preset.config
    (image, image_giga), (text, text_giga) = _size_of(config.image), _size_of(config.text)
    return [
        f"`{name}`",
        f"{image:.1f} + {text:.1f}",
        f"{image_giga:.1f}, {text_giga:.1f}",
        "x".join(map(str, config.image_size)),
        str(config.text_context_length),
        ", ".join(_layouts_of(config)) or "none",
        _weights_of(preset, "weights") if preset.source else "",
    ]


@functools.cache
def _layouts_of(config: ModelConfig) -> tuple[str, ...]:
    """Returns the layouts that can hold a model, each spelling of transformers' names once."""
    return tuple(
        name for name, layout in LAYOUTS.items() if not name.endswith("_memory") and not layout.refusals(config)
    )


@functools.cache
def _size_of(config: ViTConfig | TextConfig) -> tuple[float, float]:
    """Returns millions of parameters and billions of FLOPs, extrapolated from two blocks where all are alike."""
    if isinstance(config, ViTConfig) and any(config.position.representatives(config.depth)):
        parameters, operations = _count(config)
        return parameters / 1e6, operations / 1e9
    short = (
        dataclasses.replace(config, depth=n) if isinstance(config, TextConfig) else config.replace(depth=n)
        for n in (1, 2)
    )
    (parameters, operations), (more_parameters, more_operations) = map(_count, short)
    blocks = config.depth - 1
    parameters += blocks * (more_parameters - parameters)
    operations += blocks * (more_operations - operations)
    return parameters / 1e6, operations / 1e9


def _count(config: ViTConfig | TextConfig) -> tuple[int, int]:
    """Returns parameters and operations of a forward pass, from one trace that computes nothing."""
    if isinstance(config, TextConfig):
        model, given = TextTransformer(config), jax.ShapeDtypeStruct((1, config.context_length), jnp.int32)
    else:
        model = build_model(config)
        given = jax.ShapeDtypeStruct((1, *config.image_size, config.in_chans), jnp.float32)
    init = model.init_with_output
    traced, (_, variables) = jax.make_jaxpr(init, return_shape=True)(jax.random.key(0), given)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"])), count_flops(traced.jaxpr)


def layouts_page() -> str:
    """Returns the table of layouts."""
    rows = [[f"`{name}`", layout.description] for name, layout in LAYOUTS.items()]
    return (
        "# Layouts\n\nA layout is how one library names a model's tensors. It is told by the names; `--layout` and "
        "`layout=` name it where several fit.\n\n" + table(["layout", "whose names"], rows) + "\n"
    )


# --- recipes ----------------------------------------------------------------------------------------------------------


def recipes_page() -> str:
    """Returns every recipe with its parameters, every source of images, and every `--set` key with its default."""
    parts = ["# Recipes and settings", "`vit-flax train RECIPE --set KEY=VALUE ...` runs one of these."]
    for name, recipe in RECIPES.items():
        text = inspect.getdoc(recipe) or ""
        first, _, rest = text.partition("\n")
        parts += [f"## `{name}`", first, rest.strip()]
        given = [f"`{p}`" for p in map(str, inspect.signature(recipe).parameters.values())]
        if given:
            parts.append("Takes " + ", ".join(given) + ".")
    parts.append("## Sources of images")
    rows = [[f"`{name}`", first_line(module)] for name, module in SOURCES.items()]
    parts.append(table(["`data.name`", "what `data.path` is"], rows))
    parts.append("## Every setting")
    parts.append(
        "The default is TrainConfig's; a recipe has its own. `model.*` are the fields of a model's config: `--set "
        "model=PRESET` takes a preset, `--set model.depth=6` changes one field."
    )
    rows = [row for path in dotted_paths(TrainConfig) if not _of_a_model(path) and (row := _setting(path))]
    parts.append(table(["key", "default", "type", "what it says"], rows))
    return "\n\n".join(part for part in parts if part) + "\n"


def _of_a_model(path: str) -> bool:
    return path.startswith(("model.", "teacher_model."))


def _setting(path: str) -> list[str] | None:
    """Returns the row of one dotted path, or nothing where it is a group of others."""
    owner: Any = TrainConfig
    *groups, name = path.split(".")
    for group in groups:
        owner = owner.NESTED[group]
    if name in getattr(owner, "NESTED", {}):
        return None
    field = next(field for field in dataclasses.fields(owner) if field.name == name)
    if field.default is not dataclasses.MISSING:
        default = repr(field.default)
    else:
        default = "" if field.default_factory is dataclasses.MISSING else repr(field.default_factory())
    return [f"`{path}`", f"`{default}`" if default else "needed", f"`{field.type}`", _comments(owner).get(name, "")]


@functools.cache
def _comments(owner: type) -> dict[str, str]:
    """Returns the comment behind each field of a dataclass, from its source."""
    source = textwrap.dedent(inspect.getsource(owner))
    lines = source.splitlines()
    found = {}
    for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            _, _, comment = lines[(node.end_lineno or node.lineno) - 1].partition("  # ")
            found[node.target.id] = comment.strip()
    return found


# --- commands and names -----------------------------------------------------------------------------------------------


def commands_page() -> str:
    """Returns the help text of every command."""
    parts = [
        "# Commands",
        "Exit status: 0 done, 1 the answer is no, 2 unusable input, 70 a fault of the program's own.",
    ]
    _, commands = build_parser()
    for name, command in commands.items():
        parts += [f"## vit-flax {name}", f"```text\n{command.format_help().rstrip()}\n```"]
    return "\n\n".join(parts) + "\n"


def api_page() -> str:
    """Returns the index of the public modules."""
    rows = [[f"[{module}](api_{module.replace('.', '_')}.md)", text] for module, text in PUBLIC.items()]
    pages = "\n".join(f"api_{module.replace('.', '_')}" for module in PUBLIC)
    index = table(["module", "what it has"], rows)
    return f"# API\n\n{index}\n\n```{{toctree}}\n:hidden:\n\n{pages}\n```\n"


def module_page(module: str, text: str) -> str:
    """Returns the reference of one module's public names; a name of an earlier module is a line that refers to it.

    Raises:
        ValueError: a name has no docstring, or a constant no comment.
    """
    owner = importlib.import_module(module)
    parts = [f"# {module}", text, f"```{{eval-rst}}\n.. currentmodule:: {module}\n```"]
    for name in sorted(owner.__all__, key=str.lower):
        value = getattr(owner, name)
        home = _places(value)[0]
        if home != f"{module}.{name}":
            parts.append(f"```{{eval-rst}}\n``{module}.{name}`` is :py:obj:`{home}`.\n```")
        else:
            parts.append(_reference(module, name, value))
    return "\n\n".join(parts) + "\n"


def _places(value: object) -> list[str]:
    """Returns the public names of one object, that of the most specific module first."""
    found = []
    for module in [*list(PUBLIC)[1:], next(iter(PUBLIC))]:
        owner = importlib.import_module(module)
        found += [f"{module}.{name}" for name in owner.__all__ if getattr(owner, name) is value]
    named = getattr(value, "__name__", "")
    return sorted(found, key=lambda place: place.rpartition(".")[2] != named)  # an alias stands behind the name


def _reference(module: str, name: str, value: Any) -> str:
    """Returns the directive that documents one name where it is public, not where it is defined."""
    if inspect.isclass(value) or inspect.isfunction(value):
        if not inspect.getdoc(value):
            raise ValueError(f"{module}.{name} has no docstring")
        kind = ".. autoclass::" if inspect.isclass(value) else ".. autofunction::"
        directive = f"{kind} {module}.{name}" + ("\n   :members:" if inspect.isclass(value) else "")
    else:
        body = "\n\n".join(
            textwrap.indent(part, "   ") for part in (_comment_of(module, name, value), _contents(value))
        )
        directive = f".. py:data:: {module}.{name}\n\n{body}"
    return f"```{{eval-rst}}\n{directive}\n```"


def _contents(value: Any) -> str:
    """Returns a short description of a constant's value."""
    if isinstance(value, ViTFamily):
        defaults = ", ".join(f"``{field}={default!r}``" for field, default in value.defaults.items())
        parts = f"Tokens: ``{value.tokens.__name__}``; position: ``{value.position.__name__}``."
        return parts + (f" Defaults of its own: {defaults}." if defaults else "")
    if isinstance(value, dict | tuple):
        words = [f"``{key}``" for key in value]
        return ", ".join(words[:_LISTED]) + (f" and {len(words) - _LISTED} more" if len(words) > _LISTED else "")
    if isinstance(value, types.UnionType):
        return " or ".join(f"``{kind.__name__}``" for kind in value.__args__)
    return f"``{value!r}``"


def _comment_of(module: str, name: str, value: object) -> str:
    """Returns the comment at a constant's definition: behind it, or in the lines above.

    Raises:
        ValueError: there is none.
    """
    for known, owner in list(sys.modules.items()):
        if not known.startswith("vit_flax") or getattr(owner, name, None) is not value:
            continue
        lines = inspect.getsource(owner).splitlines()
        for node in ast.parse("\n".join(lines)).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            if not any(isinstance(target, ast.Name) and target.id == name for target in targets):
                continue
            _, _, behind = lines[node.lineno - 1].partition("  # ")
            above: list[str] = []
            for line in reversed(lines[: node.lineno - 1]):
                if not line.startswith("# "):
                    break
                above.insert(0, line[2:])
            if text := " ".join(above) or behind:
                return text[:1].upper() + text[1:] + "."
    raise ValueError(f"{module}.{name}: a public constant without a comment where it is defined")
