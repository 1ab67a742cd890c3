"""Batch normalization for JAX: pure functions over explicit pytrees.

    norm = jbn.batch_norm(decay=0.9)
    params, state = norm.init(64)
    y, state = norm.train(params, state, x)
    y = norm.infer(params, state, x)

Other norms with the same functions are `ghost_batch_norm`, `inplace_batch_norm`, `batch_renorm` and
`running_batch_norm`; `frozen` and `domain_norm` wrap a norm, and `Method` is the base class for a
norm of your own. `recalibrate`, `adapt`, `fold` and `merge_states` follow after training. The
building blocks are `moments`, `merge`, `normalize` and `update`.

`jbn.linen` and `jbn.nnx` hold Flax modules, `jbn.activations` the activations of in-place norms,
`jbn.convert` readers and writers for weights of other libraries, and `jbn.testing` laws for norms.
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
from jbn._train.policy import save_norm_inputs as save_norm_inputs

if _TYPE_CHECKING:
    from jbn import activations as activations
    from jbn import convert as convert
    from jbn import linen as linen
    from jbn import nnx as nnx
    from jbn import testing as testing

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
