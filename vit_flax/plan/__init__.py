"""What a training step costs on a TPU, asked of the TPU's own compiler on a machine that has none."""

from vit_flax.plan.chips import CHIPS, Chip, find_chip, topology_devices
from vit_flax.plan.planning import Plan, plan, search

__all__ = ["CHIPS", "Chip", "Plan", "find_chip", "plan", "search", "topology_devices"]
