"""Exact statistics of many batches, for weights that no longer change."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jbn._after.norm_states import fields_of, map_norm_states, norm_states, with_fields
from jbn._core.export import exportable
from jbn._core.moments import Moments, merge
from jbn._norms.method import Wrapped, keeps_states, replaced_method

State = TypeVar("State")
Batch = TypeVar("Batch")


@exportable
class Drift(NamedTuple):
    """The errors of a norm's running statistics, in float64.

    They are not finite where the exact variance is 0, or where no batch reached the norm.

    Attributes:
      mean: `[*features]` (running mean - exact mean) / exact standard deviation.
      log_var: `[*features]` log(running variance / exact variance).
      count: `[*features]` number of values from which the exact statistics were computed.
    """

    mean: np.ndarray
    log_var: np.ndarray
    count: np.ndarray  # pyright: ignore[reportIncompatibleMethodOverride]


def recalibrate(
    train: Callable[[State, Batch], State], state: State, batches: Iterable[Batch]
) -> tuple[State, dict[str, Drift]]:
    """Replaces running means and variances by those of all values in the batches.

    This is "precise batch norm" (Wu & Johnson 2021, https://arxiv.org/abs/2105.07576, section 3).
    Averaged weights need it as well, because the running statistics of the averaged models do not
    fit the averaged weights. The moments of the batches are merged exactly, in float64, each
    weighted by the count of its values. For a norm on the network's input, the result is the mean
    and variance of all data, and does not depend on how the data is cut into batches. The inputs of
    later norms are normalized by the batch in the norms before them, as in training, so batches
    should be as large as in training.

    >>> import jax, jax.numpy as jnp
    >>> norm = jbn.batch_norm()
    >>> params, state = norm.init(1)
    >>> batches = jnp.array([[[0.0], [2.0]], [[4.0], [6.0]]])
    >>> @jax.jit
    ... def train(state, x):
    ...     return norm.train(params, state, x)[1]
    >>> state, drift = jbn.recalibrate(train, state, batches)
    >>> print(state.mean, state.var)
    [3.] [5.]

    For a Linen model, pass the collection `batch_stats`:

    >>> model = jbn.linen.BatchNorm(use_running_average=False)
    >>> variables = model.init(jax.random.key(0), batches[0])
    >>> @jax.jit
    ... def train(stats, x):
    ...     updated = variables | {"batch_stats": stats}
    ...     return model.apply(updated, x, mutable=["batch_stats"])[1]["batch_stats"]
    >>> stats, drift = jbn.recalibrate(train, variables["batch_stats"], batches)
    >>> print(stats["mean"], stats["var"])
    [3.] [5.]

    For an NNX model, use `jbn.nnx.recalibrate`.

    Within `train`, each norm returns the moments of its batch instead of its next state. This
    works under jit (which traces again), scan, checkpoint, vmap and shards. A batch without valid
    values, or with moments that are not finite, counts as empty. Frozen norms do not change.

    Args:
      train: `train(state, batch) -> state`, which calls the model in training mode. It is not
        jitted here: pass a jitted function.
      state: a pytree with the states of norms: NamedTuples with mean, var and count, or mappings
        with at least mean and var, such as those of `jbn.linen.BatchNorm`, to which a count is
        added for the calls of `train`. Other leaves are returned unchanged.
      batches: the batches to call `train` with, for example 10^3 to 10^4 examples in total. They
        are read once, one at a time, so an iterator with a progress bar such as `tqdm(batches)`
        works.

    Returns:
      The state with exact means and variances, in their dtypes; and a dictionary with the `Drift`
      of each norm, by path. The path is "" if `state` is the state of a single norm.

    Raises:
      ValueError: `state` has no norm's state, or no value reached any norm, because there were no
        batches, or because the norms are not of jbn (see `jbn.linen.replace_batch_norm` and
        `jbn.nnx.replace_batch_norm`).
    """
    running = norm_states(state)
    if not running:
        raise ValueError(
            "state holds no norm's state: no NamedTuple or mapping in it has a mean and a var."
        )
    counting = map_norm_states(_with_count_0, state)
    with jax.enable_x64(True):
        exact = {path: _moments(node) for path, node in norm_states(counting).items()}
    for batch in batches:
        before = exact
        with replaced_method(_Recording), keeps_states(False):
            seen = norm_states(train(counting, batch))
        if seen.keys() != exact.keys():
            raise ValueError(
                f"train must return the state of every norm that it is given, {list(exact)}; it "
                f"returned {list(seen)}."
            )
        with jax.enable_x64(True):
            exact = _merge(exact, seen)
        jax.block_until_ready(before)  # At most one batch waits on the device.

    drift = {path: _drift(running[path], exact[path]) for path in running}
    if not any(np.any(d.count) for d in drift.values()):
        raise ValueError(
            "no value reached a norm: batches is empty, or has no valid and finite values, or the "
            "norms are not of jbn (see jbn.linen.replace_batch_norm and "
            "jbn.nnx.replace_batch_norm)."
        )
    with jax.enable_x64(True):
        return map_norm_states(lambda path, node: _replaced(node, exact[path]), state), drift


class _Recording(Wrapped):
    """A method that stores the moments of the batch instead of its next state."""

    remembers_single_values = True

    def train_vectors(self, state, batch):
        statistics, _ = super().train_vectors(state, batch)
        return statistics, state._replace(mean=batch.mean, var=batch.var, count=batch.count)


@jax.jit
def _merge(exact: dict[str, Moments], seen: dict[str, Any]) -> dict[str, Moments]:
    return {path: merge(moments, _moments(seen[path])) for path, moments in exact.items()}


def _moments(fields: Mapping[str, jax.Array]) -> Moments:
    """Returns the moments that a state stores, in float64; they are 0 where its count is 0."""
    mean, var, count = (fields[name].astype(jnp.float64) for name in ("mean", "var", "count"))
    count = jnp.expand_dims(count, range(count.ndim, mean.ndim))
    mean, var = (jnp.where(count > 0, a, jnp.zeros_like(a)) for a in (mean, var))
    return Moments(mean, var, count, count)


def _with_count_0(path: str, node: Any) -> Any:
    # A module that keeps no count gets one with the shape of the mean. Where layers or models are
    # stacked, it is then stacked and split like the mean.
    fields = fields_of(node)
    like = fields.get("count", fields["mean"])
    return with_fields(node, count=jnp.zeros(like.shape, jnp.float32))


def _replaced(node: Any, exact: Moments) -> Any:
    def choose(name):
        old = fields_of(node)[name]
        return jnp.where(exact.count > 0, getattr(exact, name).astype(old.dtype), old)

    return with_fields(node, mean=choose("mean"), var=choose("var"))


def _drift(fields: Mapping[str, jax.Array], exact: Moments) -> Drift:
    mean, var, count, _ = jax.tree.map(np.asarray, exact)
    with np.errstate(divide="ignore", invalid="ignore"):
        return Drift(
            mean=(np.asarray(fields["mean"], np.float64) - mean) / np.sqrt(var),
            log_var=np.log(np.asarray(fields["var"], np.float64) / var),
            count=np.broadcast_to(count, mean.shape),
        )
