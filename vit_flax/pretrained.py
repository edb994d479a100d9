"""Checkpoints to models and back: the public functions of conversion."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from vit_flax.config import ViTConfig, config_from_dict
from vit_flax.convert import (
    LAYOUTS,
    Checkpoint,
    ConversionError,
    Layout,
    Resolved,
    detect_layout,
    from_mapping,
    get_layout,
    layout_for,
    read_beside,
    read_checkpoint,
    resolve_config,
    unwrap,
    write_checkpoint,
)
from vit_flax.convert.rules import Fate, plan, to_params
from vit_flax.models import VisionTransformer, build_model
from vit_flax.models.resample import Grid
from vit_flax.presets import get_preset
from vit_flax.resizing import (
    KERNEL,
    TABLE,
    PatchResize,
    Resize,
    WindowResize,
    find_patch_resize,
    find_resize,
    find_window_resizes,
)

Params = dict[str, Any]
_ALIGNMENT = 64  # bytes; JAX's arrays on the CPU begin at multiples of it


def create_model(preset: str, **overrides: Any) -> VisionTransformer:
    """Returns the linen module of a preset; `overrides` are fields of its config or dtype, param_dtype, precision.

    Raises:
        ValueError: no such preset (the nearest is suggested), no such field, or values that do not fit.
    """
    runtime = {name: overrides.pop(name) for name in ("dtype", "param_dtype", "precision") if name in overrides}
    return build_model(get_preset(preset).config.replace(**overrides), **runtime)


def from_state_dict(
    tensors: Mapping[str, Any],
    layout: str | None = None,
    config: str | ViTConfig | Mapping[str, Any] | None = None,
    *,
    entry: str | None = None,
    resample: str | None = None,
    source_grid: tuple[int, int] | None = None,
    **overrides: Any,
) -> tuple[VisionTransformer, Params]:
    """Returns the Flax model of named arrays (torch's or NumPy's) and its parameters, in the tensors' own dtypes.

    Args:
        tensors: names to arrays, for example `torch_model.state_dict()`.
        layout: a layout's name; None finds it from the names.
        config: what tensors cannot tell: a preset's name, a ViTConfig or its `to_dict()`, or the contents of a
            config.json.
        entry: which weights of a training checkpoint to take where it holds several, for example 'teacher'.
        resample: how to resize learned positions when `image_size` asks for another grid of patches, and the patch
            kernel when `patch_size` asks for other patches (as FlexiViT does): a mode of vit_flax.models.resample. None
            takes the mode of the layout's own library.
        source_grid: (height, width) of the checkpoint's grid of patches, needed where that is not square.
        **overrides: single fields of the config, for example `num_heads=12`; they win over `config`.

    Raises:
        ConversionError: the layout is unknown, a field is (the message says which), or tensors are missing,
            unexpected, ambiguous or misshapen (the message lists them all).
        ValueError: a field does not exist, or values do not fit each other.
    """
    return build_from(unwrap(from_mapping(tensors), entry), layout, config, overrides, resample, source_grid)


def load(
    path: str | os.PathLike[str],
    layout: str | None = None,
    config: str | ViTConfig | Mapping[str, Any] | None = None,
    *,
    entry: str | None = None,
    resample: str | None = None,
    source_grid: tuple[int, int] | None = None,
    **overrides: Any,
) -> tuple[VisionTransformer, Params]:
    """Returns the Flax model of a weights file, a folder or hf://owner/name[@revision], and its parameters.

    Files are .safetensors (or the index of several), .npz, .pth, .pt and .bin. Pickles are read by torch's weights_only
    alone. A folder may be a Hugging Face repository or its place in the hub's cache.

    Arguments and errors are those of `from_state_dict`; a config stored with the weights counts after `config`.
    """
    return build_from(unwrap(read_checkpoint(path), entry), layout, config, overrides, resample, source_grid)


def to_state_dict(model: VisionTransformer, params: Any, layout: str | None = None) -> dict[str, np.ndarray]:
    """Returns the parameters as NumPy arrays under a layout's names, every value bit for bit.

    Args:
        model: the model the parameters belong to.
        params: its parameters.
        layout: a layout's name; None takes the first that can hold the model.

    Raises:
        ConversionError: the layout cannot hold the model, or the parameters are not the model's; all reasons named.
    """
    return _export(model, params, _layout_to_write(model, layout))


def save(path: str | os.PathLike[str], model: VisionTransformer, params: Any, layout: str | None = None) -> None:
    """Writes the parameters in a layout: to a .safetensors, .npz, .pth, .pt or .bin file, or to a folder (no suffix).

    A safetensors file carries the config, so `load` needs nothing else. Errors are those of `to_state_dict`; nothing is
    left behind when one occurs.
    """
    chosen = _layout_to_write(model, layout)
    file = chosen.config_file(model.config) if chosen.config_file else None
    write_checkpoint(path, _export(model, params, chosen), {**model.config.to_dict(), "layout": chosen.name}, file)


def find_layout(checkpoint: Checkpoint, layout: str | None, config: Any = None) -> tuple[Layout, str]:
    """Returns the layout of a checkpoint and what it was told by; `config` is what the caller gave."""
    if layout is not None:
        return get_layout(layout), "given"
    try:
        beside = read_beside(checkpoint)
    except ConversionError:  # said by find_config, unless the caller's own config makes it needless
        beside = None
    if beside and beside.layout:
        if "model_config" in (checkpoint.config or {}):
            return get_layout(beside.layout), beside.origin
        # the names that the library has in memory, or those of files
        for name in (f"{beside.layout}_memory", beside.layout):
            named = LAYOUTS.get(name)
            if named and (named.belongs or named.evidence)(checkpoint.shapes.keys()):
                return named, beside.origin
    try:
        found, evidence = detect_layout(checkpoint.shapes, _config_class(config))
    except ConversionError as error:
        raise ConversionError(f"{checkpoint.source}: {error}") from error
    if found.unsettled and config is None and beside is None:
        raise ConversionError(f"{checkpoint.source}: has {evidence}: {found.unsettled}")
    return found, f"has {evidence}"


def find_config(
    checkpoint: Checkpoint,
    layout: Layout,
    config: str | ViTConfig | Mapping[str, Any] | None,
    overrides: Mapping[str, Any],
) -> Resolved:
    """Returns the config of a checkpoint with the origin of every field."""
    sources: list[tuple[str, Mapping[str, Any]]] = [("given", overrides)]
    if isinstance(config, str):
        sources.append((f"preset {config}", _fields(get_preset(config).config)))
    elif isinstance(config, ViTConfig):
        sources.append(("config given", _fields(config)))
    elif config is not None:
        sources.append(("config given", _fields(config_from_dict(config))))
    if config is None and (beside := read_beside(checkpoint)):
        sources.append((beside.origin, beside.fields))
    return resolve_config(layout, checkpoint.shapes, sources)


def with_own_classes(checkpoint: Checkpoint, layout: str | None, preset: str | None) -> ViTConfig | None:
    """Returns the config of a preset (None: None) with as many classes as the checkpoint's own head has, perhaps none.

    For whoever puts another head in its place.
    """
    if preset is None:
        return None
    config = get_preset(preset).config
    found, _ = find_layout(checkpoint, layout, preset)
    known = {name: value for name, value in _fields(config).items() if name != "num_classes"}
    told = found.infer(found.read(checkpoint).shapes, known)
    return config.replace(num_classes=told.get("num_classes", config.num_classes))


def expected_shapes(model: VisionTransformer) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter of a model by its path, without allocating any."""
    depth = model.config.depth
    if depth < 4:
        return _traced_shapes(model, depth)
    one, two = _traced_shapes(model, 1), _traced_shapes(model, 2)
    if any(two[path] != shape for path, shape in one.items()):
        return _traced_shapes(model, depth)  # what is outside of the blocks knows how many there are
    blocks = {path.partition("/")[2]: shape for path, shape in one.items() if path.startswith("blocks_0/")}
    rest = {path: shape for path, shape in one.items() if not path.startswith("blocks_0/")}
    return rest | {f"blocks_{i}/{path}": shape for i in range(depth) for path, shape in blocks.items()}


