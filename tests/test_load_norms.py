"""Reads all layers of a library's model at once, and loads them into Flax models."""

from collections import OrderedDict
from functools import partial
from typing import Any, get_args

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import freeze

import jbn
from jbn import convert
from tests import reference
from tests.helpers import data, trained

every_layout = pytest.mark.parametrize("layout", get_args(convert.LayoutName))


def layer_of(seed, features=3, **options) -> convert.Layer:
    """Returns a layer as after training."""
    params, state = trained(jbn.batch_norm(**options).init(features))
    params = jax.tree.map(lambda leaf: leaf + seed, params)
    state = state._replace(mean=state.mean * seed, count=jnp.float32(seed))
    return convert.Layer(params, state, options)


def assert_same(layer, wanted, rtol=0.0):
    for actual, expected in zip(layer[:2], wanted[:2], strict=True):
        chex.assert_trees_all_close(actual[:2], expected[:2], rtol=rtol)


def written(layout, layers):
    prefixes = [p if p[-1] in "./" else f"{p}/" for p in layers]
    parts = zip(prefixes, layers.values(), strict=True)
    arrays = [convert.write(layout, layer, prefix=prefix).arrays for prefix, layer in parts]
    return OrderedDict((path, array) for part in arrays for path, array in part.items())


ARGUMENTS: Any = {"haiku": {"decay_rate": 0.99}}
TORCH = {
    "bn1.": layer_of(1),
    "layer1.0.bn1.": layer_of(2, 4),
    "layer1.0.downsample.1.": layer_of(3),
}


@every_layout
def test_all_layers_are_found_and_read(layout):
    other = {"conv1.weight": np.ones((3, 3)), "norm.weight": np.ones(3), "norm.bias": np.ones(3)}
    arrays = written(layout, TORCH) | other | {"xmean": np.ones(3), "running_means": np.ones(3)}
    assert sorted(convert.prefixes(layout, arrays)) == sorted(TORCH)
    layers = convert.read_all(layout, arrays, **ARGUMENTS.get(layout, {}))
    assert sorted(layers) == sorted(TORCH)
    for prefix, wanted in TORCH.items():
        assert_same(layers[prefix], wanted)
        one = convert.read(layout, arrays, prefix=prefix, **ARGUMENTS.get(layout, {}))
        chex.assert_trees_all_equal(layers[prefix][:2], one[:2])
        assert layers[prefix].options == one.options


@every_layout
def test_each_layer_has_the_scale_and_the_bias_that_are_there(layout):
    bare = layer_of(2, use_scale=False, use_bias=False)
    layers = convert.read_all(
        layout, written(layout, {"a/": layer_of(1), "b/": bare}), **ARGUMENTS.get(layout, {})
    )
    assert layers["a/"].params.bias is not None
    assert layers["b/"].params == (None, None)
    assert not layers["b/"].options["use_scale"]


def test_one_switch_needs_both_and_two_switches_do_not():
    layer = convert.read_all("keras", written("keras", {"a/": layer_of(1, use_scale=False)}))["a/"]
    assert layer.params.scale is None
    np.testing.assert_array_equal(layer.params.bias, layer_of(1).params.bias)
    assert layer.options["epsilon"] == 1e-3
    with pytest.raises(KeyError, match="'a/bias' is not in arrays: pass affine=False"):
        convert.read_all("torch", {**written("torch", {"a/": layer_of(1)}), "a/bias": None})


def test_a_model_without_layers_is_an_error():
    assert convert.prefixes("torch", {"fc.weight": np.ones(3)}) == []
    with pytest.raises(KeyError, match="no torch layer: no path in it ends in 'running_mean'"):
        convert.read_all("torch", {"fc.weight": np.ones(3)})
    with pytest.raises(ValueError, match="unknown"):
        convert.prefixes("tf", {})  # pyright: ignore[reportArgumentType]


def test_haikus_parameters_and_state_are_read_as_they_are():
    name = "res_net50/~/block_group_0/~/block_0/~/batchnorm_0"
    layer = layer_of(1)
    flat = convert.write("haiku", layer, shape=(1, 1, 1, 3)).arrays
    arrays: dict[str, Any] = {name: {key: flat[key] for key in ("scale", "offset")}}
    for average in ("mean_ema", "var_ema"):
        keys = ("hidden", "average", "counter")
        arrays[f"{name}/~/{average}"] = {key: flat[f"~/{average}/{key}"] for key in keys}
    assert convert.prefixes("haiku", arrays) == [f"{name}/"]
    assert_same(convert.read_all("haiku", arrays, decay_rate=0.99)[f"{name}/"], layer)


class Block(nn.Module):
    norm: Any

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4)(self.norm(name="bn1")(x))
        return self.norm(name="bn2")(nn.LayerNorm()(x))


class Model(nn.Module):
    norm: Any

    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(Block(self.norm, name="block1")(x))


