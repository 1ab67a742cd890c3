"""Tests jbn and the installed peers on known defects of batch norm.

Command: python -m experiments.benchmarks.peers [--output FILE]
"""

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.benchmarks.layers import DISTRIBUTIONS, Layer, Missing, installed
from experiments.run.environment import versions
from experiments.run.folder import RunFolder

RESULTS = Path(__file__).parent / "results" / "peers.json"
Maker = Callable[..., Layer]


class Case(NamedTuple):
    """A defect that was seen in a peer.

    Attributes:
      name: the data and the measured quantity in words.
      right: the right result in words.
      measure: function of the maker of a layer, which returns a number or a word.
      is_right: function of this result, which tells whether it is right.
    """

    name: str
    right: str
    measure: Callable[[Maker], float | str]
    is_right: Callable[[Any], bool]


def _normal(shape, mean=0.0, std=1.0, seed=0):
    values = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(values * std + mean, jnp.float32)


def _wide(x):
    return np.asarray(jnp.asarray(x, jnp.float32), np.float64)


def variance_error(mean: float, make: Maker) -> float:
    """Returns the relative error of the variance of 65,536 rows, in a state with decay 0."""
    layer, x = make(4, 0.0), _normal((65_536, 4), mean)
    var = _wide(layer.running_statistics(layer.train(layer.state, x)[1])[1])
    right = _wide(x).var(0)
    if make.__name__ == "make_torch":  # Its running variance is the unbiased one.
        right = _wide(x).var(0, ddof=1)
    return float(np.max(np.abs(var / right - 1)))


def masked_shards(make: Maker) -> float:
    """Returns the error of the mean over 8 shards of 2 to 16 valid rows, in standard deviations."""
    layer = make(4, 0.0, axis_name="d")
    x = _normal((8, 16, 4)) + jnp.arange(8.0).reshape(8, 1, 1)
    mask = jnp.arange(16) < (2 + 2 * jnp.arange(8)).reshape(8, 1)
    train = functools.partial(layer.train, layer.state)
    state = jax.vmap(lambda x, mask: train(x, mask)[1], axis_name="d")(x, mask)
    mean = _wide(layer.running_statistics(jax.tree.map(lambda leaf: leaf[0], state))[0])
    valid = _wide(x[mask])
    return float(np.max(np.abs(mean - valid.mean(0)) / valid.std(0)))


def merged_states(make: Maker) -> float:
    """Returns the relative error of the variance in the merged states of 8 shards.

    The shards have different means.
    """
    layer, x = make(4, 0.0), _normal((8, 4096, 4)) + jnp.arange(8.0).reshape(8, 1, 1)
    merge = layer.merge
    if merge is None:
        raise Missing
    states = jax.vmap(lambda x: merge(layer.train(layer.state, x)[1], "d"), axis_name="d")(x)
    var = _wide(layer.running_statistics(jax.tree.map(lambda leaf: leaf[0], states))[1])
    return float(np.max(np.abs(var / _wide(x).reshape(-1, 4).var(0) - 1)))


def hidden_nan(make: Maker) -> str:
    """Tells whether NaN in masked rows reaches the gradients of the valid rows."""
    layer, x = make(4, 0.9), _normal((16, 4)).at[12:].set(jnp.nan)
    mask = jnp.arange(16) < 12

    def loss(x):
        y, _ = layer.train(layer.state, x, mask)
        return jnp.sum(jnp.where(mask[:, None], y**3, 0))

    return "NaN" if jnp.isnan(jax.grad(loss)(x)[:12]).any() else "finite"


def hidden_nan_in_inference(make: Maker) -> str:
    """Tells whether NaN in masked rows reaches the gradients of the parameters in inference."""
    layer, x = make(4, 0.9), _normal((16, 4)).at[12:].set(jnp.nan)
    mask = jnp.arange(16) < 12

    def loss(state):
        return jnp.sum(jnp.where(mask[:, None], layer.infer(state, x, mask) ** 2, 0))

    gradients = jax.tree.leaves(jax.grad(loss, allow_int=True)(layer.state))
    return "NaN" if any(jnp.isnan(g).any() for g in gradients if g.dtype == x.dtype) else "finite"


def valid_rows(number: int, make: Maker) -> str:
    """Tells how a batch with few valid rows changes the running statistics."""
    layer, mask = make(4, 0.9), jnp.arange(16) < number
    _, state = layer.train(layer.state, _normal((16, 4)), mask)
    before, after = (np.stack(layer.running_statistics(s)) for s in (layer.state, state))
    if not np.isfinite(after).all():
        return "NaN"
    return "unchanged" if (before == after).all() else "moved"


