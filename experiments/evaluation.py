"""Evaluates a training run as pure functions of its state and the images."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.augment import shift
from experiments.learner import Learner, TrainState, final
from experiments.placement import Images, spread


def evaluate(learner: Learner, state: TrainState, data: Images) -> dict[str, jax.Array]:
    """Evaluates the network on the test images.

    Args:
      learner: the learner.
      state: the state.
      data: the images.

    Returns:
      `loss`; `accuracy`, with the configured views; `accuracy_plain`, with single views;
      `accuracy_batch_statistics`, normalized as in training; `confusion` `[label, prediction]`,
      numbers of images.
    """
    params, batch_stats = final(state)
    classes, size = learner.num_classes, learner.config.eval_batch_size
    x, y, valid = _batches(data.test_images, data.test_labels, size)

    def one_batch(batch):
        images, y, valid = spread(batch)
        x = learner.normalize(data, images)
        infer = partial(_infer, learner, params, batch_stats)
        plain = infer(x)
        logits = views_mean(infer, x, plain, learner.config.views)
        own, _ = learner.apply(params, batch_stats, x, train=True, mask=valid[:, None, None])
        hits = {
            "accuracy": jnp.argmax(logits, -1) == y,
            "accuracy_plain": jnp.argmax(plain, -1) == y,
            "accuracy_batch_statistics": jnp.argmax(own, -1) == y,
            "loss": optax.softmax_cross_entropy_with_integer_labels(plain, y),
        }
        sums = {name: jnp.sum(hit, where=valid) for name, hit in hits.items()}
        cells = jnp.zeros((classes, classes), jnp.int32)
        return sums, cells.at[y, jnp.argmax(logits, -1)].add(valid.astype(cells.dtype))

    sums, confusion = jax.tree.map(partial(jnp.sum, axis=0), jax.lax.map(one_batch, (x, y, valid)))
    means = {name: value / len(data.test_labels) for name, value in sums.items()}
    return {**means, "confusion": confusion}


def drift(learner: Learner, state: TrainState, data: Images) -> dict[str, dict[str, jax.Array]]:
    """Returns distances of the running statistics from the statistics of a training batch.

    Returns:
      For each layer `mean`, the root mean square over features of the difference of the means, in
      standard deviations, and `var`, that of the logarithm of the ratio of the variances. It is
      empty for a network without running statistics.
    """
    config = learner.config
    if not state.batch_stats:
        return {}
    # With decay 0 the new running statistics are the batch's own.
    norm: Any = dataclasses.replace(config.norm, decay=0.0)
    newest = dataclasses.replace(learner, config=dataclasses.replace(config, norm=norm))
    params, batch_stats = final(state)
    x = learner.normalize(data, data.train_images[: config.eval_batch_size])
    _, own = newest.apply(params, batch_stats, x, train=True)
    return _distances(batch_stats, own)


def views_mean(
    infer: Callable[[jax.Array], jax.Array], x: jax.Array, plain: jax.Array, views: str
) -> jax.Array:
    """Averages logits over views of the images as airbench94 does.

    Half the weight is on the unshifted views.

    Args:
      infer: `infer(x) -> logits`.
      x: `[batch, height, width, channels]`, normalized.
      plain: `infer(x)`.
      views: `plain`, `mirror` or `mirror_shift`, as in `Config`.
    """
    if views == "plain":
        return plain

    def mirrored(x, logits):
        return (logits + infer(x[:, :, ::-1])) / 2

    if views == "mirror":
        return mirrored(x, plain)
    corners = [jnp.full((x.shape[0], 2), offset, jnp.int32) for offset in (-1, 1)]
    shifted = [shift(x, corner, 1, "reflect") for corner in corners]
    return mirrored(x, plain) / 2 + sum(mirrored(x, infer(x)) for x in shifted) / 4


def _infer(learner, params, batch_stats, x):
    return learner.apply(params, batch_stats, x, train=False)[0]


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
