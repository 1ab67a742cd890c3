"""What a run prints, on terminals of several widths and elsewhere."""

import contextlib
import io
import os
import re
import signal
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

from experiments.run import progress
from experiments.run.errors import exit_code
from experiments.run.progress import Display

RESUME = (
    "python -m experiments.train --resume runs/digits --processes 2 --process 0 --coordinator h:1"
)
ROWS = {
    "model": "small, 4 convolutions of 32 and of 64 channels",
    "folder": "runs/a folder with spaces and with a name that is longer than a line",
    "resume": RESUME,
}


@pytest.fixture(autouse=True)
def _no_dumb_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("COLUMNS", raising=False)


def terminal(width):
    return Console(width=width, force_terminal=True, file=io.StringIO())


def pipe():
    return Console(file=io.StringIO(), force_terminal=False)


def lines(console):
    """Returns what was printed, without colors and movements of the cursor."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())
    return [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()]


def bar(width, total=44, **options):
    console = terminal(width)
    with Display(total, 0, console, **options) as display:
        display.show(total // 2, 0.2914, 0.969, 123456.0)
    return [line for line in lines(console) if "/" in line][-1]


@pytest.mark.parametrize("total", [44, 78_000])
@pytest.mark.parametrize(
    ("width", "shown"), [(50, ["loss 0.291"]), (120, ["accuracy 96.9%", "123,456 images/s"])]
)
def test_the_bar_shows_whole_figures_on_one_line(width, shown, total):
    line = bar(width, total)
    assert len(line) <= width
    assert line.startswith(f"step {total // 2}/{total} ")
    assert "━" in line
    assert " left " in line
    assert "loss 0.291" in line
    assert "…" not in line
    assert all(figure in line for figure in shown)


def test_the_last_figures_are_left_out_first():
    assert bar(50).endswith("loss 0.291")
    assert bar(70).endswith("loss 0.291  accuracy 96.9%")
    assert bar(80).endswith("loss 0.291  accuracy 96.9%  123,456 images/s")
    assert bar(80, 78_000).endswith("loss 0.291  accuracy 96.9%")


def test_a_long_text_that_is_no_figure_is_cut_at_the_end_of_the_line():
    console = terminal(50)
    with Display(8, 0, console, unit="robust run") as display:
        display.advance(3, "norm batch, learning rate 0.1, seed 0: 3.2 s")
    line = [line for line in lines(console) if "3/8" in line][-1]
    assert len(line) <= 50
    assert line.endswith("…")


@pytest.mark.parametrize("console", [terminal(50), terminal(120), pipe()])
def test_the_header_keeps_what_people_copy_in_one_line(console):
    Display(1, 0, console).header(ROWS)
    printed = lines(console)
    assert RESUME in printed
    assert f"folder  {ROWS['folder']}" in printed


def test_the_header_wraps_other_texts_at_words_on_a_terminal_alone():
    narrow, elsewhere = terminal(50), pipe()
    for console in (narrow, elsewhere):
        Display(1, 0, console).header(ROWS)
    assert lines(narrow)[:2] == [
        "model   small, 4 convolutions of 32 and of 64",
        " " * 8 + "channels",
    ]
    assert lines(elsewhere)[0] == f"model   {ROWS['model']}"


def test_texts_are_printed_as_they_are():
    console = terminal(80)
    display = Display(1, 0, console)
    display.header({"data": "[red]images[/red]"})
    display.line("[0] :smile:")
    assert lines(console) == ["data  [red]images[/red]", "[0] :smile:"]


def test_waiting_shows_a_spinner_on_a_terminal_and_then_the_bar_again():
    console = terminal(80)
    with Display(10, 0, console) as display:
        with display.waiting("compiling"):
            pass
        display.advance(4, "loss 1.000")
    printed = lines(console)
    assert any(line.endswith("compiling") for line in printed)
    assert "4/10" in printed[-1]


def test_waiting_prints_a_line_elsewhere_only_if_it_takes_long(monkeypatch):
    console = pipe()
    display = Display(10, 0, console)
    with display.waiting("short"):
        pass
    monkeypatch.setattr(progress, "SECONDS_OF_SILENCE", 0.0)
    with display.waiting("long"):
        for timer in threading.enumerate():
            if isinstance(timer, threading.Timer):
                timer.join(5)
    assert lines(console) == ["long ..."]


def test_steps_are_plain_lines_elsewhere_if_the_last_line_is_old(monkeypatch):
    console = pipe()
    with Display(10, 0, console) as display:
        display.show(1, 1.0, 0.5, 100.0)
        monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1.0)
        display.show(2, 1.0, 0.5, 100.0)
    (line,) = lines(console)
    assert line.startswith("step 2/10")
    assert line.endswith("loss 1.000  accuracy 50.0%  100 images/s")


def test_a_quiet_console_prints_nothing_and_leaves_the_output_of_others_alone():
    printed = io.StringIO()
    console = Console(quiet=True, force_terminal=True, file=printed)
    stream = sys.stdout
    with Display(10, 0, console) as display:
        assert sys.stdout is stream
        display.header(ROWS)
        with display.waiting("compiling"):
            assert sys.stdout is stream
        display.show(1, 1.0, 0.5, 100.0)
        display.line("text")
    assert printed.getvalue() == ""


@pytest.fixture
def unread(monkeypatch):
    """Makes output streams whose reader has ended, and returns a function that uses them."""
    with contextlib.ExitStack() as stack:

        def use(*names):
            for name in names:
                reader, writer = os.pipe()
                os.close(reader)
                monkeypatch.setattr(sys, name, stack.enter_context(open(writer, "w")))

        yield use


def test_a_run_goes_on_if_nobody_reads_its_output(unread, capsys):
    unread("stdout")
    with Display(10) as display:
        display.header(ROWS)
        display.line("text")
    assert (
        capsys.readouterr().err
        == "Nothing reads the output any more. The run goes on and prints no more.\n"
    )


def test_a_run_goes_on_if_nobody_reads_its_output_and_errors(unread):
    unread("stdout", "stderr")
    with Display(10) as display:
        display.header(ROWS)


@pytest.mark.parametrize("text", ["short", "more than a buffer " * 1000])
def test_another_command_ends_in_silence_if_nobody_reads_its_output(text, unread, capsys):
    unread("stdout")
    assert exit_code(lambda: print(text)) == 128 + signal.SIGPIPE
    assert capsys.readouterr().err == ""


def test_a_command_runs_without_output_streams(monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert exit_code(lambda: print("text")) == 0
    assert exit_code(lambda: Path("/no/such/file").read_text()) == 2
    for stream in (sys.stdout, sys.stderr):
        stream.close()
