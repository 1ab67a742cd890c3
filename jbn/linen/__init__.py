"""Flax Linen modules that run any `jbn.Norm`.

`BatchNorm` takes the place of `flax.linen.BatchNorm`. `Norm` and `DomainNorm` run any norm of jbn.
An existing model runs on jbn, with any norm, without a change to its code:

>>> import flax.linen as nn, jax, jax.numpy as jnp
>>> model = nn.Sequential([nn.Dense(4), nn.BatchNorm(use_running_average=False)])
>>> x = jnp.arange(24.0).reshape(8, 3)
>>> variables = model.init(jax.random.key(0), x)
>>> with jbn.linen.replace_batch_norm(jbn.ghost_batch_norm(group_size=4)):
...     y, updates = model.apply(variables, x, mutable=["batch_stats"])
"""

from jbn.linen._batch_norm import BatchNorm as BatchNorm
from jbn.linen._fold import Folded as Folded
from jbn.linen._fold import fold as fold
from jbn.linen._load import load_norms as load_norms
from jbn.linen._norm import DomainNorm as DomainNorm
from jbn.linen._norm import Norm as Norm
from jbn.linen._replace import add_missing as add_missing
from jbn.linen._replace import replace_batch_norm as replace_batch_norm