def overflow(make: Maker) -> str:
    """Tells whether the running statistics are finite after a batch with an infinite value."""
    layer = make(4, 0.9)
    _, state = layer.train(layer.state, _normal((16, 4)).at[3, 1].set(jnp.inf))
    return "finite" if np.isfinite(np.stack(layer.running_statistics(state))).all() else "NaN"


def constant_feature(options: dict[str, Any], make: Maker) -> str:
    """Tells whether the gradients are finite if all values of a feature are equal."""
    layer, x = make(4, 0.9, **options), _normal((16, 4)).at[:, 1].set(7)
    gradient = jax.grad(lambda x: jnp.sum(layer.train(layer.state, x)[0] ** 3))(x)
    return "finite" if jnp.isfinite(gradient).all() else "NaN"


def corrected_average(make: Maker) -> float:
    """Returns the std of y in inference, after one step on data of std 2."""
    layer, x = make(4, 0.99, corrected=True), _normal((65_536, 4), std=2)
    _, state = layer.train(layer.state, x)
    return float(np.std(_wide(layer.infer(state, x)), axis=0).mean())


def before_any_batch(make: Maker) -> float:
    """Returns the factor from x to y in inference before the first batch."""
    layer, x = make(4, 0.99), _normal((1024, 4))
    return float(np.std(_wide(layer.infer(layer.state, x))) / np.std(_wide(x)))


def bfloat16_decay(make: Maker) -> float:
    """Returns the relative error of the running variance after 20 bfloat16 steps of decay 0.999."""
    layer, x = make(4, 0.999), _normal((256, 4), std=2).astype(jnp.bfloat16)
    state = layer.state
    for _ in range(20):
        _, state = layer.train(state, x)
    var = _wide(layer.running_statistics(state)[1])
    mass = 1 - 0.999**20
    right = _wide(x).var(0)
    # A library may correct the average or not, and its variance may be biased or not.
    choices = [right, (1 - mass) + mass * right, (1 - mass) + mass * right * 256 / 255]
    return float(min(np.max(np.abs(var / choice - 1)) for choice in choices))


def bfloat16_statistics(make: Maker) -> float:
    """Returns the relative error of the variance of bfloat16 rows of mean 10 and std 1."""
    layer, x = make(4, 0.0), _normal((4096, 4), 10).astype(jnp.bfloat16)
    var = _wide(layer.running_statistics(layer.train(layer.state, x)[1])[1])
    rows = _wide(x)
    return float(min(np.max(np.abs(var / rows.var(0, ddof=ddof) - 1)) for ddof in (0, 1)))


def bfloat16_inference(make: Maker) -> float:
    """Returns the mean error of a bfloat16 y for data of mean 100, in standard deviations.

    Rounding of y cancels in the mean.
    """
    layer, x = make(4, 0.0, dtype=jnp.bfloat16), _normal((4096, 4), 100.3)
    _, state = layer.train(layer.state, x)
    y = _wide(layer.infer(state, x))
    rows = _wide(x)
    right = (rows - rows.mean(0)) / rows.std(0)
    return float(np.max(np.abs((y - right).mean(0))))


def float_mask(make: Maker) -> str:
    """Returns the error for weights in place of a boolean mask, or "silent"."""
    layer = make(4, 0.9)
    try:
        layer.train(layer.state, _normal((16, 4)), jnp.linspace(0, 1, 16))
    except (TypeError, ValueError) as error:
        return type(error).__name__
    return "silent"


def one_value(make: Maker) -> str:
    """Returns the error for one value per feature in training, or "silent"."""
    layer = make(4, 0.9)
    try:
        layer.train(layer.state, _normal((1, 4)))
    except (TypeError, ValueError) as error:
        return type(error).__name__
    return "silent"


def float64_batch(make: Maker) -> str:
    """Tells whether the running variance keeps its dtype after a float64 batch."""
    with jax.enable_x64(True):
        layer = make(4, 0.9)
        before = jnp.asarray(layer.running_statistics(layer.state)[1]).dtype
        _, state = layer.train(
            layer.state, jnp.asarray(np.random.default_rng(0).normal(size=(8, 4)))
        )
        after = np.asarray(layer.running_statistics(state)[1]).dtype
    return "kept" if before == after else f"{before} to {after}"


def _below(bound: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, float) and value <= bound


