"""Laws that every norm should satisfy, and a check of replicated arrays.

One call in a test checks a norm of your own against all laws::

    def test_my_norm():
        jbn.testing.check_norm(lambda **options: my_norm(decay=0.9, **options))
"""

import inspect
import io
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jbn._norms.norm import Norm

__all__ = ["LAWS", "assert_replicated", "check_norm"]

_EXAMPLES, _POSITIONS, _FEATURES = 16, 3, 4
_ROUNDING = 2e-5
"""The rounding error of float32 sums of values from 1 to 10, if their order changes."""


def check_norm(make: Callable[..., Norm], *, skip: tuple[str, ...] = ()) -> None:
    """Checks a norm against all `LAWS`.

    >>> jbn.testing.check_norm(jbn.batch_norm)

    Args:
      make: `make(**options) -> Norm`, a function that makes a norm over the last axis. The only
        option that it receives is `axis_name`. If the norm has a group size, it must divide 4.
      skip: names of laws that cannot hold for this kind of norm.

    Raises:
      AssertionError: a law does not hold; the message has the name and the meaning of the law.
      TypeError: `make` is a norm.
      ValueError: a name in `skip` is not the name of a law.
    """
    if isinstance(make, Norm):
        raise TypeError(f"make={make} must be a function that makes norms: pass the class.")
    if unknown := set(skip) - set(LAWS):
        raise ValueError(f"skip={sorted(unknown)} are no laws. The laws are {list(LAWS)}.")
    for name, law in LAWS.items():
        if name not in skip:
            try:
                law(make)
            except Exception as error:
                raise AssertionError(f"{name} does not hold: {law.__doc__}\n{error}") from error


