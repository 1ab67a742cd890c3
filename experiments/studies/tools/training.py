"""Training runs, which share compiled programs if only the seed and the learning rate differ."""

import dataclasses
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.config import Config
from experiments.data import Dataset
from experiments.learner import Learner, TrainState, init, loss, train, update
from experiments.placement import Images, place
from jbn._norms.method import Wrapped, replaced_method


class Training:
    """A training run from its first step.

    The seed, the learning rate and the images are arguments of the compiled programs.

    Attributes:
      config: configuration of the run.
      dataset: its images.
      state: the learner's state after the steps so far.
      total_steps: number of steps of the run.
    """

    def __init__(self, config: Config, dataset: Dataset):
        self.config, self.dataset = config, dataset
        learner = Learner(config, len(dataset.classes), len(dataset.train_labels))
        self.total_steps = learner.total_steps
        self._learner = _with_rate(learner, 1.0)
        self._rate = np.float32(config.optimizer.learning_rate)
        self._data = place(dataset)
        self.state: TrainState = self._call(_init, np.int32(config.seed))

    def advance(self, steps: int) -> dict[str, np.ndarray]:
        """Trains for a number of steps; returns the learner's metrics of each, `[steps]`."""
        metrics = []
        for _ in range(steps):
            self.state, values = self._call(_step, self.state)
            metrics.append(values)
        stacked = jax.device_get(metrics)
        return {name: np.concatenate([m[name] for m in stacked]) for name in stacked[0]}

    def finish_in_micro_batches(self, size: int) -> None:
        """Trains to the end, with each batch split into micro-batches.

        The running statistics pass from one micro-batch to the next. The gradients of all
        micro-batches of a batch are averaged.

        Args:
          size: number of images in a micro-batch.
        """
        images, labels = self.dataset[:2]
        order = np.arange(len(labels))
        random, batch = np.random.default_rng(self.config.seed), self.config.batch_size
        for step in range(self.total_steps):
            place = step % (len(labels) // batch)
            if place == 0:
                order = random.permutation(len(labels))
            sums = jax.tree.map(jnp.zeros_like, self.state.params)
            batch_stats = self.state.batch_stats
            micro_batches = order[place * batch : (place + 1) * batch].reshape(-1, size)
            for index in micro_batches:
                sums, batch_stats = self._call(
                    _add_gradient, self.state, sums, batch_stats, images[index], labels[index]
                )
            count = np.float32(len(micro_batches))
            self.state = self._call(_update, self.state, sums, batch_stats, count)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Returns the result of `function(learner, state, data, *arguments)` on the host.

        Args:
          function: a pure function. Define it in a module, so that its compiled program is used
            again.
          *arguments: pytrees of arrays.
        """
        return jax.device_get(self._call(function, self.state, *arguments))

    def _call(self, function, state, *arguments):
        program = _program(self._learner, function)
        return program(self._rate, state, self._data, *arguments)


def logits(learner: Learner, state: TrainState, data: Images, images: jax.Array) -> jax.Array:
    """Returns the logits of images `[batch, ...]`, normalized by the running statistics."""
    x = learner.normalize(data, images)
    return learner.apply(state.params, state.batch_stats, x, train=False)[0]


def logits_by_batch(
    learner: Learner, state: TrainState, data: Images, images: jax.Array
) -> jax.Array:
    """Returns the logits of images `[batch, ...]`, normalized as in training."""
    x = learner.normalize(data, images)
    return learner.apply(state.params, state.batch_stats, x, train=True)[0]


def recalibrated(
    learner: Learner, state: TrainState, data: Images, images: jax.Array
) -> TrainState:
    """Returns the state with the statistics of images `[n, ...]`, at the same weights.

    The inputs of a layer come from layers that normalize by the own statistics of the batch or of
    each group (Wu & Johnson 2021).
    """
    with replaced_method(_Measured):
        _, batch_stats = learner.apply(
            state.params, state.batch_stats, learner.normalize(data, images), train=True
        )
    return state._replace(batch_stats=batch_stats)


class _Measured(Wrapped):
    """Puts the batch's mean and variance into the state, and then normalizes as in inference."""

    @property
    def takes_single_values(self) -> bool:
        return True

    def train_vectors(self, state, batch):
        new = state._replace(mean=batch.mean, var=batch.var)
        return self.infer_vectors(new), new


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the share of logits `[n, classes]` whose largest value is at the label."""
    return float(np.mean(np.argmax(logits, -1) == labels))


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean cross-entropy of logits `[n, classes]`."""
    logits = logits - logits.max(-1, keepdims=True)
    chosen = np.take_along_axis(logits, labels[:, None], -1)[:, 0]
    return float(np.mean(np.log(np.exp(logits).sum(-1)) - chosen))


def _init(learner: Learner, seed: jax.Array, data: Images) -> TrainState:
    return init(learner, data, seed)


def _step(learner: Learner, state: TrainState, data: Images):
    return train(learner, state, data, 1)


def _add_gradient(learner, state, data, sums, batch_stats, images, labels):
    x = learner.normalize(data, images)
    grads, (batch_stats, _) = jax.grad(loss, argnums=1, has_aux=True)(
        learner, state.params, batch_stats, x, labels
    )
    return jax.tree.map(jnp.add, sums, grads), batch_stats


def _update(learner, state, data, sums, batch_stats, count):
    return update(learner, state, jax.tree.map(lambda leaf: leaf / count, sums), batch_stats)


@lru_cache(maxsize=256)
def _program(learner, function):
    # Initialization runs once, so it is compiled without optimizations. A step may overwrite the
    # old state.
    options: dict[str, Any] = {
        _init: {"compiler_options": {"xla_backend_optimization_level": 0}},
        _step: {"donate_argnums": 1},
    }.get(function, {})

    @partial(jax.jit, **options)
    def program(rate, state, data, *arguments):
        return function(_with_rate(learner, rate), state, data, *arguments)

    return program


def _with_rate(learner: Learner, rate: Any) -> Learner:
    """Returns the learner with another learning rate, and without the name of its preset."""
    optimizer = dataclasses.replace(learner.config.optimizer, learning_rate=rate)
    config = dataclasses.replace(learner.config, name="", optimizer=optimizer)
    return dataclasses.replace(learner, config=config)
