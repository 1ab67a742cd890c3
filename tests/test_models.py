"""Small versions of published networks, trained in float64 with jbn's norms and with Flax's."""

import types
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict
from jax import lax

import jbn
import jbn.linen
import jbn.nnx
from tests.helpers import data, slow_but_for

pytestmark = pytest.mark.usefixtures("x64")

STEPS = 3


class Program(NamedTuple):
    """A network in training, as a function.

    Attributes:
      params: the learned parameters.
      stats: the running statistics.
      loss: `loss(params, stats, batch) -> (loss, stats)`.
    """

    params: Any
    stats: Any
    loss: Callable[..., tuple[jax.Array, Any]]


def history(program: Program, batches: Any, rate: float = 0.1) -> list[dict[str, Any]]:
    """Returns the loss, the gradients and the statistics of each step of gradient descent."""

    @jax.jit
    def step(params, stats, batch):
        loss_and_gradients = jax.value_and_grad(program.loss, has_aux=True)
        (loss, stats), grads = loss_and_gradients(params, stats, batch)
        params = jax.tree.map(lambda p, g: p - rate * g, params, grads)
        return params, {"loss": loss, "grads": grads, "stats": stats}

    params, steps = program.params, [{"stats": program.stats}]
    with jax.numpy_dtype_promotion("standard"):  # Flax promotes.
        for i in range(STEPS):
            batch = jax.tree.map(lambda a, i=i: a[i], batches)
            params, out = step(params, steps[-1]["stats"], batch)
            steps.append(out)
    return steps[1:]


def assert_equal_training(ours: Program, theirs: Program, batches: Any) -> None:
    for got, wanted in zip(history(ours, batches), history(theirs, batches), strict=True):
        # The other libraries do not count updates.
        got, wanted = (
            {path: leaf for path, leaf in flatten_dict(step).items() if path[-1] != "count"}
            for step in (got, wanted)
        )
        assert abs(wanted[("loss",)]) > 0.01
        chex.assert_trees_all_close(got, wanted, rtol=1e-10, atol=1e-12)


def squared_error(y, target):
    return jnp.mean(jnp.square(y - target))


def initialized(model: nn.Module, *inputs: Any, **options: Any) -> Any:
    with jax.numpy_dtype_promotion("standard"):  # Parameters are made in float32.
        init: Any = jax.jit(model.init, static_argnames="train")
        variables = init(jax.random.key(0), *inputs, **options)
    return jax.tree.map(lambda a: a.astype(jnp.float64), variables)


def in_linen(model: nn.Module, variables: Any) -> Program:
    def loss(params, stats, batch):
        inputs, target = batch
        variables = {"params": params, "batch_stats": stats}
        y, updates = model.apply(variables, *inputs, mutable=["batch_stats"])
        return squared_error(y, target), updates["batch_stats"]

    return Program(variables["params"], variables["batch_stats"], loss)


def in_nnx(model: nnx.Module) -> Program:
    graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    params, stats = (
        nnx.to_pure_dict(jax.tree.map(lambda a: a.astype(jnp.float64), state))
        for state in (params, stats)
    )

    def loss(params, stats, batch):
        inputs, target = batch
        copy: Any = nnx.merge(graph, *map(nnx.State, (params, stats)), copy=True)
        error = squared_error(copy(*inputs), target)
        return error, nnx.to_pure_dict(nnx.state(copy, nnx.BatchStat))

    return Program(params, stats, loss)


def batches_of(*shapes, targets):
    """Returns inputs and targets of all steps, in float64, at an offset from 0."""
    inputs = [data((STEPS, *s), i, 0.5, np.float64) for i, s in enumerate(shapes)]
    return inputs, data((STEPS, *targets), 9, dtype=np.float64)


class ResNet(nn.Module):
    """A residual network, in which the last scale of each branch starts at 0."""

    norm: Any

    @nn.compact
    def __call__(self, x):
        x = nn.relu(self.norm(use_running_average=False)(nn.Conv(4, (3, 3))(x)))
        y = nn.Conv(4, (3, 3), use_bias=False)(x)
        y = nn.relu(self.norm(use_running_average=False, momentum=0.9)(y))
        y = nn.Conv(4, (3, 3), use_bias=False)(y)
        zeros = nn.initializers.zeros
        x = nn.relu(x + self.norm(use_running_average=False, scale_init=zeros)(y))
        return nn.Dense(2)(x.mean((1, 2)))


