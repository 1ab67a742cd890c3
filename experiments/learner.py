"""A training run as pure, jitted functions of its state, which read and write no files."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jbn
from experiments.augment import (
    augment,
    gather_classes,
    normalizer,
    permutation,
    pixel_statistics,
    shift,
)
from experiments.config import Config
from experiments.data import Dataset
from experiments.models import make_model, whitening_kernel
from experiments.optimizers import learning_rate, look_ahead, make_optimizer


class TrainState(NamedTuple):
    """The state of a training run.

    It holds no random key, because randomness is derived from the seed and the step.

    Attributes:
      step: `[]` int32 number of steps done.
      params: the network's parameters.
      batch_stats: its running statistics.
      opt_state: the optimizer's state.
      slow: lookahead's copy of parameters and statistics, or None.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    slow: Any


class Learner(NamedTuple):
    """A training run.

    Attributes:
      init: `init() -> state`.
      train: `train(state, num_steps) -> (state, metrics)`, jitted with `num_steps` static and the
        state donated; metrics are `[num_steps]` arrays: loss, accuracy, learning_rate, grad_norm.
      evaluate: `evaluate(state) -> dict` over the test images: loss, accuracy (with the configured
        views), accuracy_plain, accuracy_batch_statistics (normalized as in training) and confusion
        `[label, prediction]`.
      drift: `drift(state) -> {layer: {mean, var}}`, distances of the running statistics from the
        statistics of a batch of training images. `mean` is the root mean square over features of
        the difference of the means, in standard deviations; `var` is that of the logarithm of the
        ratio of the variances.
      steps_per_epoch: number of full batches in an epoch. An epoch leaves out images that do not
        fill a batch.
      total_steps: number of steps of the run.
      normalize: `normalize(images) -> x`, the network's input.
      apply: `apply(params, batch_stats, x, train) -> (logits, batch_stats)`.
      loss: `loss(params, batch_stats, x, labels) -> (loss, (batch_stats, accuracy))` in training.
      update: `update(state, grads, batch_stats) -> state`, an optimizer step with given gradients.
    """

    init: Callable[[], TrainState]
    train: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    evaluate: Callable[[TrainState], dict[str, jax.Array]]
    drift: Callable[[TrainState], dict[str, dict[str, jax.Array]]]
    steps_per_epoch: int
    total_steps: int
    normalize: Callable[[jax.Array], jax.Array]
    apply: Callable[..., tuple[jax.Array, Any]]
    loss: Callable[..., tuple[jax.Array, tuple[Any, jax.Array]]]
    update: Callable[[TrainState, Any, Any], TrainState]


