"""Flax NNX modules that run any `jbn.Norm`.

`BatchNorm` takes the place of `flax.nnx.BatchNorm`. `Norm` and `DomainNorm` run any norm of jbn.
An existing model runs on jbn, with any norm, after one call:

>>> import jax.numpy as jnp
>>> from flax import nnx
>>> rngs = nnx.Rngs(0)
>>> model = nnx.Sequential(nnx.Linear(3, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs))
>>> model = jbn.nnx.replace_batch_norm(model, jbn.ghost_batch_norm(group_size=4))
>>> y = model(jnp.arange(24.0).reshape(8, 3))
"""

from jbn.nnx._batch_norm import BatchNorm as BatchNorm
from jbn.nnx._fold import Folded as Folded
from jbn.nnx._fold import fold as fold
from jbn.nnx._load import load_norms as load_norms
from jbn.nnx._norm import DomainNorm as DomainNorm
from jbn.nnx._norm import Norm as Norm
from jbn.nnx._recalibrate import recalibrate as recalibrate
from jbn.nnx._replace import norms as norms
from jbn.nnx._replace import replace_batch_norm as replace_batch_norm
