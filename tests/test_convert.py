"""Conversions against the libraries themselves, where they are installed."""

import os
from typing import Any, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import jbn
from jbn import convert
from tests.helpers import data

FEATURES = 3
SHAPE = (4, 2, 3, FEATURES)


def batch(seed):
    return np.asarray(data(SHAPE, seed, mean=seed), np.float32)


class Peer:
    """One layer of a library: its arrays out, arrays in, and its call on channels-last data."""

    layout: convert.LayoutName
    prefix = ""
    shape: tuple[int, ...] | None = None


class Torch(Peer):
    layout = "torch"

    def __init__(self, **arguments):
        self.torch = pytest.importorskip("torch", reason="PyTorch is not installed")
        self.layer = self.torch.nn.BatchNorm2d(FEATURES, **arguments)

    def arrays(self):
        return {name: tensor.numpy() for name, tensor in self.layer.state_dict().items()}

    def load(self, arrays):
        tensors = {name: self.torch.from_numpy(array) for name, array in arrays.items()}
        self.layer.load_state_dict(tensors)

    def __call__(self, x, training):
        self.layer.train(training)
        y = self.layer(self.torch.from_numpy(np.moveaxis(x, -1, 1).copy()))
        return np.moveaxis(y.detach().numpy(), 1, -1)


class Linen(Peer):
    layout = "flax"

    def __init__(self, **arguments):
        self.layer = linen.BatchNorm(**arguments)
        self.variables: Any = self.layer.init(jax.random.key(0), batch(0), use_running_average=True)

    def arrays(self):
        return {**self.variables.get("params", {}), **self.variables["batch_stats"]}

    def load(self, arrays):
        self.variables = jax.tree.map_with_path(lambda p, _: arrays[p[-1].key], self.variables)
        assert len(arrays) == len(jax.tree.leaves(self.variables))

    def __call__(self, x, training):
        y, updates = self.layer.apply(
            self.variables, x, use_running_average=not training, mutable=["batch_stats"]
        )
        self.variables = {**self.variables, **updates}
        return y


class Nnx(Peer):
    layout = "flax"

    def __init__(self, **arguments):
        self.layer = nnx.BatchNorm(FEATURES, rngs=nnx.Rngs(0), **arguments)

    def arrays(self):
        return nnx.to_pure_dict(nnx.state(self.layer))

    def load(self, arrays):
        state = nnx.state(self.layer)
        nnx.replace_by_pure_dict(state, jax.tree.map(jnp.asarray, arrays))
        nnx.update(self.layer, state)

    def __call__(self, x, training):
        return self.layer(x, use_running_average=not training)


class Haiku(Peer):
    layout, prefix, shape = "haiku", "batch_norm/", (1, 1, 1, FEATURES)

    def __init__(self, **arguments):
        hk: Any = pytest.importorskip("haiku", reason="Haiku is not installed")
        arguments = {"create_scale": True, "create_offset": True, **arguments}
        self.layer = hk.transform_with_state(lambda x, t: hk.BatchNorm(**arguments)(x, t))
        self.params, self.state = self.layer.init(jax.random.key(0), batch(0), True)

    def arrays(self):
        return self.params | self.state

    def load(self, arrays):
        self.params, self.state = (
            {m: {n: arrays[f"{m}/{n}"] for n in names} for m, names in tree.items()}
            for tree in (self.params, self.state)
        )
        assert len(arrays) == len(jax.tree.leaves(self.arrays()))

    def __call__(self, x, training):
        y, self.state = self.layer.apply(self.params, self.state, None, x, training)
        return y


class Keras(Peer):
    layout, prefix = "keras", "bn/"

    def __init__(self, **arguments):
        os.environ.setdefault("KERAS_BACKEND", "jax")
        keras: Any = pytest.importorskip("keras", reason="Keras is not installed")
        self.layer = keras.layers.BatchNormalization(name="bn", **arguments)
        self.layer.build(SHAPE)

    def arrays(self):
        return {weight.path: weight for weight in self.layer.weights}

    def load(self, arrays):
        assert len(arrays) == len(self.layer.weights)
        for weight in self.layer.weights:
            weight.assign(arrays[weight.path])

    def __call__(self, x, training):
        return self.layer(x, training=training)


