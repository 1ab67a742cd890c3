"""The base class `Method`, which makes a norm on arrays from three functions on vectors."""

import abc
import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, get_abstract_mesh, use_abstract_mesh
from jax.typing import ArrayLike, DTypeLike

from jbn._core.export import exportable
from jbn._core.layout import Axes, Layout, Mask
from jbn._core.moments import Moments, moments_of, save_input
from jbn._core.normalize import apply
from jbn._core.shards import AxisName, Groups, Shards
from jbn._core.value import Value, require_scalars
from jbn._norms.norm import BatchNormParams, Norm, State
from jbn._train.groups import by_groups, require_examples, require_group_size
from jbn._train.in_place import bounded_scale, in_place
from jbn.activations import InvertibleActivation

replaced_method = jax.make_user_context()
"""Within `with replaced_method(f):`, norms train by the method `f(norm)`.

Functions that were jitted outside are traced again inside. `f.reaches_frozen` says whether the
training step of a `frozen` norm uses `f` as well.
"""

keeps_states = jax.make_user_context(False)
"""Within `with keeps_states(True):`, training returns the state that it was given."""


@exportable
class Statistics(NamedTuple):
    """The statistics that normalize: y = (x - mean) * rstd * scale + bias.

    Attributes:
      mean: `[*features]` values to subtract.
      rstd: `[*features]` factors; for batch norm, 1 / sqrt(var + epsilon).
    """

    mean: jax.Array
    rstd: jax.Array


