"""Batch normalization for JAX: pure functions over explicit pytrees.

>>> import jax, jbn
>>> norm = jbn.batch_norm(decay=0.9)
>>> params, state = norm.init(64)
>>> x = jax.random.normal(jax.random.key(0), (32, 64))
>>> y, state = norm.train(params, state, x)
>>> y = norm.infer(params, state, x)

Other norms with the same functions are `ghost_batch_norm`, `inplace_batch_norm`, `batch_renorm` and
`running_batch_norm`. `frozen` and `domain_norm` wrap a norm. `Method` is the base class for a norm
of your own. After training, use `recalibrate`, `adapt`, `fold` and `merge_states`. The building
blocks are `moments`, `merge`, `normalize` and `update`.

`jbn.linen` and `jbn.nnx` have Flax modules, `jbn.activations` has the activations of in-place
norms, `jbn.convert` reads and writes weights of other libraries, and `jbn.testing` checks norms.
These modules are imported when they are first used.
"""

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING

from jbn._after.adapt import adapt as adapt
from jbn._after.adapt import adapting as adapting
from jbn._after.fold import fold as fold
from jbn._after.merge_states import merge_states as merge_states
from jbn._after.recalibrate import Drift as Drift
from jbn._after.recalibrate import recalibrate as recalibrate
from jbn._core.moments import Moments as Moments
from jbn._core.moments import merge as merge
from jbn._core.moments import moments as moments
from jbn._core.normalize import normalize as normalize
from jbn._norms.batch import BatchNormState as BatchNormState
from jbn._norms.batch import batch_norm as batch_norm
from jbn._norms.batch import update as update
from jbn._norms.decay import corrected_decay as corrected_decay
from jbn._norms.decay import cumulative_decay as cumulative_decay
from jbn._norms.domain import domain_norm as domain_norm
from jbn._norms.frozen import frozen as frozen
from jbn._norms.ghost_batch import ghost_batch_norm as ghost_batch_norm
from jbn._norms.inplace_batch import inplace_batch_norm as inplace_batch_norm
from jbn._norms.method import Method as Method
from jbn._norms.method import Statistics as Statistics
from jbn._norms.no_update import no_update as no_update
from jbn._norms.norm import BatchNormParams as BatchNormParams
from jbn._norms.norm import Norm as Norm
from jbn._norms.renorm import batch_renorm as batch_renorm
from jbn._norms.running import RunningBatchNormState as RunningBatchNormState
from jbn._norms.running import running_batch_norm as running_batch_norm
from jbn._train import policy as _policy

if _TYPE_CHECKING:
    from jbn import activations as activations
    from jbn import convert as convert
    from jbn import linen as linen
    from jbn import nnx as nnx
    from jbn import testing as testing

save_norm_inputs = _policy.save_norm_inputs
"""A policy for `jax.checkpoint` that saves only the inputs and the statistics of norms.

For an in-place norm, it saves the output and the statistics. The backward pass computes the affine
map and the activation again, but no convolution, statistics or collective. So a convolution with a
norm and an activation saves one activation instead of two. Wrap many layers at once, because each
call of `jax.checkpoint` saves its own inputs as well.

>>> import jax, jax.numpy as jnp
>>> norm = jbn.batch_norm()
>>> params, state = norm.init(3)
>>> def loss(kernel, x):
...     y, _ = norm.train(params, state, x @ kernel)
...     return jnp.sum(jax.nn.relu(y) ** 2)
>>> thrifty_loss = jax.checkpoint(loss, policy=jbn.save_norm_inputs)
>>> kernel, x = jnp.eye(3), jnp.arange(12.0).reshape(4, 3)
>>> bool(jnp.allclose(jax.grad(thrifty_loss)(kernel, x), jax.grad(loss)(kernel, x)))
True
"""

__version__ = "0.1.0"
_MODULES = ["activations", "convert", "linen", "nnx", "testing"]
__all__ = sorted(name for name in globals() if not name.startswith("_") and name not in _MODULES)  # pyright: ignore[reportUnsupportedDunderAll]


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES])


if not _TYPE_CHECKING:

    def __getattr__(name):
        if name in _MODULES:
            return _importlib.import_module(f"jbn.{name}")
        raise AttributeError(f"module 'jbn' has no attribute {name!r}")
