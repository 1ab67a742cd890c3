"""Types that `jax.export` can serialize."""

from typing import TypeVar

from jax.export import register_namedtuple_serialization

Class = TypeVar("Class", bound=type)


def exportable(cls: Class) -> Class:
    """Registers a NamedTuple of jbn with `jax.export`, under its public name, and returns it."""
    register_namedtuple_serialization(cls, serialized_name=f"jbn.{cls.__name__}")
    return cls
