"""Trains a network: python -m experiments.train [PRESET] [--flags].

Presets: digits (the default), cifar10_small, cifar10, resnet20.

Several processes can train together, on one or several machines, if all can reach the folder:
python -m experiments.train PRESET --output FOLDER --processes N --process I --coordinator HOST:PORT
"""

import os
import signal
import sys

if __name__ == "__main__":
    # The imports below take seconds, and an exception from Ctrl-C can get lost in them.
    signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))

from collections.abc import Callable, Sequence
from typing import Any

import jax

from experiments.evaluation import drift, evaluate
from experiments.learner import TrainState, train
from experiments.run.command import parse
from experiments.run.errors import Interrupted, NotFinite, RunError, exit_code
from experiments.run.flags import Run
from experiments.run.processes import connected_processes
from experiments.run.session import Session, started
from experiments.run.several import carried_out, check_parts, parts, result


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""

    def command():
        run = parse(sys.argv[1:] if arguments is None else arguments)
        with connected_processes(run):
            made = parts(run)
            check_parts(made)
            summaries = carried_out(run, made, carry_out)
            if jax.process_index() == 0:
                print(result(run, made, summaries))
            if early := summaries.count(None):
                raise RunError(f"{early} of {len(made)} runs ended early, as said above.")

    return exit_code(command)


def carry_out(run: Run, begin: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Trains, evaluates, saves and reports; returns the summary.

    Args:
      run: the run.
      begin: function that is called when all checks are done and the folder exists.

    Raises:
      DataError: the data is missing or damaged.
      RunError: the devices or the folder do not fit the run, or the loss is not finite.
      Interrupted: SIGTERM or SIGINT ended the run.
    """
    with started(run) as session:
        begin()
        try:
            state = fit(session)
        except NotFinite as error:
            if run.whole and (number := session.signals.agreed()):
                raise Interrupted(number, run.resume_command) from error
            raise
        if state is session.state and not session.journal.is_tested(state):
            test(session, state)  # The run that is resumed ended before this.
        summary = session.finish()
        number = session.signals.agreed()
        if number and run.whole:
            raise Interrupted(number, run.resume_command)
        return summary


def fit(session: Session) -> TrainState:
    """Trains to the last step; returns the last state."""
    learner, journal, call = session.learner, session.journal, session.compiled
    state, step, total = session.state, int(session.state.step), learner.total_steps
    while step < total:
        size = min(session.chunk, session.every - step % session.every, total - step)
        state, metrics = call(train, state, session.data, size)
        step += size
        journal.trained(step, metrics, call.seconds)
        if step % session.every == 0 or step == total:
            test(session, state)
        number = session.signals.agreed()
        if number and step < total:
            session.checkpoints.save(state)
            raise Interrupted(number, session.run.resume_command)
    return state


def test(session: Session, state: TrainState) -> None:
    """Evaluates the state, and saves it."""
    call = session.compiled
    results = call(evaluate, state, session.data)
    seconds = call.seconds
    distances = call(drift, state, session.data)
    times = {"seconds": seconds + call.seconds, "compiling": call.compiling}
    call.compiling = 0.0
    session.journal.tested(state, results, distances, times)


if __name__ == "__main__":
    sys.exit(main())
