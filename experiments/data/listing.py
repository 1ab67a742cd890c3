"""What lies in a folder or a file, in the words of an error."""

from collections.abc import Iterable

_SHOWN = 8


def listing(names: Iterable[str]) -> str:
    """Returns the first names, on one line, and how many more there are."""
    names = list(names)
    shown = [name if name.isprintable() else ascii(name) for name in names[:_SHOWN]]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(shown) or "nothing") + more
