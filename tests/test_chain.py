"""Training at 16 px, fine-tuning at 32 px, evaluation of both: the chain, on digits."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import one_device, whole_config

from deit_jax.config import default_config, flat
from deit_jax.errors import UserError
from deit_jax.experiment import chain, stages
from deit_jax.models.pos_embed import resize_pos_embed
from deit_jax.weights.orbax import read_weights

pytestmark = [pytest.mark.slow, pytest.mark.long_runs]


def chain_config(**changes):
    finetune = {"epochs": 2, "img_size": 32, "batch_size": 32, "lr": 8e-3, "warmup_epochs": 0.3, "weight_decay": 1e-8}
    return whole_config(**{f"finetune.{k}": v for k, v in finetune.items()} | {"train_baseline": False} | changes)


@pytest.fixture(scope="module")
def finished(whole_run, tmp_path_factory):
    """The chain's folder and results; its first stage was trained before, as any finished run may be."""
    folder = Path(shutil.copytree(whole_run, tmp_path_factory.mktemp("chain") / "run"))
    with one_device():
        return folder, chain(chain_config(), folder)


def test_both_stages_run_and_are_reported(finished, capsys):
    folder, results = finished
    first, then = results["train"]["student"]["params"], results["finetune"]["student"]["params"]
    assert {"cls", "dist"} <= set(then["heads"])
    text = (folder / "chain.md").read_text()
    assert f"{first['top1']:.2f}" in text
    assert f"{then['top1']:.2f}" in text
    assert json.loads((folder / "chain.json").read_text()) == results
    for report in (folder / "report.md", folder / "finetune" / "report.md"):
        assert "## Disagreement" in report.read_text(), "the teacher is in both stages"
    meta, _ = read_weights(folder / "finetune")
    assert meta["model"]["img_size"] == 32
    assert meta["config"]["teacher"]["img_size"] == 16, "the teacher stays at its own resolution"
    assert meta["config"]["distill"]["kind"] == "hard"


def test_fine_tuning_goes_on_from_what_was_learned(finished):
    """Larger images, the same weights but for the position embedding: it starts where the training ended."""
    folder, results = finished
    before, after = (read_weights(f)[1]["params"] for f in (folder, folder / "finetune"))
    assert before["pos_embed"].shape == (1, 18, 48)
    assert after["pos_embed"].shape == (1, 66, 48)
    resized = np.asarray(resize_pos_embed(before["pos_embed"], (8, 8), prefix_tokens=2))
    alike = np.corrcoef(resized[0, 2:].ravel(), after["pos_embed"][0, 2:].ravel())[0, 1]
    assert alike > 0.7
    first, then = (results[s]["student"]["params"] for s in ("train", "finetune"))
    assert first["top1"] > 40, "there was something to go on from"
    assert then["loss"] < first["loss"]
    assert then["top1"] > first["top1"] - 1


def test_the_same_command_finds_everything_done(finished, capsys):
    folder, results = finished
    with one_device():
        again = chain(chain_config(), folder)
    assert again["finetune"]["student"] == results["finetune"]["student"]
    assert capsys.readouterr().out.count("complete, evaluating again") == 3


def test_the_training_is_that_of_a_run_without_fine_tuning(tmp_path):
    first, then = stages(chain_config(), tmp_path)
    plain = chain_config(**{f"finetune.{k}": v for k, v in default_config().finetune.items()})
    assert flat(first) == flat(plain), "a finished run can be fine-tuned later"
    assert first.finetune.epochs == then.finetune.epochs == 0
    assert then.init == str(tmp_path)
    assert (then.teacher.init, then.teacher.epochs) == (str(tmp_path / "teacher"), 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"finetune.img_size": 30}, "img_size 30 is not a multiple of patch_size 4"),
        ({"finetune.batch_size": 60}, "batch_size 60 is not divisible by 8 devices"),
        ({"finetune.batch_size": 1600}, "batch_size 1600 is more than the 1438 training images"),
        ({"distill.labels": "labels", "teacher.epochs": 0}, "--config.teacher.init= or finetune.labels"),
    ],
)
def test_what_is_wrong_with_the_second_stage_is_said_before_the_first(tmp_path, changes, message):
    with pytest.raises(UserError) as error:
        chain(chain_config(**changes), tmp_path / "run")
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()