class DenseNet(nn.Module):
    """A network with a norm and an activation before each convolution, on all features so far."""

    norm: Any

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            y = nn.relu(self.norm(use_running_average=False, epsilon=1e-3)(x))
            x = jnp.concatenate([x, nn.Conv(2, (3, 3), use_bias=False)(y)], -1)
        x = nn.relu(self.norm(use_running_average=False)(x))
        return nn.Dense(2)(x.mean((1, 2)))


class TwoViews(nn.Module):
    """A network for two views of the data, whose norm is called twice in a step."""

    norm: Any

    @nn.compact
    def __call__(self, a, b):
        dense, norm = nn.Dense(4), self.norm(use_running_average=False, momentum=0.7)
        return nn.Dense(2)(nn.relu(norm(dense(a))) * nn.relu(norm(dense(b))))


class Block(nn.Module):
    norm: Any

    @nn.compact
    def __call__(self, x, _=None):
        y = self.norm(use_running_average=False, momentum=0.9)(nn.Dense(x.shape[-1])(x))
        return x + nn.relu(y), None


class Lifted(nn.Module):
    """Layers that are scanned over depth, and mapped over the members of an ensemble."""

    norm: Any

    @nn.compact
    def __call__(self, x):
        stacked: Any = {
            "variable_axes": {"params": 0, "batch_stats": 0},
            "split_rngs": {"params": True},
        }
        one_x: Any = None
        layers: Any = nn.scan(Block, length=3, **stacked)
        members: Any = nn.vmap(Block, in_axes=one_x, axis_size=2, **stacked)
        x, _ = layers(self.norm)(x, None)
        return nn.Dense(2)(members(self.norm)(x)[0].mean(0))


class Sequences(nn.Module):
    """A convolution over the time of padded sequences."""

    norm: Any
    as_positions: bool = False

    @nn.compact
    def __call__(self, x, lengths):
        mask = jnp.arange(x.shape[1])[None] < lengths[:, None]
        valid = mask[..., None]
        for _ in range(2):
            x = nn.Conv(4, (3,))(x)
            norm = self.norm(use_running_average=False)
            x = norm(x, mask=mask if self.as_positions else valid)
            x = jnp.where(valid, nn.relu(x), 0)
        return nn.Dense(2)(x.sum(1) / lengths[:, None])


class Graph(nn.Module):
    """Passes messages along the edges of a graph (GIN), which has padded nodes and edges.

    Padded edges end at padded nodes.
    """

    norm: Any
    as_positions: bool = False
    nodes = 7

    @nn.compact
    def __call__(self, x):
        senders = jnp.array([0, 1, 2, 3, 4, 5, 6, 0, 2, 8, 9])
        receivers = jnp.array([1, 2, 3, 4, 5, 6, 0, 3, 6, 9, 8])
        mask = jnp.arange(len(x)) < self.nodes
        for _ in range(2):
            x = nn.Dense(4)(x + jax.ops.segment_sum(x[senders], receivers, len(x)))
            norm = self.norm(use_running_average=False)
            x = nn.relu(norm(x, mask=mask if self.as_positions else mask[:, None]))
        return nn.Dense(2)(jnp.where(mask[:, None], x, 0).sum(0))


LENGTHS = np.array([[5.0, 2, 4, 1]] * STEPS)
MODELS = {
    "ResNet": (ResNet, batches_of((4, 5, 5, 3), targets=(4, 2))),
    "DenseNet": (DenseNet, batches_of((4, 5, 5, 3), targets=(4, 2))),
    "shared": (TwoViews, batches_of((8, 3), (8, 3), targets=(8, 2))),
    "lifted": (Lifted, batches_of((8, 4), targets=(8, 2))),
}
MASKED = {
    "sequences": (
        Sequences,
        ([data((STEPS, 4, 5, 3), 0, 0.5, np.float64), LENGTHS], data((STEPS, 4, 2), 9, 0, float)),
    ),
    "graph": (Graph, batches_of((10, 3), targets=(2,))),
}


@pytest.mark.parametrize("name", slow_but_for(["ResNet", "lifted"], MODELS))
def test_linen_networks_train_as_with_flax(name):
    model, batches = MODELS[name]
    compare_linen(model(jbn.linen.BatchNorm), model(nn.BatchNorm), batches)


