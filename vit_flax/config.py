"""The frozen description of a model: what every layer is built from, and what a checkpoint is read with."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Self

from vit_flax.suggestions import suggest

POS_EMBEDS = ("learned", "sinusoid", "sincos_2d", "simple_sincos_2d", "none")
FIXED_POS_EMBEDS = ("sinusoid", "sincos_2d")  # stored with the parameters, never trained
NORM_LAYERS = ("layernorm", "rmsnorm")
BLOCKS = ("standard", "res_post", "parallel_scaling", "parallel_things", "diff", "diff_parallel_scaling")
# Fields that a block has no place for, with the one value it allows.
_PARALLEL_LIMITS = {
    "value_skip": False, "scale_attn_norm": False, "scale_mlp_norm": False, "mlp_layer": "mlp", "mlp_bias": True,
    "proj_bias": True,
}  # fmt: skip
BLOCK_LIMITS: dict[str, dict[str, Any]] = {
    "res_post": {"init_values": None},
    "parallel_scaling": _PARALLEL_LIMITS,
    "diff": {"value_skip": False},
    "diff_parallel_scaling": _PARALLEL_LIMITS,
}
MLP_LAYERS = ("mlp", "swiglu", "swiglu_packed")
TOKENS_TYPES = ("transformer", "performer")
GLOBAL_POOLS = ("token", "avg", "avgmax", "max", "token_avg", "map", "none")


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
    crop_to_patches: bool = False  # leave out pixels beyond the last whole patch, instead of refusing such a size
    patch_bias: bool = True
    patch_norm: bool = False  # normalise the patch tokens before anything is added
    in_chans: int = 3
    num_classes: int = 1000  # 0: no head, the model returns the pooled features
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    block: str = "standard"  # the kind of transformer block: one of BLOCKS
    mlp_ratio: float = 4.0  # hidden width is int(embed_dim * mlp_ratio), as in the reference; of a gated MLP's product
    # 'swiglu' and 'swiglu_packed' compute the same: checkpoints hold gate and value as two layers or as one
    mlp_layer: str = "mlp"
    mlp_bias: bool = True
    scale_mlp_norm: bool = False  # normalise the MLP's hidden layer
    qkv_bias: bool = True
    qk_norm: bool = False  # normalise queries and keys, each head by itself
    qk_scale: float | None = None  # None (or 0, as in the reference): head_dim ** -0.5
    value_skip: bool = False  # add the values, heads merged, after the output projection
    proj_bias: bool = True  # of the attention's output projection
    scale_attn_norm: bool = False  # normalise the merged heads before the output projection
    init_values: float | None = None  # first value of LayerScale; None: no LayerScale
    activation: str = "gelu"  # a name of vit_flax.models.activations.ACTIVATIONS
    norm_layer: str = "layernorm"
    norm_eps: float | None = 1e-6  # None: the machine epsilon of the input's dtype (torch.nn.RMSNorm's default)
    class_token: bool = True
    dist_token: bool = False  # a second token for distillation, after the class token
    reg_tokens: int = 0  # register tokens, between these and the patches
    mask_token: bool = False  # stored for masked-image training; evaluation does not read it
    # a table; 'sinusoid' and 'sincos_2d' are stored with the parameters, never trained; 'simple_sincos_2d' is neither
    pos_embed: str = "learned"
    no_embed_class: bool = False  # the table has rows for patches only: prefix tokens join after it is added
    no_embed_reg: bool = False  # it has rows for class and distillation token, but registers join after it is added
    pre_norm: bool = False  # normalise all tokens before the blocks
    final_norm: bool = True  # normalise all tokens after the blocks
    fc_norm: bool = False  # do so after the pooling instead: on what is pooled
    global_pool: str = "token"  # 'token_avg' joins both; 'map' attends from a learned query
    pool_include_prefix: bool = False  # every pooling but 'token' looks at the prefix tokens as well
    representation_size: int | None = None  # width of a tanh layer before the head; None: there is none
    head_bias: bool = True
    head_dist: bool = False  # a second head reads the distillation token: the logits are the mean of both

    def __post_init__(self) -> None:
        """Normalises pairs and checks every value."""
        object.__setattr__(self, "image_size", _pair("image_size", self.image_size))
        object.__setattr__(self, "patch_size", _pair("patch_size", self.patch_size))
        for name in ("in_chans", "embed_dim", "depth", "num_heads"):
            _require_int(name, getattr(self, name), minimum=1)
        for name in ("num_classes", "reg_tokens"):
            _require_int(name, getattr(self, name), minimum=0)
        self.check_heads()
        if not self.mlp_ratio > 0 or self.mlp_dim < 1:
            raise ValueError(f"mlp_ratio must be positive and give a hidden width of 1 or more, got {self.mlp_ratio!r}")
        if self.norm_eps is not None and not self.norm_eps >= 0:
            raise ValueError(f"norm_eps must be None or not negative, got {self.norm_eps!r}")
        _require_choice("norm_layer", self.norm_layer, NORM_LAYERS)
        _require_choice("block", self.block, BLOCKS)
        _require_choice("mlp_layer", self.mlp_layer, MLP_LAYERS)
        _require_choice("pos_embed", self.pos_embed, POS_EMBEDS)
        _require_choice("global_pool", self.global_pool, GLOBAL_POOLS)
        for name, value in BLOCK_LIMITS.get(self.block, {}).items():
            if getattr(self, name) != value:
                raise ValueError(f"block={self.block!r} needs {name}={value!r}, got {getattr(self, name)!r}")
        if self.block.startswith("diff") and self.head_dim % 2:
            raise ValueError(f"block={self.block!r} needs heads of even width, got {self.head_dim}")
        if self.init_values is not None and not self.init_values > 0:
            raise ValueError(f"init_values must be None or positive, got {self.init_values!r}")
        if self.representation_size is not None:
            _require_int("representation_size", self.representation_size, minimum=1)
        if self.global_pool in ("token", "token_avg") and not self.class_token:
            raise ValueError(f"global_pool={self.global_pool!r} needs class_token=True; use `global_pool='avg'`")
        if self.fc_norm and not self.final_norm:
            raise ValueError("fc_norm=True needs final_norm=True: it says where the final norm stands")
        if self.dist_token and not self.class_token:
            raise ValueError("dist_token=True needs class_token=True")
        if self.head_dist and not (self.dist_token and self.global_pool == "token"):
            raise ValueError("head_dist=True needs dist_token=True and global_pool='token'")
        if not isinstance(self, T2TViTConfig):
            self.grid_size  # noqa: B018  (raises when the image does not divide into patches)

    def check_heads(self) -> None:
        """Raises ValueError unless the width divides into the heads."""
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not divisible by num_heads {self.num_heads}")

    @property
    def grid_size(self) -> tuple[int, int]:
        """Patches along the height and the width."""
        sides = []
        for side, pixels, patch in zip(("height", "width"), self.image_size, self.patch_size, strict=True):
            if pixels < patch or (pixels % patch and not self.crop_to_patches):
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
        return int(self.class_token) + int(self.dist_token) + self.reg_tokens

    @property
    def num_embed_prefix_tokens(self) -> int:
        """Prefix tokens that the position table has a row for; they are the first ones."""
        if self.no_embed_class:
            return 0
        return self.num_prefix_tokens - (self.reg_tokens if self.no_embed_reg else 0)

    @property
    def mlp_dim(self) -> int:
        """Hidden width of a block's MLP."""
        return int(self.embed_dim * self.mlp_ratio)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.embed_dim // self.num_heads

    @property
    def pool_num_heads(self) -> int:
        """Heads of the attention pooling."""
        return self.num_heads

    @property
    def pool_mlp_dim(self) -> int:
        """Hidden width of the attention pooling's MLP."""
        return self.mlp_dim

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
    tokens_type: str = "transformer"  # 'performer' attends in time linear in the tokens, by random features
    token_qkv_bias: bool | None = None  # of the token transformers; None: qkv_bias. A performer has biases always
    token_input_scale: bool = False  # their attention's scale is their input's width ** -0.5, and not qk_scale

    def __post_init__(self) -> None:
        """Checks the soft splits as well."""
        object.__setattr__(self, "softsplit_kernels", tuple(self.softsplit_kernels))
        if len(self.softsplit_kernels) != 3 or not all(isinstance(k, int) and k > 0 for k in self.softsplit_kernels):
            raise ValueError(f"softsplit_kernels must be three positive integers, got {self.softsplit_kernels!r}")
        super().__post_init__()
        _require_int("token_chan", self.token_chan, minimum=1)
        _require_choice("tokens_type", self.tokens_type, TOKENS_TYPES)
        if self.tokens_type == "performer":
            names = {"token_qkv_bias": None, "token_input_scale": False, "token_mlp_ratio": 1.0}
            wrong = [f"{name}={getattr(self, name)!r}" for name, value in names.items() if getattr(self, name) != value]
            wrong += [f"token_num_heads={self.token_heads}"] * (self.token_heads != 1)
            if wrong:
                raise ValueError(f"tokens_type='performer' has one head and no {', '.join(wrong)}")
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


