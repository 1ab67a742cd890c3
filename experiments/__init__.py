"""Experiments with batch norm: training runs, studies and benchmarks."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import jax
    from jax.typing import ArrayLike


def load(
    run: str | Path, checkpoint: Literal["newest", "best"] = "newest"
) -> tuple["Callable[[dict[str, Any], ArrayLike], jax.Array]", dict[str, Any]]:
    """Returns the network that a run has trained.

    Args:
      run: folder of the run.
      checkpoint: the newest checkpoint, or the one with the best test accuracy.

    Returns:
      `apply(variables, images) -> logits`, a pure function for uint8 images
      `[n, height, width, channels]`, and the variables: `params` and `batch_stats` as Flax has
      them, and `pixels`, the mean and the standard deviation that normalize the images.

    Raises:
      experiments.run.errors.RunError: the folder holds no run, or no checkpoint that can be read.
    """
    # The commands of this package should not wait for what only this function needs.
    from experiments.run.arithmetic import check_dtypes
    from experiments.run.trained import Trained

    check_dtypes(Path(run))
    trained = Trained.open(Path(run), checkpoint)
    return trained.apply, trained.variables