@pytest.mark.parametrize("as_positions", slow_but_for([False], [False, True]))
@pytest.mark.parametrize("name", MASKED)
def test_padded_batches_train_as_with_flax(name, as_positions):
    model, batches = MASKED[name]
    compare_linen(model(jbn.linen.BatchNorm, as_positions), model(nn.BatchNorm), batches)


@pytest.mark.parametrize("name", slow_but_for(["shared"], ["shared", "lifted"]))
def test_replaced_linen_networks_train_as_with_flax(name):
    make, batches = MODELS[name]
    model = make(nn.BatchNorm)

    def apply(*args, **options):
        with jbn.linen.replace_batch_norm():
            return model.apply(*args, **options)

    compare_linen(types.SimpleNamespace(apply=apply), model, batches)


def compare_linen(ours: Any, theirs: nn.Module, batches: Any) -> None:
    """Trains two modules from the variables of the second."""
    variables = initialized(theirs, *jax.tree.map(lambda a: a[0], batches[0]))
    assert_equal_training(in_linen(ours, variables), in_linen(theirs, variables), batches)


class NnxResNet(nnx.Module):
    def __init__(self, norm, rngs):
        zeros = nnx.initializers.zeros
        self.stem = nnx.Linear(3, 4, rngs=rngs)
        self.first = norm(4, rngs=rngs)
        self.branch = nnx.Linear(4, 4, rngs=rngs)
        self.last = norm(4, scale_init=zeros, momentum=0.9, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.first(self.stem(x)))
        x = nnx.relu(x + self.last(self.branch(x)))
        return self.head(x)


class NnxTwoViews(nnx.Module):
    def __init__(self, norm, rngs):
        self.dense, self.head = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)
        self.norm = norm(4, momentum=0.7, rngs=rngs)

    def __call__(self, a, b):
        a, b = (nnx.relu(self.norm(self.dense(x))) for x in (a, b))
        return self.head(a * b)


class NnxBlock(nnx.Module):
    def __init__(self, norm, rngs):
        self.dense = nnx.Linear(4, 4, rngs=rngs)
        self.norm = norm(4, momentum=0.9, rngs=rngs)

    def __call__(self, x):
        return x + nnx.relu(self.norm(self.dense(x)))


class NnxLifted(nnx.Module):
    def __init__(self, norm, rngs):
        def blocks(number):
            make = nnx.vmap(lambda rngs: NnxBlock(norm, rngs))
            return nnx.split_rngs(splits=number)(make)(rngs)

        self.layers, self.members = blocks(3), blocks(2)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        scan = nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        ensemble = nnx.vmap(lambda member, x: member(x), in_axes=(0, None))
        return self.head(ensemble(self.members, scan(x, self.layers)).mean(0))


NNX_MODELS = {
    "ResNet": (NnxResNet, batches_of((8, 3), targets=(8, 2))),
    "shared": (NnxTwoViews, MODELS["shared"][1]),
    "lifted": (NnxLifted, MODELS["lifted"][1]),
}


@pytest.mark.parametrize("name", slow_but_for(["ResNet"], NNX_MODELS))
def test_nnx_networks_train_as_with_flax(name):
    model, batches = NNX_MODELS[name]
    ours, theirs = (in_nnx(model(norm, nnx.Rngs(0))) for norm in (jbn.nnx.BatchNorm, nnx.BatchNorm))
    assert_equal_training(ours, theirs, batches)


@pytest.mark.parametrize("name", slow_but_for(["ResNet"], ["ResNet", "lifted"]))
def test_replaced_nnx_networks_train_as_with_flax(name):
    make, batches = NNX_MODELS[name]
    model = make(nnx.BatchNorm, nnx.Rngs(0))
    ours = in_nnx(jbn.nnx.replace_batch_norm(model))
    assert_equal_training(ours, in_nnx(model), batches)


