"""Modules meet Flax's expectations: variables, views, tables, initializers, metadata and modes."""

from functools import partial
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, serialization
from flax.errors import ModifyScopeVariableError, ScopeCollectionNotFound
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jbn
import jbn.linen
import jbn.nnx
from tests.helpers import data, trained

X = data((6, 4, 3), mean=1)
NORM = jbn.batch_norm(decay=0.9)
COUNTING = jbn.batch_norm(decay=jbn.corrected_decay(0.9))
DOMAINS = jbn.domain_norm(NORM, 2)
DOMAIN = jnp.array([0, 1, 0, 0, 1, 1])

assert_close = partial(chex.assert_trees_all_close, rtol=2e-6, atol=2e-6)


def linen_modules(**options) -> dict[str, tuple[nn.Module, tuple]]:
    return {
        "BatchNorm": (jbn.linen.BatchNorm(momentum=0.9, **options), ()),
        "Norm": (jbn.linen.Norm(NORM, **options), ()),
        "DomainNorm": (jbn.linen.DomainNorm(DOMAINS, **options), (DOMAIN,)),
    }


def nnx_modules(**options) -> dict[str, tuple[Any, tuple]]:
    rngs = nnx.Rngs(0)
    return {
        "BatchNorm": (jbn.nnx.BatchNorm(3, momentum=0.9, rngs=rngs, **options), ()),
        "Norm": (jbn.nnx.Norm(NORM, 3, rngs=rngs, **options), ()),
        "DomainNorm": (jbn.nnx.DomainNorm(DOMAINS, 3, rngs=rngs, **options), (DOMAIN,)),
    }


KINDS = ["BatchNorm", "Norm", "DomainNorm"]
each_kind = pytest.mark.parametrize("kind", KINDS)


def linen_init(module, *args) -> Any:
    return module.clone(use_running_average=True).init(jax.random.key(0), X, *args)


def shapes(tree):
    return jax.tree.map(lambda a: (a.shape, a.dtype), tree)


@pytest.mark.parametrize("axis", [-1, 1, (0, 2)])
def test_variables_are_those_of_flax_unless_the_norm_needs_a_count(axis):
    flaxs = shapes(linen_init(nn.BatchNorm(axis=axis)))
    norm = jbn.batch_norm(axis=axis)
    for same in (norm, jbn.frozen(norm), jbn.batch_renorm(axis=axis)):
        assert shapes(linen_init(jbn.linen.Norm(same))) == flaxs
    counting = linen_init(jbn.linen.Norm(jbn.batch_norm(axis=axis, decay=jbn.cumulative_decay)))
    assert counting["batch_stats"].keys() == {"mean", "var", "count"}
    assert {leaf.dtype for leaf in jax.tree.leaves(counting)} == {np.dtype(np.float32)}


def test_a_count_in_old_variables_stays():
    module = jbn.linen.Norm(NORM, use_running_average=False)
    variables = linen_init(module)
    variables["batch_stats"]["count"] = jnp.float32(4)
    _, updates = module.apply(variables, X, mutable=["batch_stats"])
    assert updates["batch_stats"]["count"] == 5


@pytest.mark.parametrize("norm", [COUNTING, jbn.running_batch_norm()])
def test_inference_needs_no_more_than_flaxs_variables(norm):
    variables = trained(linen_init(nn.BatchNorm()))
    wanted = nn.BatchNorm().apply(variables, X, use_running_average=True)
    assert_close(jbn.linen.Norm(norm).apply(variables, X, use_running_average=True), wanted)


def test_missing_statistics_are_flaxs_error():
    params = {"params": linen_init(nn.BatchNorm())["params"]}
    for module in (nn.BatchNorm(), jbn.linen.BatchNorm(), jbn.linen.Norm(NORM)):
        with pytest.raises(ScopeCollectionNotFound, match="batch_stats"):
            module.apply(params, X, use_running_average=True)


