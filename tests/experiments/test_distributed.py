"""Two processes of four devices each train like one of eight, and end and resume together."""

import os
import shutil
import signal
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from experiments import train
from experiments.run.command import parse
from experiments.run.folder import RunFolder
from experiments.run.processes import HEARTBEAT_TIMEOUT
from tests.launch import free_port, start, wait

SMALL = [
    *("digits", "--data.train-size", "512", "--model.width", "8", "--model.depth", "1"),
    *("--epochs", "2", "--eval-batch-size", "360"),
]
STEPS = 16
START_TIMEOUT = 240
"""Seconds that two processes may take to start and compile on a busy machine."""


ENV = os.environ | {"JAX_PLATFORMS": "cpu"}


def start_both(*flags):
    cluster = ["--devices", "4", "--processes", "2", "--coordinator", f"127.0.0.1:{free_port()}"]
    return [
        start("experiments.train", *flags, *cluster, "--process", str(index), env=ENV)
        for index in range(2)
    ]


def wait_for_steps(folder, processes, count):
    while len(losses(folder)) < count:
        assert [process.poll() for process in processes] == [None, None]
        time.sleep(0.05)


def losses(folder):
    metrics = RunFolder(folder)
    return [r["loss"] for r in metrics.records("train")] if metrics.metrics.exists() else []


def final(folder):
    return RunFolder(folder).records("test")[-1]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Returns the folder of a run in one process."""
    folder = tmp_path_factory.mktemp("one") / "run"
    train.carry_out(parse([*SMALL, "--output", str(folder), "--devices", "8"]))
    assert len(losses(folder)) == STEPS
    return folder


class Ended(NamedTuple):
    """The folder of a run after two processes ended, with their return codes and output."""

    folder: Path
    codes: list[int]
    logs: list[str]
    seconds: float


def end(folder, processes, step, number):
    """Sends a signal to process 1 after a step; measures the time until both end."""
    wait_for_steps(folder, processes, step)
    sent = time.monotonic()
    processes[1].send_signal(number)
    logs = wait(processes, START_TIMEOUT)
    seconds = time.monotonic() - sent
    return Ended(folder, [process.returncode for process in processes], logs, seconds)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Returns a run in which one of two processes received SIGTERM."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    return end(folder, start_both(*SMALL, "--output", str(folder)), 3, signal.SIGTERM)


@pytest.fixture(scope="module")
def killed(tmp_path_factory, stopped):
    """Returns the resumed run of `stopped`, in which one of two processes was killed."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    shutil.copytree(stopped.folder, folder)
    # The checkpoint of step 8 may be half written.
    return end(folder, start_both("--resume", str(folder)), 9, signal.SIGKILL)


@pytest.mark.slow
def test_a_signal_to_one_ends_both_after_the_same_step(stopped):
    assert stopped.codes == [128 + signal.SIGTERM] * 2
    assert all("Resume with: python -m experiments.train --resume" in log for log in stopped.logs)
    saved = [int(path.name) for path in (stopped.folder / "checkpoints" / "newest").iterdir()]
    assert max(saved) == len(losses(stopped.folder)) < STEPS


@pytest.mark.slow
def test_one_process_goes_on_from_the_checkpoint_of_two(stopped, one, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(stopped.folder, folder)
    train.carry_out(parse(["--resume", str(folder), "--devices", "8"]))
    np.testing.assert_allclose(losses(folder), losses(one), rtol=1e-5)
    assert final(folder)["accuracy"] == final(one)["accuracy"]


@pytest.mark.slow
def test_where_one_is_killed_the_other_says_so(killed):
    assert killed.seconds < HEARTBEAT_TIMEOUT + 10
    assert killed.codes[0] != 0
    last = killed.logs[0].splitlines()[-1]
    assert "another process is gone" in last
    assert f"--resume {killed.folder} --processes 2 --process 0" in last
    assert len(losses(killed.folder)) < STEPS


@pytest.mark.slow
def test_two_processes_that_went_on_twice_have_trained_as_one_in_one_piece(killed, one):
    folder = killed.folder
    processes = start_both("--resume", str(folder))
    logs = wait(processes, START_TIMEOUT)
    assert [process.returncode for process in processes] == [0, 0], "\n".join(logs)
    np.testing.assert_allclose(losses(folder), losses(one), rtol=1e-5)
    assert final(folder)["accuracy"] == final(one)["accuracy"]
    assert "The test accuracy is" in logs[0]
    assert "accuracy" not in logs[1]
    environment = RunFolder(folder).read("environment.json")
    assert (environment["devices"], environment["processes"]) == (8, 2)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--processes", "2", "--process", "2"], "a number from 0 to"),
        (["--processes", "2", "--output", "run"], "add --coordinator"),
        (["--processes", "2", "--coordinator", "127.0.0.1:1"], "with --output"),
    ],
)
def test_processes_that_cannot_meet_are_told_what_is_missing(flags, words, capsys):
    assert train.main(flags) == 2
    assert words in capsys.readouterr().err


@pytest.fixture
def cluster(tmp_path):
    """Returns the flags of two processes of which none runs yet."""
    return [
        *(*SMALL, "--output", str(tmp_path / "run"), "--processes", "2"),
        *("--coordinator", f"127.0.0.1:{free_port()}", "--wait", "2"),
    ]


def test_a_process_without_its_coordinator_says_so_at_once_and_ends(cluster, tmp_path, capsys):
    begun = time.monotonic()
    assert train.main([*cluster, "--process", "1"]) == 2
    assert 2 <= time.monotonic() - begun < 10
    printed = capsys.readouterr()
    address = cluster[cluster.index("--coordinator") + 1]
    assert printed.out.splitlines() == [f"waiting for {address}"]
    (error,) = printed.err.splitlines()
    assert error.startswith(f"error: --coordinator {address}: process 0 could not be reached")
    assert not (tmp_path / "run").exists()


def test_process_0_whose_partner_does_not_come_ends(cluster, tmp_path, capsys):
    assert train.main([*cluster, "--process", "0"]) == 2
    printed = capsys.readouterr()
    assert printed.out.startswith("waiting for 1 more process at ")
    (error,) = printed.err.splitlines()
    assert "only 0 of 1 other processes came in time" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_process_says_at_once_what_it_waits_for(cluster):
    process = start("experiments.train", *cluster, "--wait", "60", "--process", "1", env=ENV)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("waiting for 127.0.0.1:")
    assert process.poll() is None
    process.terminate()
    wait([process], START_TIMEOUT)
    assert process.returncode == -signal.SIGTERM