def _traced_shapes(model: VisionTransformer, depth: int) -> dict[str, tuple[int, ...]]:
    """Does so for that many blocks by tracing all of them."""
    cfg = model.config.replace(depth=depth)
    images = jax.ShapeDtypeStruct((1, *cfg.image_size, cfg.in_chans), jnp.float32)
    variables = jax.eval_shape(model.clone(config=cfg).init, jax.random.key(0), images)
    flat: dict[str, Any] = flatten_dict(variables["params"], sep="/")  # pyright: ignore[reportAssignmentType]
    return {path: leaf.shape for path, leaf in flat.items()}


def build_from(
    checkpoint: Checkpoint,
    layout: str | None,
    config: str | ViTConfig | Mapping[str, Any] | None,
    overrides: Mapping[str, Any],
    resample: str | None = None,
    source_grid: tuple[int, int] | None = None,
) -> tuple[VisionTransformer, Params]:
    """Returns the model of an opened checkpoint and its parameters; see `from_state_dict`."""
    checkpoint, config = _with_config(checkpoint, config)
    found, _ = find_layout(checkpoint, layout, config)
    checkpoint = found.read(checkpoint)
    resolved = find_config(checkpoint, found, config, overrides)
    model = build_model(resolved.config)
    rules, expected = found.rules(resolved.config), expected_shapes(model)
    resizes, obstacle = _find_resizes(
        checkpoint, found, resolved.config, rules, expected, config, overrides, resample, source_grid
    )
    try:
        flat = to_params(checkpoint, rules, _as_stored(expected, resizes), _as_in_this_thread(on_device))
    except ConversionError as error:
        if not obstacle:
            raise
        raise ConversionError(f"{error}\n  {obstacle}") from error
    for path, resize in resizes.items():
        flat[path] = on_device(resize(flat[path]))
    return model, unflatten_dict(flat, sep="/")


