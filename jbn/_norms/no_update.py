"""Training forward passes that leave the running statistics as they are."""

import contextlib
from collections.abc import Callable, Iterator

from jbn._core.value import Value
from jbn._norms.method import Method, Wrapped, replaced_method


@contextlib.contextmanager
def no_update() -> Iterator[None]:
    """Makes `train` of every norm return the state that it was given.

    This is a context manager, for forward passes in training mode that are not training steps, such
    as those of virtual adversarial training or of a gradient penalty. The batch normalizes as
    usual. A Linen model then needs no `mutable`. Functions that were jitted outside are traced
    again inside.

    >>> import jax.numpy as jnp
    >>> norm = jbn.batch_norm()
    >>> params, state = norm.init(1)
    >>> with jbn.no_update():
    ...     y, state = norm.train(params, state, jnp.array([[1.0], [3.0]]))
    >>> print(state.mean, state.count)
    [0.] 0.0
    """
    with replaced_method(_NoUpdate(outer=replaced_method.value)):
        yield


def updates_statistics() -> bool:
    """Returns whether norms move their statistics here, that is outside of `no_update`."""
    return not isinstance(replaced_method.value, _NoUpdate)


class _NoUpdate(Value):
    """Makes a method, or what another context makes of it, one that remembers nothing."""

    outer: Callable[[Method], Wrapped] | None

    @property
    def reaches_frozen(self) -> bool:
        return getattr(self.outer, "reaches_frozen", True)

    def __call__(self, method: Method) -> "_Unmoved":
        return _Unmoved(self.outer(method) if self.outer else method)


class _Unmoved(Wrapped):
    def train_vectors(self, state, batch):
        return super().train_vectors(state, batch)[0], state