class Method(Norm[State]):
    """Base class for a norm of your own, which is written on vectors with one value per feature.

    A subclass has three methods. `init_vectors` returns the state before the first batch,
    `train_vectors` returns the statistics that normalize a training batch and the next state, and
    `infer_vectors` returns the statistics that normalize in inference. The base class adds `init`,
    `train` and `infer` on arrays, with masks, shards, groups and derivatives.

    A subclass is a frozen dataclass and needs no decorator. Its annotated attributes are its
    hyperparameters, which are keyword-only arguments of the constructor.

    >>> import jax.numpy as jnp
    >>> class half_and_half(jbn.batch_norm):
    ...     share: float = 0.5
    ...
    ...     def train_vectors(self, state, batch):
    ...         statistics, new = super().train_vectors(state, batch)
    ...         mean = self.share * batch.mean + (1 - self.share) * state.mean
    ...         return statistics._replace(mean=mean), new
    >>> norm = half_and_half(share=0.25, epsilon=0.0)
    >>> params, state = norm.init(1)
    >>> y, state = norm.train(params, state, jnp.array([[2.0], [6.0]]))
    >>> print(y.ravel())
    [0.5 2.5]

    Attributes:
      axis: the feature axis or axes of x; all other axes are reduced.
      axis_name: the named axis or axes (pmap, shard_map, vmap) over which the batch is spread. Not
        needed under jit with sharded inputs.
      axis_index_groups: a partition of the shards of `axis_name`; each group is a separate batch.
      group_size: number of consecutive examples, counted over all shards, that are normalized
        together, as in `jbn.ghost_batch_norm`; by default all.
      activation: an activation to apply in place, as in `jbn.inplace_batch_norm`.
      use_scale: whether a scale is learned.
      use_bias: whether a bias is learned.
      dtype: the dtype of y; by default the dtype of x. Arithmetic and statistics are in float32
        or wider.

    Raises:
      TypeError: an option has a wrong type.
      ValueError: `group_size` is not positive, or is combined with `axis_index_groups` or an
        activation; `axis_index_groups` is given without `axis_name`; or `dtype` is not real
        floating point.
    """

    axis: Axes = -1  # pyright: ignore[reportIncompatibleMethodOverride]
    axis_name: AxisName | None = None
    axis_index_groups: Groups | None = None
    group_size: int | None = None
    activation: InvertibleActivation | None = None
    use_scale: bool = True
    use_bias: bool = True
    dtype: DTypeLike | None = None

    takes_single_values = False
    """Whether a batch of one value per feature, whose variance is 0, is enough for training."""
    remembers_single_values = False
    """Whether such a batch updates the state, although it does not normalize."""
    like_inference = False
    """Whether training, like inference, needs neither an axis name nor groups."""

    def __post_init__(self):
        super().__post_init__()
        if self.dtype is not None:  # Stored by name, since NumPy's float64 equals None.
            object.__setattr__(self, "dtype", jnp.dtype(self.dtype).name)
            if not jnp.issubdtype(self.dtype, jnp.floating):
                raise ValueError(f"dtype={self.dtype} must be real floating point.")
        for name in ("use_scale", "use_bias"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}={getattr(self, name)!r} must be True or False.")
        if self.axis_index_groups is not None and self.axis_name is None:
            groups = self.axis_index_groups
            raise ValueError(
                f"axis_index_groups={groups} needs an axis_name, the axis whose shards it groups."
            )
        if not isinstance(self.activation, InvertibleActivation | None):
            raise TypeError(
                f"activation={self.activation!r} must be one of jbn.activations, such as "
                "jbn.activations.elu()."
            )
        if self.group_size is not None:
            require_group_size(self.group_size, self.axis_index_groups, self.activation)

    @abc.abstractmethod
    def init_vectors(self, num_features: int | tuple[int, ...]) -> State:
        """Returns the state before the first batch.

        Args:
          num_features: number of features, or the sizes of several feature axes.

        Returns:
          A NamedTuple with at least the fields of `BatchNormState`.
        """

    @abc.abstractmethod
    def train_vectors(self, state: State, batch: Moments) -> tuple[Statistics, State]:
        """Returns the statistics that normalize a training batch, and the next state.

        If a mask leaves fewer than two valid values of a feature (or none, in a class with
        `takes_single_values = True`), the result is not used: `infer_vectors(state)` normalizes the
        batch. The old state is kept after such a batch, and if the moments of the batch or the next
        state are not finite.

        Args:
          state: the state before this batch, in the dtype of the batch's moments or a wider one;
            carries no gradient.
          batch: the `Moments` of the batch.

        Returns:
          The `Statistics`, and the next state.
        """

    @abc.abstractmethod
    def infer_vectors(self, state: State) -> Statistics:
        """Returns the `Statistics` that normalize in inference."""

    def init(self, num_features: int | tuple[int, ...]) -> tuple[BatchNormParams, State]:
        sizes = num_features if isinstance(num_features, tuple | list) else (num_features,)
        axes = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        if len(sizes) != len(axes):
            wanted = ", ".join(f"x.shape[{axis}]" for axis in axes)
            raise ValueError(
                f"num_features={num_features} must be one size for each feature axis of the norm, "
                f"which has axis={self.axis}: pass {wanted if len(axes) == 1 else f'({wanted})'}."
            )
        scale = jnp.ones(num_features, jnp.float32) if self.use_scale else None
        bias = jnp.zeros(num_features, jnp.float32) if self.use_bias else None
        return BatchNormParams(scale, bias), self.init_vectors(num_features)

    def train(
        self, params: BatchNormParams, state: State, x: ArrayLike, *, mask: Mask = None
    ) -> tuple[jax.Array, State]:
        run = _train if self._traced else _train_once
        mask = None if mask is None else jnp.asarray(mask)
        return run(self, params, state, x if isinstance(x, jax.Array) else jnp.asarray(x), mask)

    def infer(
        self, params: BatchNormParams, state: State, x: ArrayLike, *, mask: Mask = None
    ) -> jax.Array:
        run = _infer if self._traced else _infer_once
        mask = None if mask is None else jnp.asarray(mask)
        return run(self, params, state, x if isinstance(x, jax.Array) else jnp.asarray(x), mask)


