"""Sums on a CPU, whose compiler reads memory once for a sum if nothing else uses its terms.

XLA computes a sum on a CPU together with what produces its terms. If these have another use, it
writes them to memory first, then reads them for each use.
"""

import functools

import jax
from jax import lax

# Arrays one by one, since a barrier for all of them would make all vary over the same named axes.
_barrier = functools.partial(jax.tree.map, lax.optimization_barrier)

apart = functools.partial(lax.platform_dependent, cpu=_barrier, default=tuple)
"""Returns a tuple of operands; on a CPU, the compiler does not see that they have other uses."""
