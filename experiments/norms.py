"""The normalizations that a network can use, one dataclass each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import flax.linen as nn
import optax

import jbn

Norm = jbn.Norm | Callable[..., nn.Module] | None
"""A norm of jbn, a function that makes another library's module, or None."""


@dataclass(frozen=True)
class _Affine:
    """A norm with a learned scale and bias.

    Attributes:
      activates: whether the norm includes the activation after it.
    """

    activates: ClassVar[bool] = False

    epsilon: float = 1e-5
    """Number that is added to the variance."""
    scale: bool = True
    """Whether a scale is learned."""
    bias: bool = True
    """Whether a bias is learned."""

    @property
    def affine(self) -> dict[str, Any]:
        """The settings as arguments."""
        return {"epsilon": self.epsilon, "use_scale": self.scale, "use_bias": self.bias}


@dataclass(frozen=True)
class _Running(_Affine):
    """A norm with running statistics."""

    decay: float = 0.9
    """Weight on the old running statistics."""
    group_size: int | None = None
    """Number of images normalized together (ghost batch norm); all of a batch by default."""

    @property
    def running(self) -> dict[str, Any]:
        """The settings as arguments."""
        return {"decay": self.decay, "group_size": self.group_size, **self.affine}


@dataclass(frozen=True)
class BatchNorm(_Running):
    """Batch norm (Ioffe & Szegedy 2015)."""

    method: Literal["batch"] = "batch"
    """Norm: batch, inplace, renorm, running, group or none."""
    unbiased: bool = False
    """Whether running variances are unbiased."""

    def make(self) -> Norm:
        """Returns the norm."""
        return jbn.batch_norm(unbiased=self.unbiased, **self.running)


@dataclass(frozen=True)
class InplaceBatchNorm(_Affine):
    """Batch norm with leaky relu in place of the network's activation (Rota Bulò et al. 2018)."""

    activates: ClassVar[bool] = True

    method: Literal["inplace"] = "inplace"
    """Norm: batch, inplace, renorm, running, group or none."""
    decay: float = 0.9
    """Weight on the old running statistics."""
    unbiased: bool = False
    """Whether running variances are unbiased."""

    def make(self) -> Norm:
        """Returns the norm."""
        return jbn.inplace_batch_norm(unbiased=self.unbiased, decay=self.decay, **self.affine)


@dataclass(frozen=True)
class BatchRenorm(_Running):
    """Batch renormalization (Ioffe 2017)."""

    method: Literal["renorm"] = "renorm"
    """Norm: batch, inplace, renorm, running, group or none."""
    r_max: float = 3.0
    """Largest correction of the scale, a factor. At first it is 1, as in batch norm."""
    d_max: float = 5.0
    """Largest correction of the shift, in standard deviations. At first it is 0."""
    widening_steps: int = 100
    """Number of steps after which both limits are reached."""

    def make(self) -> Norm:
        """Returns the norm."""
        r_max = optax.linear_schedule(1, self.r_max, self.widening_steps)
        d_max = optax.linear_schedule(0, self.d_max, self.widening_steps)
        return jbn.batch_renorm(r_max=r_max, d_max=d_max, **self.running)


@dataclass(frozen=True)
class RunningBatchNorm(_Running):
    """Running batch normalization, whose running statistics normalize in training, too."""

    method: Literal["running"] = "running"
    """Norm: batch, inplace, renorm, running, group or none."""

    def make(self) -> Norm:
        """Returns the norm."""
        return jbn.running_batch_norm(**self.running)


@dataclass(frozen=True)
class GroupNorm(_Affine):
    """Group norm (Wu & He 2018), which keeps no statistics."""

    method: Literal["group"] = "group"
    """Norm: batch, inplace, renorm, running, group or none."""
    channels_per_group: int = 8
    """Number of channels in a group."""

    def make(self) -> Norm:
        """Returns a function that makes Flax's module."""
        size = self.channels_per_group
        return partial(nn.GroupNorm, num_groups=None, group_size=size, **self.affine)


@dataclass(frozen=True)
class NoNorm:
    """No norm. The convolutions have a bias instead."""

    activates: ClassVar[bool] = False

    method: Literal["none"] = "none"
    """Norm: batch, inplace, renorm, running, group or none."""

    def make(self) -> Norm:
        """Returns None."""
        return None


NormConfig = BatchNorm | InplaceBatchNorm | BatchRenorm | RunningBatchNorm | GroupNorm | NoNorm
