"""From a method, the middle of the four steps, to a `Norm`."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from jbn import features, ghost, inplace, running, shards
from jbn.invertible import InvertibleActivation
from jbn.moments import Moments, moments
from jbn.normalize import normalize
from jbn.norms.norm import BatchNormParams, Norm
from jbn.policy import kept


class Statistics(NamedTuple):
    """What normalises: y = (x - mean) * rstd * scale + bias.

    Attributes:
      mean: `[*features]` what to subtract.
      rstd: `[*features]` what to multiply by, for batch norm 1 / sqrt(var + epsilon).
    """

    mean: jax.Array
    rstd: jax.Array


def statistics(mean: jax.Array, var: jax.Array, epsilon: float) -> Statistics:
    """Returns the mean and 1 / sqrt(var + epsilon)."""
    return Statistics(mean, lax.rsqrt(var + epsilon))


class Method(NamedTuple):
    """Which statistics normalise, and what is remembered of a batch: vectors in, vectors out.

    In `choose` and `update` the state has the dtype of the batch's statistics and carries no
    gradient, and `examples`, a number of their dtype, is how many examples are behind them.

    Attributes:
      start: `start(num_features) -> state`, a NamedTuple with at least the fields of
        `jbn.BatchNormState`.
      choose: `choose(state, batch, examples) -> Statistics` of a training batch.
      recall: `recall(state) -> Statistics` for inference, and for a batch with nothing valid.
      update: `update(state, batch, examples) -> state`. After a bad batch the old one is kept.
      takes_single_values: whether a batch of one value per feature, whose variance is 0, will do.
    """

    start: Callable[[int | tuple[int, ...]], Any]
    choose: Callable[[Any, Moments, jax.Array], Statistics]
    recall: Callable[[Any], Statistics]
    update: Callable[[Any, Moments, jax.Array], Any]
    takes_single_values: bool = False


class NormOptions(TypedDict, total=False):
    """The options that all norms share.

    Attributes:
      axis: the feature axis or axes of x, by default the last; all others are reduced.
      axis_name: the named axis or axes (pmap, shard_map, vmap) over which the batch is spread. Not
        needed under jit with sharded inputs.
      axis_index_groups: a partition of the shards of `axis_name`; each group is a batch of its own.
      use_scale: whether a scale is learned; by default it is.
      use_bias: whether a bias is learned; by default it is.
      dtype: of y; by default that of x. Arithmetic and statistics are in float32 or wider.
    """

    axis: features.Axes
    axis_name: shards.AxisName | None
    axis_index_groups: shards.Groups | None
    use_scale: bool
    use_bias: bool
    dtype: DTypeLike | None


class GroupedNormOptions(NormOptions, total=False):
    """The options of norms that can take a batch apart.

    Attributes:
      group_size: number of consecutive examples, counted over all shards, that are normalised
        together, as if they were a batch (ghost batch norm); by default all. Examples lie on the
        first axis of x that is not a feature axis.
    """

    group_size: int | None


replaced_method = jax.make_user_context()
"""Within `with replaced_method(f):` norms train by `f(method)`; compiled functions notice."""


def make_norm(
    method: Method,
    *,
    axis: features.Axes = -1,
    axis_name: shards.AxisName | None = None,
    axis_index_groups: shards.Groups | None = None,
    group_size: int | None = None,
    use_scale: bool = True,
    use_bias: bool = True,
    dtype: DTypeLike | None = None,
    activation: InvertibleActivation | None = None,
) -> Norm:
    """Returns the norm of a method.

    Its functions take any leading `vmap` axes, and a boolean `mask`, broadcastable to x without its
    feature axes, that marks what counts; y is `bias` elsewhere.

    `train` raises TypeError for an x that is not real floating point or a mask that is not boolean,
    ValueError for a shape that does not fit or for one value per feature, NameError for an unbound
    `axis_name`. A batch with nothing valid is normalised as in inference; neither it nor one with
    statistics that are not finite changes the state.

    Args:
      method: which statistics normalise, and what is remembered.
      axis: see `NormOptions`, as for the rest but one.
      axis_name: see there.
      axis_index_groups: see there.
      group_size: see `GroupedNormOptions`.
      use_scale: see `NormOptions`.
      use_bias: see there.
      dtype: see there.
      activation: what to apply last, in place: reverse mode then keeps y, not x. See
        `inplace_batch_norm`.

    Raises:
      ValueError: `group_size` is not positive, or goes with `axis_index_groups` or an activation.
    """
    index_groups = shards.freeze_groups(axis_index_groups)
    if group_size is not None:
        ghost.require_group_size(group_size, index_groups)
        if activation is not None:
            raise ValueError(f"group_size={group_size} does not go with an activation in place.")

    def init(num_features):
        params = BatchNormParams(
            scale=jnp.ones(num_features, jnp.float32) if use_scale else None,
            bias=jnp.zeros(num_features, jnp.float32) if use_bias else None,
        )
        return params, method.start(num_features)

    def affine(params, like):
        scale = params.scale if use_scale else jnp.ones_like(like)
        bias = params.bias if use_bias else jnp.zeros_like(like)
        return (scale if activation is None else inplace.bounded_scale(scale)), bias

    @jax.checkpoint
    def gain_of(rstd, scale):
        return rstd * scale.astype(rstd.dtype)

    def apply(params, x, mask, statistics):
        scale, bias = affine(params, statistics.mean)
        gain = gain_of(statistics.rstd, scale)
        return normalize(x, statistics.mean, gain, bias, axis, mask=mask, dtype=dtype)

    def check(params, state, x):
        vectors = {"mean": state.mean, "var": state.var}
        if use_scale:
            vectors["scale"] = params.scale
        if use_bias:
            vectors["bias"] = params.bias
        features.require_feature_shape(x, features.feature_axes(x, axis), **vectors)

    # Of layers whose norm and shapes are the same only the first is traced.
    @jax.jit
    def traced(params, state, x, mask):
        check(params, state, x)
        replace = replaced_method.value
        current = replace(method) if replace else method
        if not current.takes_single_values:
            _require_two_values(x, axis, axis_name, index_groups, group_size)
        per_example = features.values_per_example(x, axis)

        def chosen(state, batch, masked=mask is not None):
            state = running.widened(state, batch)
            statistics = current.choose(state, batch, batch.count / per_example)
            if masked:
                pick = partial(jnp.where, batch.count > 0)
                statistics = jax.tree.map(pick, statistics, current.recall(state))
            return statistics

        def normalised(x, mask, batch, variables):
            params, state = variables
            return apply(params, x, mask, chosen(state, batch))

        variables = params, state
        if activation is not None:
            axes = features.feature_axes(x, axis)
            how = inplace.How(chosen, activation, axes, axis_name, index_groups, dtype)
            y, batch = inplace.train(x, *affine(params, state.mean), state, mask, how)
        elif group_size is None:
            x = kept(x)
            batch = moments(x, axis, mask=mask, axis_name=axis_name, axis_index_groups=index_groups)
            y = normalised(x, mask, batch, variables)
        else:
            x = kept(x)
            y, batch = ghost.by_groups(normalised, x, mask, axis, group_size, axis_name, variables)
        new = current.update(running.widened(state, batch), batch, batch.count / per_example)
        return y, running.accepted(state, batch, new)

    def train(params, state, x, *, mask=None):
        return traced(params, state, jnp.asarray(x), None if mask is None else jnp.asarray(mask))

    def infer(params, state, x, *, mask=None):
        x, state = jnp.asarray(x), lax.stop_gradient(state)
        check(params, state, x)
        y = apply(params, x, mask, method.recall(state))
        return y if activation is None else activation.apply(y)

    return Norm(init, train, infer)


def _require_two_values(x, axis, axis_name, index_groups, group_size) -> None:
    examples = features.num_examples(x, axis)
    if axis_name is not None:
        examples *= shards.shard_count(axis_name, index_groups)
    if group_size is not None:
        examples = min(group_size, examples, examples % group_size or group_size)
    if examples * features.values_per_example(x, axis) == 1:
        where = "" if group_size is None else f" in a group of group_size={group_size}"
        raise ValueError(
            f"x of shape {x.shape} has one value per feature on axis={axis}{where}: its variance "
            "is 0 and y would be the bias alone. Train on more examples, or use infer."
        )
