"""What a training step costs on TPUs and GPUs, asked of their own compilers on a machine that has none."""

from vit_flax.chips import CHIPS, Chip, find_chip, parse_topology
from vit_flax.plan.planning import Plan, plan, search
from vit_flax.plan.targets import topology_devices

__all__ = ["CHIPS", "Chip", "Plan", "find_chip", "parse_topology", "plan", "search", "topology_devices"]
