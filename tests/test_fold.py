"""Folded layers and models give the same results as before. Other layers are refused or kept."""

from functools import partial
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jbn
import jbn.linen
import jbn.nnx
from tests.helpers import data, trained
from tests.peers import ask

X = data((4, 6, 6, 4), mean=1)


def plus(y, bias):
    """Returns y plus a bias for each feature, or y if the bias is None."""
    return y if bias is None else y + jnp.broadcast_to(bias, y.shape)


def dense(x, kernel):
    return x @ kernel


def conv(x, kernel, **options):
    options = {"window_strides": (1, 1), "padding": "SAME"} | options
    return lax.conv_general_dilated(
        x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
    )


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize(
    ("layer", "shape", "axis"),
    [
        (dense, (4, 5), -1),
        (lambda x, kernel: jnp.tensordot(x, kernel, 1), (4, 2, 5), (-2, -1)),
        (conv, (3, 3, 4, 5), -1),
        (partial(conv, window_strides=(2, 1), rhs_dilation=(1, 2)), (3, 2, 4, 5), -1),
        (partial(conv, feature_group_count=2), (3, 3, 2, 6), -1),
        (partial(conv, feature_group_count=4), (3, 3, 1, 8), -1),
        (partial(lax.conv_transpose, strides=(2, 2), padding="SAME"), (3, 3, 4, 5), -1),
        (
            partial(lax.conv_transpose, strides=(2, 2), padding="SAME", transpose_kernel=True),
            (3, 3, 5, 4),
            -2,
        ),
        (
            partial(conv, lhs_dilation=(2, 2), padding=[(1, 2)] * 2, feature_group_count=2),
            (3, 3, 2, 6),
            -1,
        ),
    ],
    ids=[
        *("dense", "two-axes", "conv", "strided-dilated", "grouped", "depthwise"),
        *("transposed", "transposed-kernel", "transposed-grouped"),
    ],
)
@pytest.mark.usefixtures("x64")
def test_a_folded_layer_equals_the_layer_and_its_norm(layer, shape, axis, use_bias):
    axes = np.atleast_1d(axis)
    features = tuple(shape[a] for a in axes)
    norm = jbn.batch_norm(epsilon=1e-3, axis=tuple(range(-len(axes), 0)))
    params, state = trained(norm.init(features))
    params, state = jax.tree.map(lambda a: a.astype(np.float64), (params, state))
    kernel = data(shape, 5, dtype=np.float64)
    bias = data(features, 6, dtype=np.float64) if use_bias else None
    x = X.astype(np.float64)
    y = norm.infer(params, state, plus(layer(x, kernel), bias))
    kernel, bias = jax.jit(jbn.fold, static_argnums=(0,), static_argnames="axis")(
        partial(norm.infer, params, state), kernel, bias, axis=axis
    )
    np.testing.assert_allclose(plus(layer(x, kernel), bias), y, rtol=1e-12, atol=1e-12)


