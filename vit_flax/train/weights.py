"""Initial weights of a run and the weights it exports, in the layouts of conversion."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from vit_flax.config import ModelConfig
from vit_flax.convert import Wish, layout_to_write, open_checkpoint
from vit_flax.convert.folder import HUB
from vit_flax.convert.wish import preset_or_file
from vit_flax.lora.peft_folder import write_adapter
from vit_flax.models import build_model
from vit_flax.preprocessing.evaluation import Preprocessing
from vit_flax.pretrained import load, save
from vit_flax.reading import Reading, read_model
from vit_flax.train.config import TrainConfig
from vit_flax.train.state import init_params

logger = logging.getLogger(__name__)

_HEADS = ("head", "head_dist")  # initialised anew where the number of classes differs
_NEW = "fc_norm"  # initialised with the classifier, where the checkpoint has none: identity gain and shift
# parameters of a checkpoint that its family's classifier lacks: pre-training's, or another pooling's
_LEFT = ("pre_logits", "mask_token", "attn_pool", "fc_norm")
_SHOWN = 3


def initial_params(config: TrainConfig) -> PyTree:
    """Returns the parameters of config.init_from in float32, with a new head where its classes differ; or None.

    Raises:
        ValueError: anything but the head differs from the model to be trained; the message lists it.
    """
    if config.init_from is None:
        return None
    reading = _read_initial(config)
    reading.log_notes()
    _, params = reading.build()
    loaded: dict[str, Any] = flatten_dict(params, sep="/")  # pyright: ignore[reportAssignmentType]
    fresh = init_params(jax.random.key(config.seed), config.model)
    own: dict[str, Any] = flatten_dict(fresh, sep="/")  # pyright: ignore[reportAssignmentType]
    new = [path for path in own if path.split("/")[0] == _NEW and path not in loaded]
    known = (*_HEADS, *_LEFT, *(["norm"] if new else []))  # which fc_norm replaces
    problems = [f"not in the model: {path}" for path in loaded if path not in own and path.split("/")[0] not in known]
    for path, leaf in own.items():
        if path in loaded and loaded[path].shape == leaf.shape:
            own[path] = jnp.asarray(loaded[path], jnp.float32)
        elif path not in new and path.split("/")[0] not in _HEADS:
            found = f"has shape {tuple(loaded[path].shape)}" if path in loaded else "is missing"
            problems.append(f"{path} {found}, the model needs {tuple(leaf.shape)}")
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        shown = "; ".join(problems[:_SHOWN])
        raise ValueError(f"{config.init_from} is not of the model to be trained: {shown}{more}")
    if new:
        gone = " in place of its norm" if "norm/scale" in loaded and "norm/scale" not in own else ""
        logger.warning("%s: has no %s, which begins anew with the classifier%s", config.init_from, _NEW, gone)
    return jax.tree.map(np.asarray, unflatten_dict(own, sep="/"))


def _read_initial(config: TrainConfig) -> Reading:
    assert config.init_from is not None
    overrides = {"image_size": config.model.image_size}
    wish = Wish(
        layout=config.init_layout,
        config=config.init_config and preset_or_file(config.init_config),
        overrides=overrides,
        entry=config.init_entry,
        own_classes=True,
        float32=True,
        tower="image",
    )
    opened = open_checkpoint(config.init_from, wish)
    reading = read_model(opened, wish)
    if reading.resolved is None:  # what tensors do not tell is as in the model to be trained
        model = config.image_model.fields()
        told = {name: model[name] for group in reading.layout.required for name in group if name in model}
        reading = read_model(opened, dataclasses.replace(wish, overrides={**told, **overrides}))
    return reading


def digest_of(params: PyTree) -> str:
    """Returns a digest of parameters in host memory: names, shapes, dtypes and values."""
    digest = hashlib.sha256()
    flat: dict[str, Any] = flatten_dict(params, sep="/")  # pyright: ignore[reportAssignmentType]
    for path, leaf in sorted(flat.items()):
        digest.update(f"{path} {leaf.shape} {leaf.dtype}".encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()


def teacher_params(config: TrainConfig) -> PyTree:
    """Returns the teacher's parameters in float32, or None."""
    if config.teacher is None or config.teacher_model is None:
        return None
    params = load(config.teacher, config=config.teacher_model)[1]
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)


def check_exportable(config: TrainConfig) -> None:
    """Raises ConversionError when the layout asked for, or every layout, cannot hold the model."""
    layout_to_write(config.model, config.export_layout)


def export_adapter(
    folder: Path,
    config: TrainConfig,
    trained: PyTree,
    frozen: PyTree,
    params: PyTree,
    preprocessing: Preprocessing | None = None,
) -> str:
    """Exports a run's adapters in peft's format, beside the merged weights; returns the reason where it cannot.

    They are read back with the weights that the run began with, and left only where that gives `params`: what else the
    run changed (a resized table, say) is in no adapter.
    """
    trained, frozen, params = gather(trained), gather(frozen), gather(params)
    assert config.lora is not None
    if jax.process_index() != 0:
        return ""
    shutil.rmtree(folder, ignore_errors=True)
    if config.init_from is None:
        return "the run began with random weights, so there is no base"
    try:
        base = config.init_from if config.init_from.startswith(HUB) else str(Path(config.init_from).absolute())
        layout = _read_initial(config).layout.name
        write_adapter(folder, config.image_model, trained, frozen, config.lora, layout, base, preprocessing)
        wish = Wish(float32=True, tower="image")
        model, read = read_model(open_checkpoint(folder, wish), wish).build()
    except ValueError as error:  # of conversion, or of a base that does not tell everything
        shutil.rmtree(folder, ignore_errors=True)
        return " ".join(str(error).split())
    found: dict[str, Any] = flatten_dict(read, sep="/")  # pyright: ignore[reportAssignmentType]
    whole: dict[str, Any] = flatten_dict(params, sep="/")  # pyright: ignore[reportAssignmentType]
    theirs, ours = (cfg.replace(mask_token=False).to_dict() for cfg in (model.config, config.model))
    differing = [name for name in ours if ours[name] != theirs.get(name)]
    differing += [path for path, leaf in whole.items() if path not in found or not _same(found[path], leaf)]
    differing += [path for path in found if path not in whole and path.split("/")[0] not in _LEFT]
    if not differing:
        return ""
    shutil.rmtree(folder)
    return f"the model of this run has another {differing[0]} than {config.init_from} with adapters"


def _same(a: Any, b: Any) -> bool:
    """Returns whether arrays are equal up to rounding."""
    return np.shape(a) == np.shape(b) and np.allclose(a, b, rtol=1e-5, atol=1e-6 * float(np.abs(b).max(initial=0)))


def export(
    folder: Path, model: ModelConfig, params: PyTree, layout: str | None, preprocessing: Preprocessing | None = None
) -> list[str]:
    """Writes model.safetensors and config.json into a folder atomically: files there are replaced at the end.

    `preprocessing` is written beside them: how images are prepared, and the names of the classes. Returns what the
    layout's own library will not be told, a line each.
    """
    params = gather(params)
    if jax.process_index() != 0:
        return []
    new = folder.with_name("new_" + folder.name)
    shutil.rmtree(new, ignore_errors=True)
    notes = save(new, build_model(model), params, layout, preprocessing)
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)
    return notes


def exported_params(folder: Path) -> PyTree:
    """Returns the parameters that `export` wrote, in float32."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), load(folder)[1])


def gather(params: PyTree) -> PyTree:
    """Gathers sharded parameters into this process's host memory."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(params, tiled=True)
    return jax.device_get(params)
