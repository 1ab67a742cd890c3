"""A few of the kills of `tests.experiments.kills`."""

import pytest

from tests.experiments import kills


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns the folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    kills.finish(folder)
    return folder


def test_a_run_that_is_killed_twice_equals_an_undisturbed_one_bitwise(tmp_path):
    folder, short = tmp_path / "run", 1.0
    kills.finish(tmp_path / "whole", short)
    assert kills.kill(folder, kills.in_write(2), short)
    assert kills.kill(folder, kills.after(0.5), short)
    kills.finish(folder, short)
    kills.check_equal(folder, tmp_path / "whole")


@pytest.mark.slow
def test_a_run_that_is_killed_at_random_equals_an_undisturbed_one_bitwise(whole, tmp_path):
    moments = kills.moments(0, duration=10.0)
    for _ in range(4):
        kills.kill(tmp_path / "run", next(moments))
    kills.finish(tmp_path / "run")
    kills.check_equal(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "scene", [kills.terminate_in_last_step, kills.start_twice], ids=lambda scene: scene.__name__
)
def test_a_scene_ends_as_it_must(scene, whole, tmp_path):
    """The other scenes are also tests of `test_train`, which are faster."""
    scene(whole, tmp_path / "run")