@each_kind
@pytest.mark.parametrize("shape", [(6,), (6, 1), (1, 4, 1)])
@pytest.mark.parametrize("train", [False, True])
def test_masks_hide_nan_by_one_rule_in_both_front_ends(kind, shape, train):
    mask = data(shape) > -0.5
    full = mask.reshape(mask.shape + (1,) * (3 - mask.ndim))
    x = np.where(np.broadcast_to(full, X.shape), X, np.nan).astype(np.float32)
    module, domain = linen_modules(use_running_average=not train)[kind]
    variables = trained(linen_init(module, *domain))
    params, stats = variables["params"], variables["batch_stats"]
    norm: Any = DOMAINS if domain else NORM
    state = norm.init(3)[1]._replace(**stats)

    def ours(params):
        y, _ = module.apply(
            {"params": params, "batch_stats": stats}, x, *domain, mask=mask, mutable=["batch_stats"]
        )
        return jnp.sum(y**2), y

    def core(params):
        params = jbn.BatchNormParams(**params)
        if train:
            y, _ = norm.train(params, state, x, *domain, mask=mask)
        else:
            y = norm.infer(params, state, x, *domain, mask=mask)
        return jnp.sum(y**2), y

    wanted = jax.grad(core, has_aux=True)(params)
    chex.assert_tree_all_finite(wanted)
    assert_close(jax.grad(ours, has_aux=True)(params), wanted)
    other, _ = nnx_modules(use_running_average=not train)[kind]
    nnx.update(other, nnx.State(jax.tree.map(jnp.asarray, {**params, **stats})))
    assert_close(other(x, *domain, mask=mask), wanted[1])


@each_kind
def test_views_and_modes(kind):
    module, domain = nnx_modules()[kind]
    view = nnx.view(module, use_running_average=True)
    assert module.use_running_average is False
    before = jax.tree.map(jnp.copy, nnx.state(module))
    assert_close(view(X, *domain), X / np.sqrt(np.float32(1 + 1e-5)))
    chex.assert_trees_all_equal(nnx.state(module), before)
    assert nnx.view(view).use_running_average is True
    model = nnx.List([module, nnx.BatchNorm(3, rngs=nnx.Rngs(0))])
    assert nnx.view(model, use_running_average=True)[0].use_running_average is True
    for change, mode in (
        (lambda m: m.set_attributes(use_running_average=True), True),
        (lambda m: m.train(), False),
        (lambda m: m.eval(), True),
    ):
        change(module)
        assert module.use_running_average is mode
    assert "use_running_average" in nnx.view_info(module)


@each_kind
def test_tables_of_one_example(kind):
    module, domain = nnx_modules()[kind]
    x = jnp.ones((1, 3))
    domain = (jnp.array([0]),) if domain else ()
    assert kind in nnx.tabulate(module, x, *domain, console_kwargs={"force_terminal": False})
    with pytest.raises(ValueError, match=r"one value per feature"):
        module(x, *domain)
    linen, _ = linen_modules(use_running_average=False)[kind]
    assert kind in linen.tabulate(jax.random.key(0), x, *domain)


@each_kind
def test_initializers_dtypes_and_metadata(kind):
    options: Any = {"param_dtype": jnp.bfloat16, "scale_init": nn.initializers.zeros}
    bias_init = nn.initializers.normal()
    linen, domain = linen_modules(bias_init=nn.with_partitioning(bias_init, ("model",)), **options)[
        kind
    ]
    variables = linen_init(linen, *domain)
    assert nn.get_partition_spec(variables)["params"]["bias"] == P("model")
    y: Any = linen.apply(variables, X, *domain, use_running_average=True)
    assert y.shape == X.shape
    mesh = jax.make_mesh((1,), ("model",), (AxisType.Auto,))
    with jax.set_mesh(mesh):
        ours, _ = nnx_modules(
            bias_init=nnx.with_partitioning(bias_init, ("model",)),
            scale_metadata={"note": 7},
            **options,
        )[kind]
    specs: Any = nnx.get_partition_spec(nnx.state(ours))
    assert specs["bias"].get_value() == P("model")
    assert ours.scale.note == 7
    flaxs: Any = nnx.BatchNorm(3, bias_init=bias_init, rngs=nnx.Rngs(0), **options)
    for params in (
        {n: getattr(ours, n)[...] for n in ("scale", "bias")},
        nn.unbox(variables)["params"],
    ):
        assert {leaf.dtype for leaf in params.values()} == {jnp.dtype(jnp.bfloat16)}
        np.testing.assert_array_equal(params["scale"], 0)
        assert np.any(params["bias"])
    if kind == "BatchNorm":
        np.testing.assert_array_equal(ours.bias[...], flaxs.bias[...])


@each_kind
def test_integers_are_taken_as_float32(kind):
    x = np.arange(72).reshape(6, 4, 3)
    module, domain = nnx_modules()[kind]
    again, _ = nnx_modules()[kind]
    y = module(x, *domain)
    assert y.dtype == jnp.float32
    assert_close(y, again(x.astype(np.float32), *domain))
    linen, _ = linen_modules(use_running_average=False)[kind]
    assert_close(linen.init_with_output(jax.random.key(0), x, *domain)[0], y)


