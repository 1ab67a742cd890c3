"""Sums on a CPU, whose compiler reads memory once for a sum if nothing else uses its terms.

XLA computes a sum on a CPU together with what produces its terms. If these have another use, it
writes them to memory first, then reads them for each use.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import lax


def _behind(barrier: Callable[[jax.Array], jax.Array]) -> Callable[[tuple], Any]:
    # Arrays one by one, since one barrier would make all vary over the same named axes.
    return functools.partial(
        lax.platform_dependent, cpu=functools.partial(jax.tree.map, barrier), default=tuple
    )


apart = _behind(lax.optimization_barrier)
"""Returns a tuple of operands; on a CPU, the compiler does not see that they have other uses.

To set the operands of a second sum apart, pass it the result of the first call: XLA merges equal
barriers of the same array.
"""

apart_in_derivative = _behind(lambda x: lax.optimization_barrier((x, x))[0])
"""Does the same for the sum of a derivative.

XLA merges equal barriers of the same array, so this barrier differs from that of `apart`.
"""
