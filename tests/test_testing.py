"""Every norm of jbn keeps the laws, and each law is broken by a norm that should break it."""

import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jbn
import jbn.testing

NORMS = {
    "batch": jbn.batch_norm,
    "unbiased": lambda **options: jbn.batch_norm(unbiased=True, **options),
    "corrected": lambda **options: jbn.batch_norm(decay=jbn.corrected_decay(0.9), **options),
    "no scale": lambda **options: jbn.batch_norm(use_scale=False, use_bias=False, **options),
    "ghost": lambda **options: jbn.ghost_batch_norm(group_size=4, **options),
    "small ghost": lambda **options: jbn.ghost_batch_norm(group_size=2, **options),
    "renorm": lambda **options: jbn.batch_renorm(
        r_max=optax.linear_schedule(1, 3, 2), d_max=optax.linear_schedule(0, 5, 2), **options
    ),
    "unlimited renorm": lambda **options: jbn.batch_renorm(r_max=1e9, d_max=1e9, **options),
    "ghost of renorm": lambda **options: jbn.batch_renorm(group_size=4, **options),
    "running": jbn.running_batch_norm,
    "ghost of running": lambda **options: jbn.running_batch_norm(group_size=4, **options),
    "frozen": lambda **options: jbn.frozen(jbn.batch_norm(**options)),
    "frozen use": lambda **options: jbn.frozen(jbn.batch_norm(**options), update=True),
    "frozen state": lambda **options: jbn.frozen(jbn.batch_norm(**options), use_running=False),
}


@pytest.mark.parametrize("law", jbn.testing.LAWS)
@pytest.mark.parametrize("name", NORMS)
def test_every_norm_keeps_every_law(name, law):
    jbn.testing.LAWS[law](NORMS[name])


def broken(change):
    """A maker of batch norms whose training step is changed."""

    def make(**options) -> Any:
        norm = jbn.batch_norm(**options)
        return types.SimpleNamespace(
            init=norm.init, infer=norm.infer, train=lambda *a, mask=None: change(norm, *a, mask)
        )

    return make


def forgets_mask(norm, params, state, x, mask):
    return norm.train(params, state, x)


def drifts(norm, params, state, x, mask):
    y, new = norm.train(params, state, x, mask=mask)
    return y, new._replace(mean=new.mean.astype(x.dtype))


def averages_without_a_look(norm, params, state, x, mask):
    y, _ = norm.train(params, state, x, mask=mask)
    batch = jbn.moments(x, mask=mask)
    return y, state._replace(mean=0.9 * state.mean + 0.1 * batch.mean)


def leaks(norm, params, state, x, mask):
    y, new = norm.train(params, state, x, mask=mask)
    return y + jnp.broadcast_to(state.mean.astype(y.dtype), y.shape), new


@pytest.mark.parametrize(
    ("change", "law"),
    [
        (forgets_mask, "masked_equals_left_out"),
        (forgets_mask, "hidden_values_never_show"),
        (drifts, "state_is_fixed"),
        (averages_without_a_look, "bad_batch_keeps_state"),
        (averages_without_a_look, "shards_equal_one_device"),
        (averages_without_a_look, "state_has_no_gradient"),
        (leaks, "state_has_no_gradient"),
    ],
)
def test_a_broken_norm_breaks_the_law(change, law):
    with pytest.raises(AssertionError):
        jbn.testing.LAWS[law](broken(change))


def test_check_norm_names_the_law():
    words = "masked_equals_left_out does not hold: Masked examples"
    with pytest.raises(AssertionError, match=words):
        jbn.testing.check_norm(broken(forgets_mask))
    with pytest.raises(ValueError, match="no laws"):
        jbn.testing.check_norm(jbn.batch_norm, skip=("gravity",))


def test_copies_that_differ_are_found():
    mesh = jax.make_mesh((2,), ("d",), (AxisType.Auto,), devices=jax.devices()[:2])
    parts = [jax.device_put(jnp.float32(i), d) for i, d in enumerate(jax.devices()[:2])]
    sharding = NamedSharding(mesh, P())
    differing = jax.make_array_from_single_device_arrays((), sharding, parts)
    same = jax.device_put(np.arange(4.0, dtype=np.float32), sharding)
    split = jax.device_put(np.arange(4.0, dtype=np.float32), NamedSharding(mesh, P("d")))
    jbn.testing.assert_replicated({"same": same, "split": split})
    with pytest.raises(AssertionError, match=r"\['mean'\] differs"):
        jbn.testing.assert_replicated({"same": same, "mean": differing})
