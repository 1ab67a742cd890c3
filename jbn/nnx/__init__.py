"""NNX modules: they read variables, call a `jbn.Norm` and write variables.

An existing model runs on jbn, by any method:

    model = jbn.nnx.replace_batch_norm(model, jbn.ghost_batch_norm(group_size=32))
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
