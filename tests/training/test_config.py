# SPDX-License-Identifier: MIT
from __future__ import annotations

import dataclasses
import re

import pytest

from genimg_fast.training import TrainConfig, UserError

REQUIRED = {"model": "vae", "data": "digits", "out": "runs/x"}


def test_every_field_is_documented():
    for field in dataclasses.fields(TrainConfig):
        assert re.search(rf"^\s+{field.name}: \S", TrainConfig.__doc__, re.MULTILINE), field.name


def test_yaml_and_json_mean_the_same(tmp_path):
    yaml = tmp_path / "run.yaml"
    # PyYAML reads 1e-4 as text, since YAML 1.1 wants 1.0e-4.
    yaml.write_text(
        "model: vae\ndata: digits\nout: runs/x\nlr: 1e-4\nbetas: [0.5, 0.9]\nmodel_args: {hidden: 8}\nema_decay: null\n"
    )
    json = tmp_path / "run.json"
    json.write_text(
        '{"model": "vae", "data": "digits", "out": "runs/x", "lr": 0.0001, "betas": [0.5, 0.9], "model_args": {"hidden": 8},'
        ' "ema_decay": null}'
    )
    expected = TrainConfig(**REQUIRED, lr=1e-4, betas=(0.5, 0.9), model_args={"hidden": 8}, ema_decay=None)
    assert TrainConfig.from_file(yaml) == TrainConfig.from_file(json) == expected


def test_a_bare_no_of_yaml_is_the_precision(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("model: vae\ndata: digits\nout: runs/x\nmixed_precision: no\n")
    assert TrainConfig.from_file(file).mixed_precision == "no"


def test_overrides_win_over_the_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("model: vae\ndata: digits\nout: runs/x\nbatch_size: 4\nseed: 3\n")
    config = TrainConfig.from_file(file, batch_size=16)
    assert (config.batch_size, config.seed) == (16, 3)


def test_a_dict_round_trip():
    config = TrainConfig(**REQUIRED, betas=(0.5, 0.9))
    assert TrainConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batchsize: 4", r"unknown key 'batchsize'; did you mean 'batch_size'\? allowed: model, .*"),
        ("bogus: 4", r"unknown key 'bogus'; allowed: model, .*"),
        ("zzz: 4", r"unknown key 'zzz'; allowed: model, .*"),
        ("- 1\n- 2", "expected keys and values, got list"),
        ("model: [", "not valid yaml: .*"),
        pytest.param("[" * 5000, "not valid yaml: .*", id="deep"),
        ("seed: 2026-99-99", "not valid yaml: .*"),
        ("lr: 1\nseed: 3\nlr: 2", "not valid yaml: key 'lr' is given 2 times"),
        ("model_args: {hidden: 8, hidden: 9}", "not valid yaml: key 'hidden' is given 2 times"),
        ('{"lr": 1, "seed": 3, "lr": 2}', "not valid json: key 'lr' is given 2 times"),
        ('{"model_args": {"hidden": 8, "hidden": 9}}', "not valid json: key 'hidden' is given 2 times"),
    ],
)
def test_bad_files(tmp_path, text, message):
    file = tmp_path / ("run.json" if "json" in message else "run.yaml")
    file.write_text(text)
    with pytest.raises(UserError, match=rf"\A{re.escape(str(file))}: {message}\Z"):
        TrainConfig.from_file(file)