def fuse(torch, kernel, bias, mean, var, scale, offset, transpose):
    arrays = kernel, bias, mean, var, scale, offset
    tensors = [torch.from_numpy(np.array(a)) if a is not None else None for a in arrays]
    fused = torch.nn.utils.fuse_conv_bn_weights(*tensors[:4], 1e-5, *tensors[4:], transpose)
    return [tensor.detach().numpy() for tensor in fused]


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("use_bias", [False, True])
def test_torch_fuses_to_the_same_weights(transpose, use_bias):
    norm = jbn.batch_norm()
    params, state = trained(norm.init(5))
    kernel = data((4, 5, 2, 1) if transpose else (5, 4, 2, 1), 5)
    bias = data(5, 6) if use_bias else None
    fused = ask("torch", fuse, kernel, bias, state.mean, state.var, *params, transpose)
    folded = jbn.fold(partial(norm.infer, params, state), kernel, bias, axis=int(transpose))
    for ours, theirs in zip(folded, fused, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(
    "norm",
    [
        jbn.batch_norm(use_scale=False),
        jbn.batch_norm(use_bias=False),
        jbn.batch_renorm(),
        jbn.running_batch_norm(),
        jbn.frozen(jbn.ghost_batch_norm(group_size=2)),
    ],
    ids=["no scale", "no bias", "renorm", "running", "frozen ghost"],
)
def test_any_norm_folds(norm):
    params, state = trained(norm.init(5))
    x, kernel = X[:, 0, 0], data((4, 5), 5)
    infer = partial(norm.infer, params, state)
    new_kernel, bias = jbn.fold(infer, kernel)
    np.testing.assert_allclose(plus(x @ new_kernel, bias), infer(x @ kernel), rtol=1e-5, atol=1e-5)


def test_a_narrow_kernel_is_folded_in_float32_and_stays_narrow():
    norm = jbn.batch_norm()
    params, state = trained(norm.init(5))
    infer = partial(norm.infer, params, state)
    kernel = jnp.asarray(data((4, 5), 5)).astype(jnp.bfloat16)
    bias = jnp.asarray(data(5, 6))
    narrow, wide = jbn.fold(infer, kernel, bias), jbn.fold(infer, kernel.astype(jnp.float32), bias)
    assert [a.dtype for a in narrow] == [jnp.bfloat16, jnp.float32]
    np.testing.assert_array_equal(narrow[0], wide[0].astype(jnp.bfloat16))
    np.testing.assert_array_equal(narrow[1], wide[1])


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((jnp.ones((4, 5), jnp.int32),), TypeError, "int32"),
        ((jnp.ones((4, 5)), jnp.ones(4)), ValueError, r"bias has shape \(4,\)"),
        ((jnp.ones((5, 4)),), ValueError, r"mean has shape \(5,\)"),
    ],
)
def test_what_does_not_fit_is_an_error(arguments, error, words):
    norm = jbn.batch_norm()
    with pytest.raises(error, match=words):
        jbn.fold(partial(norm.infer, *norm.init(5)), *arguments)


def assert_close(y, wanted):
    """Checks that values differ by less than 1e-5, relative to themselves or to the largest."""
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def variables_of(model):
    """Returns variables of a Linen model, as after training.

    It does not call the model's init, which takes long to compile.
    """

    def values(leaf):
        is_kernel = leaf.ndim > 1
        return data(leaf.shape, leaf.size) if is_kernel else np.zeros(leaf.shape, np.float32)

    return trained(jax.tree.map(values, jax.eval_shape(model.init, jax.random.key(0), X)))


def linen_pair(model, **options):
    """Returns outputs of a trained Linen model before and after folding, and the folded model."""
    variables = variables_of(model)
    folded = jbn.linen.fold(model, variables, X, **options)
    before, after = jax.jit(model.apply), jax.jit(folded.apply)
    return before(variables, X), after(folded.variables, X), folded


class Stack(nn.Module):
    """A model with every kind of layer, each with a norm."""

    norm: Any
    use_bias: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        options: dict[str, Any] = {"use_bias": self.use_bias, "dtype": self.dtype}
        for layer in (
            nn.Conv(6, (3, 3), 2, feature_group_count=2, padding="CIRCULAR", **options),
            nn.ConvTranspose(5, (3, 3), (2, 2), **options),
            nn.ConvTranspose(4, (3, 3), transpose_kernel=True, **options),
            nn.remat(Pair)(self.norm),
            nn.Dense(7, **options),
        ):
            x = nn.relu(self.norm(use_running_average=True)(layer(x)))
        return x


class Pair(nn.Module):
    norm: Any

    @nn.compact
    def __call__(self, x):
        x = self.norm(use_running_average=True)(nn.Conv(3, (1, 1))(x))
        return nn.Conv(3, (1, 1), name="last")(x)


