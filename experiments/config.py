"""The configuration of a training run: all settings that its result depends on."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from experiments.models import ModelConfig, Small
from experiments.norms import BatchNorm, NormConfig


@dataclass(frozen=True)
class DataConfig:
    """The images."""

    dataset: str = "digits"
    """Data set: digits, cifar10, cifar100, an .npz file, or a folder of images by class."""
    resize: int | None = None
    """Width and height in pixels that images from a folder get; by default they keep their size."""
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
class OptimizerConfig:
    """SGD with momentum and coupled weight decay, as in PyTorch, for a mean loss."""

    learning_rate: float = 0.1
    """Learning rate, which the factors of the schedule multiply."""
    momentum: float = 0.9
    """Momentum."""
    nesterov: bool = True
    """Whether the momentum is Nesterov's."""
    weight_decay: float = 1e-4
    """Weight decay."""
    norm_bias_factor: float = 1.0
    """Factor of the learning rate of the norms' biases; their weight decay is divided by it."""
    schedule: tuple[tuple[float, float], ...] = ((0.0, 1.0), (1.0, 0.0))
    """Pairs of a share of training and a factor of the learning rate, joined by straight lines. For
    example, 0 1 1 0 falls from 1 to 0."""
    lookahead: bool = False
    """Whether slow weights follow every 5 steps (Zhang et al. 2019, with airbench94's decay)."""


@dataclass(frozen=True)
class Config:
    """The configuration of a training run."""

    name: Annotated[str, tyro.conf.Suppress]
    """Name of the preset."""
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=Small)
    norm: NormConfig = field(default_factory=BatchNorm)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    epochs: float = 10.0
    """Number of epochs."""
    batch_size: int = 64
    """Number of images in a training batch."""
    classes_per_batch: int | None = None
    """Number of classes in a training batch; by default batches are mixed at random."""
    eval_batch_size: int = 500
    """Number of images in a test batch."""
    # Configurations that differ in their seeds are equal, so that they share compiled programs.
    seed: int = field(default=0, compare=False)
    """Seed of the initial weights, the order of the images and their random changes."""
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    """Dtype of convolutions and activations. Parameters and statistics are float32 at least."""
    label_smoothing: float = 0.0
    """Share of a label that is spread evenly over all classes."""
    views: Literal["plain", "mirror", "mirror_shift"] = "plain"
    """Views of a test image whose logits are averaged: itself (plain), its mirror image too
    (mirror), both shifted by a pixel too (mirror_shift)."""