def _is(word: str) -> Callable[[Any], bool]:
    return lambda value: value == word


def _error(value: Any) -> bool:
    return str(value).endswith("Error")


def _near(value: float, tolerance: float) -> Callable[[Any], bool]:
    return lambda other: isinstance(other, float) and abs(other - value) <= tolerance


CASES = [
    *(
        Case(
            f"relative error of the variance at mean/std = {mean:,.0f}",
            "1e-5 or less",
            functools.partial(variance_error, mean),
            _below(1e-5),
        )
        for mean in (100, 1000, 10_000)
    ),
    Case(
        "8 shards with different numbers of valid rows: error of the mean, in std",
        "0",
        masked_shards,
        _below(1e-6),
    ),
    Case(
        "states of 8 shards merged or (as in Flax's example) averaged: error of the variance",
        "1e-5 or less",
        merged_states,
        _below(1e-5),
    ),
    Case(
        "NaN at masked positions: gradients of the valid positions",
        "finite",
        hidden_nan,
        _is("finite"),
    ),
    Case(
        "NaN at masked positions, inference: gradients of the parameters",
        "finite",
        hidden_nan_in_inference,
        _is("finite"),
    ),
    *(
        Case(
            f"{words}: running statistics",
            "unchanged",
            functools.partial(valid_rows, number),
            _is("unchanged"),
        )
        for number, words in enumerate(("all rows masked", "all rows but one masked"))
    ),
    Case("an infinite value: running statistics", "finite", overflow, _is("finite")),
    Case(
        "batch renorm, a constant feature: gradients",
        "finite",
        functools.partial(constant_feature, {"renorm": True}),
        _is("finite"),
    ),
    Case(
        "running average with bias correction, 1 step on data of std 2: std of y in inference",
        "1",
        corrected_average,
        _near(1, 1e-3),
    ),
    Case(
        "initialized with zeros, inference before the first batch: factor from x to y",
        "1",
        before_any_batch,
        _near(1, 1e-3),
    ),
    Case(
        "bfloat16, 20 steps with decay 0.999: relative error of the running variance",
        "1e-4 or less",
        bfloat16_decay,
        _below(1e-4),
    ),
    Case(
        "bfloat16 data of mean 10: relative error of the variance",
        "1e-5 or less",
        bfloat16_statistics,
        _below(1e-5),
    ),
    Case(
        "bfloat16 output for float32 data of mean 100: shift of y in inference, in std",
        "1e-3 or less",
        bfloat16_inference,
        _below(1e-3),
    ),
    Case("a mask of floating-point weights", "an error", float_mask, _error),
    Case("dtype of the state after a float64 batch", "kept", float64_batch, _is("kept")),
    Case("one value per feature in training", "an error", one_value, _error),
]


def measure(case: Case, make: Maker) -> float | str | None:
    """Returns the result of a library, or None if it lacks a feature that the case needs."""
    try:
        return case.measure(make)
    except Missing:
        return None


@dataclass(frozen=True)
class Arguments:
    """Tests jbn and the installed peers on the known defects."""

    output: Path = RESULTS
    """JSON file for the results."""


def main(arguments: Arguments) -> int:
    """Prints the table and stores it; returns 1 if jbn is wrong anywhere, else 0."""
    libraries = installed()
    packages = {DISTRIBUTIONS.get(library, library) for library, _ in libraries.values()}
    rows = []
    for case in CASES:
        values = {name: measure(case, make) for name, (_, make) in libraries.items()}
        right = {n: None if v is None else case.is_right(v) for n, v in values.items()}
        rows.append({"case": case.name, "right": case.right, "values": values, "is_right": right})
    result = {"versions": versions("jax", *sorted(packages - {"jbn"})), "rows": rows}
    print(table(result))
    RunFolder(arguments.output.parent).write(arguments.output.name, result)
    return int(not all(row["is_right"]["jbn"] for row in rows))


def table(result: dict[str, Any]) -> str:
    """Returns the results as a Markdown table, with wrong results in bold."""
    names = list(result["rows"][0]["values"])
    lines = ["| | right | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for row in result["rows"]:
        cells = [_cell(row["values"][n], row["is_right"][n]) for n in names]
        lines.append(f"| {row['case']} | {row['right']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value: float | str | None, right: bool | None) -> str:
    if value is None:
        return "n/a"
    text = value if isinstance(value, str) else f"{value:.2g}"
    return text if right else f"**{text}**"


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments, prog="python -m experiments.benchmarks.peers")))
