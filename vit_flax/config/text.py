"""The config of a text transformer, as CLIP and SigLIP have them beside their image towers."""

from __future__ import annotations

import dataclasses

from vit_flax.config.checks import require_choice, require_int
from vit_flax.config.field_types import check_types
from vit_flax.config.position import TextMask
from vit_flax.config.vit import ViTConfig

# poolings of a text's tokens
TEXT_POOLS = ("eos", "argmax", "last", "first", "avg", "max", "map")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Architecture of a text transformer.

    Raises:
        ValueError: a value is out of range, or two do not fit each other; the message names the numbers.
    """

    vocab_size: int = 49408
    context_length: int = 77  # maximum tokens of a text
    embed_dim: int = 512
    depth: int = 12
    num_heads: int = 8
    mlp_ratio: float = 4.0
    activation: str = "gelu"
    norm_eps: float = 1e-5
    init_values: float | None = None  # first value of LayerScale; None: no LayerScale
    causal: bool = True  # causal attention mask
    # the token that stands for the text: 'eos' the first that is eos_token_id, 'argmax' the first of the highest
    # number, 'last', 'first'; or all of them: 'avg', 'max', 'map' (from a learned query)
    pool: str = "argmax"
    eos_token_id: int | None = None
    output_dim: int = 512  # width of the embedding; 0: there is no projection
    proj_bias: bool = False

    def __post_init__(self) -> None:
        """Checks every value."""
        for name in ("vocab_size", "context_length"):
            require_int(name, getattr(self, name), minimum=1)
        require_int("output_dim", self.output_dim, minimum=0)
        require_choice("pool", self.pool, TEXT_POOLS)
        _ = self.blocks  # whose construction checks them
        check_types(self)
        if self.pool == "eos":
            require_int("eos_token_id", self.eos_token_id, minimum=0)
            if not 0 <= (self.eos_token_id or 0) < self.vocab_size:
                raise ValueError(f"eos_token_id {self.eos_token_id} is no token: vocab_size is {self.vocab_size}")

    @property
    def blocks(self) -> ViTConfig:
        """The config of the blocks, which are those of a Vision Transformer."""
        return ViTConfig(
            embed_dim=self.embed_dim, depth=self.depth, num_heads=self.num_heads, mlp_ratio=self.mlp_ratio,
            activation=self.activation, norm_eps=self.norm_eps, init_values=self.init_values,
            position=TextMask(causal=self.causal), global_pool="map" if self.pool == "map" else "token",
        )  # fmt: skip

    @property
    def mlp_dim(self) -> int:
        """Hidden width of a block's MLP."""
        return self.blocks.mlp_dim

    @property
    def width(self) -> int:
        """Width of the embedding."""
        return self.output_dim or self.embed_dim

    def replace(self, **changes: object) -> TextConfig:
        """Returns a copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # pyright: ignore[reportArgumentType]

    def to_dict(self) -> dict[str, object]:
        """Returns the fields as JSON types."""
        return dataclasses.asdict(self)
