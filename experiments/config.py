"""The configuration of a training run: all settings that its result depends on.

Its folder, its devices and other settings are in `command.Run`.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args, get_origin, get_type_hints

import flax.linen as nn
import optax

import jbn


@dataclass(frozen=True)
class DataConfig:
    """The images."""

    dataset: Literal["digits", "cifar10"] = "digits"
    """Data set."""
    train_size: int | None = None
    """Number of training images to use; all by default."""
    test_size: int | None = None
    """Number of test images to use; all by default."""
    shrink: int = 1
    """Downscaling factor: each pixel becomes the mean of a square with this many pixels a side."""
    gain: float = 1.0
    """Standard deviation of the network's input over the training images."""


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of training images."""

    flip: Literal["none", "random", "alternating"] = "none"
    """Mirror each image at random in each epoch (random), or in every other epoch (alternating)."""
    shift: int = 0
    """Largest shift in pixels, along both axes."""
    pad: Literal["zero", "reflect"] = "zero"
    """Padding that a shift moves into the image."""


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    name: Literal["small", "strided", "airbench", "resnet20"] = "small"
    """Network."""
    widths: tuple[int, int, int] = (64, 256, 256)
    """Channels of the three groups (airbench only)."""
    width: int = 32
    """Channels of the first half of the convolutions; twice as many in the second (small only)."""
    depth: int = 4
    """Number of convolutions (small only)."""
    activation: Literal["relu", "sigmoid"] = "relu"
    """Activation after each norm (small only)."""


@dataclass(frozen=True)
class NormConfig:
    """The normalization."""

    method: Literal["batch", "inplace", "renorm", "running", "group", "none"] = "batch"
    """Normalization. In-place norms apply leaky relu instead of the network's activation."""
    decay: float = 0.9
    """Weight on the old running statistics."""
    epsilon: float = 1e-5
    """Number that is added to the variance."""
    scale: bool = True
    """Whether a scale is learned."""
    bias: bool = True
    """Whether a bias is learned."""
    unbiased: bool = False
    """Whether running variances are unbiased (batch and in-place only)."""
    group_size: int | None = None
    """Number of images normalized together (ghost batch norm); all of a batch by default."""
    r_max: float = 3.0
    """Limit of renorm's scale."""
    d_max: float = 5.0
    """Limit of renorm's shift."""
    widening_steps: int = 100
    """Number of steps in which renorm's limits widen from 1 and 0, which make it batch norm."""
    channels_per_group: int = 8
    """Number of channels in a group of group norm."""

    def make(self, decay: float | None = None) -> jbn.Norm | Callable[..., nn.Module] | None:
        """Returns the norm, or None for the method `none`.

        For group norm, which keeps no statistics, it returns a function that makes Flax's module.

        Args:
          decay: used instead of the field `decay`.
        """
        decay = self.decay if decay is None else decay
        affine = {"epsilon": self.epsilon, "use_scale": self.scale, "use_bias": self.bias}
        options: dict[str, Any] = {"decay": decay, "group_size": self.group_size, **affine}
        match self.method:
            case "batch":
                return jbn.batch_norm(unbiased=self.unbiased, **options)
            case "inplace":
                return jbn.inplace_batch_norm(unbiased=self.unbiased, decay=decay, **affine)
            case "renorm":
                r_max = optax.linear_schedule(1, self.r_max, self.widening_steps)
                d_max = optax.linear_schedule(0, self.d_max, self.widening_steps)
                return jbn.batch_renorm(r_max=r_max, d_max=d_max, **options)
            case "running":
                return jbn.running_batch_norm(**options)
            case "group":
                size = self.channels_per_group
                return partial(nn.GroupNorm, num_groups=None, group_size=size, **affine)
            case "none":
                return None


@dataclass(frozen=True)
class OptimizerConfig:
    """SGD with Nesterov momentum and coupled weight decay, as in PyTorch, for a mean loss."""

    learning_rate: float = 0.1
    """Learning rate, which the factors of the schedule multiply."""
    momentum: float = 0.9
    """Nesterov momentum."""
    weight_decay: float = 1e-4
    """Weight decay."""
    norm_bias_factor: float = 1.0
    """Factor of the learning rate of the norms' biases; their weight decay is divided by it."""
    whiten_epochs: float = 3.0
    """Number of epochs after which the whitening layer's bias is frozen (airbench only)."""
    schedule: tuple[tuple[float, float], ...] = ((0.0, 1.0), (1.0, 0.0))
    """Points (share of training, factor of the learning rate), joined by straight lines."""
    lookahead: bool = False
    """Whether slow weights and statistics are kept, which move every 5 steps by the share
    1 - 0.95^5 (step / steps)^3."""


@dataclass(frozen=True)
class Config:
    """The configuration of a training run."""

    name: str
    """Name of the preset."""
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    norm: NormConfig = field(default_factory=NormConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    epochs: float = 10.0
    """Number of epochs."""
    batch_size: int = 64
    """Number of images in a training batch."""
    classes_per_batch: int | None = None
    """Number of classes in a training batch; by default batches are mixed at random."""
    eval_batch_size: int = 500
    """Number of images in a test batch."""
    seed: int = 0
    """Seed of the initial weights, the order of the images and their random changes."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Dtype of convolutions and activations; parameters and statistics are always float32."""
    label_smoothing: float = 0.0
    """Share of a label that is spread evenly over all classes."""
    views: Literal["plain", "mirror", "mirror_shift"] = "plain"
    """Views whose logits are averaged: the image, with its mirror image, or with both shifted."""


def to_dict(config: Any) -> dict[str, Any]:
    """Returns the configuration as a dictionary that JSON can hold."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any], kind: Any = Config) -> Any:
    """Returns the configuration from the result of `to_dict`, which may have been stored as JSON.

    Settings that are missing, because an older version did not have them, get their defaults.
    """
    types = get_type_hints(kind)
    return kind(**{k: _restore(values[k], t) for k, t in types.items() if k in values})


def _restore(value, kind):
    if dataclasses.is_dataclass(kind):
        return from_dict(value, kind)
    if get_origin(kind) is tuple:
        inner = get_args(kind)[0]
        return tuple(_restore(v, inner) for v in value)
    return value


def flat(config: Config) -> dict[str, Any]:
    """Returns the configuration without sections: `{"norm.decay": 0.9, ...}`."""

    def entries(values, prefix=""):
        for key, value in values.items():
            if isinstance(value, dict):
                yield from entries(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    return dict(entries(to_dict(config)))


def changes(config: Config) -> dict[str, Any]:
    """Returns the settings that differ from the defaults: `{"norm.decay": 0.99}`."""
    default = flat(Config(config.name))
    return {key: value for key, value in flat(config).items() if value != default[key]}


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Returns a line for each entry that differs: `norm.decay: 0.9 -> 0.99`."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a} -> {b}")
    return lines
