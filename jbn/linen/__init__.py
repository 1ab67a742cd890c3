"""Linen modules: they read variables, call a `jbn.Norm` and write variables.

A model that calls Flax's BatchNorm runs on jbn without an edit, by any method:

    with jbn.linen.replace_batch_norm(jbn.ghost_batch_norm(group_size=32)):
        y, updates = model.apply(variables, x, train=True, mutable=["batch_stats"])
"""

from jbn.linen._batch_norm import BatchNorm as BatchNorm
from jbn.linen._fold import Folded as Folded
from jbn.linen._fold import fold as fold
from jbn.linen._load import load_norms as load_norms
from jbn.linen._norm import DomainNorm as DomainNorm
from jbn.linen._norm import Norm as Norm
from jbn.linen._replace import add_missing as add_missing
from jbn.linen._replace import replace_batch_norm as replace_batch_norm
