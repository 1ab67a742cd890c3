"""A checkpoint policy that saves only the inputs and the statistics of norms."""

import jax

from jbn._core.moments import SAVE_POINT

save_norm_inputs = jax.checkpoint_policies.save_only_these_names(SAVE_POINT)
"""The policy, which `jbn/__init__.py` documents."""