def make_learner(
    config: Config,
    dataset: Dataset,
    mesh: Mesh | None = None,
    normalize: Callable[[jax.Array], jax.Array] | None = None,
) -> Learner:
    """Returns the functions of a training run.

    Args:
      config: configuration of the run.
      dataset: the images, which stay on the device as uint8.
      mesh: devices on one axis `data`. Each batch is spread over them, and each holds the state.
      normalize: `normalize(images) -> x`; by default it uses the statistics of the training images.

    Raises:
      ValueError: there are fewer training images than a batch needs, or `classes_per_batch` does
        not divide the batch.
    """
    num_images = len(dataset.train_labels)
    if num_images < config.batch_size:
        raise ValueError(
            f"batch_size={config.batch_size} is more than the {num_images} training images."
        )
    piece, rest = divmod(config.batch_size, config.classes_per_batch or 1)
    if rest:
        raise ValueError(
            f"classes_per_batch={config.classes_per_batch} must divide "
            f"batch_size={config.batch_size}."
        )
    steps_per_epoch = num_images // config.batch_size
    total_steps = math.ceil(config.epochs * steps_per_epoch)
    everywhere = NamedSharding(mesh, PartitionSpec()) if mesh else None
    images, labels, test_images, test_labels = jax.device_put(dataset[:4], everywhere)
    normalize = normalize or normalizer(pixel_statistics(images), config.data.gain)
    num_classes = len(dataset.classes)
    model = make_model(config, num_classes, config.norm.make())
    optimizer = make_optimizer(config.optimizer, total_steps, steps_per_epoch)
    schedule = learning_rate(config.optimizer, total_steps)

    def spread(batch):
        return jax.lax.with_sharding_constraint(batch, _spread(mesh)) if mesh else batch

    def apply(params, batch_stats, x, train, mask=None):
        variables = {"params": params, "batch_stats": batch_stats}
        logits, updates = model.apply(variables, x, train, mask, mutable=["batch_stats"])
        return logits, updates.get("batch_stats", {})

    @partial(jax.jit, out_shardings=everywhere)
    def init() -> TrainState:
        variables = model.init(jax.random.key(config.seed), normalize(images[:2]), train=True)
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        if "whiten" in params:
            params["whiten"]["kernel"] = whitening_kernel(normalize(images[:5000]))
        slow = (params, batch_stats) if config.optimizer.lookahead else None
        return TrainState(jnp.int32(0), params, batch_stats, optimizer.init(params), slow)

    def loss_of(params, batch_stats, x, y):
        logits, batch_stats = apply(params, batch_stats, x, train=True)
        targets = optax.smooth_labels(jax.nn.one_hot(y, num_classes), config.label_smoothing)
        loss = optax.softmax_cross_entropy(logits, targets).mean()
        return loss, (batch_stats, jnp.mean(jnp.argmax(logits, -1) == y))

    def update(state: TrainState, grads, batch_stats) -> TrainState:
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params, slow, step = optax.apply_updates(state.params, updates), state.slow, state.step + 1
        if slow is not None:
            slow, (params, batch_stats) = look_ahead(slow, (params, batch_stats), step, total_steps)
        return TrainState(step, params, batch_stats, opt_state, slow)

    def train_step(state: TrainState, index: jax.Array):
        epoch = state.step // steps_per_epoch
        x, y = spread((images[index], labels[index]))
        x = augment(normalize(x), index, config.seed, epoch, config.augment)
        grad = jax.value_and_grad(loss_of, has_aux=True)
        (loss, (batch_stats, accuracy)), grads = grad(state.params, state.batch_stats, x, y)
        metrics = {
            "loss": loss,
            "accuracy": accuracy,
            "learning_rate": jnp.float32(schedule(state.step)),
            "grad_norm": optax.tree.norm(grads),
        }
        return update(state, grads, batch_stats), metrics

    @partial(jax.jit, static_argnums=1, donate_argnums=0)
    def train(state: TrainState, num_steps: int):
        def order_of(step):
            epoch = step // steps_per_epoch
            order = permutation(config.seed, epoch, num_images)
            if config.classes_per_batch:
                order = gather_classes(order, labels, piece, config.seed, epoch)
            return order

        def body(carry, _):
            state, order = carry
            place = state.step % steps_per_epoch
            order = jax.lax.cond(place == 0, lambda: order_of(state.step), lambda: order)
            index = jax.lax.dynamic_slice_in_dim(
                order, place * config.batch_size, config.batch_size
            )
            state, metrics = train_step(state, index)
            return (state, order), metrics

        loop = _unrolled if jax.default_backend() == "cpu" else jax.lax.scan
        (state, _), metrics = loop(body, (state, order_of(state.step)), length=num_steps)
        return state, metrics

    @jax.jit
    def evaluate(state: TrainState):
        params, batch_stats = _final(state)
        x, y, valid = _batches(test_images, test_labels, config.eval_batch_size)

        def one_batch(batch):
            x, y, valid = spread(batch)
            x = normalize(x)
            plain, _ = apply(params, batch_stats, x, train=False)
            logits = _views_mean(
                lambda x: apply(params, batch_stats, x, train=False)[0], x, plain, config.views
            )
            own, _ = apply(params, batch_stats, x, train=True, mask=valid[:, None, None])
            hits = {
                "accuracy": jnp.argmax(logits, -1) == y,
                "accuracy_plain": jnp.argmax(plain, -1) == y,
                "accuracy_batch_statistics": jnp.argmax(own, -1) == y,
                "loss": optax.softmax_cross_entropy_with_integer_labels(plain, y),
            }
            sums = {name: jnp.sum(jnp.where(valid, hit, 0)) for name, hit in hits.items()}
            cells = jnp.zeros((num_classes, num_classes), jnp.int32)
            return sums, cells.at[y, jnp.argmax(logits, -1)].add(valid)

        sums, confusion = jax.tree.map(
            partial(jnp.sum, axis=0), jax.lax.map(one_batch, (x, y, valid))
        )
        means = {name: value / len(test_labels) for name, value in sums.items()}
        return {**means, "confusion": confusion}

    # With decay 0 the new running statistics are the batch's own.
    newest = config.norm.make(decay=0.0)

    @jax.jit
    def drift(state: TrainState):
        if not isinstance(newest, jbn.Norm):
            return {}
        params, batch_stats = _final(state)
        x = normalize(images[: config.eval_batch_size])
        variables = {"params": params, "batch_stats": batch_stats}
        own = make_model(config, num_classes, newest)
        _, updates = own.apply(variables, x, True, mutable=["batch_stats"])
        return _distances(batch_stats, updates["batch_stats"])

    return Learner(
        *(init, train, evaluate, drift, steps_per_epoch, total_steps),
        *(normalize, apply, loss_of, update),
    )


