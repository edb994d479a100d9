"""The types of transformer block by the names that configs have for them."""

import flax.linen as nn

from vit_flax.config import DropRates, ViTConfig
from vit_flax.models.block import Block
from vit_flax.models.diff_block import DiffBlock, DiffParallelScalingBlock
from vit_flax.models.multi_scale_block import MultiScaleBlock
from vit_flax.models.parallel_scaling_block import ParallelScalingBlock
from vit_flax.models.parallel_things_block import ParallelThingsBlock
from vit_flax.models.precision import Precision

BLOCK_TYPES: dict[str, type[nn.Module]] = {
    "standard": Block,
    "res_post": Block,
    "parallel_things": ParallelThingsBlock,
    "parallel_scaling": ParallelScalingBlock,
    "diff": DiffBlock,
    "diff_parallel_scaling": DiffParallelScalingBlock,
    "multi_scale": MultiScaleBlock,
}


def build_block(cfg: ViTConfig, index: int, precision: Precision, drop: DropRates) -> nn.Module:
    """Returns block number `index` of a model."""
    return BLOCK_TYPES[cfg.block](cfg, precision, drop, drop.block_rates(cfg.depth)[index], index)  # pyright: ignore[reportCallIssue]
