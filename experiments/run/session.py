"""Sets up a run: its data, its devices, its folder, its state and its display."""

import contextlib
import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
import pooch
from jax.experimental import multihost_utils

from experiments.learner import Learner, TrainState, init
from experiments.placement import Images, place
from experiments.run.arithmetic import arithmetic
from experiments.run.checkpoints import Checkpoints
from experiments.run.compiled import Compiled
from experiments.run.environment import environment
from experiments.run.flags import Run
from experiments.run.folder import RunFolder
from experiments.run.journal import Journal
from experiments.run.plan import Plan, check_folder
from experiments.run.processes import Signals, resume_hint
from experiments.run.progress import Display, RunConsole
from experiments.run.report import write_report
from experiments.run.settings import to_dict
from experiments.run.stored import read_typed, stored_flags, write_flags
from experiments.run.trained import Trained, taken_over


@dataclasses.dataclass(frozen=True)
class Session:
    """A run that is set up.

    Attributes:
      run: the run.
      learner: its learner.
      data: its images on the devices.
      state: the state from which it goes on.
      folder: its folder. Only that of process 0 writes.
      compiled: calls functions of the learner.
      checkpoints: its checkpoints.
      journal: writes down what the run finds out.
      signals: signals that end the run early.
    """

    run: Run
    learner: Learner
    data: Images
    state: TrainState
    folder: RunFolder
    compiled: Compiled
    checkpoints: Checkpoints
    journal: Journal
    signals: Signals

    @property
    def chunk(self) -> int:
        """Number of steps in one call of the device."""
        return self.run.chunk or (1 if jax.default_backend() == "cpu" else 50)

    @property
    def every(self) -> int:
        """Number of steps between evaluations."""
        return max(1, round(self.run.eval_every * self.learner.steps_per_epoch))

    def finish(self) -> dict[str, Any]:
        """Writes the summary and the report; returns the summary."""
        self.checkpoints.wait()
        if self.folder.writes:
            self.journal.summarize()
            write_report(self.folder)
        multihost_utils.sync_global_devices("report")
        return self.folder.read("summary.json")


@contextlib.contextmanager
def started(run: Run) -> Iterator[Session]:
    """Sets up a run.

    Raises:
      DataError: the data is missing or damaged.
      RunError: the devices, the data or the folder do not fit the run.
    """
    _cache_programs()
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        enter(arithmetic(run.config))
        plan = Plan.of(run)
        multihost_utils.sync_global_devices("checked")
        enter(jax.set_mesh(plan.mesh))
        folder = enter(RunFolder(run.folder, writes=jax.process_index() == 0))
        if folder.writes:
            check_folder(run)  # Another process may have written there since.
        data = place(plan.dataset, plan.mesh)
        began_on = stored_flags(run.folder).get("devices", run.devices)
        _write_settings(plan, folder, data)
        enter(resume_hint(run))
        checkpoints = enter(Checkpoints(folder.path))
        signals = enter(Signals(f"Resume with: {run.resume_command}"))
        console = RunConsole(quiet=not folder.writes)
        say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
        state = checkpoints.restore(plan.shapes, say) if run.resume else None
        first_step = 0 if state is None else int(state.step)
        display = Display(plan.learner.total_steps, first_step, console)
        display.header(plan.header())
        if told := _lost_records(*folder.keep_until(first_step)):
            say(f"{folder.metrics}: {told}.")
        compiled = Compiled(plan.learner, display)
        if state is None:
            state = compiled(init, data, np.int32(run.config.seed))
            if run.init_from is not None:
                state = taken_over(state, Trained.open(run.init_from), plan.dataset.classes, say)
        else:
            if began_on != run.devices:
                say(f"The run began on --devices {began_on}, so results can differ in last digits.")
            ended = first_step == plan.learner.total_steps
            going_on = f"The run continues from step {first_step} of {plan.learner.total_steps}."
            say("The run is complete. Its report is written again." if ended else going_on)
        journal = enter(Journal(folder, plan.learner, checkpoints, display, first_step))
        checkpoints.save(state)  # It may be saved as the best one only.
        enter(display)
        yield Session(
            run, plan.learner, data, state, folder, compiled, checkpoints, journal, signals
        )


def _lost_records(damaged: int, missing: int) -> str:
    """Says what has been lost of the metrics, if something has."""
    told = []
    if damaged:
        told.append(f"{damaged} damaged line{'s' * (damaged > 1)} left out")
    if missing:
        told.append(f"the records of {missing} step{'s' * (missing > 1)} are missing")
    return ", ".join(told)


def _write_settings(plan: Plan, folder: RunFolder, data: Images) -> None:
    """Writes all that a command that resumes or uses the run needs to know."""
    dataset = plan.dataset
    folder.write("config.json", to_dict(plan.run.config))
    write_flags(plan.run, folder)
    folder.write(
        "data.json",
        {
            "variant": dataset.variant,
            "fingerprint": plan.fingerprint,
            "classes": dataset.classes,
            "train_images": dataset.train_images.shape,
            "test_images": dataset.test_images.shape,
            "mean": np.asarray(data.mean).tolist(),
            "std": np.asarray(data.std).tolist(),
            "num_params": plan.num_params,
        },
    )
    now = environment(dataset.variant)
    if (folder.path / "environment.json").exists():
        # The first environment made the run; others resumed it.
        first = folder.read("environment.json")
        before = read_typed(folder.path, "environment.json", {"resumed": tuple[dict, ...]})
        now = first | {"resumed": [*before.get("resumed", ()), now]}
    folder.write("environment.json", now)


def _cache_programs() -> None:
    """Keeps compiled programs for the next run, unless the user has chosen a folder for them."""
    config: Any = jax.config
    if config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(pooch.os_cache("jbn") / "programs"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