def _final(state: TrainState) -> tuple[Any, Any]:
    """Returns the parameters and statistics for inference: lookahead's slow ones, if it is used."""
    return (state.params, state.batch_stats) if state.slow is None else state.slow


def _unrolled(body, carry, length):
    """Does the same as `jax.lax.scan`, but without a loop.

    Within a loop, XLA computes the gradients of a convolution about 30 times slower on a CPU.
    """
    outputs = []
    for _ in range(length):
        carry, output = body(carry, None)
        outputs.append(output)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)


def _spread(mesh):
    return NamedSharding(mesh, PartitionSpec("data"))


def _batches(images, labels, size):
    """Pads to full batches; returns images, labels and a mask of the real ones.

    All have the shape `[batches, size, ...]`.
    """
    count = len(labels)
    padding = -count % size

    def stack(array):
        array = jnp.pad(array, ((0, padding),) + ((0, 0),) * (array.ndim - 1))
        return array.reshape(-1, size, *array.shape[1:])

    return stack(images), stack(labels), stack(jnp.ones(count, bool))


def _views_mean(infer, x, plain, views) -> jax.Array:
    """Averages logits over views of the images as airbench94 does.

    Half the weight is on the unshifted views.
    """
    if views == "plain":
        return plain

    def mirrored(x, logits=None):
        return ((infer(x) if logits is None else logits) + infer(x[:, :, ::-1])) / 2

    if views == "mirror":
        return mirrored(x, plain)
    corners = [jnp.full((x.shape[0], 2), offset, jnp.int32) for offset in (-1, 1)]
    shifted = [mirrored(shift(x, corner, 1, "reflect")) for corner in corners]
    return mirrored(x, plain) / 2 + sum(shifted) / 4


def _distances(running, own):
    """Returns the distances between two trees of statistics, two numbers for each layer."""

    def layers(tree, path=()):
        if "mean" in tree:
            yield "/".join(path), tree
            return
        for name, branch in tree.items():
            yield from layers(branch, (*path, name))

    def rms(values):
        return jnp.sqrt(jnp.mean(values**2))

    tiny = jnp.finfo(jnp.float32).tiny
    return {
        name: {
            "mean": rms((old["mean"] - new["mean"]) / jnp.sqrt(new["var"] + tiny)),
            "var": rms(jnp.log((old["var"] + tiny) / (new["var"] + tiny))),
        }
        for (name, old), (_, new) in zip(layers(running), layers(own), strict=True)
    }
