"""Every norm of jbn keeps the laws, and each law detects a norm that breaks it."""

import dataclasses
import itertools
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jbn
import jbn.testing
from tests.helpers import every_law

SCHEDULES: dict[str, Any] = {
    "r_max": optax.linear_schedule(1, 3, 2),
    "d_max": optax.linear_schedule(0, 5, 2),
}

NORMS = {
    "batch": jbn.batch_norm,
    "unbiased": lambda **options: jbn.batch_norm(unbiased=True, **options),
    "corrected": lambda **options: jbn.batch_norm(decay=jbn.corrected_decay(0.9), **options),
    "no scale": lambda **options: jbn.batch_norm(use_scale=False, use_bias=False, **options),
    "ghost": lambda **options: jbn.ghost_batch_norm(group_size=4, **options),
    "small ghost": lambda **options: jbn.ghost_batch_norm(group_size=2, **options),
    "renorm": lambda **options: jbn.batch_renorm(**SCHEDULES, **options),
    "unlimited renorm": lambda **options: jbn.batch_renorm(r_max=1e9, d_max=1e9, **options),
    "ghost of renorm": lambda **options: jbn.batch_renorm(group_size=4, **options),
    "running": jbn.running_batch_norm,
    "ghost of running": lambda **options: jbn.running_batch_norm(group_size=4, **options),
    "frozen": lambda **options: jbn.frozen(jbn.batch_norm(**options)),
    "frozen use": lambda **options: jbn.frozen(jbn.batch_norm(**options), update=True),
    "frozen state": lambda **options: jbn.frozen(jbn.batch_norm(**options), use_running=False),
}

NOT_KEPT = {
    # Its r and d carry no gradient, and have no limits.
    ("unlimited renorm", "second_derivatives_follow_the_gradient"),
    ("frozen", "state_moves_once"),
    ("frozen state", "state_moves_once"),
}


@every_law
@pytest.mark.parametrize("name", NORMS)
def test_every_norm_keeps_every_law(name, law):
    if (name, law) in NOT_KEPT:
        with pytest.raises(AssertionError):
            jbn.testing.LAWS[law](NORMS[name])
    else:
        jbn.testing.LAWS[law](NORMS[name])


class KeepsTimeOutsideOfItsState(jbn.batch_norm):
    def train(self, params, state, x, *, mask=None):
        y, new = super().train(params, state, x, mask=mask)
        return y + next(CLOCK), new


CLOCK = itertools.count()


class HasNoForwardMode(jbn.batch_norm):
    def train(self, params, state, x, *, mask=None):
        y, new = super().train(params, state, x, mask=mask)
        return only_reverse(y), new


@jax.custom_vjp
def only_reverse(y):
    return y


only_reverse.defvjp(lambda y: (y, None), lambda _, dy: (dy,))


class ForgetsThatTheScaleMoves(jbn.batch_norm):
    def train(self, params: Any, state, x: Any, *, mask=None):
        plain = jbn.BatchNormParams(jnp.ones_like(params.scale), jnp.zeros_like(params.bias))
        hat, new = super().train(plain, state, x, mask=mask)
        scale, bias = (jnp.broadcast_to(v.astype(x.dtype), x.shape) for v in params)
        return product(hat, scale) + bias, new


@jax.custom_jvp
def product(a, b):
    return a * b


@product.defjvp
def product_jvp(primals, tangents):
    (a, b), (da, db) = primals, tangents
    return product(a, b), da * lax.stop_gradient(b) + a * db


class ForgetsTheCurvature(jbn.batch_norm):
    def train_vectors(self, state, batch):
        (mean, _), new = super().train_vectors(state, batch)
        return jbn.Statistics(mean, straight_rsqrt(batch.var + 1e-5)), new


@jax.custom_jvp
def straight_rsqrt(var):
    return lax.rsqrt(var)


@straight_rsqrt.defjvp
def straight_rsqrt_jvp(primals, tangents):
    rstd = straight_rsqrt(*primals)
    return rstd, -0.5 * lax.stop_gradient(rstd**3) * tangents[0]


class ReadsOneModel(jbn.batch_norm):
    def train(self, params, state, x, *, mask=None):
        y, new = super().train(params, state, x, mask=mask)
        mean = jnp.mean(lax.stop_gradient(x))
        return y + (of_the_first_model(mean) - mean), new


@jax.custom_batching.custom_vmap
def of_the_first_model(x):
    return x


@of_the_first_model.def_vmap
def of_the_first_model_vmap(axis_size, in_batched, x):
    return jnp.broadcast_to(x[0], x.shape), in_batched[0]


class ForgetsTheMask(jbn.batch_norm):
    def train(self, params, state, x, *, mask=None):
        return super().train(params, state, x)


class AddsNothing(jbn.batch_norm):
    def train(self, params, state, x: Any, *, mask=None):
        y, new = super().train(params, state, x, mask=mask)
        return y + 0 * x, new


class AveragesWithoutALook(jbn.batch_norm):
    def train(self, params, state, x, *, mask=None):
        y, new = super().train(params, state, x, mask=mask)
        batch = lax.stop_gradient(jbn.moments(x, mask=mask, axis_name=self.axis_name))
        return y, new._replace(mean=0.9 * state.mean + 0.1 * batch.mean)


