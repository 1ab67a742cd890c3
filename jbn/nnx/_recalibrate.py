"""Exact statistics of many batches for the norms of an NNX model."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jbn
from jbn.nnx._replace import norms

Model = TypeVar("Model")
Batch = TypeVar("Batch")


def recalibrate(
    model: Model,
    batches: Iterable[Batch],
    call: Callable[[Model, Batch], Any] = lambda model, batch: model(batch),  # pyright: ignore
) -> dict[str, jbn.Drift]:
    """Replaces the model's running means and variances by those of all values in the batches.

    `jbn.recalibrate` defines these statistics. The model changes after all batches have been read.

    >>> import jax.numpy as jnp
    >>> model = jbn.nnx.Norm(jbn.batch_norm(), 1)
    >>> batches = [jnp.array([[0.0], [2.0]]), jnp.array([[4.0], [6.0]])]
    >>> drift = jbn.nnx.recalibrate(model, batches)
    >>> print(model.mean[...], model.var[...])
    [3.] [5.]

    Args:
      model: an NNX model. Norms of `jbn.nnx` are in training mode during the calls. Set the mode of
        other layers, such as dropout, before.
      batches: the batches to call the model with. They are read once, one at a time.
      call: `call(model, batch)`, which is jitted here; by default `model(batch)`.

    Returns:
      A dictionary with the `jbn.Drift` of each norm, by path.

    Raises:
      TypeError: `batches` is an array.
      ValueError: the model has no norm of `jbn.nnx`, or no value reached any norm.
    """
    if isinstance(batches, jax.Array | np.ndarray):
        raise TypeError(
            f"batches is one array, of shape {batches.shape}: pass [batches] if it is one batch, "
            "or list(batches) if its first axis counts batches."
        )
    copy = nnx.clone(model)
    norm: Any
    for norm in norms(copy).values():
        norm.use_running_average = False
        norm.count = nnx.BatchStat(jnp.zeros(norm.mean.shape, jnp.float32))
    graph, values = nnx.split(copy)

    @jax.jit
    def train(values, state, batch):
        model = nnx.merge(graph, values)
        _write(model, state)
        call(model, batch)
        return _read(model, ("mean", "var", "count"))

    state = _read(model, ("mean", "var"))
    if not state:
        raise ValueError("model has no norm of jbn.nnx: see jbn.nnx.replace_batch_norm.")
    state, drift = jbn.recalibrate(partial(train, values), state, batches)
    _write(model, state)
    return drift


def _read(model: Any, names: tuple[str, ...]) -> dict[str, dict[str, jax.Array]]:
    return {
        path: {name: getattr(norm, name)[...] for name in names}
        for path, norm in norms(model).items()
    }


def _write(model: Any, state: dict[str, dict[str, jax.Array]]) -> None:
    by_path = norms(model)
    for path, fields in state.items():
        for name, value in fields.items():
            getattr(by_path[path], name)[...] = value