_LUCIDRAINS_FIELDS = (
    "image_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias",
    "qk_scale", "activation", "norm_layer", "norm_eps", "class_token", "pos_embed", "global_pool", "attn_head_dim",
    "attn_proj", "proj_bias",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class LucidrainsViTConfig(ViTConfig):
    """A Vision Transformer as vit-pytorch has it: normalised patches, heads of a width of their own.

    The width of q, k and v is num_heads * attn_head_dim, whatever embed_dim is.
    """

    qkv_bias: bool = False
    norm_eps: float | None = 1e-5
    attn_head_dim: int = 64
    attn_proj: bool = True  # False: the heads are merged and left as they are, which needs them to be embed_dim wide
    proj_bias: bool = True

    def __post_init__(self) -> None:
        """Refuses what this family does not compute."""
        super().__post_init__()
        _require_defaults(self, *_LUCIDRAINS_FIELDS)

    def check_heads(self) -> None:
        """Raises ValueError when there is no projection though the widths differ."""
        _require_int("attn_head_dim", self.attn_head_dim, minimum=1)
        width = self.num_heads * self.attn_head_dim
        if not self.attn_proj and width != self.embed_dim:
            raise ValueError(
                f"attn_proj=False needs num_heads * attn_head_dim, {width}, to be embed_dim {self.embed_dim}"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.attn_head_dim


@dataclasses.dataclass(frozen=True, kw_only=True)
class DropRates:
    """Shares of what training leaves out at random; they are no part of the architecture, and 0 costs nothing.

    They act only where `apply` is given a key: `rngs={"dropout": key}`. Names are timm's.
    """

    drop_path_rate: float = 0.0  # of the last block's residual branches, image by image; rises linearly from 0
    attn_drop_rate: float = 0.0  # of the attention's weights
    proj_drop_rate: float = 0.0  # after each linear layer of the attention's output and of the MLP
    pos_drop_rate: float = 0.0  # of the tokens after positions are added
    drop_rate: float = 0.0  # of the pooled features before the head

    def __post_init__(self) -> None:
        """Checks every value."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int | float) or not 0 <= value < 1:
                raise ValueError(f"{field.name} must be at least 0 and less than 1, got {value!r}")

    def block_rates(self, depth: int) -> tuple[float, ...]:
        """Returns the share of residual branches left out in each of `depth` blocks."""
        return tuple(self.drop_path_rate * i / max(1, depth - 1) for i in range(depth))


NO_DROPS = DropRates()
_ROPE_FIELDS = (
    "image_size", "patch_size", "crop_to_patches", "patch_bias", "in_chans", "embed_dim", "depth", "num_heads",
    "mlp_ratio", "mlp_layer", "mlp_bias", "scale_mlp_norm", "qkv_bias", "qk_scale", "proj_bias", "scale_attn_norm",
    "init_values", "activation", "norm_eps", "num_classes", "class_token", "reg_tokens", "mask_token", "pos_embed",
    "no_embed_class", "pre_norm", "final_norm", "fc_norm", "global_pool", "pool_include_prefix", "block", "head_bias",
)  # fmt: skip
ROPE_TYPES = ("dinov3", "cat", "mixed", "none")
GRID_INDEXINGS = ("ij", "xy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeViTConfig(ViTConfig):
    """A Vision Transformer as DINOv3 and EVA have it: queries and keys of patches are rotated, keys have no bias."""

    norm_eps: float | None = 1e-5
    init_values: float | None = 1.0
    pos_embed: str = "none"
    # 'dinov3' turns by where a patch is in the image, 'cat' by its number; 'mixed' by its number, in learned directions
    rope_type: str = "dinov3"
    rope_theta: float = 100.0  # of the periods of rotation the longest, the shortest being 1 (patch, or half side)
    rope_rotate_half: bool = True  # turns channel j with j + head_dim / 2; False: channel 2 j with 2 j + 1
    rope_grid_indexing: str = "ij"  # the first channels follow the row; 'xy': the column
    rope_grid_offset: float = 0.0  # the first patch's number
    rope_ref_grid: tuple[int, int] | None = None  # numbers are stretched to a grid of this (height, width)
    key_bias: bool = False  # qkv_bias is of queries and values
    qkv_fused: bool = True  # computes the same: timm's checkpoints hold q, k and v as one layer, or as three
    attn_pool_num_heads: int | None = None  # None: num_heads
    attn_pool_mlp_ratio: float | None = None  # None: mlp_ratio

    def __post_init__(self) -> None:
        """Refuses what this family does not compute."""
        if self.rope_ref_grid is not None:
            object.__setattr__(self, "rope_ref_grid", _pair("rope_ref_grid", self.rope_ref_grid))
        super().__post_init__()
        own = (f.name for f in dataclasses.fields(RopeViTConfig) if f.name not in ViTConfig.__dataclass_fields__)
        _require_defaults(self, *_ROPE_FIELDS, *own)
        _require_choice("block", self.block, ("standard", "res_post"))
        _require_choice("rope_type", self.rope_type, ROPE_TYPES)
        _require_choice("rope_grid_indexing", self.rope_grid_indexing, GRID_INDEXINGS)
        if self.rope_type != "none" and self.head_dim % 4:
            raise ValueError(f"a rotation in two axes needs heads of a width divisible by 4, got {self.head_dim}")
        if not self.rope_theta > 0:
            raise ValueError(f"rope_theta must be positive, got {self.rope_theta!r}")
        if self.rope_type == "mixed" and self.rope_rotate_half:
            raise ValueError("rope_type='mixed' needs rope_rotate_half=False")
        if self.rope_type == "dinov3" and (self.rope_grid_offset or self.rope_ref_grid):
            raise ValueError("rope_type='dinov3' takes neither rope_grid_offset nor rope_ref_grid")
        if self.embed_dim % self.pool_num_heads:
            raise ValueError(
                f"embed_dim {self.embed_dim} is not divisible by the pooling's {self.pool_num_heads} heads"
            )

    @property
    def pool_num_heads(self) -> int:
        """Heads of the attention pooling."""
        return self.attn_pool_num_heads or self.num_heads

    @property
    def pool_mlp_dim(self) -> int:
        """Hidden width of the attention pooling's MLP."""
        return int(self.embed_dim * (self.attn_pool_mlp_ratio or self.mlp_ratio))


_BEIT_FIELDS = (
    "image_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias",
    "qk_scale", "init_values", "activation", "norm_eps", "mask_token", "pos_embed", "final_norm", "fc_norm",
    "global_pool", "crop_to_patches", "rel_pos_bias", "shared_rel_pos_bias",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeitConfig(ViTConfig):
    """A Vision Transformer as BEiT has it: learned biases for every step from patch to patch, keys without bias.

    `qkv_bias` is of queries and values.
    """

    pos_embed: str = "none"
    init_values: float | None = 0.1
    rel_pos_bias: bool = True  # every block has a table
    shared_rel_pos_bias: bool = False  # all blocks have one together, beside their own if they have any

    def __post_init__(self) -> None:
        """Refuses what this family does not compute."""
        super().__post_init__()
        _require_defaults(self, *_BEIT_FIELDS)


_NAFLEX_FIELDS = (
    "image_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio", "activation", "norm_eps",
    "num_classes", "class_token", "global_pool",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class NaFlexViTConfig(ViTConfig):
    """A Vision Transformer for images of any aspect ratio, as SigLIP 2's NaFlex models are.

    `image_size` is what the position table was made for; the model resizes it for every image.
    """

    class_token: bool = False
    global_pool: str = "map"
    num_classes: int = 0
    activation: str = "gelu_tanh"

    def __post_init__(self) -> None:
        """Refuses what this family does not compute."""
        super().__post_init__()
        _require_defaults(self, *_NAFLEX_FIELDS)
        if self.class_token or self.global_pool not in ("map", "avg", "none"):
            raise ValueError("NaFlexViTConfig has no class token, and global_pool is map, avg or none")


CONFIGS: dict[str, type[ViTConfig]] = {
    c.__name__: c for c in (ViTConfig, T2TViTConfig, LucidrainsViTConfig, RopeViTConfig, BeitConfig, NaFlexViTConfig)
}


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
            hint = suggest(name, fields, f"fields: {', '.join(fields)}")
            raise ValueError(f"{config_class.__name__} has no field {name!r}; {hint}")


def _require_int(name: str, value: Any, minimum: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}")


def _require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _require_defaults(config: ViTConfig, *but: str) -> None:
    """Raises ValueError for the first field outside `but` that is not at its default: the family ignores it."""
    for field in dataclasses.fields(config):
        if field.name not in but and getattr(config, field.name) != field.default:
            raise ValueError(f"{type(config).__name__} does not support {field.name}={getattr(config, field.name)!r}")
