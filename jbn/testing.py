"""Laws that every norm should keep, and a check of replicated states.

One call in a test checks a norm against all laws:

    def test_my_norm():
        jbn.testing.check_norm(lambda **options: my_norm(decay=0.9, **options))
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jbn._norms.norm import Norm

_EXAMPLES, _POSITIONS, _FEATURES = 16, 3, 4
_ROUNDING = 2e-5
"""The rounding error of float32 sums of values of size 1 to 10, taken in another order."""


def check_norm(make: Callable[..., Norm], *, skip: tuple[str, ...] = ()) -> None:
    """Checks a norm against all `LAWS`.

    >>> import jbn.testing
    >>> jbn.testing.check_norm(jbn.batch_norm)

    Args:
      make: `make(**options) -> Norm` over the last axis; `axis_name` is the only option it is
        given. A group size, if the norm has one, must divide 4.
      skip: names of laws that do not hold for the method by its nature.

    Raises:
      AssertionError: a law does not hold; its name and meaning are in the message.
      TypeError: `make` is a norm.
      ValueError: `skip` names no law.
    """
    if isinstance(make, Norm):
        raise TypeError(f"make={make} must be a function that makes norms: pass the class.")
    if unknown := set(skip) - set(LAWS):
        raise ValueError(f"skip={sorted(unknown)} are no laws; these are: {list(LAWS)}.")
    for name, law in LAWS.items():
        if name not in skip:
            try:
                law(make)
            except Exception as error:
                raise AssertionError(f"{name} does not hold: {law.__doc__}\n{error}") from error


def assert_replicated(tree: Any) -> None:
    """Checks that arrays that are replicated over devices are the same on each, bit for bit.

    Args:
      tree: a pytree of `jax.Array`. Of each array, all parts of which several devices of this
        process hold a copy are compared.

    Raises:
      AssertionError: copies differ; the message names the leaf and the devices.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        first: dict[str, Any] = {}
        for shard in leaf.addressable_shards:
            known = first.setdefault(str(shard.index), shard)
            if np.asarray(known.data).tobytes() != np.asarray(shard.data).tobytes():
                raise AssertionError(
                    f"{jax.tree_util.keystr(path)} differs between {known.device} and "
                    f"{shard.device}: were statistics of shards merged, gradients summed?"
                )


def jit_equals_eager(make: Callable[..., Norm]) -> None:
    """A step gives the same values, state and gradients under `jax.jit` and without."""
    _assert_close(jax.jit(_step(make()))(*_inputs(make())), _step(make())(*_inputs(make())))


def forward_equals_reverse(make: Callable[..., Norm]) -> None:
    """A directional derivative is the same in forward and in reverse mode."""
    norm = make()
    params, state, x, dy, mask = _inputs(norm)

    def f(params, x):
        return norm.train(params, state, x, mask=mask)[0]

    directions = jax.tree.map(jnp.cos, (params, x))
    _, forward = jax.jvp(f, (params, x), directions)
    pulled = jax.vjp(f, params, x)[1](dy)
    products = jax.tree.map(jnp.vdot, pulled, directions)
    reverse = sum(jax.tree.leaves(products), start=jnp.float32(0))
    np.testing.assert_allclose(jnp.vdot(forward, dy), reverse, rtol=1e-4, atol=1e-4)


def checkpoint_equals_plain(make: Callable[..., Norm]) -> None:
    """A step gives the same under `jax.checkpoint`, and moves the state once."""
    norm = make()
    _assert_close(_step(norm, jax.checkpoint)(*_inputs(norm)), _step(norm)(*_inputs(norm)))


def scan_equals_loop(make: Callable[..., Norm]) -> None:
    """`jax.lax.scan` can carry the state, and gives the same as a loop."""
    norm = make()
    params, state, *_ = _inputs(norm)
    batches = jnp.stack([_data(seed) for seed in range(3)])

    def body(state, x):
        y, state = norm.train(params, state, x)
        return state, y

    carried, ys = jax.lax.scan(body, state, batches)
    for x, y in zip(batches, ys, strict=True):
        expected, state = norm.train(params, state, x)
        _assert_close(y, expected)
    _assert_close(carried, state)


