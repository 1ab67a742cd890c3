"""What defines a training run's result; how it is carried out is in `command.Run`."""

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
    """Which images."""

    dataset: Literal["digits", "cifar10"] = "digits"
    train_size: int | None = None
    """Number of training images to use; all of them by default."""
    test_size: int | None = None
    """Number of test images to use; all of them by default."""
    shrink: int = 1
    """Pixels along each axis of which the network sees the mean."""
    gain: float = 1.0
    """Standard deviation of the network's input over the training images."""


@dataclass(frozen=True)
class AugmentConfig:
    """How training images are varied."""

    flip: Literal["none", "random", "alternating"] = "none"
    """Mirror images at random, or each at random once and from then on in every other epoch."""
    shift: int = 0
    """Largest shift in pixels, along both axes."""
    pad: Literal["zero", "reflect"] = "zero"
    """What a shift brings in."""


@dataclass(frozen=True)
class ModelConfig:
    """Which network."""

    name: Literal["small", "strided", "airbench", "resnet20"] = "small"
    widths: tuple[int, int, int] = (64, 256, 256)
    """Channels of the three groups; airbench only."""
    width: int = 32
    """Channels of the first half of the convolutions, twice as many in the second; small only."""
    depth: int = 4
    """Number of convolutions; small only."""
    activation: Literal["relu", "sigmoid"] = "relu"
    """Small only."""


@dataclass(frozen=True)
class NormConfig:
    """Which normalization."""

    method: Literal["batch", "inplace", "renorm", "running", "group", "none"] = "batch"
    """In-place norms bring leaky relu in place of the network's activation after them."""
    decay: float = 0.9
    """Weight on the old running statistics."""
    epsilon: float = 1e-5
    scale: bool = True
    """Whether a scale is learned."""
    bias: bool = True
    """Whether a bias is learned."""
    unbiased: bool = False
    """Whether running variances are unbiased; batch and in-place only."""
    group_size: int | None = None
    """Images that are normalized together (ghost batch norm), by default all of a batch."""
    r_max: float = 3.0
    """Limit of renorm's scale."""
    d_max: float = 5.0
    """Limit of renorm's shift."""
    widening_steps: int = 100
    """Steps over which renorm's limits widen from those of batch norm."""
    channels_per_group: int = 8
    """Of group norm."""

    def make(self, decay: float | None = None) -> jbn.Norm | Callable[..., nn.Module] | None:
        """Returns the norm, or None for the method `none`; `decay` goes before the field.

        Group norm, which has no statistics to keep, is Flax's module, still to be made.
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
    """SGD with Nesterov momentum and coupled weight decay, as PyTorch's, for a mean loss."""

    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    norm_bias_factor: float = 1.0
    """The norms' biases learn faster by this factor; their weight decay is divided by it."""
    whiten_epochs: float = 3.0
    """Epochs after which the whitening layer's bias is frozen; airbench only."""
    schedule: tuple[tuple[float, float], ...] = ((0.0, 1.0), (1.0, 0.0))
    """Points (share of training, factor of the learning rate), joined by straight lines."""
    lookahead: bool = False
    """Whether slow weights and statistics follow every 5 steps, by 1 - 0.95^5 (step / steps)^3."""


@dataclass(frozen=True)
class Config:
    """A training run."""

    name: str
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    norm: NormConfig = field(default_factory=NormConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    epochs: float = 10.0
    batch_size: int = 64
    classes_per_batch: int | None = None
    """How many classes a training batch holds; as chance has it by default."""
    eval_batch_size: int = 500
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of convolutions and activations; parameters and statistics are always float32."""
    label_smoothing: float = 0.0
    views: Literal["plain", "mirror", "mirror_shift"] = "plain"
    """Views of a test image whose logits are averaged: itself, its mirror image, both shifted."""


def to_dict(config: Any) -> dict[str, Any]:
    """Returns the configuration as what JSON can hold."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any], kind: Any = Config) -> Any:
    """Returns the configuration that `to_dict` was given, also after a trip through JSON.

    What an older version did not know yet has its default.
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
    """Returns what differs from the defaults: `{"norm.decay": 0.99}`."""
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