def assert_replicated(tree: Any) -> None:
    """Checks that the copies of replicated arrays are the same on all devices, bit for bit.

    >>> import jax
    >>> mesh = jax.make_mesh((jax.device_count(),), ("data",))
    >>> params, state = jbn.batch_norm().init(3)
    >>> state = jax.device_put(state, jax.NamedSharding(mesh, jax.P()))
    >>> jbn.testing.assert_replicated(state)

    Args:
      tree: a pytree of `jax.Array`. If several devices of this process hold a copy of the same part
        of an array, these copies are compared.

    Raises:
      AssertionError: copies differ; the message names the leaf and the devices.
      TypeError: a leaf is not a `jax.Array`.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not isinstance(leaf, jax.Array):
            raise TypeError(
                f"{jax.tree_util.keystr(path) or 'tree'} is of {type(leaf).__name__}, which is on "
                "no device: pass arrays of JAX."
            )
        first: dict[str, Any] = {}
        for shard in leaf.addressable_shards:
            known = first.setdefault(str(shard.index), shard)
            if np.asarray(known.data).tobytes() != np.asarray(shard.data).tobytes():
                raise AssertionError(
                    f"{jax.tree_util.keystr(path)} differs between {known.device} and "
                    f"{shard.device}: merge statistics, and sum gradients, over all shards."
                )


def jit_equals_eager(make: Callable[..., Norm]) -> None:
    """A step gives the same values, state and gradients under `jax.jit` and without."""
    norm = make()
    _assert_close(_step(norm, *_inputs(norm)), _eager_step(norm, *_inputs(norm)))


def forward_equals_reverse(make: Callable[..., Norm]) -> None:
    """A directional derivative is the same in forward and in reverse mode."""
    norm = make()
    params, state, x, dy, mask = _inputs(norm)
    directions = jax.tree.map(jnp.cos, (params, x))

    @jax.jit
    def forward(params, x):
        return jax.jvp(lambda p, x: norm.train(p, state, x, mask=mask)[0], (params, x), directions)

    _, _, gradients = _step(norm, params, state, x, dy, mask)
    dy_along = jnp.vdot(forward(params, x)[1], dy)
    np.testing.assert_allclose(dy_along, _dot(gradients, directions), rtol=1e-4, atol=1e-4)


def second_derivatives_agree(make: Callable[..., Norm]) -> None:
    """Products with the Hessian are the same in each order of forward and reverse mode."""
    norm = make()
    first, *others = _hessian_products(norm, *_inputs(norm))
    for other in others:
        _assert_near(other, first, _ROUNDING)


def second_derivatives_follow_the_gradient(make: Callable[..., Norm]) -> None:
    """Products with the Hessian are central differences of the gradient.

    The batch is far from the state, so that statistics without gradient are at their limits.
    """
    norm = make()
    params, state, x, dy, mask = _inputs(norm)
    params, fit = _positive(params), _fitted(state, x)
    state = fit._replace(mean=fit.mean - 6 * jnp.sqrt(fit.var), var=fit.var / 64)
    # The error of the differences: 1e-6 / step from rounding, step**2 from the next derivative.
    step = 1e-2

    def gradient(step):
        moved = jax.tree.map(lambda a: a + step * jnp.cos(a), (params, x))
        return _step(norm, moved[0], state, moved[1], dy, mask)[2]

    differences = jax.tree.map(lambda a, b: (a - b) / (2 * step), gradient(step), gradient(-step))
    _assert_near(_hessian_products(norm, params, state, x, dy, mask)[0], differences, 1e-3)


def checkpoint_equals_plain(make: Callable[..., Norm]) -> None:
    """A step gives the same under `jax.checkpoint`, and updates the state once."""
    norm = make()
    checkpointed = jax.jit(partial(_eager_step, norm, transform=jax.checkpoint))
    _assert_close(checkpointed(*_inputs(norm)), _step(norm, *_inputs(norm)))


def scan_equals_loop(make: Callable[..., Norm]) -> None:
    """`jax.lax.scan` can carry the state, and gives the same as a loop."""
    norm = make()
    params, state, *_ = _inputs(norm)
    batches = jnp.stack([_data(seed) for seed in range(3)])

    def body(state, x):
        y, state = norm.train(params, state, x)
        return state, y

    carried, ys = lax.scan(body, state, batches)
    for x, y in zip(batches, ys, strict=True):
        expected, state = norm.train(params, state, x)
        _assert_close(y, expected)
    _assert_close(carried, state)


def models_are_independent(make: Callable[..., Norm]) -> None:
    """Under `jax.vmap` over parameters, states and batches, each model gives the same as alone."""
    norm = make()
    inputs = [_inputs(norm, seed) for seed in (0, 5)]
    models = jax.jit(jax.vmap(partial(_eager_step, norm)))
    alone = _stack(*(_step(norm, *one) for one in inputs))
    _assert_close(models(*_stack(*inputs)), alone)


def shards_equal_one_device(make: Callable[..., Norm]) -> None:
    """A batch spread over a named axis gives the values, state and gradients of the whole batch."""
    norm, sharded = make(), make(axis_name="shards")
    params, state, *arrays = _inputs(norm)
    split = [a.reshape(4, -1, *a.shape[1:]) for a in arrays]
    step = jax.vmap(partial(_eager_step, sharded), (None, None, 0, 0, 0), axis_name="shards")
    y, new, (dparams, dx) = jax.jit(step)(params, state, *split)
    for leaf in jax.tree.leaves(new):
        np.testing.assert_array_equal(leaf, jnp.broadcast_to(leaf[0], leaf.shape))
    dparams, new = jax.tree.map(lambda a: a.sum(0), dparams), jax.tree.map(lambda a: a[0], new)
    y, dx = (a.reshape(arrays[0].shape) for a in (y, dx))
    _assert_close((y, new, (dparams, dx)), _step(norm, params, state, *arrays))


def masked_equals_left_out(make: Callable[..., Norm]) -> None:
    """Masked examples have no effect on others; their y is the bias and their dx is 0."""
    norm = make()
    params, state, x, dy, _ = _inputs(norm)
    half = _EXAMPLES // 2
    mask = jnp.broadcast_to(jnp.arange(_EXAMPLES)[:, None] < half, x.shape[:-1])
    y, new, (dparams, dx) = _step(norm, params, state, x, jnp.where(mask[..., None], dy, 0), mask)
    short = _step(norm, params, state, x[:half], dy[:half], mask[:half])
    _assert_close((y[:half], new, (dparams, dx[:half])), short)
    np.testing.assert_array_equal(y[half:], jnp.broadcast_to(_bias(params), y[half:].shape))
    np.testing.assert_array_equal(dx[half:], 0)


def hidden_values_never_show(make: Callable[..., Norm]) -> None:
    """Masked values change nothing, even if they are NaN or infinite."""
    norm = make()
    params, state, x, dy, mask = _inputs(norm)
    clean, *poisoned = (jnp.where(mask[..., None], x, v) for v in (1, jnp.nan, jnp.inf))
    for x in poisoned:
        out = _step(norm, params, state, x, dy, mask)
        _assert_same(out, _step(norm, params, state, clean, dy, mask))


def bad_batch_keeps_state(make: Callable[..., Norm]) -> None:
    """A batch that is not finite, or has no valid position, does not change the state."""
    norm = make()
    params, state, x, dy, mask = _inputs(norm)
    _assert_same(norm.train(params, state, x.at[0, 0, 0].set(jnp.nan))[1], state)
    y, new, gradients = _step(norm, params, state, x, dy, jnp.zeros_like(mask))
    _assert_same(new, state)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((y, gradients)))


def state_is_fixed(make: Callable[..., Norm]) -> None:
    """For every dtype of x, the state keeps its structure, shapes and dtypes; y has that of x."""
    norm = make()
    params, state, x, *_ = _inputs(norm)
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
        narrow = jax.ShapeDtypeStruct(x.shape, dtype)
        y, new = jax.eval_shape(norm.train, params, state, narrow)
        assert y.dtype == jax.eval_shape(norm.infer, params, state, narrow).dtype == dtype
        _assert_same_types(new, state)


def state_moves_once(make: Callable[..., Norm]) -> None:
    """A training step moves the state towards the batch and counts one update."""
    norm = make()
    params, state, x, dy, mask = _inputs(norm)
    fit = _fitted(state, x)
    for name in ("mean", "var"):
        wanted = getattr(fit, name)
        old = fit._replace(**{name: 4 * wanted + 5})
        new = _step(norm, params, old, x, dy, jnp.ones_like(mask))[1]
        before, after = (jnp.abs(getattr(one, name) - wanted) for one in (old, new))
        assert (after < before).all(), f"{name} is {before}, then {after} away from the batch's"
        assert new.count == old.count + 1, f"count went from {old.count} to {new.count}"


def state_has_no_gradient(make: Callable[..., Norm]) -> None:
    """No gradient flows into the old state, nor from the new one into x and the parameters."""
    norm = make()
    params, state, x, dy, mask = _inputs(norm)
    floats = {k: v for k, v in state._asdict().items() if jnp.issubdtype(v.dtype, jnp.floating)}

    def total(floats, params, x):
        fixed = lax.stop_gradient((params, x))
        old = state._replace(**floats)
        y, _ = norm.train(fixed[0], old, fixed[1], mask=mask)
        _, new = norm.train(params, state, x, mask=mask)
        sums = (leaf.sum().astype(jnp.float32) for leaf in jax.tree.leaves(new))
        return jnp.vdot(y + norm.infer(fixed[0], old, fixed[1]), dy) + sum(sums, jnp.float32(0))

    for leaf in jax.tree.leaves(jax.jit(jax.grad(total, (0, 1, 2)))(floats, params, x)):
        np.testing.assert_array_equal(leaf, 0)


def states_can_be_averaged(make: Callable[..., Norm]) -> None:
    """The average of states, over time or devices, is a state from which training can continue."""
    norm = make()
    params, state, x, *_ = _inputs(norm)
    later = norm.train(params, state, x)[1]
    over_time = jax.tree.map(lambda old, new: 0.5 * old + 0.5 * new, state, later)
    pmean = jax.vmap(partial(lax.pmean, axis_name="devices"), axis_name="devices")
    over_devices = jax.tree.map(lambda a: a[0], pmean(_stack(state, later)))
    for averaged in (over_time, over_devices):
        _assert_same_types(averaged, state)
        _assert_same_types(norm.train(params, averaged, x)[1], state)


def training_normalizes(make: Callable[..., Norm]) -> None:
    """If state and batch agree, the mean of y is the bias and its standard deviation the scale."""
    norm = make()
    params, state, x, dy, mask = _inputs(norm)
    params, state = _positive(params), _fitted(state, x)
    y, *_ = _step(norm, params, state, x, dy, jnp.ones_like(mask))
    # The tolerance is wide, because groups of examples have their own statistics.
    scale = jnp.ones(_FEATURES) if params.scale is None else params.scale
    np.testing.assert_allclose((y.mean((0, 1)) - _bias(params)) / scale, 0, atol=0.1)
    np.testing.assert_allclose(y.std((0, 1)) / scale, 1, atol=0.1)


def inference_follows_the_state(make: Callable[..., Norm]) -> None:
    """If x and the state are scaled and shifted alike, inference does not change, up to epsilon."""
    norm = make()
    params, state, x, *_ = _inputs(norm)
    moved = state._replace(mean=2 * state.mean + 3, var=4 * state.var)
    y = norm.infer(params, state, x)
    np.testing.assert_allclose(norm.infer(params, moved, 2 * x + 3), y, rtol=1e-3, atol=1e-3)


def inference_knows_no_batch(make: Callable[..., Norm]) -> None:
    """Inference of an example does not depend on the other examples of its batch."""
    norm = make()
    params, state, x, *_ = _inputs(norm)
    whole = norm.infer(params, state, x)
    for i in range(_EXAMPLES):
        np.testing.assert_array_equal(norm.infer(params, state, x[i : i + 1])[0], whole[i])


def inference_honours_the_mask(make: Callable[..., Norm]) -> None:
    """In inference, masked values change nothing; their y is the bias and their dx is 0."""
    norm = make()
    params, state, x, dy, mask = _inputs(norm)
    valid = mask[..., None]

    @jax.jit
    def step(x):
        y, pull = jax.vjp(lambda p, x: norm.infer(p, state, x, mask=mask), params, x)
        return y, pull(dy)

    y, (dparams, dx) = step(jnp.where(valid, x, jnp.nan))
    _assert_same((y, (dparams, dx)), step(jnp.where(valid, x, 1)))
    _assert_close(y, jnp.where(valid, norm.infer(params, state, x), _bias(params)))
    np.testing.assert_array_equal(jnp.where(valid, 0, dx), 0)


def starts_as_the_affine_map(make: Callable[..., Norm]) -> None:
    """Before any batch, inference is x * scale + bias, up to epsilon."""
    norm = make()
    params, state = norm.init(_FEATURES)
    x = _data(0)
    np.testing.assert_allclose(norm.infer(params, state, x), x, rtol=2e-3)


def constant_features_stay_finite(make: Callable[..., Norm]) -> None:
    """If a feature is constant and its running variance 0, outputs and gradients are finite."""
    norm = make()
    params, state, x, dy, mask = _inputs(norm)
    still = state._replace(mean=jnp.zeros_like(state.mean), var=jnp.zeros_like(state.var))
    trained = _step(norm, params, still, jnp.ones_like(x), dy, mask)
    inferred = jax.jit(norm.infer)(params, still, jnp.zeros_like(x))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((trained, inferred)))


def pickles(make: Callable[..., Norm]) -> None:
    """A norm that was pickled and restored is equal to the original, and takes the same step.

    Classes and functions count as picklable, because it depends on the place of their definition
    whether pickle can find them.
    """
    norm = make()
    code: list[Any] = []

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> int | None:
            if not inspect.isclass(obj) and not inspect.isroutine(obj):
                return None
            code.append(obj)
            return len(code) - 1

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, pid: int) -> Any:
            return code[pid]

    stream = io.BytesIO()
    Pickler(stream).dump(norm)
    restored = Unpickler(io.BytesIO(stream.getvalue())).load()
    assert restored == norm
    assert hash(restored) == hash(norm)
    params, state, x, *_ = _inputs(norm)
    _assert_same(restored.train(params, state, x), norm.train(params, state, x))


LAWS: dict[str, Callable[[Callable[..., Norm]], None]] = {
    law.__name__: law
    for law in (
        jit_equals_eager,
        forward_equals_reverse,
        second_derivatives_agree,
        second_derivatives_follow_the_gradient,
        checkpoint_equals_plain,
        scan_equals_loop,
        models_are_independent,
        shards_equal_one_device,
        masked_equals_left_out,
        hidden_values_never_show,
        bad_batch_keeps_state,
        state_is_fixed,
        state_moves_once,
        state_has_no_gradient,
        states_can_be_averaged,
        training_normalizes,
        inference_follows_the_state,
        inference_knows_no_batch,
        inference_honours_the_mask,
        starts_as_the_affine_map,
        constant_features_stay_finite,
        pickles,
    )
}
"""The laws by name. Each law is a function of the argument `make` of `check_norm`.

