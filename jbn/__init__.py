"""Batch normalization for JAX: pure functions over explicit pytrees."""

from jbn.moments import Moments as Moments
from jbn.moments import merge as merge
from jbn.moments import moments as moments
from jbn.normalize import normalize as normalize
from jbn.norms import BatchNormParams as BatchNormParams
from jbn.norms import Norm as Norm
from jbn.norms import batch_norm as batch_norm
from jbn.running import BatchNormState as BatchNormState
from jbn.running import corrected_decay as corrected_decay
from jbn.running import cumulative_decay as cumulative_decay
from jbn.running import update as update

__version__ = "0.1.0"
