"""Training forward passes that leave the running statistics as they are."""

import contextlib
from collections.abc import Iterator

from jbn._norms.method import keeps_states


@contextlib.contextmanager
def no_update() -> Iterator[None]:
    """Context manager in which `train` of every norm returns the state that it was given.

    Use it for forward passes in training mode that are not training steps, such as those of virtual
    adversarial training or of a gradient penalty. Batches are normalized as usual. Inside, a Linen
    model with norms of jbn needs no `mutable`. For a model with norms of Flax, enter
    `jbn.linen.replace_batch_norm()` as well. Functions that were jitted outside are traced again
    inside.

    >>> import jax.numpy as jnp
    >>> norm = jbn.batch_norm()
    >>> params, state = norm.init(1)
    >>> with jbn.no_update():
    ...     y, state = norm.train(params, state, jnp.array([[1.0], [3.0]]))
    >>> print(state.mean, state.count)
    [0.] 0.0
    """
    with keeps_states(True):
        yield


def updates_statistics() -> bool:
    """Returns whether norms update their statistics here, which is outside of `no_update`."""
    return not keeps_states.value