def _with_config(checkpoint: Checkpoint, config: Any) -> tuple[Checkpoint, Any]:
    """Returns the checkpoint with a config.json that the caller gave, and what else `config` is."""
    if isinstance(config, Mapping) and "model_type" in config:
        return dataclasses.replace(checkpoint, config=config), None
    return checkpoint, config


Resizes = dict[str, Resize | PatchResize | WindowResize]  # by the parameter's path


def _find_resizes(
    checkpoint: Checkpoint,
    layout: Layout,
    resolved: ViTConfig,
    rules: Any,
    expected: Mapping[str, tuple[int, ...]],
    config: Any,
    overrides: Mapping[str, Any],
    resample: str | None,
    source_grid: tuple[int, int] | None,
) -> tuple[Resizes, str]:
    native = _native_grid(checkpoint, layout, config, overrides)
    asked = config is not None or "image_size" in overrides or "patch_size" in overrides
    shapes = checkpoint.shapes
    table, obstacle = find_resize(layout, resolved, rules, shapes, expected, resample, source_grid, native, asked)
    windows, window_obstacle = find_window_resizes(
        layout, resolved, rules, shapes, expected, resample, source_grid, native, asked
    )
    kernel = find_patch_resize(resolved, rules, shapes, expected, resample) if "patch_size" in overrides else None
    found = {TABLE: table, KERNEL: kernel, **windows}
    return {path: resize for path, resize in found.items() if resize is not None}, obstacle or window_obstacle


def _as_stored(expected: Mapping[str, tuple[int, ...]], resizes: Resizes) -> Mapping[str, tuple[int, ...]]:
    return {**expected, **{path: resize.stored_shape for path, resize in resizes.items()}}


def _native_grid(checkpoint: Checkpoint, layout: Layout, config: Any, overrides: Mapping[str, Any]) -> Grid | None:
    """Returns the grid that a config tells, whatever image_size and patch_size the caller asks for."""
    others = {name: value for name, value in overrides.items() if name not in ("image_size", "patch_size")}
    try:
        resolved = find_config(checkpoint, layout, config, others)
    except ValueError:
        return None
    # a layout that tells the size by the tensors takes the grid for square
    return None if resolved.origins["image_size"] == "tensor shapes" else resolved.config.grid_size


