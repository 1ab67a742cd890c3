"""Batch normalization for JAX: pure functions over explicit pytrees."""

from jbn.adapt import adapt as adapt
from jbn.adapt import adapting as adapting
from jbn.fold import fold as fold
from jbn.invertible import InvertibleActivation as InvertibleActivation
from jbn.moments import Moments as Moments
from jbn.moments import merge as merge
from jbn.moments import moments as moments
from jbn.normalize import normalize as normalize
from jbn.norms.batch import batch_norm as batch_norm
from jbn.norms.batch import ghost_batch_norm as ghost_batch_norm
from jbn.norms.domain import DomainNorm as DomainNorm
from jbn.norms.domain import domain_norm as domain_norm
from jbn.norms.frozen import frozen as frozen
from jbn.norms.inplace import inplace_batch_norm as inplace_batch_norm
from jbn.norms.method import GroupedNormOptions as GroupedNormOptions
from jbn.norms.method import Method as Method
from jbn.norms.method import NormOptions as NormOptions
from jbn.norms.method import Statistics as Statistics
from jbn.norms.method import make_norm as make_norm
from jbn.norms.norm import BatchNormParams as BatchNormParams
from jbn.norms.norm import Norm as Norm
from jbn.norms.renorm import batch_renorm as batch_renorm
from jbn.norms.running import RunningBatchNormState as RunningBatchNormState
from jbn.norms.running import running_batch_norm as running_batch_norm
from jbn.policy import save_norm_inputs as save_norm_inputs
from jbn.recalibrate import Drift as Drift
from jbn.recalibrate import recalibrate as recalibrate
from jbn.running import BatchNormState as BatchNormState
from jbn.running import corrected_decay as corrected_decay
from jbn.running import cumulative_decay as cumulative_decay
from jbn.running import update as update

__version__ = "0.1.0"
