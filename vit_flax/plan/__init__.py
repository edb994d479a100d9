"""Costs of a training step on TPUs and GPUs, by their own compilers on a machine without either."""

from vit_flax.chips import CHIPS, Chip, find_chip, parse_topology
from vit_flax.plan.planning import Plan, plan, search
from vit_flax.plan.targets import topology_devices

__all__ = ["CHIPS", "Chip", "Plan", "find_chip", "parse_topology", "plan", "search", "topology_devices"]
