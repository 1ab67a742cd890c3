"""A run that is checked before anything is written: its images fit its network and its folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.data import NAMES, DataError, Dataset, expanded, fingerprint, load
from experiments.learner import Learner, TrainState
from experiments.run.errors import RunError
from experiments.run.flags import Run
from experiments.run.folder import WRITER
from experiments.run.processes import make_mesh
from experiments.run.settings import changed, differences, to_dict
from experiments.run.stored import PARTS, check_images, stored_config
from experiments.run.trained import Trained, differing, state_shapes, with_sharding


@dataclass(frozen=True)
class Plan:
    """A run that can start.

    Attributes:
      run: the run.
      mesh: its devices.
      dataset: its images.
      fingerprint: hash of the images.
      learner: its learner.
      shapes: shapes, dtypes and shardings of the learner's state.
    """

    run: Run
    mesh: Mesh
    dataset: Dataset
    fingerprint: str
    learner: Learner
    shapes: TrainState

    @classmethod
    def of(cls, run: Run) -> Self:
        """Loads the images and checks all that the run needs.

        Raises:
          DataError: the data is missing or damaged.
          RunError: the devices, the data, the folder or the weights do not fit the run.
        """
        check_folder(run)
        mesh = make_mesh(run)
        dataset = _loaded(run)
        learner = Learner(run.config, len(dataset.classes), len(dataset.train_labels))
        _check_sizes(learner, dataset.train_images.shape[1:])
        state = _checked_network(learner, dataset.train_images.shape[1:])
        _check_batches(learner, state, dataset.train_images.shape[1:])
        images = fingerprint(dataset)
        _check_same_images(run, images)
        shapes = with_sharding(state, NamedSharding(mesh, PartitionSpec()))
        if run.init_from is not None and run.resume is None:
            differing(shapes, Trained.open(run.init_from), dataset.classes)
        return cls(run, mesh, dataset, images, learner, shapes)

    @property
    def num_params(self) -> int:
        """Number of parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.shapes.params))

    def header(self) -> dict[str, str]:
        """Returns what a person should know before the run starts, by name."""
        config, dataset = self.run.config, self.dataset
        height, width, channels = dataset.train_images.shape[1:]
        images = f"{len(dataset.train_labels)} + {len(dataset.test_labels)} images"
        return {
            **({"run": self.run.part} if self.run.part else {}),
            "model": f"{config.model.name}, {self.num_params:,} parameters, {config.precision}",
            "norm": config.norm.method,
            "data": f"{dataset.variant}: {images}, {height}x{width}x{channels}",
            "training": f"{_counted(config.epochs, 'epoch')}, "
            f"{_counted(self.learner.total_steps, 'step')} of "
            f"{_counted(config.batch_size, 'image')}",
            "devices": f"{self.mesh.size} x {self.mesh.devices.flat[0].device_kind}",
            "folder": str(self.run.folder),
            "resume": self.run.resume_command,
        }


def _counted(number: float, name: str) -> str:
    digits = f"{number:g}" if isinstance(number, float) else str(number)
    return f"{digits} {name}{'s' * (number != 1)}"


def check_folder(run: Run) -> None:
    """Checks that a new run has a new folder, and that a resumed one has the same settings.

    Raises:
      RunError: it is not so.
    """
    if run.resume is None:
        if any((run.folder / name).exists() for name in ("config.json", PARTS)):
            raise RunError(
                f"{run.folder} already holds a run. Continue it with --resume, or choose another "
                "--output."
            )
        if run.folder.is_dir() and any(map(_is_foreign, run.folder.iterdir())):
            raise RunError(f"--output {run.folder} holds other files. Choose a new folder.")
        images = run.config.data.dataset
        inside = run.folder.resolve().is_relative_to(Path(images).resolve())
        if images not in NAMES and inside:
            raise RunError(
                f"--output {run.folder} is in the folder of images {images}, which may hold "
                "images only. Choose another folder."
            )
        return
    before = stored_config(run.folder)
    if not {before.data.dataset, run.config.data.dataset} & set(NAMES):
        # The data may have moved. Whether it is the same is checked when it is read.
        before = changed(before, {"data": {"dataset": run.config.data.dataset}})
    changes = differences(to_dict(before), to_dict(run.config))
    if changes:
        raise RunError(
            f"{run.folder} holds a run with another configuration. Start a new run, or drop the "
            f"flags that make these changes: {'; '.join(changes)}"
        )


