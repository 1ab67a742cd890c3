"""Whether this process keeps the memory that arrays leave, or takes fresh memory for each.

The kernel fills a fresh page with zeros when it is first written to, which can take longer than
the computation. A training loop that keeps its memory does not pay for that; one that lets its
arrays go in every step may.
"""

import ctypes
from typing import Literal, get_args

Memory = Literal["fresh", "kept"]
MEMORIES: tuple[Memory, ...] = get_args(Memory)

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Parameters of the GNU C library's `mallopt`."""
_LARGEST = 2**25
"""The library takes no larger threshold for what it maps by itself."""


def choose(memory: Memory) -> bool:
    """Chooses for all arrays of at most 32 MiB that are made from here on.

    The first choice has to be made before JAX starts its threads: a thread that has a heap of its
    own by then still gives memory back to the system.

    Args:
      memory: "kept" reuses the memory of earlier arrays, "fresh" gives it back to the system.

    Returns:
      Whether the C library lets one choose; that of GNU does.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return False
    kept = memory == "kept"
    library.mallopt(_ARENA_MAX, 1)  # Else each thread has a heap of its own.
    library.mallopt(_TRIM_THRESHOLD, 2**31 - 1 if kept else 2**17)
    return bool(library.mallopt(_MMAP_THRESHOLD, _LARGEST if kept else 2**17))