>>> jbn.testing.LAWS["masked_equals_left_out"](jbn.batch_norm)
"""


def _data(seed: int) -> jax.Array:
    draw = np.random.default_rng(seed).normal(size=(_EXAMPLES, _POSITIONS, _FEATURES))
    return jnp.asarray(draw * [1, 2, 3, 1] + [0, 1, -5, 10], jnp.float32)


def _inputs(norm: Norm, seed: int = 0) -> tuple[Any, Any, jax.Array, jax.Array, jax.Array]:
    """Returns parameters, a state after one batch, x, dy, and a mask of a part of each example."""
    params, state = norm.init(_FEATURES)
    params = jax.tree.map(lambda a: a + jnp.linspace(0.1, 0.5, _FEATURES), params)
    state = norm.train(params, state, _data(seed + 1))[1]
    dy = jnp.asarray(np.random.default_rng(seed + 2).normal(size=_data(0).shape), jnp.float32)
    return params, state, _data(seed), dy, jnp.cos(dy[..., 0]) > 0.3


def _fitted(state: Any, x: jax.Array) -> Any:
    """Returns the state with the mean and the variance of x."""
    return state._replace(mean=x.mean((0, 1)), var=x.var((0, 1)))


def _positive(params: Any) -> Any:
    """Returns the parameters with a bias that makes y positive, where activations are linear."""
    return params if params.bias is None else params._replace(bias=params.bias + 8)


def _bias(params: Any) -> jax.Array:
    return jnp.zeros(_FEATURES) if params.bias is None else params.bias


def _eager_step(norm, params, state, x, dy, mask, transform: Callable[[Any], Any] = lambda f: f):
    """Returns y, the new state, and the gradients of <y, dy>; takes a norm and its `_inputs`."""

    @transform
    def loss(params, x):
        y, new = norm.train(params, state, x, mask=mask)
        return jnp.vdot(y, dy), (y, new)

    gradients, (y, new) = jax.grad(loss, (0, 1), has_aux=True)(params, x)
    return y, new, gradients


# Equal norms compile once for all laws.
_step = jax.jit(_eager_step, static_argnums=0)


@partial(jax.jit, static_argnums=0)
def _hessian_products(norm, params, state, x, dy, mask):
    """Returns the Hessian of <y, dy> times cos of `(params, x)`, by three orders of the modes."""
    primals = params, x
    directions = jax.tree.map(jnp.cos, primals)

    def loss(primals):
        return jnp.vdot(norm.train(primals[0], state, primals[1], mask=mask)[0], dy)

    def forward(f):
        return lambda primals: jax.jvp(f, (primals,), (directions,))[1]

    def reverse(primals):
        return _dot(jax.grad(loss)(primals), directions)

    functions = forward(jax.grad(loss)), jax.grad(forward(loss)), jax.grad(reverse)
    return [f(primals) for f in functions]


def _dot(a: Any, b: Any) -> Any:
    """Returns the inner product of two trees."""
    return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, a, b)), jnp.float32(0))


def _stack(*trees: Any) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


_close = partial(np.testing.assert_allclose, rtol=_ROUNDING, atol=_ROUNDING)
_assert_close = partial(jax.tree.map, _close)
_assert_same = partial(jax.tree.map, np.testing.assert_array_equal)


def _assert_near(tree: Any, wanted: Any, tolerance: float) -> None:
    """Checks the Euclidean norm of each leaf's difference, relative to the norm of all leaves."""
    scale = jnp.sqrt(_dot(wanted, wanted))
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(wanted), strict=True
    ):
        error = jnp.sqrt(jnp.sum((a - b) ** 2)) / scale
        assert error <= tolerance, f"{jax.tree_util.keystr(path)} is {error:.1e} off"


def _assert_same_types(tree: Any, wanted: Any) -> None:
    """Compares structures, shapes and dtypes."""
    types, wanted = (jax.tree.map(lambda a: (a.shape, a.dtype), one) for one in (tree, wanted))
    assert types == wanted, f"{wanted} became {types}"