class Wrapped(Value):
    """A method that wraps another and changes how it trains, for use with `replaced_method`."""

    method: "Method | Wrapped" = dataclasses.field(kw_only=False)

    reaches_frozen = True
    remembers_single_values = False

    @property
    def takes_single_values(self) -> bool:
        """Whether a batch of one value per feature is enough for training."""
        return self.method.takes_single_values

    @property
    def like_inference(self) -> bool:
        """Whether training needs neither an axis name nor groups."""
        return self.method.like_inference

    def train_vectors(self, state: Any, batch: Moments) -> tuple[Statistics, Any]:
        """Returns the statistics that normalize a training batch, and the next state."""
        return self.method.train_vectors(state, batch)

    def infer_vectors(self, state: Any) -> Statistics:
        """Returns the statistics that normalize in inference."""
        return self.method.infer_vectors(state)


def _prepare(norm, params, state, x, mask) -> tuple[Layout, jax.Array, jax.Array]:
    """Checks the arguments, and returns the layout of x, the scale and the bias."""
    if norm._traced:
        require_scalars(norm)
    layout = Layout.of(x, norm.axis, mask)
    try:
        mean, var = state.mean, state.var
        scale = params.scale if norm.use_scale else jnp.ones_like(mean)
        bias = params.bias if norm.use_bias else jnp.zeros_like(mean)
    except AttributeError:
        raise TypeError(
            "params must have a scale and a bias, and state a mean and a var: got "
            f"{type(params).__name__} as params and {type(state).__name__} as state. Pass both in "
            "the order in which norm.init returns them."
        ) from None
    if scale is None or bias is None:
        missing = "scale" if scale is None else "bias"
        raise ValueError(
            f"params.{missing} is None, but the norm learns a {missing}: pass the params that "
            f"norm.init returns, or make the norm with use_{missing}=False."
        )
    layout.require_vectors(x, mean=mean, var=var, scale=scale, bias=bias)
    return layout, (scale if norm.activation is None else bounded_scale(scale)), bias


def _train(norm, params, state, x, mask) -> tuple[jax.Array, Any]:
    """Runs a training step: on the whole batch, by groups, or in place."""
    layout, scale, bias = _prepare(norm, params, state, x, mask)
    if x.size == 0:
        return _infer(norm, params, state, x, mask), state
    replaced = replaced_method.value
    method = replaced(norm) if replaced else norm
    shards = Shards(norm.axis_name, norm.axis_index_groups)
    if method.like_inference and not shards.bound():
        shards = Shards()
    num_shards = 1 if shards.axis_name is None else shards.size()
    group_size = None if method.like_inference else norm.group_size
    if group_size is not None:
        require_examples(x, layout, group_size)
    if not method.takes_single_values:
        _require_two_values(norm, x, layout, group_size, num_shards)
    through = whole if group_size is None else by_groups
    through = through if norm.activation is None else in_place
    known = layout.mask is None and isinstance(x.size, int)  # A symbolic size may be 1.
    step = partial(_step, masked=not known)
    # jax 0.10 sets the mesh, even an empty one, where it differentiates a traced function. With the
    # mesh set here as well, training and its derivative share the traces of inner functions.
    with use_abstract_mesh(get_abstract_mesh()):
        y, new = through(step, (method, state), x, scale, bias, layout, shards, norm)
    return y, state if keeps_states.value else new


def _infer(norm, params, state, x, mask) -> jax.Array:
    """Normalizes by the running statistics."""
    layout, scale, bias = _prepare(norm, params, state, x, mask)
    statistics = norm.infer_vectors(lax.stop_gradient(state))
    y = apply(statistics, scale, bias, layout.where_valid(x), layout, norm.dtype)
    return y if norm.activation is None else norm.activation.apply(y).astype(y.dtype)


# Equal norms on equal shapes are traced once, in all layers and all models.
_train_once = jax.jit(_train, static_argnums=0)
_infer_once = jax.jit(_infer, static_argnums=0)