LINEN = {
    "flax": partial(nn.BatchNorm, use_running_average=True),
    "jbn": partial(jbn.linen.BatchNorm, use_running_average=True),
    "Norm": partial(jbn.linen.Norm, jbn.batch_norm(), use_running_average=True),
    "corrected": partial(
        jbn.linen.Norm, jbn.batch_norm(decay=jbn.corrected_decay(0.9)), use_running_average=True
    ),
}
every_linen_norm = pytest.mark.parametrize("norm", LINEN.values(), ids=LINEN)
RENAMED = {"block1/bn1": layer_of(1), "block1/bn2": layer_of(2, 4)}


def linen_variables(norm) -> Any:
    return trained(Model(norm).init(jax.random.key(0), data((5, 3))))


@every_linen_norm
def test_linen_norms_infer_as_the_layers_that_were_loaded(norm):
    layers = convert.read_all("torch", written("torch", RENAMED))
    variables = linen_variables(norm)
    loaded = jbn.linen.load_norms(variables, layers)
    chex.assert_trees_all_equal_shapes_and_dtypes(loaded, variables)
    for path, layer in layers.items():
        name = path.split("/")[1]
        values = {
            **loaded["params"]["block1"][name],
            **loaded["batch_stats"]["block1"][name],
        }
        assert_same(convert.read("flax", values), layer)
        if "count" in values:
            assert float(values["count"]) == layer.state.count
    for kept in ("Dense_0", "LayerNorm_0"):
        chex.assert_trees_all_equal(
            loaded["params"]["block1"][kept], variables["params"]["block1"][kept]
        )
    x = data((5, 3), 1)
    y = norm().apply({c: loaded[c]["block1"]["bn1"] for c in ("params", "batch_stats")}, x)
    params, state = (jax.tree.map(np.float64, part) for part in RENAMED["block1/bn1"][:2])
    wanted = reference.normalize(x, state.mean, state.var) * params.scale + params.bias
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)


@every_linen_norm
def test_linen_variables_are_read_and_written_as_arrays_of_torch(norm):
    variables = jbn.linen.load_norms(linen_variables(norm), RENAMED)
    arrays = {}
    for path, layer in convert.read_all("flax", variables).items():
        arrays |= convert.write("torch", layer, prefix=path.replace("/", ".")).arrays
    back = convert.read_all("torch", arrays)
    assert sorted(back) == ["block1.bn1.", "block1.bn2."]
    for path, layer in RENAMED.items():
        assert_same(back[path.replace("/", ".") + "."], layer)
    stays = jbn.linen.load_norms(variables, convert.read_all("flax", variables))
    chex.assert_trees_all_equal(stays["params"], variables["params"])
    for name in ("bn1", "bn2"):
        for field in ("mean", "var"):
            np.testing.assert_array_equal(
                stays["batch_stats"]["block1"][name][field],
                variables["batch_stats"]["block1"][name][field],
            )


def test_linen_variables_may_be_frozen_boxed_abstract_and_of_any_dtype():
    norm = partial(
        nn.BatchNorm,
        use_running_average=True,
        scale_init=nn.with_partitioning(nn.initializers.ones, ("x",)),
        param_dtype=jnp.bfloat16,
    )
    with jax.numpy_dtype_promotion("standard"):  # Flax promotes.
        abstract = jax.eval_shape(Model(norm).init, jax.random.key(0), data((5, 3)))
        variables = freeze(linen_variables(norm))
    for old in (abstract, variables):
        loaded = jbn.linen.load_norms(old, RENAMED)
        chex.assert_trees_all_equal_structs(loaded, old)
        bn1: Any = loaded["params"]["block1"]["bn1"]
        assert bn1["scale"].names == ("x",)
        for name, value in RENAMED["block1/bn1"].params._asdict().items():
            np.testing.assert_array_equal(nn.unbox(bn1[name]), value.astype(jnp.bfloat16))
    assert list(convert.read_all("flax", variables)) == ["block1/bn1/", "block1/bn2/"]


class Layer(nn.Module):
    norm: Any

    @nn.compact
    def __call__(self, x, _):
        return self.norm(name="bn")(x), None


@every_linen_norm
def test_layers_that_scan_stacked_take_stacked_vectors(norm):
    stack = nn.scan(Layer, {"params": 0, "batch_stats": 0}, split_rngs={"params": True}, length=2)(
        norm
    )
    variables: Any = stack.init(jax.random.key(0), data((5, 3)), None)
    first, second = layer_of(1), layer_of(2)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), first[:2], second[:2])
    layer = convert.Layer(stacked[0], stacked[1], first.options)
    variables = jbn.linen.load_norms(variables, {"bn": layer})
    y, _ = stack.apply(variables, data((5, 3)), None)
    wanted = data((5, 3))
    for params, state, _ in (first, second):
        wanted = jbn.batch_norm().infer(params, state, wanted)
    np.testing.assert_allclose(y, wanted, rtol=1e-6, atol=1e-6)
    assert_same(convert.read_all("flax", variables)["bn/"], layer)


