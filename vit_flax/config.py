"""The frozen description of a model: what every layer is built from, and what a checkpoint is read with."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping
from typing import Any, Self

POS_EMBEDS = ("learned", "sinusoid", "none")
NORM_LAYERS = ("layernorm", "rmsnorm")
GLOBAL_POOLS = ("token", "avg", "none")


def _pair(name: str, value: Any) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(v, int) and v > 0 for v in pair):
        raise ValueError(f"{name} must be a positive integer or a pair (height, width) of them, got {value!r}")
    return pair  # pyright: ignore[reportReturnType]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Architecture of a Vision Transformer; runtime choices such as the compute dtype are fields of the module.

    Raises:
        ValueError: a value is out of range, or two do not fit each other; the message names the numbers.
    """

    image_size: tuple[int, int] = (224, 224)  # (height, width) in pixels; an int means a square, here and below
    patch_size: tuple[int, int] = (16, 16)  # (height, width) in pixels; an int means a square
    in_chans: int = 3
    num_classes: int = 1000  # 0: no head, the model returns the pooled features
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0  # hidden width is int(embed_dim * mlp_ratio), as in the reference
    qkv_bias: bool = True
    qk_scale: float | None = None  # None (or 0, as in the reference): head_dim ** -0.5
    value_skip: bool = False  # add the values, heads merged, after the output projection
    activation: str = "gelu"  # a name of vit_flax.models.activations.ACTIVATIONS
    norm_layer: str = "layernorm"
    norm_eps: float | None = 1e-6  # None: the machine epsilon of the input's dtype (torch.nn.RMSNorm's default)
    class_token: bool = True
    pos_embed: str = "learned"  # 'sinusoid' is fixed: stored with the parameters, never trained
    global_pool: str = "token"

    def __post_init__(self) -> None:
        """Normalises pairs and checks every value."""
        object.__setattr__(self, "image_size", _pair("image_size", self.image_size))
        object.__setattr__(self, "patch_size", _pair("patch_size", self.patch_size))
        for name in ("in_chans", "embed_dim", "depth", "num_heads"):
            _require_int(name, getattr(self, name), minimum=1)
        _require_int("num_classes", self.num_classes, minimum=0)
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not divisible by num_heads {self.num_heads}")
        if not self.mlp_ratio > 0 or self.mlp_dim < 1:
            raise ValueError(f"mlp_ratio must be positive and give a hidden width of 1 or more, got {self.mlp_ratio!r}")
        if self.norm_eps is not None and not self.norm_eps >= 0:
            raise ValueError(f"norm_eps must be None or not negative, got {self.norm_eps!r}")
        _require_choice("norm_layer", self.norm_layer, NORM_LAYERS)
        _require_choice("pos_embed", self.pos_embed, POS_EMBEDS)
        _require_choice("global_pool", self.global_pool, GLOBAL_POOLS)
        if self.global_pool == "token" and not self.class_token:
            raise ValueError("global_pool='token' needs class_token=True; use global_pool='avg'")
        if type(self) is ViTConfig:
            self.grid_size  # noqa: B018  (raises when the image does not divide into patches)

    @property
    def grid_size(self) -> tuple[int, int]:
        """Patches along the height and the width."""
        sides = []
        for side, pixels, patch in zip(("height", "width"), self.image_size, self.patch_size, strict=True):
            if pixels % patch:
                raise ValueError(f"image {side} {pixels} is not divisible by the patch size {patch}")
            sides.append(pixels // patch)
        return sides[0], sides[1]

    @property
    def num_patches(self) -> int:
        """Tokens that the image becomes, prefix tokens not counted."""
        height, width = self.grid_size
        return height * width

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens that stand before the patches."""
        return int(self.class_token)

    @property
    def mlp_dim(self) -> int:
        """Hidden width of a block's MLP."""
        return int(self.embed_dim * self.mlp_ratio)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.embed_dim // self.num_heads

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with some fields changed, or ValueError for a name that is no field."""
        check_fields(type(self), changes)
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON types, with the class's name under 'model_config'."""
        fields = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}
        return {"model_config": type(self).__name__, **fields}

    def to_json(self) -> str:
        """Returns `to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class T2TViTConfig(ViTConfig):
    """A Vision Transformer whose tokens come from three overlapping soft splits (`TokensToToken`).

    `patch_size` is not used: the token grid follows from `image_size` and `softsplit_kernels`.
    """

    num_heads: int = 1  # of the blocks and, unless token_num_heads says otherwise, of the token transformers
    softsplit_kernels: tuple[int, int, int] = (7, 3, 3)
    token_chan: int = 64  # width of the two token transformers
    token_num_heads: int | None = None  # None: num_heads, as in the reference
    token_mlp_ratio: float = 1.0

    def __post_init__(self) -> None:
        """Checks the soft splits as well."""
        object.__setattr__(self, "softsplit_kernels", tuple(self.softsplit_kernels))
        if len(self.softsplit_kernels) != 3 or not all(isinstance(k, int) and k > 0 for k in self.softsplit_kernels):
            raise ValueError(f"softsplit_kernels must be three positive integers, got {self.softsplit_kernels!r}")
        super().__post_init__()
        _require_int("token_chan", self.token_chan, minimum=1)
        if self.token_chan % self.token_heads:
            raise ValueError(f"token_chan {self.token_chan} is not divisible by its num_heads {self.token_heads}")
        self.grid_size  # noqa: B018  (raises when a soft split leaves no token)

    @property
    def token_heads(self) -> int:
        """Heads of the two token transformers."""
        return self.token_num_heads or self.num_heads

    @property
    def grid_sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of the token grid after each of the three soft splits."""
        grids, size = [], self.image_size
        for kernel in self.softsplit_kernels:
            size = (softsplit_size(size[0], kernel), softsplit_size(size[1], kernel))
            if min(size) < 1:
                raise ValueError(f"image {self.image_size} is too small for soft splits {self.softsplit_kernels}")
            grids.append(size)
        return tuple(grids)

    @property
    def grid_size(self) -> tuple[int, int]:
        """Tokens along the height and the width after the last soft split."""
        return self.grid_sizes[-1]


CONFIGS: dict[str, type[ViTConfig]] = {c.__name__: c for c in (ViTConfig, T2TViTConfig)}


def softsplit_size(pixels: int, kernel: int) -> int:
    """Returns how many windows a soft split lays along `pixels`: stride (k+1)//2, padding (k+1)//4."""
    stride, padding = (kernel + 1) // 2, (kernel + 1) // 4
    return (pixels + 2 * padding - kernel) // stride + 1


def config_from_dict(values: Mapping[str, Any]) -> ViTConfig:
    """Returns the config that `to_dict` described.

    Raises:
        ValueError: a key is no field of that config (the nearest field is suggested), or the class is unknown.
    """
    values = dict(values)
    name = values.pop("model_config", "ViTConfig")
    if name not in CONFIGS:
        raise ValueError(f"unknown model_config {name!r}; known: {', '.join(CONFIGS)}")
    check_fields(CONFIGS[name], values)
    return CONFIGS[name](**values)


def check_fields(config_class: type[ViTConfig], names: Mapping[str, Any]) -> None:
    """Raises ValueError for the first name that is no field of the config, suggesting the nearest one."""
    fields = [f.name for f in dataclasses.fields(config_class)]
    for name in names:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; fields: {', '.join(fields)}"
            raise ValueError(f"{config_class.__name__} has no field {name!r}{hint}")


def _require_int(name: str, value: Any, minimum: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}")


def _require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
