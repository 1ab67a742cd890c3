"""A training run as pure functions of its state and the images, which read and write no files."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from experiments.augment import augment, gather_classes, permutation
from experiments.config import Config
from experiments.models.airbench import Airbench, whitening_kernel
from experiments.models.layers import Layers
from experiments.optimizers import LOOKAHEAD_STEPS, learning_rate, look_ahead, make_optimizer
from experiments.placement import Images, everywhere, spread


class TrainState(NamedTuple):
    """The state of a training run.

    Attributes:
      step: `[]` int32 number of steps done.
      seed: `[]` int32 from which, with the step, all random choices are derived.
      params: the network's parameters.
      batch_stats: its running statistics.
      opt_state: the optimizer's state.
      slow: lookahead's copy of parameters and statistics, or None.
    """

    step: jax.Array
    seed: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    slow: Any


@dataclass(frozen=True)
class Learner:
    """What a run learns with: network, optimizer and schedule.

    Attributes:
      config: configuration of the run. Its seed is not used; `init` takes one.
      num_classes: number of classes.
      num_images: number of training images.
    """

    config: Config
    num_classes: int
    num_images: int

    @property
    def steps_per_epoch(self) -> int:
        """Number of full batches in an epoch, which leaves out images that do not fill one."""
        return self.num_images // self.config.batch_size

    @property
    def total_steps(self) -> int:
        """Number of steps of the run."""
        return math.ceil(round(self.config.epochs * self.steps_per_epoch, 6))

    @property
    def dtype(self) -> jnp.dtype:
        """Dtype of parameters and statistics, and of the network's input."""
        return jnp.dtype("float64" if self.config.precision == "float64" else "float32")

    @cached_property
    def model(self) -> nn.Module:
        """The network: `model(x, train, mask) -> logits`."""
        norm, dtype = self.config.norm, jnp.dtype(self.config.precision)
        layers = Layers(norm.make(), norm.activates, dtype, self.dtype)
        return self.config.model.make(self.num_classes, layers)

    @property
    def schedule(self) -> optax.Schedule:
        """The learning rate as a function of the step."""
        return learning_rate(self.config.optimizer, self.total_steps)

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """The optimizer."""
        model = self.config.model
        epochs = model.whiten_epochs if isinstance(model, Airbench) else 0.0
        return make_optimizer(self.config.optimizer, self.schedule, epochs * self.steps_per_epoch)

    def normalize(self, data: Images, images: ArrayLike) -> jax.Array:
        """Returns the network's input for uint8 images `[..., height, width, channels]`."""
        pixels = jnp.asarray(images, self.dtype) / 255
        axes = range(pixels.ndim - 1)
        mean, std = (
            jnp.expand_dims(values.astype(self.dtype), axes) for values in (data.mean, data.std)
        )
        return (pixels - mean) / std * self.config.data.gain

    def apply(
        self, params: Any, batch_stats: Any, x: jax.Array, train: bool, mask: Any = None
    ) -> tuple[jax.Array, Any]:
        """Returns the logits `[batch, classes]` and the next running statistics."""
        variables = {"params": params, "batch_stats": batch_stats}
        logits, updates = self.model.apply(variables, x, train, mask, mutable=["batch_stats"])
        return logits, updates.get("batch_stats", {})


def init(learner: Learner, data: Images, seed: jax.Array | int) -> TrainState:
    """Returns the state before the first step."""
    x = learner.normalize(data, data.train_images[:2])
    variables: Any = learner.model.init(jax.random.key(seed), x, train=True)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    if learner.dtype == jnp.float64:
        batch_stats = optax.tree.cast(batch_stats, learner.dtype)
    if isinstance(learner.config.model, Airbench):
        x = learner.normalize(data, data.train_images[:5000])
        params["whiten"]["kernel"] = whitening_kernel(x)
    slow = (params, batch_stats) if learner.config.optimizer.lookahead else None
    opt_state = learner.optimizer.init(params)
    return everywhere(
        TrainState(jnp.int32(0), jnp.int32(seed), params, batch_stats, opt_state, slow)
    )