def nnx_model(norm, **changes) -> Any:
    rngs = nnx.Rngs(0)
    if norm == "Norm":
        make: Any = lambda n: jbn.nnx.Norm(jbn.batch_norm(**changes), n)  # noqa: E731
    else:
        kind: Any = {"flax": nnx.BatchNorm, "jbn": jbn.nnx.BatchNorm}[norm]
        make = partial(kind, rngs=rngs, **changes)
    return nnx.Sequential(
        make(3), nnx.Linear(3, 4, rngs=rngs), nnx.LayerNorm(4, rngs=rngs), make(4)
    )


NNX_LAYERS = {"layers/0": layer_of(1), "layers/3": layer_of(2, 4)}
every_nnx_norm = pytest.mark.parametrize("norm", ["flax", "jbn", "Norm"])


@every_nnx_norm
def test_nnx_norms_infer_as_the_layers_that_were_loaded(norm):
    model = nnx_model(norm)
    before = nnx.to_pure_dict(nnx.state(model))
    jbn.nnx.load_norms(model, convert.read_all("torch", written("torch", NNX_LAYERS)))
    chex.assert_trees_all_equal_shapes_and_dtypes(nnx.to_pure_dict(nnx.state(model)), before)
    model.eval()
    x = data((5, 3), 1)
    params, state, _ = NNX_LAYERS["layers/0"]
    wanted = jbn.batch_norm().infer(params, state, x)
    np.testing.assert_allclose(model.layers[0](x), wanted, rtol=1e-5, atol=1e-6)
    for state in (nnx.state(model), nnx.to_pure_dict(nnx.state(model))):
        back = convert.read_all("flax", state)
        assert sorted(back) == ["layers/0/", "layers/3/"]
        for path, layer in NNX_LAYERS.items():
            assert_same(back[path + "/"], layer)
            if norm == "Norm" and "count" in before["layers"][0]:
                assert back[path + "/"].state.count == layer.state.count


@every_nnx_norm
def test_nnx_models_keep_their_dtypes_and_take_ones_for_what_a_layer_lacks(norm):
    model = nnx_model(norm)
    scale = model.layers[0].scale
    scale[...] = scale[...] * 3
    scale.set_value(scale[...].astype(jnp.float16))
    bare = layer_of(1, use_scale=False, use_bias=False)
    jbn.nnx.load_norms(model, NNX_LAYERS | {"layers/0": bare})
    assert model.layers[0].scale[...].dtype == jnp.float16
    np.testing.assert_array_equal(model.layers[0].scale[...], 1)


def load(kind, layers, **arguments):
    if kind == "linen":
        return jbn.linen.load_norms(linen_variables(LINEN["flax"]), layers, **arguments)
    model = nnx.Dict(
        block1=nnx.Dict(bn1=nnx_model("flax").layers[0], bn2=nnx_model("jbn").layers[3])
    )
    before = nnx.to_pure_dict(nnx.state(model))
    try:
        jbn.nnx.load_norms(model, layers, **arguments)
    except ValueError:
        chex.assert_trees_all_equal(nnx.to_pure_dict(nnx.state(model)), before)
        raise
    return nnx.to_pure_dict(nnx.state(model))


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_what_does_not_fit_is_an_error(kind):
    first, second = RENAMED.values()
    for layers, words in [
        (
            RENAMED | {"block1/bn3": first},
            r"layers has \['block1/bn3'\], which .* has \['block1/bn1",
        ),
        ({"block1/bn1": first}, r"nothing for the norms \['block1/bn2'\] .* strict=False"),
        ({"block1/bn1": first, "block1/bn2": first}, r"bn2'\] has scale of shape \(3,\).*\(4,\)"),
        (
            {"block1/bn1": first, "block1/bn2": second._replace(state=first.state)},
            r"bn2'\] has mean of shape \(3,\), and the norm of the model has \(4,\)",
        ),
    ]:
        with pytest.raises(ValueError, match=words):
            load(kind, layers)
    assert load(kind, {"block1/bn1": first}, strict=False)


def test_a_scale_for_a_norm_without_one_is_an_error():
    model = nnx_model("flax", use_scale=False)
    with pytest.raises(ValueError, match=r"'layers/0'\] has a scale and .* use_scale=True"):
        jbn.nnx.load_norms(model, NNX_LAYERS)
    variables = linen_variables(partial(nn.BatchNorm, use_running_average=True, use_bias=False))
    with pytest.raises(ValueError, match=r"'block1/bn1'\] has a bias and .* use_bias=True"):
        jbn.linen.load_norms(variables, RENAMED)


@every_nnx_norm
def test_another_epsilon_is_an_error_in_nnx(norm):
    layers = {path: layer_of(1, n, epsilon=1e-3) for path, n in (("layers/0", 3), ("layers/3", 4))}
    with pytest.raises(ValueError, match=r"epsilon=0.001, .* epsilon=1e-05"):
        jbn.nnx.load_norms(nnx_model(norm), layers)
    jbn.nnx.load_norms(nnx_model(norm, epsilon=1e-3), layers)
    wrapped = nnx.Dict(bn=jbn.nnx.Norm(jbn.frozen(jbn.batch_norm()), 3))
    with pytest.raises(ValueError, match="epsilon"):
        jbn.nnx.load_norms(wrapped, {"bn": layers["layers/0"]})
