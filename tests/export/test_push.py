"""Pushing a model to a hub that runs in this process, and loading it from there."""

import functools
import json

import hub_server
import huggingface_hub
import numpy as np
import pytest
from helpers import ANIMALS, TINY, TINY_PLAIN, VIEW, run_jitted, save_weights
from huggingface_hub import constants

import deit_jax
from deit_jax.__main__ import main
from deit_jax.export import push
from deit_jax.export.model_card import model_card
from deit_jax.weights import load_weights

LICENCE = "--licence=apache-2.0"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(push, "PAUSE", 0.0)


@pytest.fixture
def weights(tmp_path):
    """A function that writes the weights of a model with three classes, and returns the file."""
    return functools.partial(save_weights, tmp_path / "w.safetensors")


def refused(capsys, *arguments) -> str:
    with pytest.raises(SystemExit, match="2"):
        main(["push", *arguments])
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1, error
    return error


@pytest.mark.parametrize("name", [TINY, TINY_PLAIN])
@pytest.mark.parametrize("to", ["timm", "huggingface"])
def test_a_pushed_model_comes_back_equal(hub, weights, name, to):
    path = weights(name)
    main(["push", path, "me/model", LICENCE, f"--to={to}"])
    ours, theirs = load_weights(path), load_weights("me/model")
    assert theirs.architecture.describe() == ours.architecture.describe()
    assert {key: getattr(theirs, key) for key in VIEW} == VIEW
    assert theirs.class_names == ANIMALS
    images = np.random.default_rng(0).standard_normal((2, 16, 16, 3), np.float32)
    pushed, local = (run_jitted(deit_jax.load_model(source), images) for source in ("me/model", path))
    np.testing.assert_array_equal(pushed, local)


def test_a_pushed_run_has_a_card_with_its_data_command_table_and_pictures(hub, whole_run):
    main(["push", str(whole_run), "me/run", LICENCE, "--orbax"])
    files = hub.repos["me/run"]
    assert {"model.safetensors", "config.json", "README.md", "curves.png", "attention.png"} <= files.keys()
    assert any(file.startswith("orbax/params/") for file in files)
    card = files["README.md"].decode()
    assert card.startswith('---\nlicense: "apache-2.0"\n')
    top1 = json.loads((whole_run / "results.json").read_text())["student"]["params"]["heads"]["dist"]["top1"]
    for part in ("`digits`", f"{top1:.2f}", "](curves.png)", "## Limits", "python "):
        assert part in card


def test_a_card_names_what_the_command_needs_beside_the_package(weights, tmp_path):
    settings = {"teacher.name": "mine.teachers:big", "model.name": TINY, "data.root": "hf:me/photos"}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    card = model_card("me/model", "mit", tmp_path, load_weights(weights()), timm=True, kind="params")
    assert "own code, which is not in this repository: `teacher.name=mine.teachers:big`." in card
    assert "Data: `hf:me/photos`." in card


def test_a_dry_run_lists_the_files_and_calls_nobody(hub, weights, capsys):
    main(["push", weights(), "me/model", "--dry-run"])
    listed = capsys.readouterr().out
    assert all(file in listed for file in ("model.safetensors", "config.json", "README.md", " kB"))
    assert not hub.calls


def test_a_fault_of_the_hub_is_tried_again(hub, weights):
    hub.faults = [("POST .*/commit/", 500), ("POST .*/preupload/", 504)]
    main(["push", weights(), "me/model", LICENCE])
    assert not hub.faults
    assert "model.safetensors" in hub.repos["me/model"]


def test_an_upload_whose_answer_is_lost_is_not_taken_for_another_model(hub, weights, monkeypatch):
    real, lost = huggingface_hub.HfApi.upload_folder, [ConnectionError("reset by peer")]

    def upload(self, **options):
        real(self, **options)
        if lost:
            raise lost.pop()

    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    main(["push", weights(), "me/model", LICENCE])
    assert "model.safetensors" in hub.repos["me/model"]


def test_a_repository_that_holds_something_else_is_kept_without_overwrite(hub, weights, capsys):
    hub.repos["me/model"] = before = {"README.md": b"mine", "old.safetensors": b"", "notes.txt": b""}
    assert "--overwrite" in refused(capsys, weights(), "me/model", LICENCE)
    assert before["README.md"] == b"mine"
    main(["push", weights(), "me/model", LICENCE, "--overwrite"])
    assert set(hub.repos["me/model"]) == {"README.md", "config.json", "model.safetensors", "notes.txt"}


def test_bad_input_is_one_line(hub, weights, tmp_path, capsys, monkeypatch):
    path = weights()
    assert "--licence=" in refused(capsys, path, "me/model")
    assert "user/name" in refused(capsys, path, "model", LICENCE)
    (tmp_path / "empty/checkpoints").mkdir(parents=True)
    assert "holds no checkpoint" in refused(capsys, str(tmp_path / "empty"), "me/model", LICENCE)
    assert not hub.calls
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "HF_TOKEN" in refused(capsys, path, "me/model", LICENCE)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "needs a token" in refused(capsys, path, "me/model", LICENCE)
    monkeypatch.undo()
    monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(push, "TRIES", 1)
    assert "could not be uploaded" in refused(capsys, path, "me/model", LICENCE)