def train(
    learner: Learner, state: TrainState, data: Images, num_steps: int
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Trains for a number of steps.

    Args:
      learner: the learner.
      state: the state.
      data: the images.
      num_steps: number of steps.

    Returns:
      The next state, and the metrics of each step, `[num_steps]`: `loss`, `accuracy`,
      `learning_rate` and `grad_norm`.
    """
    config = learner.config

    def order_of(step):
        epoch = step // learner.steps_per_epoch
        order = permutation(state.seed, epoch, learner.num_images)
        if config.classes_per_batch:
            piece = config.batch_size // config.classes_per_batch
            order = gather_classes(order, data.train_labels, piece, state.seed, epoch)
        return order

    def body(carry, _):
        state, order = carry
        place = state.step % learner.steps_per_epoch
        order = jax.lax.cond(place == 0, lambda: order_of(state.step), lambda: order)
        index = jax.lax.dynamic_slice_in_dim(order, place * config.batch_size, config.batch_size)
        state, metrics = train_step(learner, state, data, index)
        return (state, order), metrics

    loop = _unrolled if jax.default_backend() == "cpu" else jax.lax.scan
    (state, _), metrics = loop(body, (state, order_of(state.step)), length=num_steps)
    return everywhere((state, metrics))


def train_step(
    learner: Learner, state: TrainState, data: Images, index: jax.Array
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Trains on the batch of the images with these indices `[batch]`, as `train` does."""
    epoch = state.step // learner.steps_per_epoch
    images, labels = spread((data.train_images[index], data.train_labels[index]))
    x = learner.normalize(data, images)
    x = augment(x, index, state.seed, epoch, learner.config.augment)
    gradient = jax.value_and_grad(loss, argnums=1, has_aux=True)
    (value, (batch_stats, accuracy)), grads = gradient(
        learner, state.params, state.batch_stats, x, labels
    )
    metrics = {
        "loss": value,
        "accuracy": accuracy,
        "learning_rate": jnp.asarray(learner.schedule(state.step), learner.dtype),
        "grad_norm": optax.tree.norm(grads),
    }
    return update(learner, state, grads, batch_stats), metrics


def loss(
    learner: Learner, params: Any, batch_stats: Any, x: jax.Array, labels: jax.Array
) -> tuple[jax.Array, tuple[Any, jax.Array]]:
    """Returns the mean loss of a training batch, and (next statistics, accuracy)."""
    logits, batch_stats = learner.apply(params, batch_stats, x, train=True)
    one_hot = jax.nn.one_hot(labels, learner.num_classes, dtype=logits.dtype)
    targets = optax.smooth_labels(one_hot, learner.config.label_smoothing)
    accuracy = jnp.mean(jnp.argmax(logits, -1) == labels)
    return optax.softmax_cross_entropy(logits, targets).mean(), (batch_stats, accuracy)


def update(learner: Learner, state: TrainState, grads: Any, batch_stats: Any) -> TrainState:
    """Returns the state after an optimizer step with these gradients and statistics."""
    updates, opt_state = learner.optimizer.update(grads, state.opt_state, state.params)
    params, slow, step = optax.apply_updates(state.params, updates), state.slow, state.step + 1
    if slow is not None:
        fast = params, batch_stats
        slow, (params, batch_stats) = look_ahead(slow, fast, step, learner.total_steps)
    return TrainState(step, state.seed, params, batch_stats, opt_state, slow)


def final(state: TrainState) -> tuple[Any, Any]:
    """Returns the parameters and statistics for inference: lookahead's slow ones, if it is used.

    Before lookahead's first move, when the slow ones are the initial ones, it returns the fast.
    """
    fast = state.params, state.batch_stats
    if state.slow is None:
        return fast
    moved = state.step >= LOOKAHEAD_STEPS
    return jax.tree.map(lambda slow, fast: jnp.where(moved, slow, fast), state.slow, fast)


def _unrolled(body, carry, length):
    """Does the same as `jax.lax.scan`, but without a loop.

    Within a loop, XLA computes the gradients of a convolution about 30 times slower on a CPU, also
    with `unroll=True`.
    """
    outputs = []
    for _ in range(length):
        carry, output = body(carry, None)
        outputs.append(output)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)
