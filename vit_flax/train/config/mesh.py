"""The mesh of devices."""

from __future__ import annotations

import dataclasses

from vit_flax.config.checks import require_int


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Sizes of the mesh's axes; one of them may be -1: what the other axes leave."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        """Checks every value."""
        sizes = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name, size in sizes.items():
            if size != -1:
                require_int(f"mesh.{name}", size, 1)
        if list(sizes.values()).count(-1) > 1:
            raise ValueError(f"only one axis of the mesh may be -1, got {sizes}")