def models_are_independent(make: Callable[..., Norm]) -> None:
    """Under `jax.vmap` over parameters, states and batches, each model gives the same as alone."""
    norm = make()
    inputs = [_inputs(norm, seed) for seed in (0, 5)]
    together = jax.vmap(_step(norm))(*jax.tree.map(lambda *a: jnp.stack(a), *inputs))
    alone = jax.tree.map(lambda *a: jnp.stack(a), *(_step(norm)(*one) for one in inputs))
    _assert_close(together, alone)


def shards_equal_one_device(make: Callable[..., Norm]) -> None:
    """A batch spread over a named axis gives the values, state and gradients of the whole batch."""
    params, state, *arrays = _inputs(make())

    def spread(norm, *arrays):
        split = [a.reshape(4, -1, *a.shape[1:]) for a in arrays]
        step = jax.vmap(_step(norm), (None, None, 0, 0, 0), axis_name="shards")
        y, new, (dparams, dx) = step(params, state, *split)
        for leaf in jax.tree.leaves(new):
            np.testing.assert_array_equal(leaf, jnp.broadcast_to(leaf[0], leaf.shape))
        dparams, new = jax.tree.map(lambda a: a.sum(0), dparams), jax.tree.map(lambda a: a[0], new)
        return y.reshape(arrays[0].shape), new, (dparams, dx.reshape(arrays[0].shape))

    _assert_close(spread(make(axis_name="shards"), *arrays), _step(make())(params, state, *arrays))


def masked_equals_left_out(make: Callable[..., Norm]) -> None:
    """Masked examples have no effect on the others; their y is the bias and their dx is 0."""
    norm = make()
    params, state, x, dy, _ = _inputs(norm)
    half = _EXAMPLES // 2
    mask = jnp.broadcast_to(jnp.arange(_EXAMPLES)[:, None] < half, x.shape[:-1])
    y, new, (dparams, dx) = _step(norm)(params, state, x, jnp.where(mask[..., None], dy, 0), mask)
    short = _step(norm)(params, state, x[:half], dy[:half], mask[:half])
    _assert_close((y[:half], new, (dparams, dx[:half])), short)
    bias = jnp.zeros(()) if params.bias is None else params.bias
    np.testing.assert_array_equal(y[half:], jnp.broadcast_to(bias, y[half:].shape))
    np.testing.assert_array_equal(dx[half:], 0)


def hidden_values_never_show(make: Callable[..., Norm]) -> None:
    """Masked values change nothing, even if they are NaN or infinite."""
    norm = make()
    params, state, x, dy, mask = _inputs(norm)
    for value in (jnp.nan, jnp.inf):
        poisoned = jnp.where(mask[..., None], x, value)
        out = _step(norm)(params, state, poisoned, dy, mask)
        _assert_same(out, _step(norm)(params, state, jnp.where(mask[..., None], x, 1), dy, mask))


def bad_batch_keeps_state(make: Callable[..., Norm]) -> None:
    """A batch that is not finite, or has no valid position, does not change the state."""
    norm = make()
    params, state, x, dy, mask = _inputs(norm)
    _assert_same(norm.train(params, state, x.at[0, 0, 0].set(jnp.nan))[1], state)
    y, new, gradients = _step(norm)(params, state, x, dy, jnp.zeros_like(mask))
    _assert_same(new, state)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((y, gradients)))


def state_is_fixed(make: Callable[..., Norm]) -> None:
    """The state keeps its structure, shapes and dtypes for every dtype of x, which y has, too."""
    norm = make()
    params, state, x, *_ = _inputs(norm)
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
        y, new = norm.train(params, state, x.astype(dtype))
        assert y.dtype == norm.infer(params, state, x.astype(dtype)).dtype == dtype
        shapes = [jax.tree.map(lambda a: (a.shape, a.dtype), s) for s in (state, new)]
        assert shapes[0] == shapes[1], f"{shapes[0]} became {shapes[1]} by a batch of {dtype}"


