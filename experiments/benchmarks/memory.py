"""Chooses whether this process reuses the memory of arrays, or takes fresh memory for each.

The kernel fills a fresh page with zeros when it is first written to, which can take longer than the
computation. A training loop that reuses its memory avoids this cost. A loop that frees its arrays
in every step may pay it.
"""

import ctypes
from typing import Literal, get_args

Memory = Literal["fresh", "kept"]
MEMORIES: tuple[Memory, ...] = get_args(Memory)

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Parameters of the GNU C library's `mallopt`."""
_LARGEST = 2**25
"""Largest threshold that the library accepts for memory that it maps separately."""


def choose(memory: Memory) -> bool:
    """Chooses the memory of all arrays of at most 32 MiB that are made from here on.

    Make the first choice before JAX starts its threads: a thread that already has its own heap
    still returns memory to the system.

    Args:
      memory: "kept" reuses the memory of earlier arrays; "fresh" returns it to the system.

    Returns:
      Whether the C library offers the choice. The GNU C library does.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return False
    kept = memory == "kept"
    library.mallopt(_ARENA_MAX, 1)  # Otherwise each thread has its own heap.
    library.mallopt(_TRIM_THRESHOLD, 2**31 - 1 if kept else 2**17)
    return bool(library.mallopt(_MMAP_THRESHOLD, _LARGEST if kept else 2**17))