@pytest.mark.parametrize(
    ("norm", "use_bias"),
    [
        (jbn.linen.BatchNorm, True),
        (nn.BatchNorm, False),
        (partial(jbn.linen.Norm, jbn.batch_norm()), False),
    ],
    ids=["jbn", "flax", "Norm"],
)
def test_every_kind_of_linen_layer_and_norm(norm, use_bias):
    wanted, y, folded = linen_pair(Stack(norm, use_bias), strict=False)
    # The norm after the rematerialized block takes the output of a layer inside of the block.
    assert len(folded.layers) == 5
    assert len(folded.refused) == 1
    assert_close(y, wanted)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16, jnp.float32])
def test_a_linen_model_in_bfloat16_keeps_its_dtypes(dtype):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(5, use_bias=False, dtype=jnp.bfloat16)(x)
            return nn.BatchNorm(use_running_average=True, dtype=dtype)(x)

    with jax.numpy_dtype_promotion("standard"):  # Flax's.
        wanted, y, folded = linen_pair(Model())
    assert y.dtype == wanted.dtype == (dtype or jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(folded.variables)} == {np.dtype(np.float32)}
    y, wanted = (np.asarray(a, np.float32) for a in (y, wanted))
    np.testing.assert_allclose(y, wanted, rtol=0.02, atol=0.02 * np.abs(wanted).max())


class Unfoldable(nn.Module):
    """A model with a norm that cannot be folded. The reason is the name of the case."""

    case: str

    @nn.compact
    def __call__(self, x, train=False):
        conv, dense = nn.Conv(4, (3, 3)), nn.Dense(4, use_bias=False)
        norm = jbn.linen.BatchNorm(use_running_average=not train)
        match self.case:
            case "before the layer":
                return conv(norm(x))
            case "something between":
                return norm(nn.relu(conv(x)))
            case "output used twice":
                y = conv(x)
                return norm(y) + y
            case "output returned":
                y = conv(x)
                return norm(y), y
            case "norm used twice":
                return norm(dense(norm(conv(x))))
            case "layer used twice":
                return norm(dense(dense(x)))
            case "kernel used elsewhere":
                return norm(dense(x)) @ dense.variables["params"]["kernel"].T
            case "masked":
                return norm(conv(x), mask=jnp.ones((4, 6, 6, 1), bool))
            case "another axis":
                return jbn.linen.BatchNorm(use_running_average=True, axis=1)(conv(x))
            case "flax on another axis":
                return nn.BatchNorm(use_running_average=True, axis=1)(conv(x))
            case "stacked":
                layers = nn.scan(
                    Layer, {"params": 0, "batch_stats": 0}, split_rngs={"params": True}, length=3
                )
                return layers()(x, None)[0]


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return jbn.linen.BatchNorm(use_running_average=True)(nn.Dense(4)(x)), None


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("before the layer", "not the unchanged output of a linear layer"),
        ("something between", "not the unchanged output of a linear layer"),
        ("output used twice", "output of 'Conv_0' is used elsewhere"),
        ("output returned", "output of 'Conv_0' is used elsewhere"),
        ("norm used twice", "called more than once"),
        ("layer used twice", "'Dense_0' or its kernel is used elsewhere"),
        ("kernel used elsewhere", "'Dense_0' or its kernel is used elsewhere"),
        ("masked", "with a mask"),
        ("another axis", r"normalizes axes \(1,\)"),
        ("flax on another axis", r"normalizes axes \(1,\)"),
        ("stacked", "not fold into 'ScanLayer_0/Dense_0'"),
    ],
)
def test_what_is_not_foldable_is_refused_or_kept(case, words):
    model = Unfoldable(case)
    variables = variables_of(model)
    with pytest.raises(ValueError, match=words):
        jbn.linen.fold(model, variables, X)
    wanted, y, folded = linen_pair(model, strict=False)
    assert (len(folded.layers), len(folded.refused)) == (0, 1)
    chex.assert_trees_all_equal(y, wanted)
    chex.assert_trees_all_equal(folded.variables, variables)


