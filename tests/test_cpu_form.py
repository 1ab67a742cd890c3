"""On a CPU each sum reads memory once, and the compiled step writes little besides y and dx."""

import math
import re

import jax
import jax.numpy as jnp
import pytest

import jbn
from tests.helpers import data

SHAPE = (64, 8, 8, 32)
MASK = data(SHAPE[:-1], 2) > -0.3
FREE = {"parameter", "tuple", "get-tuple-element", "bitcast"}


def written(f, *arguments) -> int:
    """Returns how many arrays of the size of x the compiled program of `f` writes."""
    text = jax.jit(f).lower(*arguments).compile().as_text() or ""
    entry = text[text.index("\nENTRY") :]
    found = re.findall(r"= \w+\[([\d,]+)\]\S* ([\w\-]+)\(", entry)
    sizes = [
        math.prod(map(int, sizes.split(","))) for sizes, operation in found if operation not in FREE
    ]
    return sum(size >= math.prod(SHAPE) for size in sizes)


# The compiler does not fuse selections into sums. So masked elements are replaced in memory, and
# the gradient behind a relu, which three operations need, is written. It fuses a conversion into
# one sum, but the gradient of a bfloat16 y is converted once for all three.
NORM = jbn.batch_norm(decay=0.9)
CASES = {
    "plain": (NORM, None, jnp.float32, lambda y: y, 1, 2),
    "relu": (NORM, None, jnp.float32, jax.nn.relu, 1, 3),
    "masked": (NORM, MASK, jnp.float32, lambda y: y, 2, 4),
    "bfloat16": (NORM, None, jnp.bfloat16, lambda y: y, 1, 3),
    "ghost": (jbn.ghost_batch_norm(group_size=16), None, jnp.float32, lambda y: y, 1, 2),
    "renorm": (jbn.batch_renorm(), None, jnp.float32, lambda y: y, 1, 2),
    "running": (jbn.running_batch_norm(), None, jnp.float32, lambda y: y, 1, 2),
}


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_written_for_a_sum(case):
    norm, mask, dtype, activation, forward, both = CASES[case]
    params, state = norm.init(SHAPE[-1])
    x, dy = (data(SHAPE, seed).astype(dtype) for seed in (0, 1))

    def run(params, x):
        y, new = norm.train(params, state, x, mask=mask)
        return activation(y), new

    def gradients(params, x, dy):
        (y, new), back = jax.vjp(run, params, x)
        return y, new, back((dy, jax.tree.map(jnp.zeros_like, new)))

    assert written(run, params, x) <= forward
    assert written(gradients, params, x, dy) <= both
