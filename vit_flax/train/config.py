"""The frozen description of a training run."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from vit_flax.config import NO_DROPS, DropRates, ModelConfig, TwoTowersConfig, ViTConfig
from vit_flax.config import model_config_from_dict as model_from_dict
from vit_flax.lora.config import LoraConfig
from vit_flax.presets import get_preset
from vit_flax.train.fields import build, frozen, replace_dotted, to_dict

LOSSES = ("softmax", "binary", "contrastive", "sigmoid")
PAIR_LOSSES = ("contrastive", "sigmoid")  # of images and texts that belong together
DISTILLATIONS = ("none", "soft", "hard")
OPTIMIZERS = ("adamw", "lamb", "muon", "sgd")
DECAYS = ("reference", "matrices")
SCHEDULES = ("cosine", "constant")
PRECISIONS = ("float32", "bf16")
# Names of jax.checkpoint_policies and two of our own: 'none' keeps every activation, 'full' recomputes each block.
REMAT_POLICIES = (
    "none",
    "full",
    "dots_saveable",
    "dots_with_no_batch_dims_saveable",
    "everything_saveable",
    "offload_dot_with_no_batch_dims",
)
ATTENTION_BACKENDS = (
    "auto",
    "xla",
    "stored",
    "rows",
    "plain",
    "jax_nn",
    "cudnn",
    "splash",
)  # see vit_flax.models.attention_backends
AUTO_AUGMENTS = ("none", "randaugment", "autoaugment", "three_augment")
SAMPLERS = ("shuffle", "balanced")
BALANCED = "balanced"

Pair = tuple[float, float]
Rules = tuple[tuple[str, Any], ...]


def _choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _share(name: str, value: Any, one: bool = True) -> None:
    top = value <= 1 if one else value < 1
    if not (isinstance(value, int | float) and value >= 0 and top):
        raise ValueError(f"{name} must be in 0..1, got {value!r}")


def _whole(name: str, value: Any, minimum: int = 1) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}")


def _number(name: str, value: Any, minimum: float = 0.0) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not minimum <= value < math.inf:
        raise ValueError(f"{name} must be a number of at least {minimum:g}, got {value!r}")


def _positive(name: str, value: Any) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive number, got {value!r}")


def _freeze_lists(config: Any) -> None:
    for field in dataclasses.fields(config):
        object.__setattr__(config, field.name, frozen(getattr(config, field.name)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentation of single training images."""

    random_resized_crop: Pair | None = None  # bounds of the crop's share of the area; None: resized whole
    aspect_ratio: Pair = (3 / 4, 4 / 3)  # bounds of the crop's width over height
    shift_pixels: int = 0  # moved by up to so many pixels both ways, zeros moving in
    flip: bool = False  # mirrored left to right half the time
    auto: str = "none"  # one of AUTO_AUGMENTS
    magnitude: float = 9.0  # of randaugment, 0..10
    magnitude_std: float = 0.5
    num_ops: int = 2  # operations of randaugment an image
    color_jitter: float = 0.0
    interpolation: str = "bicubic"  # 'random': bilinear or bicubic

    def __post_init__(self) -> None:
        """Checks every value."""
        _freeze_lists(self)
        _choice("augment.auto", self.auto, AUTO_AUGMENTS)
        _whole("augment.shift_pixels", self.shift_pixels, 0)
        _whole("augment.num_ops", self.num_ops, 0)
        _number("augment.magnitude", self.magnitude)
        _number("augment.color_jitter", self.color_jitter)
        for name in ("random_resized_crop", "aspect_ratio"):
            bounds = getattr(self, name)
            if bounds is not None and not (len(bounds) == 2 and 0 < bounds[0] <= bounds[1]):
                raise ValueError(f"augment.{name} must be two rising positive numbers, got {bounds!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where images come from and how they are batched.

    A loader's batches are the same for any number of processes: batch k of an epoch is rows k*B..(k+1)*B of one
    permutation drawn from the seed, of which process p of P takes its share of B/P rows.
    """

    NESTED: ClassVar[dict[str, type]] = {"augment": AugmentConfig}

    name: str = "digits"  # a source of vit_flax.train.data
    path: str | None = None  # file or folder; None for a source that needs none
    train_split: str = "train"
    eval_split: str | None = None  # what the best weights are chosen on; None: 'val', or 'test' where there is no other
    multi_label: bool = False  # an image has any number of classes, as the data say
    sampler: str = "shuffle"  # 'balanced': drawn with replacement, every class as often, as WeightedRandomSampler
    val_share: float = 0.2  # of every class, held out for evaluation where the data come without splits
    image_key: str | None = None  # column or feature of the image; None: found by its usual names
    label_key: str | None = None
    text_key: str | None = None  # of the text, where images have one
    # of texts: a folder, a sentencepiece file or hf://owner/name; None: the source's own
    tokenizer: str | None = None
    image_size: tuple[int, int] | None = None  # (height, width) that images are brought to; None: the model's
    batch_size: int = 128  # of all processes and accumulation steps together
    eval_batch_size: int | None = None  # None: batch_size
    augment: AugmentConfig = AugmentConfig()
    crop_pct: float = 1.0  # evaluation: the side of the centre crop is this part of the resized image's
    # evaluation prepares images as vit_flax.preprocessing.evaluation.Preprocessing says, whose fields these are
    crop_mode: str = "center"  # 'squash' resizes to the model's size without regard to the aspect ratio
    interpolation: str = "bicubic"  # how images are resized
    resize_size: tuple[int, int] | None = None  # (height, width) to resize to; None: the model's divided by crop_pct
    resizer: str = "pillow"
    fill: tuple[int, ...] | None = None
    exif: bool = False  # photographs are turned as their EXIF data say; in training as well
    pixel_range: Pair | None = None  # black and white of pixels wider than 8 bits; in training as well
    mean: tuple[float, ...] = (0.5,)  # of the channels, pixels in 0..1; one number is for all channels
    std: tuple[float, ...] = (0.5,)
    workers: int = 0  # processes that read and augment; 0: threads of this one
    threads: int | None = None  # that read and augment, in each process; None: as many as it has cores, at most 16
    prefetch: int = 2  # batches made ahead
    max_bad_share: float = 0.01  # the run stops when more of the images than this cannot be read

    def __post_init__(self) -> None:
        """Checks every value."""
        _freeze_lists(self)
        object.__setattr__(self, "augment", build(AugmentConfig, self.augment, "data.augment."))
        if isinstance(self.image_size, int):
            object.__setattr__(self, "image_size", (self.image_size, self.image_size))
        _choice("data.sampler", self.sampler, SAMPLERS)
        if self.sampler == "balanced" and self.multi_label:
            raise ValueError("data.sampler=balanced is for images of one class each; data.multi_label has "
                             "loss.pos_weight=balanced")  # fmt: skip
        _whole("data.batch_size", self.batch_size)
        if self.eval_batch_size is not None:
            _whole("data.eval_batch_size", self.eval_batch_size)
        _whole("data.workers", self.workers, 0)
        _whole("data.prefetch", self.prefetch, 0)
        if self.threads is not None:
            _whole("data.threads", self.threads)
        _share("data.val_share", self.val_share, one=False)
        _share("data.max_bad_share", self.max_bad_share)
        _share("data.crop_pct", self.crop_pct)
        _positive("data.crop_pct", self.crop_pct)
        for name in ("mean", "std"):
            value = getattr(self, name)
            if not isinstance(value, tuple):
                object.__setattr__(self, name, (value,))
        for value in self.mean:
            _number("data.mean", value)
        for value in self.std:
            _positive("data.std", value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixingConfig:
    """Mixup, CutMix and random erasing of whole batches on the device; off by default."""

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    prob: float = 1.0  # of mixing a batch at all
    switch_prob: float = 0.5  # of cutmix where both alphas are positive
    erasing_prob: float = 0.0  # of random erasing, image by image
    erasing_area: Pair = (0.02, 1 / 3)

    def __post_init__(self) -> None:
        """Checks every value."""
        _freeze_lists(self)
        for name in ("mixup_alpha", "cutmix_alpha"):
            _number(f"mixing.{name}", getattr(self, name))
        for name in ("prob", "switch_prob", "erasing_prob"):
            _share(f"mixing.{name}", getattr(self, name))

    @property
    def mixes(self) -> bool:
        """Whether labels become soft."""
        return self.prob > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The training loss."""

    # 'binary': every class by itself, as DeiT-III; of images and texts 'contrastive' as CLIP, 'sigmoid' as SigLIP
    name: str = "softmax"
    label_smoothing: float = 0.0
    # 'softmax': one a class, as torch.nn.CrossEntropyLoss.weight; 'balanced': images / (classes * images of the class)
    class_weights: tuple[float, ...] | str | None = None
    # 'binary': of what has a class, as torch.nn.BCEWithLogitsLoss.pos_weight; 'balanced': images without over with it
    pos_weight: tuple[float, ...] | str | None = None
    target_threshold: float | None = None  # 'binary': soft labels above it become 1, others 0
    sum_classes: bool = False  # 'binary': sum over the classes instead of their mean
    distillation: str = "none"  # 'hard' or 'soft': the distillation head learns from a teacher's logits, as DeiT
    distillation_alpha: float = 0.5
    distillation_tau: float = 1.0
    # of what a teacher's intermediate features add to all this; 0: nothing
    feature_weight: float = 0.0
    feature_layers: tuple[int, ...] = (-1,)  # blocks of the model whose features learn
    teacher_layers: tuple[int, ...] | None = None  # of the teacher's, one for each; None: those of the same numbers

    def __post_init__(self) -> None:
        """Checks every value."""
        _freeze_lists(self)
        _choice("loss.name", self.name, LOSSES)
        for name, loss in (("class_weights", "softmax"), ("pos_weight", "binary")):
            value = getattr(self, name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                value = (value,)
                object.__setattr__(self, name, value)
            if value is not None and self.name != loss:
                other = "pos_weight" if self.name == "binary" else "class_weights"
                raise ValueError(f"loss.{name} is of loss.name={loss}; {self.name} has loss.{other}")
            if isinstance(value, str):
                _choice(f"loss.{name}", value, (BALANCED,))
            for number in value if isinstance(value, tuple) else ():
                _positive(f"loss.{name}", number)
        _choice("loss.distillation", self.distillation, DISTILLATIONS)
        _share("loss.label_smoothing", self.label_smoothing, one=False)
        _share("loss.distillation_alpha", self.distillation_alpha)
        _positive("loss.distillation_tau", self.distillation_tau)
        if not 0 <= self.feature_weight < math.inf:
            raise ValueError(f"loss.feature_weight must be 0 or more, got {self.feature_weight!r}")
        for name in ("feature_layers", "teacher_layers"):
            value = getattr(self, name)
            value = (value,) if isinstance(value, int) else value
            if value is not None and not all(type(number) is int for number in value):
                raise ValueError(f"loss.{name} must be numbers of blocks, got {value!r}")
            object.__setattr__(self, name, value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimiser and its hyperparameters.

    `decay` says what weight decay applies to: 'reference' all but prefix tokens and positions, as the tutorial;
    'matrices' spares biases, norms and whatever has one axis as well, as timm; or ordered (pattern, bool) rules.

    `freeze` and `train` are patterns of whole paths: train=('.*/bias', 'head/.*') trains the biases and the head alone,
    as BitFit does, train=('.*norm[^/]*/.*', 'head/.*') the norms.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3  # the peak's
    weight_decay: float = 0.05
    decay: str | Rules = "matrices"
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    momentum: float = 0.9  # of sgd, and of muon
    nesterov: bool = False
    clip_norm: float | None = None  # of all gradients together
    layer_decay: float | None = None  # the learning rate falls by this factor from a block to the one below
    freeze: tuple[str, ...] = ()  # patterns of parameters that stay as they are
    train: tuple[str, ...] = ()  # patterns of the only parameters trained; () means all that freeze leaves

    def __post_init__(self) -> None:
        """Checks every value."""
        _freeze_lists(self)
        _choice("optimizer.name", self.name, OPTIMIZERS)
        if isinstance(self.decay, str):
            _choice("optimizer.decay", self.decay, DECAYS)
        for name in ("learning_rate", "weight_decay", "eps", "momentum", "b1", "b2"):
            _number(f"optimizer.{name}", getattr(self, name))
        for name in ("b1", "b2", "momentum"):
            _share(f"optimizer.{name}", getattr(self, name), one=False)
        for name in ("clip_norm", "layer_decay"):
            if getattr(self, name) is not None:
                _positive(f"optimizer.{name}", getattr(self, name))
        for name in ("freeze", "train"):
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, (getattr(self, name),))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning-rate schedule, in shares of the peak."""

    name: str = "cosine"
    warmup_epochs: float = 0.0
    warmup_steps: int | None = None  # instead of warmup_epochs; a resolved config has it
    warmup_start: float = 0.0  # share of the peak at step 0
    final: float = 0.0  # share of the peak that the cosine ends at

    def __post_init__(self) -> None:
        """Checks every value."""
        _choice("schedule.name", self.name, SCHEDULES)
        _number("schedule.warmup_epochs", self.warmup_epochs)
        if self.warmup_steps is not None:
            _whole("schedule.warmup_steps", self.warmup_steps, 0)
        _share("schedule.warmup_start", self.warmup_start)
        _share("schedule.final", self.final)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """An exponential moving average of the parameters, which evaluation and export use.

    Reference: timm.utils.ModelEmaV3.
    """

    decay: float = 0.9999
    min_decay: float = 0.0
    update_after_step: int = 0  # until then the average is a copy
    warmup: bool = False  # the decay rises with the steps
    warmup_gamma: float = 1.0
    warmup_power: float = 2 / 3

    def __post_init__(self) -> None:
        """Checks every value."""
        _share("ema.decay", self.decay)
        _share("ema.min_decay", self.min_decay)
        _whole("ema.update_after_step", self.update_after_step, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EarlyStoppingConfig:
    """Early stopping: ends the run when evaluations stop improving.

    Reference: lightning.pytorch.callbacks.EarlyStopping, transformers.EarlyStoppingCallback.
    """

    patience: int = 5  # evaluations in a row without improvement
    min_delta: float = 0.0  # what counts as an improvement is more than this
    monitor: str = "score"  # top-1 accuracy, or of several labels an image the mean average precision; or 'loss'

    def __post_init__(self) -> None:
        """Checks every value."""
        _whole("early_stopping.patience", self.patience)
        _number("early_stopping.min_delta", self.min_delta)
        _choice("early_stopping.monitor", self.monitor, ("score", "loss"))


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
                _whole(f"mesh.{name}", size)
        if list(sizes.values()).count(-1) > 1:
            raise ValueError(f"only one axis of the mesh may be -1, got {sizes}")


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
    accumulation: int = 1  # parts that a batch is cut into, one after the other
    precision: str = "float32"  # of the matrix products; parameters are float32 always
    matmul_precision: str = "highest"  # of float32 products on TPU and GPU: a name of jax.lax.Precision
    attention: str = "auto"  # who computes it: one of ATTENTION_BACKENDS
    remat: str = "none"  # which activations are kept: one of REMAT_POLICIES
    scan: bool = False  # blocks as one scanned loop: compiles faster; state and checkpoints are the same
    mesh: MeshConfig = MeshConfig()
    sharding: Rules | None = None  # (pattern, axes) rules; None: vit_flax.train.sharding's own
    seed: int = 0
    init_from: str | None = None  # weights to start from, in any layout that vit_flax.load reads
    init_layout: str | None = None  # of init_from; None: told by its tensors
    init_config: str | None = None  # a preset for what the tensors of init_from do not tell
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
                object.__setattr__(self, name, model_from_dict(getattr(self, name)))
        for name, nested in self.NESTED.items():
            value = getattr(self, name)
            if not (value is None and name in self.OPTIONAL):
                object.__setattr__(self, name, build(nested, value, f"{name}."))
        object.__setattr__(self, "sharding", frozen(self.sharding))
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"give one of epochs and steps, got epochs={self.epochs!r} and steps={self.steps!r}")
        for name in ("epochs", "peak_flops"):
            if getattr(self, name) is not None:
                _positive(name, getattr(self, name))
        for name in ("steps", "eval_every", "checkpoint_every"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name))
        for name in ("accumulation", "log_every"):
            _whole(name, getattr(self, name))
        _whole("seed", self.seed, 0)
        _whole("keep_checkpoints", self.keep_checkpoints, 2)  # the one before the last is used when that is damaged
        _choice("precision", self.precision, PRECISIONS)
        _choice("matmul_precision", self.matmul_precision, ("default", "high", "highest"))
        _choice("attention", self.attention, ATTENTION_BACKENDS)
        _choice("remat", self.remat, REMAT_POLICIES)
        if self.data.batch_size % self.accumulation:
            raise ValueError(
                f"data.batch_size {self.data.batch_size} is not divisible by accumulation {self.accumulation}"
            )
        has_teacher = self.teacher is not None and self.teacher_model is not None
        if self.loss.distillation != "none" and not (has_teacher and self.model.head_dist):
            raise ValueError("distillation needs teacher, teacher_model and a model with head_dist=True")
        if self.has_pairs:
            self._check_pairs()
        elif self.loss.name in PAIR_LOSSES:
            raise ValueError(f"loss.name={self.loss.name} is of a model of images and texts")
        elif self.model.num_classes < 1:
            raise ValueError("a model to train needs num_classes of 1 or more")
        if self.loss.feature_weight:
            self._check_features(has_teacher)
        for name in ("mean", "std"):
            if len(getattr(self.data, name)) not in (1, self.model.in_chans):
                raise ValueError(
                    f"data.{name} has {len(getattr(self.data, name))} numbers for {self.model.in_chans} channels"
                )

        if self.data.image_size not in (None, self.model.image_size):
            raise ValueError(
                f"data.image_size {self.data.image_size} is not the model's {self.model.image_size}: "
                "set model.image_size"
            )
        if self.lora is not None and (self.optimizer.freeze or self.optimizer.train):
            which = "freeze" if self.optimizer.freeze else "train"
            raise ValueError(
                f"with lora all is frozen but the adapters and lora.modules_to_save: leave optimizer.{which} out"
            )
        self._check_labels()

    def _check_features(self, has_teacher: bool) -> None:
        """Raises ValueError where no teacher's features can be learned from."""
        if not has_teacher or self.teacher_model is None:
            raise ValueError("loss.feature_weight needs teacher, its weights, and teacher_model, a config or preset")
        if self.lora is not None:
            raise ValueError("loss.feature_weight trains projections beside the model: leave lora out")
        from vit_flax.train.feature_distillation import check_features  # which imports the models

        check_features(self.image_model, self.teacher_model, self.loss.feature_layers, self.loss.teacher_layers)

    @property
    def image_model(self) -> ViTConfig:
        """The model, of what is for models of images alone; TypeError where it is of images and texts."""
        if not isinstance(self.model, ViTConfig):
            raise TypeError("the model is of images and texts")
        return self.model

    @property
    def has_pairs(self) -> bool:
        """Whether the model is of images and texts, and the data are images with a text each."""
        return isinstance(self.model, TwoTowersConfig)

    def _check_pairs(self) -> None:
        """Raises ValueError where the rest does not fit a model of images and texts."""
        name = "sigmoid" if self.model.logit_bias else "contrastive"
        if self.loss.name != name:
            raise ValueError(f"a model with logit_bias={self.model.logit_bias} is trained by loss.name={name}")
        wrong = {
            "accumulation": self.accumulation != 1,  # whose parts would not see each other's texts
            "mixing": self.mixing != MixingConfig(),
            "data.multi_label": self.data.multi_label,
            "data.sampler": self.data.sampler != "shuffle",
            "loss.label_smoothing": bool(self.loss.label_smoothing),
            "loss.distillation": self.loss.distillation != "none",
            "loss.feature_weight": bool(self.loss.feature_weight),
            "optimizer.layer_decay": self.optimizer.layer_decay is not None,
            "lora": self.lora is not None,
        }
        if named := [name for name, value in wrong.items() if value]:
            raise ValueError(f"images with texts are trained without {', '.join(named)}")

    def _check_labels(self) -> None:
        """Raises ValueError where loss and labels do not fit each other."""
        loss, classes = self.loss, self.model.num_classes
        if self.data.multi_label:
            if loss.name != "binary":
                raise ValueError("data.multi_label needs loss.name=binary: each class by itself")
            if loss.label_smoothing:
                raise ValueError("data.multi_label has no label smoothing: set loss.label_smoothing=0")
            if loss.distillation != "none":
                raise ValueError("distillation is for images of one class each, not for data.multi_label")
        for name in ("class_weights", "pos_weight"):
            value = getattr(loss, name)
            if isinstance(value, tuple) and len(value) != classes and not (name == "pos_weight" and len(value) == 1):
                raise ValueError(f"loss.{name} has {len(value)} numbers for {classes} classes")

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
        """Returns the config for that many training images; an epoch's last part batch is left out.

        Args:
            num_examples: images to train on.
            class_counts: how many of them each class has, which 'balanced' weights need.

        Raises:
            ValueError: there are fewer images than one batch has.
        """
        steps_per_epoch = _steps_per_epoch(num_examples, self.data.batch_size)
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
            "loss": _weighted(self.loss, num_examples, class_counts),
        }
        return ResolvedConfig(**fields)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON types."""
        return to_dict(self)

    def to_json(self) -> str:
        """Returns `to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2)


def _steps_per_epoch(num_examples: int, batch_size: int) -> int:
    if num_examples < batch_size:
        raise ValueError(f"{num_examples} training images are fewer than data.batch_size {batch_size}")
    return num_examples // batch_size


def _weighted(loss: LossConfig, num_examples: int, counts: Sequence[int] | None) -> LossConfig:
    """Returns the loss with numbers in place of 'balanced'."""
    wanted = [name for name in ("class_weights", "pos_weight") if getattr(loss, name) == BALANCED]
    if not wanted:
        return loss
    if counts is None or min(counts) < 1:
        raise ValueError(f"loss.{wanted[0]}=balanced needs training images of every class")
    balanced = {
        "class_weights": tuple(num_examples / (len(counts) * count) for count in counts),
        # a class that every image has would weigh nothing
        "pos_weight": tuple(max(num_examples - count, 1) / count for count in counts),
    }
    return dataclasses.replace(loss, **{name: balanced[name] for name in wanted})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolvedConfig(TrainConfig):
    """A config for data of a known size: its durations are in steps and its weights are numbers.

    The training step, the optimiser's schedule, the loop and the planner take this one; `TrainConfig.resolve` makes it.
    """

    # 0 is refused: `resolve` gives all of them
    steps: int = 0
    steps_per_epoch: int = 0
    eval_every: int = 0
    checkpoint_every: int = 0

    def __post_init__(self) -> None:
        """Checks every value."""
        super().__post_init__()
        for name in ("steps", "steps_per_epoch", "eval_every", "checkpoint_every"):
            _whole(name, getattr(self, name))
        _whole("schedule.warmup_steps", self.schedule.warmup_steps, 0)

    @property
    def warmup_steps(self) -> int:
        """Steps in which the learning rate rises."""
        return self.schedule.warmup_steps or 0

    def resolve(self, num_examples: int, class_counts: Sequence[int] | None = None) -> ResolvedConfig:
        """Returns itself, if there are images for a batch."""
        del class_counts
        _steps_per_epoch(num_examples, self.data.batch_size)
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
