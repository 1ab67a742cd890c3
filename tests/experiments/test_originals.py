"""The recipes take the same training steps as the originals of airbench94 and ResNet-20.

The runs of the originals are stored in `originals`; `originals/make.py` names their repositories.
Both sides compute in float64, so they differ by rounding alone. On one CPU, losses differed by up
to 4e-16 (airbench94) and 2e-13 (ResNet-20), relatively, and weights by 5e-14 and 2e-13 of their
standard deviation. The tolerances leave room for other CPUs.
"""

import dataclasses
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.config import AugmentConfig, Config
from experiments.configs import PRESETS
from experiments.evaluation import views_mean
from experiments.learner import Learner, TrainState, final, init, train_step
from experiments.models.airbench import Airbench, whitening_kernel
from experiments.norms import BatchNorm
from experiments.placement import Images
from tests.experiments import originals
from tests.experiments.originals import Original

VARIABLES = {
    "airbench94": originals.airbench_variables,
    "resnet20": originals.resnet_variables,
}

every_original = pytest.mark.parametrize("name", VARIABLES)


def airbench_config(settings: dict[str, Any]) -> Config:
    """Returns the preset with the settings of airbench94, which are for the sum of the losses."""
    preset = PRESETS["cifar10"]
    opt, net, aug = settings["opt"], settings["net"], settings["aug"]
    widths = net["widths"]
    # The learning rate is for 1024 images and steps of the size of a gradient.
    scale = 1024 * (1 + 1 / (1 - opt["momentum"]))
    return dataclasses.replace(
        preset,
        augment=AugmentConfig(
            flip="alternating" if aug["flip"] else "none", shift=aug["translate"], pad="reflect"
        ),
        model=Airbench(
            widths=(widths["block1"], widths["block2"], widths["block3"]),
            whiten_epochs=opt["whiten_bias_epochs"],
        ),
        norm=dataclasses.replace(preset.norm, decay=net["batchnorm_momentum"]),
        optimizer=dataclasses.replace(
            preset.optimizer,
            learning_rate=opt["lr"] / scale * opt["batch_size"],
            momentum=opt["momentum"],
            weight_decay=opt["weight_decay"] / opt["lr"],
            norm_bias_factor=opt["bias_scaler"],
        ),
        epochs=opt["train_epochs"],
        batch_size=opt["batch_size"],
        label_smoothing=opt["label_smoothing"],
        views=("plain", "mirror", "mirror_shift")[net["tta_level"]],
    )


def resnet_config(settings: dict[str, Any]) -> Config:
    """Returns the preset with the settings of ResNet-20."""
    preset = PRESETS["resnet20"]
    first, second = (milestone / settings["epochs"] for milestone in settings["milestones"])
    return dataclasses.replace(
        preset,
        augment=dataclasses.replace(preset.augment, shift=settings["padding"]),
        optimizer=dataclasses.replace(
            preset.optimizer,
            learning_rate=settings["lr"],
            momentum=settings["momentum"],
            weight_decay=settings["weight_decay"],
            schedule=(
                *((0.0, 1.0), (first, 1.0), (first, 0.1)),
                *((second, 0.1), (second, 0.01), (1.0, 0.01)),
            ),
        ),
        epochs=settings["epochs"],
        batch_size=settings["batch_size"],
    )


CONFIGS = {"airbench94": airbench_config, "resnet20": resnet_config}


class Run(NamedTuple):
    """A run of jbn on an original's batches.

    Attributes:
      learner: the learner.
      data: the images.
      start: the state that jbn draws.
      end: the state after the last step of a run that begins with the weights of the original.
      metrics: `[steps]` arrays of that run.
    """

    learner: Learner
    data: Images
    start: TrainState
    end: TrainState
    metrics: dict[str, np.ndarray]


@cache
def load(name: str) -> Original:
    return originals.load(name)


@cache
def run(name: str) -> Run:
    """Returns jbn's run."""
    original = load(name)
    with jax.enable_x64(True):
        learner, data = prepare(name)
        start = jax.jit(partial(init, learner))(data, 0)
        params, batch_stats = VARIABLES[name](original.weights("initial"))
        slow = None
        if name == "airbench94":
            # Lookahead's copy is older than the whitening kernel, in the original.
            slow = params, batch_stats
            weights = {**original.weights("initial"), "0.weight": original.arrays["whitening"]}
            params, _ = VARIABLES[name](weights)
        state = start._replace(params=params, batch_stats=batch_stats, slow=slow)
        state = jax.tree.map(lambda like, leaf: jnp.asarray(leaf, like.dtype), start, state)
        step = jax.jit(partial(train_step, learner))
        metrics = []
        for index in original.arrays["batches"]:
            state, now = step(state, data, index)
            metrics.append(now)
    collected = {key: np.array([now[key] for now in metrics]) for key in metrics[0]}
    return Run(learner, data, start, state, collected)


def prepare(name: str) -> tuple[Learner, Images]:
    """Returns the learner and the images of an original's run."""
    original = load(name)
    arrays = original.arrays
    config = dataclasses.replace(CONFIGS[name](original.used), precision="float64")
    assert isinstance(config.norm, BatchNorm)
    # PyTorch's running variances are unbiased. Those of the preset resnet20 are not.
    norm = dataclasses.replace(config.norm, unbiased=True)
    config = dataclasses.replace(config, augment=AugmentConfig(), norm=norm)
    labels = jnp.asarray(arrays["labels"], jnp.int32)
    test_labels = jnp.zeros(len(arrays["test_images"]), jnp.int32)
    images, test_images, mean, std = (
        jnp.asarray(arrays[key]) for key in ("images", "test_images", "mean", "std")
    )
    data = Images(images, labels, test_images, test_labels, mean, std)
    return Learner(config, 10, len(labels)), data