class Renorm(nn.Module):
    """Batch renormalization from the formulas of the paper, with gradients by autodiff."""

    r_max: float
    d_max: float

    @nn.compact
    def __call__(self, x, train):
        def start(name, value):
            return self.variable("batch_stats", name, jnp.full, x.shape[-1], value)

        mean, var = start("mean", 0.0), start("var", 1.0)
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        running_std = jnp.sqrt(var.value + 1e-3)
        if not train:
            hat = (x - mean.value[None]) / running_std[None]
            return hat * scale[None] + bias[None]
        batch_mean, batch_var = x.mean(0), x.var(0)
        std = jnp.sqrt(batch_var + 1e-3)
        r = lax.stop_gradient(jnp.clip(std / running_std, 1 / self.r_max, self.r_max))
        d = lax.stop_gradient(
            jnp.clip((batch_mean - mean.value) / running_std, -self.d_max, self.d_max)
        )
        if not self.is_initializing():
            mean.value = 0.99 * mean.value + 0.01 * batch_mean
            var.value = 0.99 * var.value + 0.01 * batch_var
        hat = (x - batch_mean[None]) / std[None] * r[None] + d[None]
        return hat * scale[None] + bias[None]


class Mlp(nn.Module):
    norm: Any
    outputs: int

    @nn.compact
    def __call__(self, x, train):
        x = self.norm(x, train, name="norm_0")
        x = self.norm(nn.relu(nn.Dense(4)(x)), train, name="norm_1")
        return nn.Dense(self.outputs)(x)


def crossq(norm, batches) -> Program:
    """Returns an actor and a critic (CrossQ), which sees current and next states in one batch."""
    nets = {"actor": Mlp(norm, 2), "critic": Mlp(norm, 1)}
    obs, action, *_ = jax.tree.map(lambda a: a[0], batches)
    inputs = {"actor": obs, "critic": jnp.concatenate([obs, action], -1)}
    made = {name: initialized(nets[name], x, train=True) for name, x in inputs.items()}
    params, stats = (
        {name: variables[kind] for name, variables in made.items()}
        for kind in ("params", "batch_stats")
    )

    def loss(params, stats, batch):
        obs, action, reward, next_obs = batch

        def apply(name, params, train, *x):
            variables = {"params": params[name], "batch_stats": stats[name]}
            x = jnp.concatenate(x, -1)
            y, new = nets[name].apply(variables, x, train, mutable=["batch_stats"])
            return y, new["batch_stats"]

        next_action = lax.stop_gradient(jnp.tanh(apply("actor", params, False, next_obs)[0]))
        pairs = jnp.concatenate([obs, next_obs]), jnp.concatenate([action, next_action])
        q, critic_stats = apply("critic", params, True, *pairs)
        q, next_q = jnp.split(q[:, 0], 2)
        critic_loss = squared_error(q, reward + 0.99 * lax.stop_gradient(next_q))
        new_action, actor_stats = apply("actor", params, True, obs)
        value, _ = apply("critic", lax.stop_gradient(params), False, obs, jnp.tanh(new_action))
        return critic_loss - jnp.mean(value), {"actor": actor_stats, "critic": critic_stats}

    return Program(params, stats, loss)


def our_renorm(r_max, d_max):
    norm = jbn.batch_renorm(r_max=r_max, d_max=d_max, decay=0.99, epsilon=1e-3)
    return lambda x, train, name: jbn.linen.Norm(norm, name=name)(x, not train)


def renorm_by_formulas(r_max, d_max):
    return lambda x, train, name: Renorm(r_max, d_max, name=name)(x, train)


def flax_batch_norm(r_max, d_max):
    assert (r_max, d_max) == (1, 0)
    return lambda x, train, name: nn.BatchNorm(epsilon=1e-3, name=name)(x, not train)


@pytest.mark.parametrize(
    ("limits", "oracle"),
    [
        ((3, 5), renorm_by_formulas),
        pytest.param((1, 0), flax_batch_norm, marks=pytest.mark.slow),
    ],
)
def test_actor_and_critic_train_as_by_the_formulas(limits, oracle):
    # The limits bind for some of the features.
    spread, offset = np.array([0.1, 1, 2, 9]), np.array([9, 0, 1, 0])
    obs, next_obs = (data((STEPS, 8, 4), i, 0, np.float64) * spread + offset for i in range(2))
    action, reward = (data((STEPS, 8, *s), 3, 0, np.float64) for s in ((2,), ()))
    batches = obs, action, reward, next_obs
    ours, theirs = (crossq(make(*limits), batches) for make in (our_renorm, oracle))
    assert_equal_training(ours, theirs, batches)
