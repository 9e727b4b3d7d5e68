"""A run before it begins: data compared across processes, the stream's positions, how to train a finished run on."""

import hashlib
import json

import numpy as np
import pytest
from helpers import folder_of_images

from deit_jax.config import default_config, resolve
from deit_jax.distill.runs import open_run
from deit_jax.errors import UserError
from deit_jax.train import setup
from deit_jax.train.loop import is_due
from deit_jax.train.setup import compare_fingerprints, open_data, recorded_classes
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


def test_a_run_begun_before_keeps_its_order_of_classes(tmp_path, monkeypatch, capsys):
    root = folder_of_images(tmp_path / "images", classes=11, images=2)
    for folder in root.iterdir():
        folder.rename(root / folder.name.removeprefix("class"))
    config = digits(**{"data.root": str(root)})
    assert recorded_classes(tmp_path) is None
    assert open_data(config, tmp_path).train.class_names == [str(i) for i in range(11)]
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("training: 20 images of 11 classes, ")
    assert said[1].startswith("evaluation: 2 images of 2 of 11 classes, ")
    before = sorted(str(i) for i in range(11))
    monkeypatch.setattr(setup, "find_step", lambda folder: folder)
    monkeypatch.setattr(setup, "read_meta", lambda step: {"weights": {"class_names": before}})
    assert open_data(config, tmp_path).train.class_names == before


@pytest.fixture
def numbered(tmp_path):
    """(config of) folders named 0 … 10, which runs once numbered as text: 0, 1, 10, 2, …"""
    root = folder_of_images(tmp_path / "numbered", classes=11, images=2)
    for number in range(11):
        (root / f"class{number}").rename(root / str(number))
    config = digits(**{"data.root": str(root), "batch_size": 4})
    return config, sorted(map(str, range(11)))


def test_a_study_without_a_checkpoint_of_its_own_keeps_its_order(numbered, tmp_path):
    """The fingerprint in its record says which order it began with; its runs take the order from it."""
    config, before = numbered
    former = setup.Data(*setup.sources.open_sources(config, before))
    study = tmp_path / "study"
    claim_workdir(study, config, former.train.fingerprint)
    found = open_data(config, study)
    assert found.train.class_names == before
    assert found.train.fingerprint == former.train.fingerprint
    assert open_data(config, study / "hard-0", like=found).train.class_names == before
    claim_workdir(tmp_path / "later", config, open_data(config).train.fingerprint)
    assert open_data(config, tmp_path / "later").train.class_names == [str(i) for i in range(11)]


def test_a_label_store_keeps_its_order_for_itself_and_its_readers(numbered, tmp_path):
    config, before = numbered
    former = setup.Data(*setup.sources.open_sources(config, before)).train.fingerprint
    (tmp_path / "labels.json").write_text(json.dumps({"images": {"data.fingerprint": former}}))
    assert open_data(config, tmp_path).train.class_names == before
    config.distill.labels = str(tmp_path)
    assert open_data(config, tmp_path / "new").train.class_names == before
    (tmp_path / "labels.json").write_text(json.dumps({"images": {"data.fingerprint": "other"}}))
    assert open_data(config, tmp_path).train.class_names == [str(i) for i in range(11)]
