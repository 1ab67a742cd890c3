"""The flags of a training run."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from experiments.config import Config


@dataclass(frozen=True)
class Run:
    """A training run: its configuration, its folder, its data and its devices."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    settings: Annotated[Path | None, tyro.conf.arg(name="config")] = None
    """Folder of a run, or a file such as its config.json, whose settings replace the preset's."""
    output: Path | None = None
    """Folder of the run; by default runs/PRESET-TIME."""
    resume: Path | None = None
    """Folder of a run to continue."""
    init_from: Path | None = None
    """Folder of a run whose weights and running statistics are the initial ones."""
    seeds: int = 1
    """Number of runs, one after the other, which differ in their seeds."""
    sweep: tuple[str, ...] = ()
    """A setting and its values, such as `norm.decay 0.9 0.99`. There is a run for each value."""
    data_dir: Path | None = None
    """Folder or archive with CIFAR-10 or CIFAR-100; by default they are downloaded and cached."""
    data_variant: str | None = None
    """Name of the data in reports; by default that of the file or folder."""
    devices: int | None = None
    """Number of devices of each process; all by default. On a CPU, JAX creates this many."""
    processes: int = 1
    """Number of processes that train together. Start each with the same flags but --process."""
    process: int = 0
    """Number of this process, from 0."""
    coordinator: str | None = None
    """HOST:PORT at which process 0 waits for the others."""
    distributed: bool = False
    """Join the processes that a TPU pod, SLURM, Open MPI or Kubernetes has started."""
    wait: float = 300.0
    """Number of seconds that the processes wait for each other at the start."""
    chunk: int | None = None
    """Number of steps in one call of the device; by default 1 on a CPU and 50 elsewhere."""
    eval_every: float = 1.0
    """Number of epochs between evaluations. Each evaluation saves a checkpoint."""

    whole: Annotated[Path | None, tyro.conf.Suppress] = None
    """Folder of all runs of the command, if they are several."""
    base: Annotated[Path, tyro.conf.Suppress] = field(default_factory=Path.cwd)
    """Folder in which the command was first started, to which the paths of a sweep are relative."""
    siblings: Annotated[tuple[Path, ...], tyro.conf.Suppress] = ()
    """Folders of the runs of the command that have the same images."""
    part: Annotated[str, tyro.conf.Suppress] = ""
    """Which of several runs this is, such as `2 of 5`."""

    @property
    def folder(self) -> Path:
        """The folder of the run, new or resumed."""
        folder = self.resume or self.output
        assert folder is not None, "parse() names one"
        return folder

    @property
    def is_distributed(self) -> bool:
        """Whether several processes may train together."""
        return self.distributed or self.processes > 1

    @property
    def resume_command(self) -> str:
        """The command that resumes the run; with several processes, that of this process."""
        command = (
            f"python -m experiments.train --resume {shlex.quote(str(self.whole or self.folder))}"
        )
        if self.distributed:
            return f"{command} --distributed"
        if self.processes == 1:
            return command
        return (
            f"{command} --processes {self.processes} --process {self.process} "
            f"--coordinator {self.coordinator}"
        )
