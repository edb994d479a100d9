"""DINOv2's linear heads for segmentation, as their files have the names."""

from __future__ import annotations

from vit_flax.convert.rules import CONV, Drop, Rule

PREFIX = "decode_head."
# parameters by 'params/...', averages of batches by 'batch_stats/...'
HEAD_RULES: tuple[Rule | Drop, ...] = (
    Rule(f"{PREFIX}bn.weight", "params/bn/scale"),
    Rule(f"{PREFIX}bn.bias", "params/bn/bias"),
    Rule(f"{PREFIX}bn.running_mean", "batch_stats/bn/mean"),
    Rule(f"{PREFIX}bn.running_var", "batch_stats/bn/var"),
    Drop(f"{PREFIX}bn.num_batches_tracked", "counts batches"),
    Rule(f"{PREFIX}conv_seg.weight", "params/conv_seg/kernel", CONV),
    Rule(f"{PREFIX}conv_seg.bias", "params/conv_seg/bias"),
)
