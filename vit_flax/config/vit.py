"""The config of a Vision Transformer: every layer is built from it, and checkpoints are read with it."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from vit_flax.config.checks import Pair, pair, require_choice, require_int
from vit_flax.config.field_types import check_types
from vit_flax.config.part import Part
from vit_flax.config.position import NoPosition, Position
from vit_flax.config.tokens import Patches, Tokens

if TYPE_CHECKING:
    from vit_flax.config.families import ViTFamily

# tables that are added to the tokens
POS_EMBEDS = ("learned", "sinusoid", "sincos_2d", "native_sincos_2d", "simple_sincos_2d", "none")
FIXED_POS_EMBEDS = ("sinusoid", "sincos_2d")  # stored with the parameters, never trained
POS_EMBED_FITS = ("bicubic", "bicubic_antialias", "bilinear", "tiled")  # how a table is made to fit another grid
# normalisations
NORM_LAYERS = ("layernorm", "rmsnorm")
# kinds of blocks
BLOCKS = ("standard", "res_post", "parallel_scaling", "parallel_things", "diff", "diff_parallel_scaling", "multi_scale")
# Fields that a block has no place for, with the one value it allows.
_OWN_ATTENTION = {"value_skip": False, "attn_head_dim": None, "attn_proj": True, "key_bias": None}
_PARALLEL_LIMITS = {
    **_OWN_ATTENTION, "scale_attn_norm": False, "scale_mlp_norm": False, "mlp_layer": "mlp", "mlp_bias": True,
    "proj_bias": True,
}  # fmt: skip
# fields that a kind of block has no place for, with the value that they must have
BLOCK_LIMITS: dict[str, dict[str, object]] = {
    "res_post": {"init_values": None},
    "parallel_scaling": _PARALLEL_LIMITS,
    "diff": _OWN_ATTENTION,
    "diff_parallel_scaling": _PARALLEL_LIMITS,
    "multi_scale": {"value_skip": False, "attn_head_dim": None, "attn_proj": True},
}
# kinds of networks in a block
MLP_LAYERS = ("mlp", "swiglu", "swiglu_packed")
# what the head reads
GLOBAL_POOLS = ("token", "avg", "avgmax", "max", "token_avg", "prefix", "prefix_avg", "map", "query", "none")
# those of them with attention of their own
ATTENTION_POOLS = ("map", "query")
_PREFIX_POOLS = ("prefix", "prefix_avg")
PARTS = ("tokens", "position")
_PATCHES, _NO_POSITION = Patches(), NoPosition()


@dataclasses.dataclass(frozen=True, kw_only=True, init=False)
class ViTConfig:
    """Architecture of a Vision Transformer; runtime choices such as the compute dtype are fields of the module.

    Fields of the two parts are given, read, replaced and stored like its own: `ViTConfig(patch_size=8).patch_size`.
    `vit_flax.config.FAMILIES` has a constructor for every pair of parts that published models have.

    Raises:
        ValueError: a value is out of range, or two do not fit each other; the message names the numbers.
    """

    tokens: Tokens = _PATCHES  # how an image becomes tokens
    position: Position = _NO_POSITION  # how attention learns where a token is, beside the position table
    image_size: Pair = (224, 224)  # (height, width) in pixels; an int means a square, here and below
    in_chans: int = 3
    num_classes: int = 1000  # 0: no head, the model returns the pooled features
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    attn_head_dim: int | None = None  # width of q, k and v of a head; None: embed_dim / num_heads
    block: str = "standard"  # the kind of transformer block: one of BLOCKS
    mlp_ratio: float = 4.0  # hidden width is int(embed_dim * mlp_ratio), as in the reference; of a gated MLP's product
    # 'swiglu' and 'swiglu_packed' compute the same: checkpoints hold gate and value as two layers or as one
    mlp_layer: str = "mlp"
    mlp_bias: bool = True
    scale_mlp_norm: bool = False  # normalise the MLP's hidden layer
    qkv_bias: bool = True
    key_bias: bool | None = None  # None: as qkv_bias, which else is of queries and values
    qkv_fused: bool = True  # computes the same: checkpoints hold q, k and v as one layer, or as three
    qk_norm: bool = False  # normalise queries and keys, each head by itself
    qk_scale: float | None = None  # None (or 0, as in the reference): head_dim ** -0.5
    value_skip: bool = False  # add the values, heads merged, after the output projection
    attn_proj: bool = True  # False: no output projection, which needs the heads to be embed_dim wide together
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
    # a table; 'sinusoid' and 'sincos_2d' are stored with the parameters, never trained; 'native_sincos_2d', which has
    # the same numbers, and 'simple_sincos_2d' are neither
    pos_embed: str = "learned"
    no_embed_class: bool = False  # the table has rows for patches only: prefix tokens join after it is added
    no_embed_reg: bool = False  # it has rows for class and distillation token, but registers join after it is added
    # (height, width) of the grid that a learned table is of, where the model itself makes it fit that of its images
    pos_embed_grid: Pair | None = None
    pos_embed_fit: str = "bicubic"  # how: resized, or 'tiled'
    pos_embed_class_row: bool = False  # it has a first row, of a class token that is not there
    pre_norm: bool = False  # normalise all tokens before the blocks
    final_norm: bool = True  # normalise all tokens after the blocks
    fc_norm: bool = False  # do so after the pooling instead: on what is pooled
    # instead of a final norm: two normalised convolutions to so many channels; 0: a norm alone, of epsilon 1e-6
    neck_chans: int | None = None
    # 'token_avg' joins both; 'prefix' joins prefix tokens, 'prefix_avg' is their mean; 'map' attends from a learned
    # query, 'query' does so without an MLP after it
    global_pool: str = "token"
    pool_tokens: tuple[int, ...] | None = None  # which prefix tokens 'prefix' and 'prefix_avg' look at; None: all
    pool_include_prefix: bool = False  # every pooling but 'token' looks at the prefix tokens as well
    attn_pool_num_heads: int | None = None  # of global_pool='map' and 'query'; None: num_heads
    attn_pool_mlp_ratio: float | None = None  # None: mlp_ratio
    representation_size: int | None = None  # width of a tanh layer before the head; None: there is none
    head_bias: bool = True
    head_dist: bool = False  # a second head reads the distillation token: the logits are the mean of both

    def __init__(self, **fields: object) -> None:
        """Takes its own fields, the parts, and the parts' fields by name."""
        values = {field.name: field.default for field in dataclasses.fields(self)}
        parts: dict[str, Any] = {name: fields.get(name, values[name]) for name in PARTS}
        _family(parts).check_names(fields)
        for name, part in parts.items():
            inner = {field: value for field, value in fields.items() if field in part.__dataclass_fields__}
            values[name] = dataclasses.replace(part, **inner) if inner else part
        values |= {name: value for name, value in fields.items() if name in OWN_FIELDS}
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        object.__setattr__(self, "image_size", pair("image_size", self.image_size))
        for name in ("in_chans", "embed_dim", "depth", "num_heads"):
            require_int(name, getattr(self, name), minimum=1)
        for name in ("num_classes", "reg_tokens"):
            require_int(name, getattr(self, name), minimum=0)
        if isinstance(self.pool_tokens, list):
            object.__setattr__(self, "pool_tokens", tuple(self.pool_tokens))
        if self.pos_embed_grid is not None:
            object.__setattr__(self, "pos_embed_grid", pair("pos_embed_grid", self.pos_embed_grid))
        for typed in (self, self.tokens, self.position):
            check_types(typed)
        self._check_heads()
        if not self.mlp_ratio > 0 or self.mlp_dim < 1:
            raise ValueError(f"mlp_ratio must be positive and give a hidden width of 1 or more, got {self.mlp_ratio!r}")
        if self.norm_eps is not None and not self.norm_eps >= 0:
            raise ValueError(f"norm_eps must be None or not negative, got {self.norm_eps!r}")
        require_choice("norm_layer", self.norm_layer, NORM_LAYERS)
        require_choice("block", self.block, BLOCKS)
        require_choice("mlp_layer", self.mlp_layer, MLP_LAYERS)
        require_choice("pos_embed", self.pos_embed, POS_EMBEDS)
        require_choice("global_pool", self.global_pool, GLOBAL_POOLS)
        for name, value in BLOCK_LIMITS.get(self.block, {}).items():
            if getattr(self, name) != value:
                raise ValueError(f"block={self.block!r} needs {name}={value!r}, got {getattr(self, name)!r}")
        if self.block == "multi_scale" and self.position.repeats:
            raise ValueError("block='multi_scale' needs stages, as a position of StagedWindows has them")
        if self.block.startswith("diff") and self.head_dim % 2:
            raise ValueError(f"block={self.block!r} needs heads of even width, got {self.head_dim}")
        if self.init_values is not None and not self.init_values > 0:
            raise ValueError(f"init_values must be None or positive, got {self.init_values!r}")
        if self.representation_size is not None:
            require_int("representation_size", self.representation_size, minimum=1)
        if self.global_pool in ("token", "token_avg") and not self.class_token:
            raise ValueError(f"global_pool={self.global_pool!r} needs class_token=True; use `global_pool='avg'`")
        self._check_pool_tokens()
        self._check_pos_embed()
        if self.fc_norm and not self.final_norm:
            raise ValueError("fc_norm=True needs final_norm=True: it says where the final norm stands")
        if self.neck_chans is not None:
            require_int("neck_chans", self.neck_chans, minimum=0)
            if self.final_norm or self.num_prefix_tokens:
                raise ValueError("neck_chans needs final_norm=False and no prefix tokens: its norms are of a grid")
        if self.dist_token and not self.class_token:
            raise ValueError("dist_token=True needs class_token=True")
        if self.head_dist and not (self.dist_token and self.global_pool == "token"):
            raise ValueError("head_dist=True needs dist_token=True and global_pool='token'")
        self.tokens.check(self)
        self.position.check(self)

    def _check_pool_tokens(self) -> None:
        prefix = self.num_prefix_tokens
        chosen = self.pool_tokens
        if chosen is not None and not (chosen and all(0 <= i < prefix for i in chosen)):
            raise ValueError(f"pool_tokens must be numbers of the {prefix} prefix tokens, got {chosen}")
        if self.global_pool in _PREFIX_POOLS and not prefix:
            raise ValueError(f"global_pool={self.global_pool!r} needs class_token=True or reg_tokens")

    def _check_pos_embed(self) -> None:
        require_choice("pos_embed_fit", self.pos_embed_fit, POS_EMBED_FITS)
        for name in ("pos_embed_grid", "pos_embed_class_row"):
            if getattr(self, name) and self.pos_embed != "learned":
                raise ValueError(f"{name} needs pos_embed='learned', got {self.pos_embed!r}")
        if self.pos_embed_class_row and self.num_prefix_tokens:
            raise ValueError("pos_embed_class_row=True needs class_token=False, and no dist_token or reg_tokens")

    def _check_heads(self) -> None:
        if self.attn_head_dim is not None:
            require_int("attn_head_dim", self.attn_head_dim, minimum=1)
        elif self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not divisible by num_heads {self.num_heads}")
        width = self.num_heads * self.head_dim
        for name, wrong in (("attn_proj=False", not self.attn_proj), ("value_skip=True", self.value_skip)):
            if wrong and width != self.embed_dim:
                raise ValueError(f"{name} needs num_heads * attn_head_dim, {width}, to be embed_dim {self.embed_dim}")
        if self.global_pool in ATTENTION_POOLS and self.embed_dim % self.pool_num_heads:
            raise ValueError(
                f"embed_dim {self.embed_dim} is not divisible by the pooling's {self.pool_num_heads} heads"
            )

    def __getattr__(self, name: str) -> Any:
        """Returns a field of one of the parts."""
        if not name.startswith("_"):
            for part in PARTS:
                if name in vars(self).get(part, Part()).__dataclass_fields__:
                    return getattr(vars(self)[part], name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def family(self) -> ViTFamily:
        """The constructor of configs with these two kinds of parts."""
        return _family({name: getattr(self, name) for name in PARTS})

    @property
    def grid_size(self) -> Pair:
        """Patches along the height and the width."""
        return self.tokens.grid_size(self.image_size)

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
    def num_pos_embed_rows(self) -> int:
        """Rows of the position table."""
        height, width = self.pos_embed_grid or self.grid_size
        return int(self.pos_embed_class_row) + self.num_embed_prefix_tokens + height * width

    @property
    def mlp_dim(self) -> int:
        """Hidden width of a block's MLP."""
        return int(self.embed_dim * self.mlp_ratio)

    @property
    def feature_dim(self) -> int:
        """Width of the tokens that leave the model."""
        return self.neck_chans or self.dim_before(self.depth)

    @property
    def feature_grid(self) -> Pair:
        """Patches along the height and the width of what leaves the model."""
        return self.grid_before(self.position.feature_level(self))

    def grid_before(self, index: int) -> Pair:
        """Returns the patches along height and width that block `index` is given, or leave the last for its number."""
        return self.position.grid_before(self, index)

    def dim_before(self, index: int) -> int:
        """Returns the width of the tokens that block `index` is given, or leave the last for its number."""
        return self.position.dim_before(self, index)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.attn_head_dim or self.embed_dim // self.num_heads

    @property
    def pool_num_heads(self) -> int:
        """Heads of the attention pooling."""
        return self.attn_pool_num_heads or self.num_heads

    @property
    def pool_mlp_dim(self) -> int:
        """Hidden width of the attention pooling's MLP."""
        return int(self.embed_dim * (self.attn_pool_mlp_ratio or self.mlp_ratio))

    def fields(self) -> dict[str, object]:
        """Returns every field by name, those of the parts beside its own."""
        return {name: getattr(self, name) for name in self.family.fields}

    def fields_for(self, family: ViTFamily) -> dict[str, object]:
        """Returns the fields as another family's: without defaults that it lacks or has others for."""
        own, other = self.family.fields, family.fields
        return {
            name: value
            for name, value in self.fields().items()
            if value != own[name] or (name in other and other[name] == own[name])
        }

    def replace(self, **changes: object) -> ViTConfig:
        """Returns a copy with some fields changed, those of the parts too; ValueError for a name that is no field."""
        return ViTConfig(**{**{name: getattr(self, name) for name in (*PARTS, *OWN_FIELDS)}, **changes})

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON types, with the family's name under 'model_config'."""
        fields = {name: list(v) if isinstance(v, tuple) else v for name, v in self.fields().items()}
        return {"model_config": self.family.name, **fields}

    def to_json(self) -> str:
        """Returns `to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2)


OWN_FIELDS = tuple(field.name for field in dataclasses.fields(ViTConfig) if field.name not in PARTS)


def _family(parts: dict[str, Any]) -> ViTFamily:
    from vit_flax.config.families import family_of  # which makes ViTConfigs

    return family_of(type(parts["tokens"]), type(parts["position"]))
