"""Counts the collectives of one norm and its activation, with the batch spread over 8 devices."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from experiments.benchmarks import networks, program_cost
from experiments.benchmarks.layers import make_jbn, make_linen
from experiments.benchmarks.networks import NormActivation

DEVICES = 8
X = jax.ShapeDtypeStruct((128, 32, 32, 64), jnp.float32)


def norm_activations(devices: list[Any]) -> dict[str, NormActivation]:
    """Returns `networks.norm_activations` with relu, and norms with the option `axis_name`.

    Norms without the option see the whole batch, and the compiler spreads it. Norms with the option
    run inside `jax.shard_map`, where each device sees its own share of the batch.
    """
    everywhere, split = P(), P(program_cost.AXIS)
    shares = partial(
        jax.shard_map,
        mesh=program_cost.mesh(devices),
        in_specs=(everywhere, split),
        out_specs=(split, everywhere),
    )
    found = {
        name: norm
        for name, norm in networks.norm_activations(X.dtype.name).items()
        if not name.endswith("leaky")
    }
    for name, make in (("jbn", make_jbn), ("flax.linen", make_linen)):
        named = partial(make, axis_name=program_cost.AXIS)
        found[f"{name}, axis_name"] = NormActivation(named, jax.nn.relu, shares)
    return found


def count(devices: list[Any], norm: NormActivation) -> tuple[int, int]:
    """Returns how many collectives the forward and the backward pass have, once compiled."""
    step = networks.norm_step(norm, X.shape[-1])
    forward = program_cost.compile_for(devices, step.forward, step.learned, X, split=(1,))
    both = program_cost.compile_for(devices, step.gradients, step.learned, X, X, split=(1, 2))
    ahead, total = (program_cost.count_collectives(f.as_text() or "") for f in (forward, both))
    return ahead, total - ahead