ACTIVATIONS = [jbn.activations.leaky_relu(0.1), jbn.activations.elu(), jbn.activations.identity()]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
@pytest.mark.parametrize("use_bias", [False, True])
def test_an_activation_of_a_norm_stays(activation, use_bias):
    norm = jbn.inplace_batch_norm(activation=activation)

    def with_small_scale(tree):
        """Below the least scale of an in-place norm."""
        factor = np.array([1e-3, 1, 1, 1, 1], np.float32)
        return jax.tree.map_with_path(
            lambda path, leaf: leaf * factor if "scale" in str(path) else leaf, trained(tree)
        )

    for wrapped in (norm, jbn.frozen(norm)):
        module = jbn.linen.Norm(wrapped, use_running_average=True)
        model: Any = nn.Sequential([nn.Dense(5, use_bias=use_bias), module])
        variables = with_small_scale(variables_of(model))
        folded = jbn.linen.fold(model, variables, X)
        assert_close(folded.apply(folded.variables, X), model.apply(variables, X))
        rngs = nnx.Rngs(0)
        norms = jbn.nnx.Norm(wrapped, 5, use_running_average=True)
        model = nnx.Sequential(nnx.Linear(4, 5, use_bias=use_bias, rngs=rngs), norms)
        nnx.update(model, with_small_scale(nnx.state(model)))
        assert_close(jbn.nnx.fold(model, X).model(X), model(X))


@pytest.mark.parametrize("activation", ACTIVATIONS[:2], ids=repr)
def test_what_is_not_affine_is_refused(activation):
    norm = jbn.inplace_batch_norm(activation=activation)
    with pytest.raises(ValueError, match="infer is not affine"):
        jbn.fold(partial(norm.infer, *norm.init(5)), jnp.ones((4, 5)))
    model = nn.Sequential([nn.Dense(5), nn.BatchNorm(use_running_average=True)])
    variables = variables_of(model)
    with jbn.linen.replace_batch_norm(norm), pytest.raises(ValueError, match="not affine"):
        jbn.linen.fold(model, variables, X)


def test_folding_uses_the_norm_that_replaces():
    model = nn.Sequential([nn.Dense(5), nn.BatchNorm(use_running_average=True)])
    variables = variables_of(model)
    with jbn.linen.replace_batch_norm(jbn.batch_norm(epsilon=0.5)):
        folded = jbn.linen.fold(model, variables, X)
        wanted = model.apply(variables, X)
    assert_close(folded.apply(folded.variables, X), wanted)
    # The activation of a replaced norm is not applied.
    inplace = jbn.linen.Norm(jbn.inplace_batch_norm(), use_running_average=True)
    model = nn.Sequential([nn.Dense(5), inplace])
    with jbn.linen.replace_batch_norm(jbn.batch_norm(epsilon=0.5)):
        folded = jbn.linen.fold(model, variables, X)
    assert_close(folded.apply(folded.variables, X), wanted)


def test_an_output_in_bfloat16_does_not_round_what_is_folded():
    norm = jbn.batch_norm(dtype=jnp.bfloat16)
    for wrapped in (norm, jbn.frozen(norm)):
        model: Any = nn.Sequential([nn.Dense(5), jbn.linen.Norm(wrapped, True)])
        variables = variables_of(model)
        params, stats = (variables[name]["layers_1"] for name in ("params", "batch_stats"))
        folded = jbn.linen.fold(model, variables, X)
        gain = params["scale"] / np.sqrt(stats["var"] + np.float32(1e-5))
        wanted = np.asarray(variables["params"]["layers_0"]["kernel"]) * gain
        np.testing.assert_allclose(
            folded.variables["params"]["layers_0"]["kernel"], wanted, rtol=1e-6
        )
        assert folded.apply(folded.variables, X).dtype == jnp.bfloat16


class PlainBatchNorm(nn.BatchNorm):
    pass


