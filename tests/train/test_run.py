"""A run before it begins: its data, student, length and folder, and what is refused."""

import contextlib

import numpy as np
import pytest
from helpers import configured, folder_of_images
from jax.experimental import multihost_utils

from deit_jax.data.base import file_names
from deit_jax.errors import UserError
from deit_jax.train.loop import is_due, training_batches
from deit_jax.train.run import claim_workdir, compare_processes, open_data, open_run
from deit_jax.train.step import model_spec


def digits(**changes):
    settings = {"data.name": "digits", "batch_size": 128, "steps": 14}
    return configured(**settings | {"model.name": "deit_digits_patch4_16", "augment.repeats": 1} | changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return open_run(digits(), tmp_path_factory.mktemp("run"))


def test_processes_that_see_other_images_are_named(monkeypatch):
    compare_processes("one process")
    gather = lambda digest: np.stack([digest, digest, digest + np.uint8(1)])
    monkeypatch.setattr(multihost_utils, "process_allgather", gather)
    with pytest.raises(UserError, match="process 2 of 3 sees other images than process 0"):
        compare_processes("three")


def test_a_run_is_what_its_config_means(run):
    assert (run.steps_per_epoch, run.total_steps) == (11, 14)
    assert run.meta["model"] == {"name": "deit_digits_patch4_16", "img_size": 16, "num_classes": 10}
    assert run.meta["weights"]["class_names"] == [str(i) for i in range(10)]
    assert run.meta["config"]["data"]["name"] == "digits"
    assert run.init is None
    assert run.teacher is None


def test_a_run_shares_data_that_is_open(run, tmp_path):
    again = open_run(digits(), tmp_path, run.data)
    assert again.data.train is run.data.train


def test_the_stream_goes_round_and_seeks(run):
    with contextlib.closing(training_batches(run, 12)) as stream:
        indices = [next(stream)[0]["index"] for _ in range(4)]  # positions 12, 13, 0, 1
    with contextlib.closing(training_batches(run, 14 + 13)) as stream:
        for before in indices[1:3]:
            np.testing.assert_array_equal(next(stream)[0]["index"], before)
    assert not np.array_equal(indices[1], indices[2])


def test_what_is_due_every_epochs(run):
    assert [step for step in range(15) if is_due(run, 1, step)] == [11, 14]
    assert [step for step in range(15) if is_due(run, 5, step)] == [14]


def test_settings_that_change_no_weight_may_change(tmp_path):
    claim_workdir(tmp_path, digits(), "data")
    claim_workdir(tmp_path, digits(**{"accumulate": 2, "data.crop": 1.0, "log.every": 1}), "data")
    assert len(open_data(digits()).train) == 1438


def student_of(name: str, **model):
    return model_spec(configured(**{f"model.{key}": value for key, value in model.items()} | {"model.name": name}), 10)


def test_dropout_and_stochastic_depth_reach_every_model_that_has_them():
    vit = student_of("deit_digits_patch4_16", drop_rate=0.1, drop_path_rate=0.3).build.keywords
    net = student_of("efficientnet_b0", drop_rate=0.4).build.keywords
    assert (vit["drop_rate"], vit["drop_path_rate"]) == (0.1, 0.3)
    assert (net["drop_rate"], net["drop_path_rate"]) == (0.4, 0.1), "the recipe's, where none is set"


@pytest.mark.parametrize("setting", ["drop_rate", "drop_path_rate"])
def test_a_model_without_them_refuses_them(setting):
    assert "drop_rate" not in student_of("regnety_digits").build.keywords
    with pytest.raises(UserError, match=f"model.{setting} is 0.2, but regnety_digits has none: leave it out"):
        student_of("regnety_digits", **{setting: 0.2})


def test_a_longer_run_is_told_to_begin_from_the_weights_of_the_finished_one(tmp_path):
    claim_workdir(tmp_path, digits(), "data")
    with pytest.raises(UserError, match=f"another --workdir, and --config.init={tmp_path} to train on") as error:
        claim_workdir(tmp_path, digits(steps=20), "data")
    assert "(steps: 14 there, 20 now)" in str(error.value)
    with pytest.raises(UserError, match=r"choose another --workdir$"):
        claim_workdir(tmp_path, digits(steps=20, seed=1), "data")


def test_files_that_are_gone_are_named(tmp_path):
    root = folder_of_images(tmp_path / "images", classes=2, images=5)
    config = digits(**{"data.root": str(root)})

    def claim():
        train = open_data(config).train
        claim_workdir(tmp_path / "run", config, train.fingerprint, files=file_names(train))

    claim()
    claim()
    for number in range(4):
        (root / "class1" / f"{number}.png").unlink()
    with pytest.raises(UserError) as error:
        claim()
    assert "(4 of its files are gone: class1/0.png, class1/1.png, class1/2.png, …)" in str(error.value)
    assert str(error.value).endswith("put back what it was, or begin a new folder with another --workdir")
