"""Configurations: their form as JSON, their differences, and the norms that they make."""

import dataclasses
import json

import pytest

import jbn
from experiments.configs import PRESETS
from experiments.norms import BatchNorm, NoNorm
from experiments.run.command import parse
from experiments.run.settings import differences, from_dict, section_variants, to_dict


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_survive_json(preset):
    config = PRESETS[preset]
    assert config.name == preset
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_what_an_older_version_did_not_know_has_its_default():
    config = PRESETS["cifar10"]
    values = to_dict(config)
    del values["data"]["shrink"], values["views"]
    assert from_dict(values) == dataclasses.replace(config, views="plain")


def test_differences_name_what_changed():
    old = PRESETS["digits"]
    norm = dataclasses.replace(old.norm, epsilon=1e-3)
    new = dataclasses.replace(old, norm=norm, seed=3)
    assert differences(to_dict(old), to_dict(old)) == []
    lines = differences(to_dict(old), to_dict(new))
    assert lines == ["norm.epsilon: 1e-05 -> 0.001", "seed: 0 -> 3"]


def test_a_norm_is_what_its_configuration_says():
    assert NoNorm().make() is None
    norm = BatchNorm(scale=False).make()
    assert isinstance(norm, jbn.Norm)
    params, _ = norm.init(3)
    assert params.scale is None
    assert isinstance(params, jbn.BatchNormParams)


@pytest.mark.parametrize("method", section_variants()["norm"][1])
def test_another_norm_keeps_the_settings_that_both_have(method):
    old = PRESETS["cifar10"].norm
    new = parse(["cifar10", "--norm.method", method, "--output", "run"]).config.norm
    both = {field.name for field in dataclasses.fields(new)} & set(dataclasses.asdict(old))
    assert new.method == method
    for name in both - {"method"}:
        assert getattr(new, name) == getattr(old, name)
