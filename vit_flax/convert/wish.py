"""What a caller asks of a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from vit_flax.config import ModelConfig, TwoTowersConfig, model_config_from_dict
from vit_flax.convert.config_files import STORED_BESIDE
from vit_flax.convert.folder import read_json
from vit_flax.convert.rules import ConversionError
from vit_flax.presets import get_preset

# which towers of a checkpoint are read
TOWERS = ("image", "both")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wish:
    """Everything a caller says of a checkpoint, one value from the command line or `vit_flax.load` to the arrays.

    Raises:
        ValueError: no such preset, or no such field of a config.
    """

    layout: str | None = None  # a layout's name; None: told by the tensor names
    # fields that tensors do not determine: a preset's name, a config or its `to_dict()`, or a config.json's contents
    config: str | ModelConfig | Mapping[str, object] | None = None
    overrides: Mapping[str, object] = dataclasses.field(default_factory=dict)  # single fields; they win over `config`
    entry: str | None = None  # which weights of a training checkpoint, where it holds several
    resample: str | None = None  # a mode of vit_flax.models.resample; None: that of the layout's own library
    source_grid: tuple[int, int] | None = None  # (height, width) of the checkpoint's grid of patches
    float32: bool = False  # float64 tensors are read in float32, for whoever computes in it anyway
    # of a model of images and texts: 'image' alone, or 'both'; None: both where what else is asked allows it
    tower: str | None = None
    own_classes: bool = False  # the checkpoint's head tells how many classes there are, whatever `config` says

    def __post_init__(self) -> None:
        """Checks `tower`."""
        if self.tower not in (None, *TOWERS):
            raise ValueError(f"tower must be {' or '.join(map(repr, TOWERS))}, got {self.tower!r}")

    @property
    def takes_text(self) -> bool:
        """Whether a text tower is read where there is one: not where a config or classes of images are asked for."""
        if self.tower is not None:
            return self.tower == "both"
        told = self.told_config()
        return "num_classes" not in self.overrides and (told is None or isinstance(told[1], TwoTowersConfig))

    @property
    def config_file(self) -> Mapping[str, object] | None:
        """The contents of another library's config.json, if that is what `config` is."""
        kinds = ("model_type", "architecture", "model_cfg")
        return self.config if isinstance(self.config, Mapping) and any(k in self.config for k in kinds) else None

    def told_config(self) -> tuple[str, ModelConfig] | None:
        """Returns what `config` is called and the config it stands for; None where it is absent or a config.json."""
        if self.config is None or self.config_file is not None:
            return None
        if isinstance(self.config, str):
            return f"preset {self.config}", self._towers(get_preset(self.config).config)
        if isinstance(self.config, ModelConfig):
            return "config given", self._towers(self.config)
        return "config given", self._towers(model_config_from_dict(self.config))

    def _towers(self, config: ModelConfig) -> ModelConfig:
        """Returns the config of the towers that are asked for."""
        return config.image if self.tower == "image" and isinstance(config, TwoTowersConfig) else config


def preset_or_file(text: str) -> str | dict[str, object]:
    """Returns a preset's name unchanged, or the contents of a .json file, as `Wish.config` takes them.

    Raises:
        ConversionError: there is no such file, or it holds no JSON object.
    """
    if not text.endswith(".json"):
        return text
    path = Path(text)
    if not path.is_file():
        raise ConversionError(f"{text}: no such file")
    found = read_json(path)
    beside = STORED_BESIDE if "model_config" in found else ()
    return {name: value for name, value in found.items() if name not in beside}