def describe(
    checkpoint: Checkpoint,
    layout: str | None,
    config: str | ViTConfig | Mapping[str, Any] | None,
    overrides: Any,
    resample: str | None = None,
    source_grid: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Returns what a checkpoint is, as JSON types: layout, config with origins, every tensor's fate, problems.

    Raises:
        ConversionError: the layout cannot be told.
        ValueError: a field given does not exist, or values do not fit each other.
    """
    checkpoint, config = _with_config(checkpoint, config)
    found, evidence = find_layout(checkpoint, layout, config)
    checkpoint = found.read(checkpoint)
    shapes = checkpoint.shapes
    answer: dict[str, Any] = {
        "source": checkpoint.source,
        "layout": found.name,
        "evidence": evidence,
        "parameters": sum(math.prod(shape) for shape in shapes.values()),
        "no_tensors": dict(checkpoint.skipped),  # what else a training checkpoint holds, and of what type
        "config": {},
        "origins": {},
        "tensors": [{"name": name, "shape": list(shape), "fate": "not decided yet"} for name, shape in shapes.items()],
        "problems": [],
    }
    try:
        resolved = find_config(checkpoint, found, config, overrides)
    except ConversionError as error:
        answer["problems"] = [str(error)]
        return answer
    answer["config"], answer["origins"] = resolved.config.to_dict(), {"model_config": "layout", **resolved.origins}
    rules, expected = found.rules(resolved.config), expected_shapes(build_model(resolved.config))
    resizes, obstacle = _find_resizes(
        checkpoint, found, resolved.config, rules, expected, config, overrides, resample, source_grid
    )
    steps = plan(shapes, rules, _as_stored(expected, resizes))
    answer["tensors"] = [
        {"name": fate.name, "shape": list(fate.shape), "fate": _fate(fate, resizes)} for fate in steps.fates
    ]
    answer["problems"] = [*steps.problems, *([obstacle] if obstacle and steps.problems else [])]
    return answer


def _fate(fate: Fate, resizes: Resizes) -> str:
    if resize := resizes.get(fate.target or ""):
        return f"-> {fate.target} ({fate.operation}; resized {resize})"
    if fate.target:
        return f"-> {fate.target} ({fate.operation})"
    return f"dropped: {fate.dropped}" if fate.dropped else "unexpected"


def _config_class(config: str | ViTConfig | Mapping[str, Any] | None) -> type[ViTConfig] | None:
    if config is None or isinstance(config, ViTConfig):
        return type(config) if config else None
    return type(get_preset(config).config if isinstance(config, str) else config_from_dict(config))


def _fields(config: ViTConfig) -> dict[str, Any]:
    return {name: value for name, value in vars(config).items() if not name.startswith("_")}


def on_device(array: np.ndarray) -> jax.Array:
    """Returns a JAX array with the values of one that may be mapped from a file.

    Raises:
        ConversionError: it is float64 and JAX's 64-bit mode is off.
    """
    if array.dtype == np.float64 and not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        raise ConversionError(
            "the tensors are float64, which JAX would cut to float32: call jax.config.update('jax_enable_x64', True) "
            "first, or cast them to float32 yourself"
        )
    # always a copy: what was mapped from a file must not change with the file
    if not array.flags.c_contiguous:
        return jax.device_put(np.require(array, requirements="A")).block_until_ready()  # JAX transposes as it copies
    memory = np.empty(array.nbytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    own = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    np.copyto(own, array)
    return jax.device_put(own)  # on the CPU without another copy


def _as_in_this_thread(function: Callable[[np.ndarray], jax.Array]) -> Callable[[np.ndarray], jax.Array]:
    """Returns the function with this thread's 64-bit mode and default device: JAX's contexts belong to one thread."""
    wide, device = jax.config.jax_enable_x64, jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]

    def inside(array: np.ndarray) -> jax.Array:
        with jax.enable_x64(wide), jax.default_device(device):
            return function(array)

    return inside


def _layout_to_write(model: VisionTransformer, layout: str | None) -> Layout:
    if layout is None:
        return layout_for(model.config)
    chosen = get_layout(layout)
    refusals = chosen.refusals(model.config)
    if refusals:
        raise ConversionError(f"layout {layout!r} cannot hold this model: {'; '.join(refusals)}")
    return chosen


def _export(model: VisionTransformer, params: Any, layout: Layout) -> dict[str, np.ndarray]:
    flat: dict[str, Any] = flatten_dict(params, sep="/")  # pyright: ignore[reportAssignmentType]
    expected = expected_shapes(model)
    problems = [f"missing: {path}" for path in expected if path not in flat]
    problems += [f"unexpected: {path}" for path in flat if path not in expected]
    problems += [
        f"misshapen: {path} is {np.shape(flat[path])}, the model needs {shape}"
        for path, shape in expected.items()
        if path in flat and tuple(np.shape(flat[path])) != shape
    ]
    if problems:
        raise ConversionError("\n  ".join(["these parameters are not the model's:", *problems[:50]]))
    return layout.write(flat, model.config)