def _is_foreign(path: Path) -> bool:
    """Returns whether a file does not come from a run that ended before its first step."""
    return not path.name.startswith(".") and path.name != WRITER


def _check_sizes(learner: Learner, shape: Sequence[int]) -> None:
    config = learner.config
    if learner.steps_per_epoch == 0:
        raise RunError(
            f"--batch-size {config.batch_size} is more than the {learner.num_images} training "
            "images. Choose a smaller one."
        )
    if learner.total_steps == 0:
        raise RunError(f"--epochs {config.epochs} makes no step. Choose more.")
    classes = config.classes_per_batch
    if classes and classes > learner.num_classes:
        raise RunError(
            f"--classes-per-batch {classes} is more than the {learner.num_classes} classes."
        )
    if config.augment.shift >= min(shape[:2]):
        raise RunError(
            f"--augment.shift {config.augment.shift} must be less than the images' sides, "
            f"{shape[1]}x{shape[0]}."
        )


def _checked_network(learner: Learner, shape: Sequence[int]) -> TrainState:
    """Returns the shapes of the learner's state, if its network can take the images."""
    try:
        state = state_shapes(learner, shape)
        leaves = jax.tree.leaves((state, _outputs(learner, state, shape)))
        if all(leaf.size for leaf in leaves):
            return state
        reason = "a layer would have no inputs"
    except ZeroDivisionError:
        reason = "a layer would have no inputs"
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
    resizable = expanded(learner.config.data.dataset).is_dir()
    images = "larger images with --data.resize" if resizable else "larger images"
    raise RunError(
        f"--model.name {learner.config.model.name} cannot take images of shape {tuple(shape)}: "
        f"{reason}. Choose another network or norm, or {images}."
    )


def _check_batches(learner: Learner, state: TrainState, shape: Sequence[int]) -> None:
    """Checks that norms can normalize a training batch and a test batch."""
    for flag in ("batch_size", "eval_batch_size"):
        size = getattr(learner.config, flag)
        images = jax.ShapeDtypeStruct((size, *shape), learner.dtype)
        mask = jax.ShapeDtypeStruct((size, 1, 1), bool) if flag == "eval_batch_size" else None
        try:
            apply = partial(learner.apply, train=True)
            jax.eval_shape(apply, state.params, state.batch_stats, images, mask=mask)
        except ValueError as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise RunError(f"--{flag.replace('_', '-')} {size} is too small: {reason}.") from error


def _loaded(run: Run) -> Dataset:
    try:
        return load(run.config.data, run.data_dir, run.data_variant)
    except DataError as error:
        if run.resume is None:
            raise
        flag = "data-dir" if run.config.data.dataset in NAMES else "data.dataset"
        raise DataError(
            f"{error} If the data of the run has moved, add --{flag} PATH, or put it back if this "
            "is a sweep over data sets."
        ) from error


def _check_same_images(run: Run, images: str) -> None:
    """Checks that the images are those of the run before, and of other runs by its command."""
    if run.resume and any((run.folder / name).exists() for name in ("data.json", "checkpoints")):
        check_images(run.folder, images)
    for folder in run.siblings:
        if (folder / "data.json").exists():
            check_images(folder, images)


def _outputs(learner: Learner, state: TrainState, shape: Sequence[int]) -> Any:
    """Returns the shapes of the results of all layers for an image."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    image = jax.ShapeDtypeStruct((1, *shape), learner.dtype)
    apply = partial(
        learner.model.apply, train=False, capture_intermediates=True, mutable=["intermediates"]
    )
    return jax.eval_shape(apply, variables, image)
