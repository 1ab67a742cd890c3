"""Exact statistics of many batches, for weights that no longer change.

Plain JAX, any pytree of states:

    def train(state, x):
        return network(params, state, x)[1]

    state, drift = jbn.recalibrate(jax.jit(train), state, batches)

Linen, the collection `batch_stats`:

    def train(stats, x):
        variables = {"params": params, "batch_stats": stats}
        return model.apply(variables, x, train=True, mutable=["batch_stats"])[1]["batch_stats"]

    stats, drift = jbn.recalibrate(jax.jit(train), stats, batches)

For NNX see `jbn.nnx.recalibrate`. `batches` may be wrapped for progress: `tqdm(batches)`.
"""

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
    """How far a norm's running statistics were off, in float64.

    Not finite where the exact variance is 0, or where no batch reached the norm.

    Attributes:
      mean: `[*features]` (running mean - exact mean) / exact standard deviation.
      log_var: `[*features]` log(running variance / exact variance).
      count: `[*features]` number of values behind the exact ones.
    """

    mean: np.ndarray
    log_var: np.ndarray
    count: np.ndarray  # pyright: ignore[reportIncompatibleMethodOverride]


def recalibrate(
    train: Callable[[State, Batch], State], state: State, batches: Iterable[Batch]
) -> tuple[State, dict[str, Drift]]:
    """Replaces running means and variances by those of all values in the batches.

    This is "precise batch norm" (Wu & Johnson 2021, https://arxiv.org/abs/2105.07576, section 3).
    Averaged weights need it too, since running statistics of the averaged models do not fit them.
    The moments of the batches are merged exactly, in float64, each weighted by the count of its
    values. For a norm on the network's input, the result is that of the whole data at once,
    however it is cut into batches. Later norms see their inputs as in training, normalized by the
    batch in the norms before them, so batches should be as large as in training.

    Within `train`, each norm returns the moments of its batch instead of its next state. This
    works under jit (which traces again), scan, checkpoint, vmap and shards. A batch with nothing
    valid, or with statistics that are not finite, counts as empty. Frozen norms do not change.

    >>> import jax.numpy as jnp
    >>> norm = jbn.batch_norm()
    >>> params, state = norm.init(1)
    >>> batches = jnp.array([[[0.0], [2.0]], [[4.0], [6.0]]])
    >>> state, drift = jbn.recalibrate(lambda s, x: norm.train(params, s, x)[1], state, batches)
    >>> print(state.mean, state.var)
    [3.] [5.]

    Args:
      train: `train(state, batch) -> state`, the model in training mode. Called as it is: jit it.
      state: a pytree with the states of norms: NamedTuples with mean, var and count, or mappings
        with at least mean and var, such as those of `jbn.linen.BatchNorm`, which are given a count
        meanwhile. Its other leaves come back as they are.
      batches: what to call it with, such as 10^3 to 10^4 examples. Read once, one at a time.

    Returns:
      The state with other means and variances, in their dtypes; and by path of each norm, how far
      the running ones were off.

    Raises:
      ValueError: `state` has no norm's state, or no value reached any norm: there were no batches,
        or the norms are not of jbn (`jbn.linen.replace_batch_norm`, `jbn.nnx.replace_batch_norm`).
    """
    running = norm_states(state)
    if not running:
        raise ValueError("state has no norm's state: no NamedTuple or mapping with mean and var.")
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
        jax.block_until_ready(before)  # No more than one batch waits its turn.

    drift = {path: _drift(running[path], exact[path]) for path in running}
    if not any(np.any(d.count) for d in drift.values()):
        raise ValueError(
            "no value reached a norm: batches is empty, or nothing in it counts, or the norms are "
            "not of jbn (see jbn.linen.replace_batch_norm and jbn.nnx.replace_batch_norm)."
        )
    with jax.enable_x64(True):
        return map_norm_states(lambda path, node: _replaced(node, exact[path]), state), drift


class _Recording(Wrapped):
    """A method that remembers the moments of the batch in place of its next state."""

    remembers_single_values = True

    def train_vectors(self, state, batch):
        statistics, _ = super().train_vectors(state, batch)
        return statistics, state._replace(mean=batch.mean, var=batch.var, count=batch.count)


@jax.jit
def _merge(exact: dict[str, Moments], seen: dict[str, Any]) -> dict[str, Moments]:
    return {path: merge(moments, _moments(seen[path])) for path, moments in exact.items()}


def _moments(fields: Mapping[str, jax.Array]) -> Moments:
    """What a state remembers of a batch, in float64; nothing where its count is 0."""
    mean, var, count = (fields[name].astype(jnp.float64) for name in ("mean", "var", "count"))
    count = jnp.expand_dims(count, range(count.ndim, mean.ndim))
    mean, var = (jnp.where(count > 0, a, jnp.zeros_like(a)) for a in (mean, var))
    return Moments(mean, var, count, count)


def _with_count_0(path: str, node: Any) -> Any:
    # Modules that keep no count get one of the mean's shape, which stacks and splits as the mean
    # does where layers or models are stacked.
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