def test_a_key_of_yaml_may_take_the_place_of_a_merged_one(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("model: vae\ndata: digits\nout: x\nmodel_args: {<<: &small {hidden: 8, latent: 2}, hidden: 9}\n")
    assert TrainConfig.from_file(file).model_args == {"hidden": 9, "latent": 2}


def test_missing_file_suffix_and_keys(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*none.yaml: No such file"):
        TrainConfig.from_file(tmp_path / "none.yaml")
    (tmp_path / "run.toml").write_text("")
    with pytest.raises(UserError, match=r"suffix is '.toml'; allowed: .yaml, .yml, .json"):
        TrainConfig.from_file(tmp_path / "run.toml")
    with pytest.raises(UserError, match="data and out must be given"):
        TrainConfig.from_dict({"model": "vae"})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("batch_size", 0, "batch_size is 0; allowed: at least 1"),
        ("batch_size", 2.5, "batch_size is 2.5; allowed: a whole number"),
        ("batch_size", True, "batch_size is True; allowed: a whole number"),
        ("batch_size", "many", "batch_size is 'many'; allowed: a whole number"),
        ("batch_size", float("inf"), "batch_size is inf; allowed: a whole number"),
        ("max_steps", 0, "max_steps is 0; allowed: at least 1, or null"),
        ("lr", -1, "lr is -1.0; allowed: greater than 0 and finite, or null"),
        ("lr", float("nan"), "lr is nan; allowed: greater than 0 and finite, or null"),
        ("betas", [0.5], r"betas is \[0.5\]; allowed: a list of 2 numbers"),
        ("betas", [0.5, 1], r"betas is \(0.5, 1.0\); allowed: two numbers in \[0, 1\), or null"),
        ("ema_decay", 1, r"ema_decay is 1.0; allowed: in \(0, 1\), or null for no average"),
        ("mixed_precision", "fp8", "mixed_precision is 'fp8'; allowed: 'no', 'bf16', 'fp16'"),
        ("gan_loss", "gan", "gan_loss is 'gan'; allowed: 'bce', 'hinge', 'wasserstein', 'lsgan'"),
        ("deterministic", "yes", "deterministic is 'yes'; allowed: true or false"),
        ("channels", 2, "channels is 2; allowed: 1 or 3"),
        ("model_args", 3, "model_args is 3; allowed: keys and values"),
        ("model_args", {"channels": 3}, "model_args has 'channels': set channels itself.*"),
        ("checkpoint_every", -1, "checkpoint_every is -1; allowed: 0 or more"),
        ("out", "", "out is ''; allowed: the path of a folder"),
        ("image_size", 0, "image_size is 0; allowed: 1 to 8192"),
        ("image_size", 9000, "image_size is 9000; allowed: 1 to 8192"),
        ("lr", "nothing", "lr is 'nothing'; allowed: a number"),
        ("epochs", "null", "epochs is 'null'; allowed: a whole number"),
        ("seed", -1, r"seed is -1; allowed: 0 to 2\^32 - 1"),
        ("seed", 2**32, r"seed is 4294967296; allowed: 0 to 2\^32 - 1"),
    ],
)
def test_bad_values_get_one_line(field, value, message):
    with pytest.raises(UserError, match=rf"\A{message}\Z"):
        TrainConfig(**{**REQUIRED, field: value})


@pytest.mark.parametrize("text", ["null", "none"])
@pytest.mark.parametrize(
    "name", ["lr", "discriminator_lr", "betas", "grad_clip", "ema_decay", "max_steps", "early_stopping_patience"]
)
def test_what_may_be_null_may_be_so_in_text(name, text):
    assert getattr(TrainConfig(**REQUIRED, **{name: text}), name) is None


def test_differences_name_what_changes_the_numbers_and_nothing_else():
    earlier = TrainConfig(**REQUIRED, lr=1e-3)
    assert (
        TrainConfig(**{**REQUIRED, "out": "y"}, lr=1e-3, max_steps=5, num_workers=2).differences(earlier.to_dict())
        == []
    )
    assert TrainConfig(**REQUIRED, lr=2e-3, seed=1).differences(earlier.to_dict()) == [
        "lr (was 0.001, is 0.002)",
        "seed (was 0, is 1)",
    ]
    cosine = TrainConfig(**REQUIRED, lr_schedule="cosine", epochs=20)
    longer = TrainConfig(**REQUIRED, lr_schedule="cosine", epochs=30)
    assert longer.differences(cosine.to_dict()) == ["epochs (was 20, is 30)"]


@pytest.mark.parametrize("setting", ["log_every", "max_bad_files"])
def test_a_continuation_may_differ_in(setting):
    earlier = TrainConfig(**REQUIRED)
    assert TrainConfig(**REQUIRED, **{setting: 7}).differences(earlier.to_dict()) == []


def test_a_number_is_no_text():
    with pytest.raises(UserError, match="data is 5; allowed: text"):
        TrainConfig(**{**REQUIRED, "data": 5})