def largest_difference(ours: Any, theirs: Any) -> float:
    """Returns the largest difference of two trees, in standard deviations of each array.

    NaNs in `theirs` are values that are not known.
    """
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)

    def difference(a, b):
        known = ~np.isnan(b)
        return np.max(np.abs(np.asarray(a) - b)[known]) / np.std(b[known])

    return float(np.max(jax.tree.leaves(jax.tree.map(difference, ours, theirs))))


@every_original
def test_the_preset_has_the_settings_of_the_original(name):
    """The number of epochs of ResNet-20 differs: ours is that of He et al., theirs 200."""
    preset = PRESETS["cifar10" if name == "airbench94" else name]
    theirs = CONFIGS[name](load(name).published)
    if name == "resnet20":
        theirs = dataclasses.replace(theirs, epochs=preset.epochs)
    pairs = zip(
        jax.tree.leaves_with_path(dataclasses.asdict(preset)),
        jax.tree.leaves_with_path(dataclasses.asdict(theirs)),
        strict=True,
    )
    for (path, ours), (_, leaf) in pairs:
        assert ours == (pytest.approx(leaf, rel=1e-12) if isinstance(leaf, float) else leaf), path


@every_original
def test_initial_weights_that_are_not_random_are_those_of_the_original(name):
    """One array differs: PyTorch draws the bias of ResNet-20's last layer, and ours is zero."""
    initial = VARIABLES[name](load(name).weights("initial"))
    start = run(name).start
    ours, theirs = (dict(jax.tree.leaves_with_path(tree)) for tree in (start[2:4], initial))
    assert ours.keys() == theirs.keys()
    fixed = {path: leaf for path, leaf in theirs.items() if leaf.ndim == 1}
    if name == "resnet20":
        del fixed[next(path for path in fixed if "Dense_0" in str(path))]
    assert fixed
    for path, leaf in fixed.items():
        np.testing.assert_array_equal(ours[path], leaf, str(path))


def test_kernels_of_airbench94_start_with_the_same_identities():
    params, _ = originals.airbench_variables(load("airbench94").weights("initial"))
    for layer in (f"ConvNorm_{index}" for index in range(6)):
        kernel = params[layer]["Conv_0"]["kernel"]
        n = min(kernel.shape[2:])
        ours = run("airbench94").start.params[layer]["Conv_0"]["kernel"]
        np.testing.assert_array_equal(ours[..., :n], kernel[..., :n])


@pytest.mark.usefixtures("x64")
def test_whitening_filters_are_those_of_airbench94_but_for_sign_and_order():
    learner, data = prepare("airbench94")
    ours = whitening_kernel(learner.normalize(data, data.train_images))
    theirs = load("airbench94").arrays["whitening"].transpose(2, 3, 1, 0)
    ours, theirs = (np.asarray(kernel).reshape(12, 24) for kernel in (ours, theirs))
    np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, rtol=1e-10, atol=1e-10)
    distances = np.linalg.norm(ours[:, :, None] - theirs[:, None], axis=0)
    nearest = distances.argmin(axis=0)
    assert sorted(nearest) == list(range(24))
    np.testing.assert_allclose(ours[:, nearest], theirs, rtol=1e-8, atol=1e-8)


@every_original
def test_losses_are_those_of_the_original(name):
    arrays, (learner, *_, metrics) = load(name).arrays, run(name)
    images = learner.config.batch_size if name == "airbench94" else 1  # It sums the losses.
    assert len(arrays["losses"]) == learner.total_steps
    np.testing.assert_allclose(metrics["loss"], arrays["losses"] / images, rtol=1e-11)


@every_original
def test_learning_rates_are_those_of_the_original(name):
    arrays, (learner, *_, metrics) = load(name).arrays, run(name)
    rates = metrics["learning_rate"][:, None]
    if name == "airbench94":
        factor = learner.config.optimizer.norm_bias_factor
        rates = rates * np.array([factor, 1]) / learner.config.batch_size
    np.testing.assert_allclose(rates, arrays["rates"], rtol=1e-14)


@every_original
def test_weights_and_statistics_become_those_of_the_original(name):
    end, original = run(name).end, load(name)
    fast = VARIABLES[name](original.weights("fast"))
    assert largest_difference((end.params, end.batch_stats), fast) < 1e-11
    if end.slow is not None:
        slow = VARIABLES[name](original.weights("slow"))
        assert largest_difference(end.slow, slow) < 1e-11


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "views"),
    [
        *(("airbench94", views) for views in ("plain", "mirror", "mirror_shift")),
        ("resnet20", "plain"),
    ],
)
def test_logits_are_those_of_the_original(name, views):
    learner, data, _, end, _ = run(name)
    params, batch_stats = final(end)

    def infer(x):
        return learner.apply(params, batch_stats, x, train=False)[0]

    @jax.jit
    def logits(x):
        return views_mean(infer, x, infer(x), views)

    ours = logits(learner.normalize(data, data.test_images))
    theirs = load(name).arrays[f"logits/{views}"]
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10 * float(np.std(theirs)))