def whole(step, operands, x, scale, bias, layout, shards, norm) -> tuple[jax.Array, Any]:
    """Normalizes the batch as a whole.

    Args:
      step: `step(operands, batch)` returns the statistics that normalize, and the next state.
      operands: the method and its state.
      x: the batch.
      scale: `[*features]`.
      bias: `[*features]`.
      layout: the layout of x.
      shards: the shards over which the batch is spread.
      norm: the norm, for its options.

    Returns:
      y and the next state.
    """
    # Masked first: the saved array must not hold masked values either.
    x = save_input(x if layout.mask is None else layout.where_valid(x))
    batch = moments_of(x, layout, shards)
    statistics, state = step(operands, batch)
    return apply(statistics, scale, bias, x, layout, norm.dtype), state


def _step(operands, batch: Moments, masked: bool) -> tuple[Statistics, Any]:
    """Returns the statistics that normalize, and the next state."""
    method, old = operands
    state = promote(old, batch)
    taken = method.train_vectors(state, batch)
    if isinstance(taken, Statistics):
        raise TypeError("train_vectors must return a pair (statistics, state), got no state.")
    statistics, new = taken
    good = batch.count > (0 if method.takes_single_values else 1)
    if masked:
        valid = partial(jnp.where, good)
        statistics = jax.tree.map(valid, statistics, method.infer_vectors(state))
    if method.remembers_single_values:
        good = batch.count > 0
    return statistics, accept(old, batch, new, good)


def promote(state: Any, batch: Moments) -> Any:
    """Returns the state in its own or the batch's dtype, the wider of both, without gradient."""
    wide = np.result_type(state.mean.dtype, batch.mean.dtype)
    state = jax.tree.map(partial(lax.convert_element_type, new_dtype=wide), state)
    return lax.stop_gradient(_shard_like(state, jax.tree.broadcast(batch.mean, state)))


def accept(state: Any, batch: Moments, new: Any, good: jax.Array) -> Any:
    """Returns `new` in the dtypes of `state`, or `state` after a bad batch; without gradient.

    A batch is bad if it is not `good`, or if its moments or the new state are not finite.
    """
    new = jax.tree.map(jnp.astype, new, jax.tree.map(jnp.result_type, state))
    # One reduction for all leaves of a shape, since XLA compiles several kernels per reduction.
    finite: dict[tuple[int, ...], Any] = {}
    for leaf in (batch.mean, batch.var, *jax.tree.leaves(new)):
        finite[leaf.shape] = finite.get(leaf.shape, True) & jnp.isfinite(leaf)
    for leaf in finite.values():
        good &= jnp.all(leaf)
    new = _shard_like(new, state)
    state = _shard_like(state, new)  # A state from outside of the mesh has no sharding.
    return lax.stop_gradient(jax.tree.map(partial(jnp.where, good), new, state))


def _shard_like(state: Any, like: Any) -> Any:
    """Returns a state whose vectors have the shardings of the vectors of `like`.

    Operations with explicit mesh axes refuse vectors with different shardings.
    """
    if AxisType.Explicit not in jax.typeof(like.mean).sharding.mesh.axis_types:
        return state
    return jax.tree.map(_reshard_like, state, like)


@partial(jax.jit, keep_unused=True)  # Outside of jit, `like` tells on which devices this runs.
def _reshard_like(vector, like):
    sharding = jax.typeof(like).sharding
    if vector.shape != like.shape or sharding.mesh.empty:
        return vector
    return jax.sharding.reshard(vector, sharding)


def _require_two_values(norm, x, layout, size, num_shards) -> None:
    examples = (x.shape[layout.reduced[0]] if layout.reduced else 1) * num_shards
    where, advice = "", "Train on two examples or more"
    if size is not None:
        left = examples % size
        where = f" in a group of group_size={size}"
        if left == 1 < examples:
            advice = "Drop the last example, fill its group with masked examples"
        examples = min(size, examples, left or size)
    if examples * layout.values_per_example == 1:
        raise ValueError(
            f"x of shape {x.shape} has one value per feature on axis={norm.axis}{where}: its "
            f"variance is 0 and y would be the bias alone. {advice}, or use infer; in a Flax model "
            "use_running_average=True, for example with model.eval()."
        )