def test_integers_have_flaxs_output_dtype():
    x = np.arange(12, dtype=np.uint8).reshape(4, 3)
    options: Any
    for options in ({}, {"param_dtype": jnp.bfloat16}, {"use_scale": False, "use_bias": False}):
        with jax.numpy_dtype_promotion("standard"):
            wanted = nn.BatchNorm(use_running_average=False, **options).init_with_output(
                jax.random.key(0), x
            )[0]
        y = jbn.linen.BatchNorm(use_running_average=False, **options).init_with_output(
            jax.random.key(0), x
        )[0]
        assert y.dtype == wanted.dtype


@each_kind
def test_without_updates_no_statistics_move_and_linen_needs_no_mutable(kind):
    linen, domain = linen_modules(use_running_average=False)[kind]
    variables = trained(linen_init(linen, *domain))
    wanted, updates = linen.apply(variables, X, *domain, mutable=["batch_stats"])
    assert np.any(updates["batch_stats"]["mean"] != variables["batch_stats"]["mean"])
    with pytest.raises(ModifyScopeVariableError):
        linen.apply(variables, X, *domain)
    with jbn.no_update():
        assert_close(jax.jit(linen.apply)(variables, X, *domain), wanted)
    module, _ = nnx_modules()[kind]
    before = jax.tree.map(jnp.copy, nnx.state(module))
    with jbn.no_update():
        y = nnx.jit(lambda module, x: module(x, *domain))(module, X)
    chex.assert_trees_all_equal(nnx.state(module), before)
    assert_close(module(X, *domain), y)


@pytest.mark.parametrize("use_running", [False, True])
def test_frozen_norms_need_no_mutable(use_running):
    norm = jbn.frozen(NORM, use_running=use_running)
    module = jbn.linen.Norm(norm, use_running_average=False)
    variables = trained(linen_init(module))
    state = NORM.init(3)[1]._replace(**variables["batch_stats"])
    wanted, _ = norm.train(jbn.BatchNormParams(**variables["params"]), state, X)
    assert_close(jax.jit(module.apply)(variables, X), wanted)


@pytest.mark.parametrize("domain", [1, DOMAIN])
def test_frozen_domains_need_no_mutable(domain):
    norm = jbn.domain_norm(jbn.frozen(NORM), 2)
    module = jbn.linen.DomainNorm(norm, use_running_average=False)
    variables = trained(linen_init(module, DOMAIN))
    wanted = module.clone(use_running_average=True).apply(variables, X, domain)
    assert_close(module.apply(variables, X, domain), wanted)


@pytest.mark.parametrize("wrap", [lambda norm: norm, jbn.frozen])
def test_initializing_needs_no_named_axis(wrap):
    norm = wrap(jbn.batch_norm(axis_name="b"))
    module = jbn.linen.Norm(norm, use_running_average=False)
    variables = module.init(jax.random.key(0), X)
    with jbn.linen.replace_batch_norm(norm):
        replaced = nn.BatchNorm(use_running_average=False).init(jax.random.key(0), X)
    chex.assert_trees_all_equal(replaced, variables)
    mapped = jax.vmap(partial(module.apply, mutable=["batch_stats"]), (None, 0), axis_name="b")
    y, _ = mapped(variables, X)
    single = jbn.linen.Norm(wrap(jbn.batch_norm()), use_running_average=False)
    assert_close(y, single.apply(variables, X, mutable=["batch_stats"])[0])


def test_apart_from_initializing_an_unbound_axis_is_an_error():
    module = jbn.linen.Norm(jbn.batch_norm(axis_name="b"), use_running_average=False)
    variables = module.init(jax.random.key(0), X)
    with pytest.raises(NameError):
        module.apply(variables, X, mutable=["batch_stats"])


def test_domain_norms_train_each_domain():
    linen, _ = linen_modules(use_running_average=False)["DomainNorm"]
    module, _ = nnx_modules()["DomainNorm"]
    variables = linen_init(linen, DOMAIN)
    params, state = DOMAINS.init(3)
    for domain in (DOMAIN, 1):
        wanted, state = DOMAINS.train(params, state, X, domain)
        y, updates = linen.apply(variables, X, domain, mutable=["batch_stats"])
        variables = {**variables, **updates}
        assert_close((y, module(X, domain)), (wanted, wanted))
    for name in ("mean", "var"):
        assert_close(variables["batch_stats"][name], getattr(state, name))
        assert_close(getattr(module, name)[...], getattr(state, name))


untyped: Any = jbn


