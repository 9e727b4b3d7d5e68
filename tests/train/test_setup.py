"""A run before it begins: data compared across processes, the stream's positions, how to train a finished run on."""

import hashlib

import numpy as np
import pytest
from helpers import folder_of_images

from deit_jax.config import default_config, resolve
from deit_jax.data.base import file_names
from deit_jax.distill.runs import open_run
from deit_jax.errors import UserError
from deit_jax.train.loop import is_due
from deit_jax.train.setup import compare_fingerprints, open_data
from deit_jax.train.stream import Stream
from deit_jax.train.workdir import claim_workdir


def digits(**changes):
    config = default_config()
    config.data.name, config.batch_size, config.steps = "digits", 128, 14
    config.model.name, config.augment.repeats = "deit_digits_patch4_16", 1
    config.update_from_flattened_dict(changes)
    return resolve(config)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return open_run(digits(), tmp_path_factory.mktemp("run"))


def test_processes_that_see_other_images_are_named():
    same = np.stack([np.frombuffer(hashlib.sha256(name).digest(), np.uint8) for name in (b"train", b"val")])
    compare_fingerprints(np.stack([same] * 4))
    gathered = np.stack([same] * 4)
    gathered[2, 1] += 1
    with pytest.raises(UserError, match="process 2 of 4 see other evaluation images than process 0"):
        compare_fingerprints(gathered)
    gathered[3, 0] += 1
    with pytest.raises(UserError, match="process 3 of 4 see other training images"):
        compare_fingerprints(gathered)


def test_a_run_is_what_its_config_means(run):
    assert (run.steps_per_epoch, run.total_steps) == (11, 14)
    assert run.meta["model"] == {"name": "deit_digits_patch4_16", "img_size": 16, "num_classes": 10}
    assert run.meta["weights"]["class_names"] == [str(i) for i in range(10)]
    assert run.meta["config"]["data"]["name"] == "digits"
    assert run.init.weights is None
    assert run.teacher.models == ()
    assert run.workdir == run.folder


def test_a_run_shares_data_that_is_open(run, tmp_path):
    again = open_run(digits(), tmp_path, run.data)
    assert again.data.train is run.data.train


def test_the_stream_goes_round_and_seeks(run):
    stream = Stream(run, 12)
    indices = [next(stream)["index"] for _ in range(4)]  # positions 12, 13, 0, 1
    stream.seek(14 + 13)
    np.testing.assert_array_equal(next(stream)["index"], indices[1])
    np.testing.assert_array_equal(next(stream)["index"], indices[2])
    stream.close()
    assert not np.array_equal(indices[1], indices[2])
    assert stream.broken == 0


def test_what_is_due_every_epochs(run):
    assert [step for step in range(15) if is_due(run, 1, step)] == [11, 14]
    assert [step for step in range(15) if is_due(run, 5, step)] == [14]


@pytest.mark.parametrize(
    ("before", "after", "flags"),
    [
        ({"steps": 0, "epochs": 6}, {"steps": 0, "epochs": 10}, "--config.epochs=4"),
        ({"steps": 14}, {"steps": 20}, "--config.steps=6"),
        ({"steps": 14}, {"steps": 0, "epochs": 3}, "--config.epochs=3"),
    ],
)
def test_a_finished_run_names_the_command_that_trains_it_on(tmp_path, before, after, flags):
    folder = tmp_path / "run"
    claim_workdir(folder, digits(**before), "data")
    with pytest.raises(UserError, match="choose another --workdir"):
        claim_workdir(folder, digits(**after), "data")
    for step in (9, 66):
        (folder / "checkpoints" / str(step)).mkdir(parents=True)
    with pytest.raises(UserError) as error:
        claim_workdir(folder, digits(**after), "data")
    last = folder / "checkpoints" / "66"
    assert f"--config.init={last} {flags} --workdir={folder}-longer" in str(error.value)
    with pytest.raises(UserError, match="choose another --workdir"):
        claim_workdir(folder, digits(**after, seed=1), "data")


def test_a_teacher_trained_here_teaches_the_longer_run(tmp_path):
    taught = {"distill.kind": "hard", "model.name": "deit_digits_distilled_patch4_16", "teacher.epochs": 2}
    claim_workdir(tmp_path, digits(**taught), "data")
    (tmp_path / "checkpoints" / "14").mkdir(parents=True)
    with pytest.raises(UserError, match=f"--config.teacher.init={tmp_path / 'teacher'} --config.teacher.epochs=0"):
        claim_workdir(tmp_path, digits(**taught, steps=20), "data")


def test_settings_that_change_no_weight_may_change(tmp_path):
    claim_workdir(tmp_path, digits(), "data")
    claim_workdir(tmp_path, digits(**{"accumulate": 2, "data.crop": 1.0, "log.every": 1}), "data")
    assert len(open_data(digits()).train) == 1438


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