def test_a_plain_subclass_folds_like_flaxs():
    norm = partial(PlainBatchNorm, use_running_average=True)
    wanted, y, folded = linen_pair(nn.Sequential([nn.Dense(5), norm()]))
    assert list(folded.layers) == ["layers_1"]
    assert_close(y, wanted)


def test_a_linen_model_is_folded_and_applied_in_inference():
    model = Unfoldable("something between")
    variables = variables_of(model)
    with pytest.raises(ValueError, match="training mode"):
        jbn.linen.fold(model, variables, X, train=True)


def test_jitted_blocks_notice_that_they_were_folded():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.jit(Layer)()(x, None)[0]

    wanted, y, folded = linen_pair(Model())
    assert list(folded.layers.values()) == ["JitLayer_0/Dense_0"]
    assert_close(y, wanted)


class NnxStack(nnx.Module):
    """A model with all NNX layers, each with a norm. The last norm cannot be folded."""

    def __init__(self, norm, use_bias):
        rngs = nnx.Rngs(0)
        options: dict[str, Any] = {"use_bias": use_bias, "rngs": rngs}
        options["kernel_init"] = lambda _, shape, *__: jnp.asarray(data(shape, shape[-1]))
        layers = [
            nnx.Conv(4, 6, (3, 3), feature_group_count=2, **options),
            nnx.ConvTranspose(6, 5, (3, 3), (2, 2), **options),
            nnx.ConvTranspose(5, 4, (3, 3), transpose_kernel=True, **options),
            nnx.Linear(4, 7, **options),
        ]
        self.layers = nnx.List(layers)
        self.norms = nnx.List([norm(layer.out_features, rngs=rngs) for layer in layers])
        self.last = norm(7, rngs=rngs)

    def __call__(self, x):
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = nnx.relu(norm(layer(x)))
        return self.last(x)


def nnx_norm(num_features, rngs):
    return jbn.nnx.Norm(jbn.batch_norm(), num_features)


@pytest.mark.parametrize(
    ("norm", "use_bias"), [(jbn.nnx.BatchNorm, True), (nnx.BatchNorm, False), (nnx_norm, False)]
)
def test_every_kind_of_nnx_layer_and_norm(norm, use_bias):
    model = NnxStack(norm, use_bias)
    nnx.update(model, trained(nnx.state(model)))
    model.eval()
    with pytest.raises(ValueError, match="last: its input is not"):
        jbn.nnx.fold(model, X)
    state = nnx.state(model)
    folded = jbn.nnx.fold(model, X, strict=False)
    assert list(folded.layers.items()) == [(f"norms/{i}", f"layers/{i}") for i in range(4)]
    assert list(folded.refused) == ["last"]
    run = nnx.jit(lambda model, x: model(x))
    assert_close(run(folded.model, X), run(model, X))
    chex.assert_trees_all_equal(nnx.state(model), state)


def test_an_nnx_model_is_folded_and_called_in_evaluation_mode():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(4, 3, rngs=rngs), jbn.nnx.BatchNorm(3, rngs=rngs))
    with pytest.raises(ValueError, match="training mode"):
        jbn.nnx.fold(model, X)
    model.eval()
    folded = jbn.nnx.fold(model, X).model
    folded.train()
    with pytest.raises(ValueError, match="training mode"):
        folded(X)


@pytest.mark.parametrize("case", ["shared layer", "output used twice"])
def test_a_shared_nnx_layer_is_refused(case):
    class Model(nnx.Module):
        def __init__(self):
            self.layer = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
            self.norm = jbn.nnx.BatchNorm(4, use_running_average=True, rngs=nnx.Rngs(0))

        def __call__(self, x):
            y = self.layer(x)
            return self.norm(self.layer(y)) if case == "shared layer" else self.norm(y) + y

    with pytest.raises(ValueError, match=r"'layer'.* is used elsewhere"):
        jbn.nnx.fold(Model(), X)
