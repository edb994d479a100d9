"""The kinds of transformer block by name."""

from typing import Any

import flax.linen as nn

from vit_flax.config import ViTConfig
from vit_flax.models.block import Block
from vit_flax.models.diff_block import DiffBlock, DiffParallelScalingBlock
from vit_flax.models.parallel_scaling_block import ParallelScalingBlock
from vit_flax.models.parallel_things_block import ParallelThingsBlock
from vit_flax.models.res_post_block import ResPostBlock

BLOCKS: dict[str, type[nn.Module]] = {
    "standard": Block,
    "res_post": ResPostBlock,
    "parallel_things": ParallelThingsBlock,
    "parallel_scaling": ParallelScalingBlock,
    "diff": DiffBlock,
    "diff_parallel_scaling": DiffParallelScalingBlock,
}


def build_block(cfg: ViTConfig, index: int, *runtime: Any) -> Any:
    """Returns block number `index` of a model; `runtime` is precision, drop and drop_path."""
    place = {"index": index} if cfg.block.startswith("diff") else {}
    return BLOCKS[cfg.block](cfg, *runtime, **place)