class AveragesEachShard(jbn.batch_norm):
    def train(self, params, state, x, *, mask=None):
        return dataclasses.replace(self, axis_name=None)._train_here(params, state, x, mask)

    def _train_here(self, params, state, x, mask):
        return super().train(params, state, x, mask=mask)


class Drifts(jbn.batch_norm):
    def train(self, params, state, x: Any, *, mask=None):
        y, new = super().train(params, state, x, mask=mask)
        return y, new._replace(mean=new.mean.astype(x.dtype))


class NeverMoves(jbn.batch_norm):
    def train(self, params, state, x, *, mask=None):
        return super().train(params, state, x, mask=mask)[0], state


class MovesTwice(jbn.batch_norm):
    def train(self, params, state, x, *, mask=None):
        y, new = super().train(params, state, x, mask=mask)
        return y, super().train(params, new, x, mask=mask)[1]


class NeverCounts(jbn.batch_norm):
    def train(self, params, state, x, *, mask=None):
        y, new = super().train(params, state, x, mask=mask)
        return y, new._replace(count=state.count)


class Leaks(jbn.batch_norm):
    def infer(self, params, state, x, *, mask=None):
        y = super().infer(params, state, x, mask=mask)
        nothing = (state.mean - lax.stop_gradient(state.mean)).astype(y.dtype)
        return y + jnp.broadcast_to(nothing, y.shape)


class CountsInIntegers(jbn.batch_norm):
    def init_vectors(self, num_features):
        return super().init_vectors(num_features)._replace(count=jnp.int32(0))


class OnlyScales(jbn.batch_norm):
    def train(self, params: Any, state, x: Any, *, mask=None):
        start = super().init(params.scale.shape)[1]
        y = super().infer(params, start, x, mask=mask)
        return y, super().train(params, state, x, mask=mask)[1]


class ForgetsTheState(jbn.batch_norm):
    def infer(self, params: Any, state, x: Any, *, mask=None):
        return super().infer(params, super().init(params.scale.shape)[1], x, mask=mask)


class LooksAtTheBatch(jbn.batch_norm):
    def infer(self, params, state, x: Any, *, mask=None):
        return super().infer(params, state, x, mask=mask) + len(x) / 1000


class ForgetsTheMaskInInference(jbn.batch_norm):
    def infer(self, params, state, x, *, mask=None):
        return super().infer(params, state, x)


class StartsAtTwo(jbn.batch_norm):
    def init_vectors(self, num_features):
        start = super().init_vectors(num_features)
        return start._replace(var=2 * start.var)


class DividesByZero(jbn.batch_norm):
    def infer_vectors(self, state):
        return jbn.Statistics(state.mean, lax.rsqrt(state.var))


class HoldsALock(jbn.batch_norm):
    lock: Any = threading.Lock()


BROKEN = [
    (KeepsTimeOutsideOfItsState, "jit_equals_eager"),
    (HasNoForwardMode, "forward_equals_reverse"),
    (ForgetsThatTheScaleMoves, "second_derivatives_agree"),
    (ForgetsTheCurvature, "second_derivatives_follow_the_gradient"),
    (KeepsTimeOutsideOfItsState, "checkpoint_equals_plain"),
    (KeepsTimeOutsideOfItsState, "scan_equals_loop"),
    (ReadsOneModel, "models_are_independent"),
    (AveragesEachShard, "shards_equal_one_device"),
    (ForgetsTheMask, "masked_equals_left_out"),
    (AddsNothing, "hidden_values_never_show"),
    (AveragesWithoutALook, "bad_batch_keeps_state"),
    (Drifts, "state_is_fixed"),
    (NeverMoves, "state_moves_once"),
    (MovesTwice, "state_moves_once"),
    (NeverCounts, "state_moves_once"),
    (Leaks, "state_has_no_gradient"),
    (CountsInIntegers, "states_can_be_averaged"),
    (OnlyScales, "training_normalizes"),
    (ForgetsTheState, "inference_follows_the_state"),
    (LooksAtTheBatch, "inference_knows_no_batch"),
    (ForgetsTheMaskInInference, "inference_honours_the_mask"),
    (StartsAtTwo, "starts_as_the_affine_map"),
    (DividesByZero, "constant_features_stay_finite"),
    (HoldsALock, "pickles"),
]


@pytest.mark.parametrize(("make", "law"), BROKEN)
def test_a_broken_norm_breaks_its_law(make, law):
    others = tuple(name for name in jbn.testing.LAWS if name != law)
    with pytest.raises(AssertionError, match=f"{law} does not hold"):
        jbn.testing.check_norm(make, skip=others)


def test_every_law_is_broken_by_a_norm():
    assert {law for _, law in BROKEN} == set(jbn.testing.LAWS)


def test_check_norm_refuses_what_names_no_law_and_what_makes_no_norm():
    with pytest.raises(ValueError, match="no laws"):
        jbn.testing.check_norm(jbn.batch_norm, skip=("gravity",))
    with pytest.raises(TypeError, match="pass the class"):
        jbn.testing.check_norm(jbn.batch_norm())  # pyright: ignore[reportArgumentType]


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


def test_only_arrays_of_jax_are_replicated():
    with pytest.raises(TypeError, match=r"\['b'\] is of ndarray, .* pass arrays of JAX"):
        jbn.testing.assert_replicated({"a": jnp.ones(3), "b": np.ones(3)})
