"""Makes random data, takes training steps on one device and on eight shards, counts collectives."""

import importlib
import re
from collections.abc import Callable, Container, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

import jbn
import jbn.testing


def data(shape, seed=0, mean=0.0, dtype: Any = np.float32) -> np.ndarray:
    """Returns normally distributed values of variance 1."""
    return (np.random.default_rng(seed).normal(size=shape) + mean).astype(dtype)


X = data((32, 5, 3), mean=100)
"""A batch for eight shards of four examples each."""

DY = data((32, 5, 3), 1)
"""Gradient of the loss by the output for `X`."""

MASK = data((32, 5), 2) > -0.3
"""A mask for `X`. One shard has no valid element."""

MASK[4:8] = False


def trained(tree):
    """Returns a model's tree with other values in the vectors of its norms, as after training.

    Variances are positive. Other leaves keep their values.
    """
    makers = {
        "mean": data,
        "var": lambda shape, seed: np.exp(data(shape, seed)),
        "scale": lambda shape, seed: data(shape, seed, 2),
        "bias": data,
    }

    def change(path, leaf):
        name = getattr(path[-1], "key", getattr(path[-1], "name", None))
        make = makers.get(str(name))
        return leaf if make is None else make(leaf.shape, len(str(path))).astype(leaf.dtype)

    return jax.tree.map_with_path(change, tree)


def eager_step(norm, params, state, x, dy, mask=None):
    """Takes a training step with the loss `sum(y * dy)`.

    Returns:
      y, the next state, and the gradients `(dparams, dx)`.
    """

    def loss(params, x):
        y, new = norm.train(params, state, x, mask=mask)
        return jnp.sum(y * dy), (y, new)

    gradients, (y, new) = jax.grad(loss, (0, 1), has_aux=True)(params, x)
    return y, new, gradients


step = jax.jit(eager_step, static_argnums=0)
"""Same as `eager_step`, compiled once for equal norms."""


def slow_but_for(quick: Container[Any], values: Iterable[Any]) -> list[Any]:
    """Returns values for `pytest.mark.parametrize`. Values that are not in `quick` are slow."""
    return [v if v in quick else pytest.param(v, marks=pytest.mark.slow) for v in values]


every_law = pytest.mark.parametrize(
    "law",
    # These share a compilation.
    slow_but_for(
        ("hidden_values_never_show", "state_moves_once", "training_normalizes"), jbn.testing.LAWS
    ),
)


def one_device(x=X, dy=DY, mask: Any = MASK):
    """Returns the first step of `batch_norm(decay=0.5)` on one device."""
    norm = jbn.batch_norm(decay=0.5)
    return step(norm, *norm.init(x.shape[-1]), x, dy, mask)


def eight_shards(axis_type: AxisType = AxisType.Auto) -> Mesh:
    """Returns a mesh of all eight devices with one axis, `d`."""
    return jax.make_mesh((8,), ("d",), (axis_type,))


def sharded_step(norm, mesh: Mesh, check_vma: bool = True) -> Callable[..., Any]:
    """Returns `step` over the shards of a batch, with a mask, inside `jax.shard_map`.

    Args:
      norm: a norm with `axis_name="d"`.
      mesh: a mesh such as that of `eight_shards`.
      check_vma: option of `jax.shard_map`. If it is True, JAX sums the gradients of the parameters
        over the shards, else this function does.
    """

    def local(params, state, x, dy, mask):
        y, new, (dparams, dx) = step(norm, params, state, x, dy, mask)
        if not check_vma:
            dparams = jax.lax.psum(dparams, "d")
        return y, new, (dparams, dx)

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(P(), P(), P("d"), P("d"), P("d")),
        out_specs=(P("d"), P(), (P(), P("d"))),
        check_vma=check_vma,
    )


def collectives(compiled) -> int:
    """Returns the number of collectives in a compiled program."""
    names = "all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all"
    return len(re.findall(rf"= [^=]*? (?:{names})(?:-start)?\(", compiled.as_text() or ""))


def public_names() -> list[str]:
    """Returns the full name of everything that jbn and its public modules export."""
    modules = ["jbn", *(f"jbn.{name}" for name in sorted(set(dir(jbn)) - set(jbn.__all__)))]
    names = []
    for module in modules:
        loaded = importlib.import_module(module)
        exported = getattr(loaded, "__all__", None) or (n for n in vars(loaded) if n[0] != "_")
        names += (f"{module}.{name}" for name in exported)
    return sorted(names)
