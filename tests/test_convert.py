"""Conversions, compared with the results of the libraries themselves."""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import jbn
from jbn import convert
from tests.helpers import data
from tests.peers import ask, layers
from tests.peers.layers import FEATURES, batch


class Peer(NamedTuple):
    """A library: its name in `jbn.convert`, and its layer, `run(arguments, arrays, seeds)`."""

    layout: convert.LayoutName
    run: Callable[..., tuple[dict[str, Any], Any]]
    prefix: str = ""
    shape: tuple[int, ...] | None = None


PEERS = {
    "torch": Peer("torch", partial(ask, "torch", layers.torch_layer)),
    "linen": Peer("flax", partial(layers.linen_layer, linen)),
    "nnx": Peer("flax", partial(layers.nnx_layer, nnx)),
    "haiku": Peer(
        "haiku", partial(ask, "haiku", layers.haiku_layer), "batch_norm/", (1, 1, 1, FEATURES)
    ),
    "keras": Peer("keras", partial(ask, "keras", layers.keras_layer), "bn/"),
    "equinox_batch": Peer("equinox_batch", partial(ask, "equinox", layers.equinox_layer, "batch")),
    "equinox_ema": Peer("equinox_ema", partial(ask, "equinox", layers.equinox_layer, "ema")),
}
CORRECTED = ("haiku", "equinox_batch")

every_peer = pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
every_layout = pytest.mark.parametrize("layout", get_args(convert.LayoutName))


def layer_of(**options):
    """Returns a layer of jbn before the first batch, whose scale and bias are not trivial."""
    params, state = jbn.batch_norm(**options).init(FEATURES)
    params = jax.tree.map(lambda leaf: leaf + data(FEATURES, 5) / 2, params)
    return convert.Layer(params, state, options)


def train(layer, seeds):
    norm = jbn.batch_norm(**layer.options)
    for seed in seeds:
        layer = layer._replace(state=norm.train(layer.params, layer.state, batch(seed))[1])
    return layer


def write(peer, layer):
    """Returns jbn's layer with the names and shapes of the library."""
    return convert.write(peer.layout, layer, prefix=peer.prefix, shape=peer.shape)


def assert_infers(layer, y):
    norm = jbn.batch_norm(**layer.options)
    np.testing.assert_allclose(
        y, norm.infer(layer.params, layer.state, batch(9)), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("torch", {"momentum": 0.3, "eps": 1e-2}),
        ("torch", {"momentum": None}),
        ("linen", {"momentum": 0.7, "epsilon": 1e-2}),
        ("nnx", {"momentum": 0.7, "epsilon": 1e-2}),
        ("haiku", {"decay_rate": 0.7, "eps": 1e-2, "create_scale": True, "create_offset": True}),
        ("keras", {"momentum": 0.7}),
        ("equinox_batch", {"momentum": 0.7, "eps": 1e-2}),
        ("equinox_ema", {"momentum": 0.7, "eps": 1e-2}),
    ],
)
def test_a_layer_that_was_read_infers_and_trains_as_before(name, arguments):
    peer = PEERS[name]
    start = write(peer, layer_of(decay=jbn.corrected_decay(0.7))).arrays
    arrays, y = peer.run(arguments, start, [0, 1, 2])
    layer = convert.read(peer.layout, arrays, prefix=peer.prefix, **arguments)
    assert_infers(layer, y)
    _, y = peer.run(arguments, start, [0, 1, 2, 3])
    assert_infers(train(layer, [3]), y)


@every_peer
@pytest.mark.parametrize("corrected", [False, True])
def test_a_layer_that_was_written_infers_and_trains_as_before(peer, corrected):
    decay = jbn.corrected_decay(0.7) if corrected else 0.7
    layer = layer_of(decay=decay, epsilon=1e-2, unbiased=peer.layout == "torch")
    layer = train(layer, range(3))
    arrays, arguments = write(peer, layer)
    assert_infers(layer, peer.run(arguments, arrays, [])[1])
    if corrected and peer.layout not in CORRECTED:
        layer = layer._replace(options={**layer.options, "decay": 0.7})
    assert_infers(train(layer, [3]), peer.run(arguments, arrays, [3])[1])