class EquinoxBatch(Peer):
    layout, mode = "equinox_batch", "batch"
    buffers = ("batch_state_index", "batch_counter")

    def __init__(self, **arguments):
        self.eqx: Any = pytest.importorskip("equinox", reason="Equinox is not installed")
        make = self.eqx.nn.make_with_state(self.eqx.nn.BatchNorm)
        self.layer, self.state = make(FEATURES, "batch", mode=self.mode, **arguments)

    def arrays(self):
        buffers = {name: self.state.get(getattr(self.layer, name)) for name in self.buffers}
        return {"weight": self.layer.weight, "bias": self.layer.bias} | buffers

    def load(self, arrays):
        if "weight" in arrays:
            vectors = (jnp.asarray(arrays["weight"]), jnp.asarray(arrays["bias"]))
            self.layer = self.eqx.tree_at(lambda bn: (bn.weight, bn.bias), self.layer, vectors)
        averages, counter = self.buffers
        values = tuple(jnp.asarray(arrays[f"{averages}/{i}"]) for i in range(2))
        self.state = self.state.set(getattr(self.layer, averages), values)
        self.state = self.state.set(getattr(self.layer, counter), arrays[counter].item())

    def __call__(self, x, training):
        def call(x, state):
            return self.layer(x, state, inference=not training)

        apply = jax.vmap(call, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        y, self.state = apply(np.moveaxis(x, -1, 1), self.state)
        return np.moveaxis(np.asarray(y), 1, -1)


class EquinoxEma(EquinoxBatch):
    layout, mode = "equinox_ema", "ema"
    buffers = ("ema_state_index", "ema_first_time_index")


PEERS = [Torch, Linen, Nnx, Haiku, Keras, EquinoxBatch, EquinoxEma]
CORRECTED = ("haiku", "equinox_batch")

every_peer = pytest.mark.parametrize("peer", PEERS)
every_layout = pytest.mark.parametrize("layout", get_args(convert.LayoutName))


def layer_of(**options):
    """A layer of jbn with a scale and a bias that mean something, before the first batch."""
    params, state = jbn.batch_norm(**options).init(FEATURES)
    params = jax.tree.map(lambda leaf: leaf + data(FEATURES, 5) / 2, params)
    return convert.Layer(params, state, options)


def train(layer, seeds):
    norm = jbn.batch_norm(**layer.options)
    for seed in seeds:
        layer = layer._replace(state=norm.train(layer.params, layer.state, batch(seed))[1])
    return layer


def write(peer, layer):
    """The library's layer, made and filled from jbn's."""
    foreign = convert.write(peer.layout, layer, prefix=peer.prefix, shape=peer.shape)
    real = peer(**foreign.arguments)
    real.load(foreign.arrays)
    return real


def assert_same_inference(real, layer):
    y = jbn.batch_norm(**layer.options).infer(layer.params, layer.state, batch(9))
    np.testing.assert_allclose(real(batch(9), training=False), y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("peer", "arguments"),
    [
        (Torch, {"momentum": 0.3, "eps": 1e-2}),
        (Torch, {"momentum": None}),
        (Linen, {"momentum": 0.7, "epsilon": 1e-2}),
        (Nnx, {"momentum": 0.7, "epsilon": 1e-2}),
        (Haiku, {"decay_rate": 0.7, "eps": 1e-2, "create_scale": True, "create_offset": True}),
        (Keras, {"momentum": 0.7}),
        (EquinoxBatch, {"momentum": 0.7, "eps": 1e-2}),
        (EquinoxEma, {"momentum": 0.7, "eps": 1e-2}),
    ],
)
def test_a_layer_that_was_read_infers_and_trains_as_before(peer, arguments):
    real = peer(**arguments)
    start = layer_of(decay=jbn.corrected_decay(0.7))
    real.load(convert.write(peer.layout, start, prefix=peer.prefix, shape=peer.shape).arrays)
    for seed in range(3):
        real(batch(seed), training=True)

    layer = convert.read(peer.layout, real.arrays(), prefix=peer.prefix, **arguments)
    assert_same_inference(real, layer)
    real(batch(3), training=True)
    assert_same_inference(real, train(layer, [3]))


@every_peer
@pytest.mark.parametrize("corrected", [False, True])
def test_a_layer_that_was_written_infers_and_trains_as_before(peer, corrected):
    decay = jbn.corrected_decay(0.7) if corrected else 0.7
    layer = layer_of(decay=decay, epsilon=1e-2, unbiased=peer is Torch)
    layer = train(layer, range(3))
    real = write(peer, layer)
    assert_same_inference(real, layer)
    real(batch(3), training=True)
    if corrected and peer.layout not in CORRECTED:
        layer = layer._replace(options={**layer.options, "decay": 0.7})
    assert_same_inference(real, train(layer, [3]))


@every_peer
def test_an_untrained_layer_is_read_as_an_untrained_layer(peer):
    arguments = {"decay_rate": 0.9, "create_scale": True, "create_offset": True}
    arguments = arguments if peer is Haiku else {}
    layer = convert.read(peer.layout, peer(**arguments).arrays(), prefix=peer.prefix, **arguments)
    chex.assert_trees_all_equal(layer[:2], jbn.batch_norm().init(FEATURES))


@every_peer
@pytest.mark.parametrize("use", [(False, False), (True, False), (False, True)])
def test_without_scale_or_bias(peer, use):
    layer = layer_of(use_scale=use[0], use_bias=use[1])
    assert_same_inference(write(peer, layer), layer)


@every_layout
@pytest.mark.parametrize("corrected", [False, True])
def test_there_and_back(layout, corrected):
    decay = jbn.corrected_decay(0.75) if corrected else 0.75
    layer = train(layer_of(decay=decay, epsilon=1e-2), range(3))
    arrays, arguments = convert.write(layout, layer)
    model = {"bn1": arrays, "other": {"kernel": 0}}
    back = convert.read(layout, model, prefix="bn1/", **arguments)

    rtol = 2e-7 if corrected and layout == "equinox_batch" else 0
    for actual, expected in zip(back.state[:2], layer.state[:2], strict=True):
        np.testing.assert_allclose(actual, expected, rtol=rtol)
    chex.assert_trees_all_equal(back.params, layer.params)
    assert back.options["epsilon"] == 1e-2

    def weight(layer) -> Any:
        decay = layer.options["decay"]
        return decay(layer.state.count) if callable(decay) else decay

    expected = weight(layer) if layout in CORRECTED else 0.75
    np.testing.assert_allclose(weight(back), expected, rtol=1e-6)
    if layout == "torch" or (corrected and layout in CORRECTED):
        assert back.state.count == 3


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_statistics_are_read_in_float32_or_wider(dtype):
    arrays, arguments = convert.write("flax", train(layer_of(), range(3)))
    other = {name: array.astype(dtype) for name, array in arrays.items()}
    for arrays in (other, jax.tree.map(jnp.asarray, other)):
        layer = convert.read("flax", arrays, **arguments)
        kept = jnp.float32 if dtype == np.float64 else dtype
        assert {leaf.dtype for leaf in jax.tree.leaves(layer.params)} == {jnp.dtype(kept)}
        assert {leaf.dtype for leaf in layer.state} == {jnp.dtype(jnp.float32)}
        np.testing.assert_array_equal(layer.state.var, np.float32(other["var"]))
        np.testing.assert_array_equal(layer.params.scale, other["scale"].astype(kept))


def test_float64_statistics_stay_float64_where_jax_has_it(x64):
    arrays = convert.write("flax", layer_of()).arrays
    layer = convert.read("flax", arrays | {"var": np.array([1 + 1e-12, 2, 3])})
    assert layer.state.mean.dtype == layer.state.var.dtype == jnp.float64
    assert layer.state.var[0] == 1 + 1e-12


def test_lists_of_numbers_are_vectors():
    arrays: Any = {"scale": [1.0, 2.0], "bias": [0.0, 1.0], "mean": [3.0, 4.0], "var": [5.0, 6.0]}
    layer = convert.read("flax", {"bn": arrays}, prefix="bn/")
    np.testing.assert_array_equal(layer.state.var, [5, 6])


def test_tensors_of_torch_are_read_in_their_dtypes():
    torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
    real = torch.nn.BatchNorm1d(FEATURES).bfloat16()
    arrays = dict(real.named_parameters()) | dict(real.named_buffers())
    layer = convert.read("torch", arrays)
    assert {leaf.dtype for leaf in jax.tree.leaves(layer.params)} == {jnp.dtype(jnp.bfloat16)}
    chex.assert_trees_all_equal(layer.state, jbn.batch_norm().init(FEATURES)[1])


@pytest.mark.parametrize("count", [2**24, 2**40])
def test_counts_stay_counts(count):
    layer = layer_of(decay=jbn.corrected_decay(0.9))
    arrays = convert.write("torch", layer).arrays | {"num_batches_tracked": np.int64(count)}
    read = convert.read("torch", arrays)
    assert float(read.state.count) == count
    assert read.state.count.dtype == jnp.float32
    written = convert.write("torch", read).arrays["num_batches_tracked"]
    assert (written, written.dtype) == (count, np.int64)
    read = layer._replace(state=read.state)
    haiku = convert.write("haiku", read).arrays["~/mean_ema/counter"]
    assert (haiku, haiku.dtype) == (min(count, 2**30), np.int32)


def test_averaged_counts_are_rounded_to_the_integers_of_the_library():
    layer = layer_of()
    layer = layer._replace(state=layer.state._replace(count=jnp.float32(2.75)))
    assert convert.write("torch", layer).arrays["num_batches_tracked"] == 3


def test_old_checkpoints_of_torch_have_no_count():
    arrays = convert.write("torch", train(layer_of(), range(3))).arrays
    del arrays["num_batches_tracked"]
    assert convert.read("torch", arrays).state.count == 0


@pytest.mark.parametrize(
    ("error", "arguments", "words"),
    [
        (ValueError, {"layout": "tf"}, "'tf' is unknown: choose one of .'torch', 'flax'"),
        (KeyError, {"prefix": "bn2."}, "no torch layer with prefix='bn2.'; .* are .'bn1.'"),
        (KeyError, {"prefix": "bn1"}, "no torch layer with prefix='bn1'; .* are .'bn1.'"),
        (KeyError, {"prefix": ""}, "no torch layer with prefix=''; .* are .'bn1.'"),
        (KeyError, {"arrays": [np.ones(3)]}, "nearest of its 0 prefixes"),
        (TypeError, {"epsilon": 1e-3}, "'epsilon'.* are none of torch's .'momentum', 'eps'"),
        (TypeError, {"layout": "haiku"}, "no default for .'decay_rate'"),
        (ValueError, {"momentum": 2}, "must be in .0, 1."),
    ],
)
def test_what_cannot_be_read(error, arguments, words):
    arrays = convert.write("torch", layer_of(), prefix="bn1.").arrays
    with pytest.raises(error, match=words):
        convert.read(**{"layout": "torch", "arrays": arrays, "prefix": "bn1.", **arguments})


@every_layout
@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_arrays_must_fit_each_other(layout, place):
    arrays, arguments = convert.write(layout, train(layer_of(), range(2)), prefix="bn/")
    vectors = [path for path, array in arrays.items() if array.ndim]
    own = [path for path in vectors if not path.endswith("hidden")]
    changed = arrays | {own[place]: np.ones(2, np.float32)}
    with pytest.raises(ValueError, match=rf"the {layout} layer .*'bn/' has .*\(2,\)"):
        convert.read(layout, changed, prefix="bn/", **arguments)
    missing = {path: array for path, array in arrays.items() if path != own[place]}
    with pytest.raises(KeyError, match="bn/"):
        convert.read(layout, missing, prefix="bn/", **arguments)


@pytest.mark.parametrize(
    ("name", "value"),
    [("var", [-1, 1, 1]), ("var", [np.nan, 1, 1]), ("var", [1, np.inf, 1]), ("mean", [np.nan] * 3)],
)
def test_statistics_must_be_possible(name, value):
    arrays = convert.write("flax", layer_of()).arrays | {name: np.float32(value)}
    with pytest.raises(ValueError, match="finite, and variances not negative: the flax layer"):
        convert.read("flax", arrays)


def test_a_missing_array_is_named_with_what_to_do_about_it():
    arrays = convert.write("keras", layer_of(), prefix="bn/").arrays

    def without(name):
        return {path: array for path, array in arrays.items() if path != f"bn/{name}"}

    with pytest.raises(KeyError, match="'bn/gamma' is not in arrays: pass scale=False if"):
        convert.read("keras", without("gamma"), prefix="bn/")
    with pytest.raises(KeyError, match="'bn/beta' is not in arrays: pass center=False if"):
        convert.read("keras", without("beta"), prefix="bn/")
    with pytest.raises(KeyError, match=r"'bn/moving_variance' is not in arrays\."):
        convert.read("keras", without("moving_variance"), prefix="bn/")


@pytest.mark.parametrize("name", ["scale", "bias", "mean", "var"])
@pytest.mark.parametrize("dtype", [np.int32, np.bool_, np.complex64])
def test_vectors_are_real_floating_point(name, dtype):
    arrays = convert.write("flax", layer_of()).arrays
    with pytest.raises(TypeError, match=f"the flax layer with prefix='' has {name} of"):
        convert.read("flax", arrays | {name: np.ones(3, dtype)})


@pytest.mark.parametrize("shape", [(), (2,), (1,)])
def test_a_count_is_one_number_and_vectors_are_vectors(shape):
    arrays = convert.write("torch", layer_of()).arrays
    if shape:
        with pytest.raises(ValueError, match="count must be one number"):
            convert.read("torch", arrays | {"num_batches_tracked": np.zeros(shape, np.int64)})
    else:
        with pytest.raises(ValueError, match=r"one shape .*: the torch layer"):
            convert.read("torch", {path: array.reshape(-1)[0] for path, array in arrays.items()})


@pytest.mark.parametrize(
    ("error", "layout", "options", "words"),
    [
        (ValueError, "tf", {}, "'tf' is unknown"),
        (ValueError, "flax", {"decay": jbn.cumulative_decay}, "has no limit below 1, which flax"),
        (ValueError, "haiku", {"decay": 1.0}, "decay=1.0 .* which haiku needs"),
        (TypeError, "flax", {"momentum": 0.9}, "'momentum'"),
    ],
)
def test_what_cannot_be_written(error, layout, options, words):
    with pytest.raises(error, match=words):
        convert.write(layout, layer_of()._replace(options=options))


@pytest.mark.parametrize("count", [-1, np.nan, np.inf])
def test_an_impossible_count_is_an_error(count):
    arrays = convert.write("torch", layer_of()).arrays | {"num_batches_tracked": np.array(count)}
    with pytest.raises(ValueError, match="finite and not negative"):
        convert.read("torch", arrays)


def test_arrays_of_another_byte_order():
    arrays = convert.write("torch", layer_of()).arrays
    swapped = {name: np.asarray(a).astype(a.dtype.newbyteorder()) for name, a in arrays.items()}
    chex.assert_trees_all_equal(convert.read("torch", swapped), convert.read("torch", arrays))
