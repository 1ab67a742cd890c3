"""The costs of compiled programs: bytes, collectives and residuals, also those of norms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import collectives, networks, program_cost, targets
from experiments.benchmarks.compiled import saved_activations

HLO = """HloModule example

%sliced (p0: f32[100,4], p1: bf16[8]) -> f32[4] {
  %p0 = f32[100,4]{1,0} parameter(0)
  %p1 = bf16[8]{0} parameter(1)
  %slice.1 = f32[1,4]{1,0} slice(%p0), slice={[0:1], [0:4]}
  ROOT %r = f32[4]{0} bitcast(%slice.1)
}

ENTRY %main (a: f32[100,4], b: bf16[8]) -> (f32[4], f32[100,4]) {
  %a = f32[100,4]{1,0:T(8,128)} parameter(0)
  %b = bf16[8]{0} parameter(1)
  %on-chip = f32[64,64]{1,0:T(8,128)S(1)} copy(%b)
  %fusion = f32[4]{0} fusion(%a, %b), kind=kLoop, calls=%sliced
  %call = (f32[100,4]{1,0}, u8[0]{0}) custom-call(%a), custom_call_target="conv"
  %part = f32[100,4]{1,0} get-tuple-element(%call), index=0
  %all-reduce-start = f32[4]{0} all-reduce-start(%fusion), to_apply=%add
  %all-reduce-done = f32[4]{0} all-reduce-done(%all-reduce-start)
  ROOT %tuple = (f32[4]{0}, f32[100,4]{1,0}) tuple(%all-reduce-done, %part)
}
"""


def test_bytes_of_a_program_counted_by_hand():
    copy = 16  # Only its input counts, because its output stays on the chip.
    fusion = 16 + 16 + 16  # The result, the slice that it reads, and b count.
    call = 1600 + 1600
    reduce = 16 + 16
    assert program_cost.moved_bytes(HLO) == copy + fusion + call + reduce
    assert program_cost.count_collectives(HLO) == 1


def test_bytes_agree_with_the_compilers_own_count():
    def f(x, w):
        y = jnp.tanh(x @ w)
        return jnp.sum(y * y, 0), y[:3]

    compiled = program_cost.compile_for(
        targets.devices("cpu"), f, jnp.ones((64, 32)), jnp.ones((32, 8))
    )
    costs = compiled.cost_analysis()
    counted = program_cost.read(compiled).moved_bytes
    assert counted == pytest.approx(costs and costs["bytes accessed"], rel=0.01)


CONDITIONAL = """HloModule example

%kept (t: (f32[4])) -> f32[4] {
  %t = (f32[4]{0}) parameter(0)
  ROOT %got = f32[4]{0} get-tuple-element(%t), index=0
}

%again (u: (f32[4])) -> f32[4] {
  %u = (f32[4]{0}) parameter(0)
  %given = f32[4]{0} get-tuple-element(%u), index=0
  ROOT %all-reduce.1 = f32[4]{0} all-reduce(%given), to_apply=%add
}

ENTRY %main (p: s32[], a: f32[4]) -> f32[4] {
  %p = s32[] parameter(0)
  %a = f32[4]{0} parameter(1)
  %all-reduce.2 = f32[4]{0} all-reduce(%a), to_apply=%add
  %operand = (f32[4]{0}) tuple(%all-reduce.2)
  ROOT %cond = f32[4]{0} conditional(%p, %operand, %operand), branch_computations={%again, %kept}
}
"""


def test_a_conditional_counts_by_its_cheaper_branch():
    assert program_cost.moved_bytes(CONDITIONAL) == 16 + 16
    assert program_cost.count_collectives(CONDITIONAL) == 1


def test_residuals_of_a_product_are_its_factors():
    x = jax.ShapeDtypeStruct((4, 8), jnp.bfloat16)
    assert program_cost.residual_bytes(jnp.multiply, x, x) == 2 * 4 * 8 * 2


@pytest.mark.parametrize(("name", "activations"), [("jbn", 1), ("jbn, in place", 1)])
def test_a_norm_saves_one_activation_of_its_own(name, activations):
    norm = networks.norm_activations("bfloat16")[name]._replace(activation=lambda y: y)
    share = saved_activations(norm, networks.Shape(4, 4, 512, "bfloat16"))
    assert activations <= share < activations + 0.01


@pytest.mark.parametrize("network", [networks.stack, networks.residual])
def test_steps_of_all_norms_compile_and_agree_on_the_gradient(network):
    shape = networks.Shape(4, 4, 3, "float32")
    found = networks.norm_activations("float32")
    gradients = {}
    for name in ("jbn", "jbn, policy", "flax.linen"):
        step, (kernels, _, x) = networks.step(network, found[name], shape, 2)
        rng = np.random.default_rng(0)
        kernels = [jnp.asarray(rng.normal(size=k.shape), k.dtype) for k in kernels]
        x = jnp.asarray(rng.normal(size=x.shape), x.dtype)
        states = [found[name].make(3, 0.9).state] * 2
        (_, gradients[name]), _ = jax.jit(step)(kernels, jax.tree.leaves(states), x)
    for name in ("jbn, policy", "flax.linen"):
        for a, b in zip(gradients["jbn"], gradients[name], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["jbn, axis_name", "flax.linen, axis_name", "flax.linen"])
def test_one_collective_each_way(name):
    devices = targets.devices("cpu", collectives.DEVICES)
    assert collectives.count(devices, collectives.norm_activations(devices)[name]) == (1, 1)


def test_an_argument_is_split_only_where_asked():
    devices, x = targets.devices("cpu", 8), jnp.ones((8, 4))
    memory = [
        program_cost.compile_for(devices, jnp.sin, x, split=split).memory_analysis()
        for split in ((), (0,))
    ]
    whole, share = (m.argument_size_in_bytes for m in memory if m is not None)
    assert (whole, share) == (8 * 4 * 4, 4 * 4)


def test_donated_memory_counts_once():
    one = targets.devices("cpu")
    apart, donated = (
        program_cost.read(program_cost.compile_for(one, jnp.sin, jnp.ones(1024), donated=numbers))
        for numbers in ((), (0,))
    )
    assert (apart.total_bytes, donated.total_bytes) == (2 * 4096, 4096)


def test_targets_say_what_is_wrong():
    with pytest.raises(ValueError, match="count=3"):
        targets.devices("v5e", 3)
    with pytest.raises(ValueError, match="jax_num_cpu_devices"):
        targets.devices("cpu", 1000)
    with pytest.raises(ValueError, match="target='abacus'"):
        targets.devices("abacus")  # pyright: ignore[reportArgumentType]