@every_peer
def test_an_untrained_layer_is_read_as_an_untrained_layer(peer):
    arguments = {"decay_rate": 0.9, "create_scale": True, "create_offset": True}
    arguments = arguments if peer.layout == "haiku" else {}
    arrays, _ = peer.run(arguments, None, [])
    layer = convert.read(peer.layout, arrays, prefix=peer.prefix, **arguments)
    chex.assert_trees_all_equal(layer[:2], jbn.batch_norm().init(FEATURES))


@every_peer
@pytest.mark.parametrize("use", [(False, False), (True, False), (False, True)])
def test_without_scale_or_bias(peer, use):
    layer = layer_of(use_scale=use[0], use_bias=use[1])
    arrays, arguments = write(peer, layer)
    assert_infers(layer, peer.run(arguments, arrays, [])[1])


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


class Tensor:
    """Has the attributes of PyTorch's tensors that jbn uses. NumPy and DLPack refuse to read it."""

    def __init__(self, array, requires_grad=False):
        self.array, self.requires_grad = array, requires_grad
        self.dtype = f"torch.{array.dtype}"

    def detach(self):
        return Tensor(self.array)

    def cpu(self):
        return self

    def __array__(self, *_args, **_options):
        if self.requires_grad:
            raise RuntimeError("detach first")
        if self.array.dtype == jnp.bfloat16:
            raise TypeError("NumPy has no bfloat16")
        return np.asarray(self.array)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, **options):
        if self.requires_grad:
            raise BufferError("detach first")
        return self.array.__dlpack__(**options)


def tensors_like_torchs():
    arrays, _ = PEERS["torch"].run({}, None, [])
    parameters = {
        name: Tensor(jnp.asarray(arrays[name], jnp.bfloat16), requires_grad=True)
        for name in ("weight", "bias")
    }
    buffers = {
        "running_mean": Tensor(jnp.asarray(arrays["running_mean"], jnp.bfloat16)),
        "running_var": Tensor(jnp.asarray(arrays["running_var"], jnp.bfloat16)),
        "num_batches_tracked": Tensor(arrays["num_batches_tracked"]),
    }
    return parameters | buffers


def tensors_of_torch():
    torch: Any = importlib.import_module("torch")
    layer = torch.nn.BatchNorm2d(FEATURES).bfloat16()
    return dict(layer.named_parameters()) | dict(layer.named_buffers())


@pytest.mark.parametrize(
    "tensors",
    [tensors_like_torchs, *([tensors_of_torch] if importlib.util.find_spec("torch") else [])],
)
def test_tensors_of_torch_are_read_in_their_dtypes(tensors):
    arrays = tensors()
    with pytest.raises(RuntimeError):
        np.asarray(arrays["weight"])
    with pytest.raises(TypeError):
        np.asarray(arrays["weight"].detach())
    layer = convert.read("torch", arrays)
    assert {leaf.dtype for leaf in jax.tree.leaves(layer.params)} == {jnp.dtype(jnp.bfloat16)}
    chex.assert_trees_all_equal(layer.state, jbn.batch_norm().init(FEATURES)[1])


def test_variables_that_numpy_can_convert_are_read():
    class Variable:
        """Has the attributes of Keras's variables that jbn uses."""

        def __init__(self, array):
            self.array = array

        def __array__(self, *_args, **_options):
            return self.array

    arrays, arguments = convert.write("keras", layer_of(), prefix="bn/")
    variables = {path: Variable(array) for path, array in arrays.items()}
    layers = [convert.read("keras", a, prefix="bn/", **arguments) for a in (variables, arrays)]
    chex.assert_trees_all_equal(*(layer[:2] for layer in layers))


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
