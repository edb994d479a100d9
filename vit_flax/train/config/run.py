"""The frozen description of a training run, and of one whose data are known."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from vit_flax.config import NO_DROPS, DropRates, ModelConfig, TwoTowersConfig, ViTConfig, model_config_from_dict
from vit_flax.config.checks import require_choice, require_int, require_positive
from vit_flax.config.field_types import Rules, check_types
from vit_flax.lora.config import LoraConfig
from vit_flax.presets import get_preset
from vit_flax.train.config.augmentation import MixingConfig
from vit_flax.train.config.consistency import check_consistency
from vit_flax.train.config.data import DataConfig
from vit_flax.train.config.early_stopping import EarlyStoppingConfig
from vit_flax.train.config.ema import EmaConfig
from vit_flax.train.config.loss import LossConfig
from vit_flax.train.config.mesh import MeshConfig
from vit_flax.train.config.nested import build, frozen, replace_dotted, to_dict
from vit_flax.train.config.optimizer import OptimizerConfig, ScheduleConfig

PRECISIONS = ("float32", "bf16")
MATMUL_PRECISIONS = ("default", "high", "highest")  # of jax.lax.Precision
# names of jax.checkpoint_policies and two of our own: 'none' keeps every activation, 'full' recomputes each block
REMAT_POLICIES = (
    "none",
    "full",
    "dots_saveable",
    "dots_with_no_batch_dims_saveable",
    "everything_saveable",
    "offload_dot_with_no_batch_dims",
)
# see vit_flax.models.attention_backends
ATTENTION_BACKENDS = ("auto", "xla", "stored", "rows", "plain", "jax_nn", "cudnn", "splash")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run, whole: the same config and the same data give the same parameters, bit for bit.

    Raises:
        ValueError: a value is out of range, or two do not fit each other; the message names the field.
    """

    NESTED: ClassVar[dict[str, type]] = {
        "drop": DropRates,
        "data": DataConfig,
        "mixing": MixingConfig,
        "loss": LossConfig,
        "optimizer": OptimizerConfig,
        "lora": LoraConfig,
        "schedule": ScheduleConfig,
        "ema": EmaConfig,
        "early_stopping": EarlyStoppingConfig,
        "mesh": MeshConfig,
    }
    OPTIONAL: ClassVar[tuple[str, ...]] = ("lora", "ema", "early_stopping")  # nested configs that may be None

    model: ModelConfig  # or a preset's name, or a mapping as of its to_dict()
    drop: DropRates = NO_DROPS
    data: DataConfig = DataConfig()
    mixing: MixingConfig = MixingConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    lora: LoraConfig | None = None  # adapters, and what else it names, are trained instead of all parameters
    schedule: ScheduleConfig = ScheduleConfig()
    ema: EmaConfig | None = None
    early_stopping: EarlyStoppingConfig | None = None
    epochs: float | None = None  # one of epochs and steps
    steps: int | None = None
    accumulation: int = 1  # gradient accumulation: microbatches of a batch
    precision: str = "float32"  # of the matrix products; parameters are float32 always
    matmul_precision: str = "highest"  # of float32 products on TPU and GPU: a name of jax.lax.Precision
    attention: str = "auto"  # one of ATTENTION_BACKENDS
    remat: str = "none"  # rematerialisation of activations: one of REMAT_POLICIES
    scan: bool = False  # blocks as one scanned loop: compiles faster; state and checkpoints are the same
    mesh: MeshConfig = MeshConfig()
    sharding: Rules | None = None  # (pattern, axes) rules; None: vit_flax.train.sharding's own
    seed: int = 0
    init_from: str | None = None  # weights to start from, in any layout that vit_flax.load reads
    init_layout: str | None = None  # of init_from; None: detected
    init_config: str | None = None  # a preset or a config.json, for what the tensors of init_from do not tell
    init_entry: str | None = None  # which weights of init_from to take, where it holds several
    teacher: str | None = None  # weights of the teacher for distillation, and its model: a config or a preset's name
    teacher_model: ViTConfig | None = None
    eval_every: int | None = None  # steps; None: once an epoch
    checkpoint_every: int | None = None  # steps; None: once an epoch
    keep_checkpoints: int = 3
    log_every: int = 20  # steps
    peak_flops: float | None = None  # of one device, a second; None: known for the chip, or measured
    export_layout: str | None = None  # of the final and the best weights; None: the first that holds the model
    out: str | None = None  # folder of checkpoints, logs and weights

    def __post_init__(self) -> None:
        """Builds what was given as JSON types and checks every value."""
        for name in ("model", "teacher_model"):
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, get_preset(getattr(self, name)).config)
            elif isinstance(getattr(self, name), Mapping):
                object.__setattr__(self, name, model_config_from_dict(getattr(self, name)))
        for name, nested in self.NESTED.items():
            value = getattr(self, name)
            if not (value is None and name in self.OPTIONAL):
                object.__setattr__(self, name, build(nested, value, f"{name}."))
        object.__setattr__(self, "sharding", frozen(self.sharding))
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"give one of epochs and steps, got epochs={self.epochs!r} and steps={self.steps!r}")
        for name in ("epochs", "peak_flops"):
            if getattr(self, name) is not None:
                require_positive(name, getattr(self, name))
        for name in ("steps", "eval_every", "checkpoint_every"):
            if getattr(self, name) is not None:
                require_int(name, getattr(self, name), 1)
        for name in ("accumulation", "log_every"):
            require_int(name, getattr(self, name), 1)
        require_int("seed", self.seed, 0)
        require_int(
            "keep_checkpoints", self.keep_checkpoints, 2
        )  # the one before the last is used when that is damaged
        require_choice("precision", self.precision, PRECISIONS)
        require_choice("matmul_precision", self.matmul_precision, MATMUL_PRECISIONS)
        require_choice("attention", self.attention, ATTENTION_BACKENDS)
        require_choice("remat", self.remat, REMAT_POLICIES)
        check_types(self)
        check_consistency(self)

    @property
    def image_model(self) -> ViTConfig:
        """The model as a ViTConfig; TypeError where it is a two-tower model."""
        if not isinstance(self.model, ViTConfig):
            raise TypeError("the model is of images and texts")
        return self.model

    @property
    def has_pairs(self) -> bool:
        """Whether the model has two towers, and the data are image-text pairs."""
        return isinstance(self.model, TwoTowersConfig)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the images the model is given."""
        return self.model.image_size

    def replace(self, changes: Mapping[str, object] | None = None, **fields: object) -> Self:
        """Returns a copy with fields changed, `changes` by dotted names such as 'data.batch_size'."""
        changes = {**(changes or {}), **fields}
        if changes.get("steps") is not None:
            changes.setdefault("epochs", None)
        elif changes.get("epochs") is not None:
            changes.setdefault("steps", None)
        if isinstance(model := changes.get("model"), str):
            changes["model"] = get_preset(model).config
        return replace_dotted(self, changes)

    def resolve(self, num_examples: int, class_counts: Sequence[int] | None = None) -> ResolvedConfig:
        """Returns the config for that many training images; an epoch's last, partial batch is dropped.

        Args:
            num_examples: images to train on.
            class_counts: how many of them each class has, which 'balanced' weights need.

        Raises:
            ValueError: there are fewer images than one batch has.
        """
        steps_per_epoch = self.data.steps_per_epoch(num_examples)
        steps = self.steps or max(1, round((self.epochs or 0) * steps_per_epoch))
        warmup = self.schedule.warmup_steps
        warmup = round(self.schedule.warmup_epochs * steps_per_epoch) if warmup is None else warmup
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)} | {
            "epochs": None,
            "steps": steps,
            "steps_per_epoch": steps_per_epoch,
            "schedule": dataclasses.replace(self.schedule, warmup_steps=min(warmup, steps), warmup_epochs=0.0),
            "eval_every": self.eval_every or steps_per_epoch,
            "checkpoint_every": self.checkpoint_every or steps_per_epoch,
            "loss": self.loss.balanced(num_examples, class_counts),
        }
        return ResolvedConfig(**fields)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON types."""
        return to_dict(self)

    def to_json(self) -> str:
        """Returns `to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolvedConfig(TrainConfig):
    """A config for data of a known size: durations are in steps and class weights are numbers.

    The training step, the optimiser's schedule, the loop and the planner take this one; `TrainConfig.resolve` makes it.
    """

    # 0 is refused: `resolve` gives all of them
    steps: int = 0
    steps_per_epoch: int = 0
    eval_every: int = 0
    checkpoint_every: int = 0

    def __post_init__(self) -> None:
        """Checks every value."""
        for name in ("steps", "steps_per_epoch", "eval_every", "checkpoint_every"):
            require_int(name, getattr(self, name), 1)
        super().__post_init__()
        require_int("schedule.warmup_steps", self.schedule.warmup_steps, 0)

    @property
    def warmup_steps(self) -> int:
        """Steps in which the learning rate rises."""
        return self.schedule.warmup_steps or 0

    def resolve(self, num_examples: int, class_counts: Sequence[int] | None = None) -> ResolvedConfig:
        """Returns itself, if there are images for a batch."""
        del class_counts
        self.data.steps_per_epoch(num_examples)
        return self


def config_from_dict(values: Mapping[str, object]) -> TrainConfig:
    """Returns the config that `TrainConfig.to_dict` described.

    Raises:
        ValueError: a key is no field (the nearest is suggested).
    """
    return build(TrainConfig, values)


def config_from_json(text: str) -> TrainConfig:
    """Returns the config that `TrainConfig.to_json` wrote.

    Raises:
        ValueError: it is no JSON, or a key is no field (the nearest is suggested).
    """
    return config_from_dict(json.loads(text))