@pytest.mark.parametrize(
    "make",
    [
        lambda: linen_init(untyped.linen.Norm(DOMAINS)),
        lambda: untyped.nnx.Norm(DOMAINS, 3),
        lambda: untyped.nnx.replace_batch_norm(nnx.BatchNorm(3, rngs=nnx.Rngs(0)), DOMAINS),
        lambda: untyped.linen.replace_batch_norm(DOMAINS).__enter__(),
    ],
)
def test_domains_belong_into_domain_norm(make):
    with pytest.raises(TypeError, match="use DomainNorm"):
        make()


def test_a_domain_norm_takes_domains():
    with pytest.raises(TypeError, match=r"must be a jbn\.domain_norm"):
        untyped.nnx.DomainNorm(NORM, 3)
    with pytest.raises(TypeError, match=r"must be a jbn\.domain_norm"):
        linen_init(untyped.linen.DomainNorm(NORM), DOMAIN)


def test_features_are_counted_on_the_axis_of_the_norm():
    x = data((5, 4, 2, 3))
    for axis, shape in ((1, (4,)), ((1, -1), (4, 3)), (0, (5,))):
        module = jbn.linen.Norm(jbn.frozen(jbn.batch_norm(axis=axis)), use_running_average=True)
        variables: Any = module.init(jax.random.key(0), x)
        assert variables["params"]["scale"].shape == shape


def test_a_norm_of_a_population_is_a_norm_of_a_module():
    norms = jax.vmap(lambda decay: jbn.batch_norm(decay=decay))(jnp.array([0.5, 0.75]))
    norm = jax.tree.map(lambda a: a[1], norms)
    module: Any = jbn.nnx.Norm(norm, 3)
    nnx.jit(lambda module, x: module(x))(module, X)
    assert_close(module.mean[...], 0.25 * X.mean((0, 1)))
    with jbn.linen.replace_batch_norm(norm):
        variables = linen_init(nn.BatchNorm())
        _, updates = jax.jit(
            lambda v, x: nn.BatchNorm(use_running_average=False).apply(
                v, x, mutable=["batch_stats"]
            )
        )(variables, X)
    assert_close(updates["batch_stats"]["mean"], 0.25 * X.mean((0, 1)))


def test_nnx_modules_may_be_made_by_a_map_over_an_option():
    decays = np.array([0.5, 0.75], np.float32)
    modules: Any = nnx.vmap(lambda decay: jbn.nnx.Norm(jbn.batch_norm(decay=decay), 3))(decays)
    nnx.vmap(lambda module, x: module(x), in_axes=(0, None))(modules, X)
    assert_close(modules.mean[...], (1 - decays[:, None]) * X.mean((0, 1)))


def test_all_variables_may_be_differentiated():
    module = jbn.linen.Norm(COUNTING, use_running_average=False)
    variables = linen_init(module)
    grads = jax.grad(lambda v: jnp.sum(module.apply(v, X, mutable=True)[0] ** 3))(variables)
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, variables)
    assert not any(map(np.any, jax.tree.leaves(grads["batch_stats"])))


def test_each_domain_is_recalibrated():
    module, _ = nnx_modules()["DomainNorm"]
    batches = [(X, DOMAIN), (2 * X, 1)]
    drift = jbn.nnx.recalibrate(module, batches, lambda module, batch: module(*batch))
    first, second = X[DOMAIN == 0], np.concatenate([X[DOMAIN == 1], 2 * X])
    assert_close(module.mean[...], np.stack([x.mean((0, 1)) for x in (first, second)]))
    assert_close(module.var[...], np.stack([x.var((0, 1)) for x in (first, second)]))
    np.testing.assert_array_equal(drift[""].count[:, 0], [12, 36])


def test_flaxs_bytes_load():
    variables = trained(linen_init(nn.BatchNorm()))
    module = jbn.linen.Norm(NORM)
    again = serialization.from_bytes(linen_init(module), serialization.to_bytes(variables))
    chex.assert_trees_all_equal(again, variables)


def test_recalibrate_refuses_one_array():
    with pytest.raises(TypeError, match=r"pass \[batches\]"):
        jbn.nnx.recalibrate(nnx_modules()["Norm"][0], X)


def test_options_without_effect_are_taken():
    options: dict[str, Any] = {"use_fast_variance": False}
    ours = jbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0), **options)
    assert_close(ours(X), nnx.BatchNorm(3, rngs=nnx.Rngs(0), **options)(X))
    linen = jbn.linen.BatchNorm(False, force_float32_reductions=False, **options)
    assert_close(linen.init_with_output(jax.random.key(0), X)[0], ours(X))