def state_has_no_gradient(make: Callable[..., Norm]) -> None:
    """No gradient flows into the old state, nor from the new one into x and the parameters."""
    norm = make()
    params, state, x, dy, mask = _inputs(norm)
    floats = {k: v for k, v in state._asdict().items() if jnp.issubdtype(v.dtype, jnp.floating)}

    def into(floats):
        old = state._replace(**floats)
        y, _ = norm.train(params, old, x, mask=mask)
        return jnp.vdot(y + norm.infer(params, old, x), dy)

    def out_of(params, x):
        new = norm.train(params, state, x, mask=mask)[1]
        return sum(leaf.sum().astype(jnp.float32) for leaf in jax.tree.leaves(new))

    gradients = jax.grad(into)(floats), jax.grad(out_of, (0, 1))(params, x)
    for leaf in jax.tree.leaves(gradients):
        np.testing.assert_array_equal(leaf, 0)


def inference_knows_no_batch(make: Callable[..., Norm]) -> None:
    """Inference of an example does not depend on the other examples of its batch."""
    norm = make()
    params, state, x, *_ = _inputs(norm)
    whole = norm.infer(params, state, x)
    for i in range(_EXAMPLES):
        np.testing.assert_array_equal(norm.infer(params, state, x[i : i + 1])[0], whole[i])


def starts_as_the_affine_map(make: Callable[..., Norm]) -> None:
    """Before any batch, inference is x * scale + bias, up to epsilon."""
    norm = make()
    params, state = norm.init(_FEATURES)
    x = _data(0)
    np.testing.assert_allclose(norm.infer(params, state, x), x, rtol=2e-3)


LAWS: dict[str, Callable[[Callable[..., Norm]], None]] = {
    law.__name__: law
    for law in (
        jit_equals_eager,
        forward_equals_reverse,
        checkpoint_equals_plain,
        scan_equals_loop,
        models_are_independent,
        shards_equal_one_device,
        masked_equals_left_out,
        hidden_values_never_show,
        bad_batch_keeps_state,
        state_is_fixed,
        state_has_no_gradient,
        inference_knows_no_batch,
        starts_as_the_affine_map,
    )
}
"""The laws by name; each takes what `check_norm` takes."""


def _data(seed: int) -> jax.Array:
    draw = np.random.default_rng(seed).normal(size=(_EXAMPLES, _POSITIONS, _FEATURES))
    return jnp.asarray(draw * [1, 2, 3, 1] + [0, 1, -5, 10], jnp.float32)


def _inputs(norm: Norm, seed: int = 0) -> tuple[Any, Any, jax.Array, jax.Array, jax.Array]:
    """Parameters, a state after one batch, x, dy and a mask over a part of each example."""
    params, state = norm.init(_FEATURES)
    params = jax.tree.map(lambda a: a + jnp.linspace(0.1, 0.5, _FEATURES), params)
    state = norm.train(params, state, _data(seed + 1))[1]
    dy = jnp.asarray(np.random.default_rng(seed + 2).normal(size=_data(0).shape), jnp.float32)
    return params, state, _data(seed), dy, jnp.cos(dy[..., 0]) > 0.3


def _step(norm: Norm, transform: Callable[[Any], Any] = lambda f: f) -> Callable[..., Any]:
    """A function of `_inputs` that returns y, the new state, and the gradients of <y, dy>."""

    def step(params, state, x, dy, mask):
        @transform
        def loss(params, x):
            y, new = norm.train(params, state, x, mask=mask)
            return jnp.vdot(y, dy), (y, new)

        gradients, (y, new) = jax.grad(loss, (0, 1), has_aux=True)(params, x)
        return y, new, gradients

    return step


_close = partial(np.testing.assert_allclose, rtol=_ROUNDING, atol=_ROUNDING)
_assert_close = partial(jax.tree.map, _close)
_assert_same = partial(jax.tree.map, np.testing.assert_array_equal)
