"""The first command, whole but short: teacher, plain and distilled student, tables, pictures."""

import json

import pytest
from helpers import TINY, TINY_PLAIN, whole_config
from PIL import Image

from configs.cifar10 import get_config
from deit_jax import plots
from deit_jax.config import default_config, resolve
from deit_jax.config.recipes import plain_config, teacher_config
from deit_jax.data import loader
from deit_jax.errors import UserError
from deit_jax.evaluate.evaluation_command import Request, evaluate_command
from deit_jax.experiment import train_and_report

pytestmark = pytest.mark.long_runs  # as `whole_run`


@pytest.fixture
def finished(own_run):
    """A run's folder and results."""
    results = json.loads((own_run / "results.json").read_text())
    results.pop("seconds")
    return own_run, results


def test_data_and_teacher_are_opened_once(whole_run):
    assert json.loads((whole_run / "opened.json").read_text()) == ["open_sources", "load_weights"]


def test_a_run_leaves_what_it_promises(finished):
    folder, results = finished
    assert set(results) == {"teacher", "plain", "student"}
    assert set(results["student"]["params"]["heads"]) == {"cls", "dist", "fused_logits", "fused_probabilities"}
    assert set(results["plain"]["params"]["heads"]) == {"cls"}
    report = (folder / "report.md").read_text()
    for name in (TINY_PLAIN, f"{TINY_PLAIN}, no teacher", f"{TINY}, hard"):
        assert name in report
    for value in (r["top1"] for r in results["student"]["params"]["heads"].values()):
        assert f"{value:.2f}" in report
    assert json.loads((folder / "results.json").read_text())["seconds"] > 0
    for picture in ("curves.png", "attention.png"):
        width, height = Image.open(folder / picture).size
        assert width > 500
        assert height > 200
    classes = json.loads((folder / "classes.json").read_text())
    right = sum(row[i] for i, row in enumerate(classes["confusion"]))
    assert 100 * right / classes["images"] == pytest.approx(results["student"]["params"]["top1"])
    for picture in ("confusion.png", "mistakes.png", "heads.png"):
        assert f"({picture})" in report
    assert "distillation token in the last block" in report
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert {"step", "epoch", "loss", "lr", "grad_norm"} <= records[0].keys()
    assert any("eval/dist/top1" in r for r in records)
    events = b"".join(p.read_bytes() for p in (folder / "tensorboard").glob("events*"))
    assert b"loss" in events


def test_a_finished_run_is_only_evaluated_again(finished, capsys, monkeypatch):
    """Its results.json is damaged, and a picture fails: neither is in the way."""
    folder, results = finished
    (folder / "results.json").write_text('{"teacher": {"par')
    monkeypatch.setattr(plots, "attention", lambda *_: (_ for _ in ()).throw(ValueError("Expected \\\\frac\n^")))
    assert train_and_report(whole_config(), folder) == results
    said = capsys.readouterr().out
    assert said.count("complete, evaluating again") == 3
    line = "attention.png and cosine could not be made: ValueError: Expected \\\\frac ^"
    assert line in said
    assert line in (folder / "report.md").read_text()
    recorded = json.loads((folder / "results.json").read_text())
    assert recorded.pop("seconds") > 0
    assert recorded == results


def test_its_checkpoints_evaluate_to_what_the_run_found(finished):
    """Without a config: crop, data and fusion are the run's; both sets of weights, and the teacher beside them."""
    folder, results = finished
    report = evaluate_command(default_config(), {}, Request((str(folder), str(folder / "teacher"))))
    student, averaged, *teacher = report["rows"]
    assert [row["kind"] for row in report["rows"]] == ["params", "ema"] * 2
    for row, kind in ((student, "params"), (averaged, "ema")):
        for head, scores in results["student"][kind]["heads"].items():
            assert row["results"]["digits"]["heads"][head] == pytest.approx(scores, rel=1e-5)
    assert teacher[0]["results"]["digits"]["top1"] == pytest.approx(results["teacher"]["params"]["top1"])
    assert (student["crop"], student["img_size"]) == (1.0, 16)


def test_evaluation_of_one_set_of_weights_describes_its_classes(finished, tmp_path, monkeypatch):
    """In one pass over the images."""
    passes, original = [], loader.eval_batches
    monkeypatch.setattr(loader, "eval_batches", lambda *a, **k: (passes.append(a), original(*a, **k))[1])
    folder, results = finished
    evaluate_command(default_config(), {}, Request((str(folder / "teacher"),), kind="params", output=str(tmp_path)))
    found = json.loads((tmp_path / "classes.json").read_text())
    right = sum(row[i] for i, row in enumerate(found["confusion"]))
    assert 100 * right / found["images"] == pytest.approx(results["teacher"]["params"]["top1"])
    assert len(passes) == 1
    assert "confusion.png" in (tmp_path / "classes.md").read_text()


def test_derived_configs_keep_data_and_seed_and_drop_the_teacher():
    config = whole_config()
    teacher, plain = teacher_config(config), plain_config(config)
    assert (teacher.init, teacher_config(whole_config(**{"teacher.init": "a/b"})).init) == ("", "a/b")
    assert (teacher.model.name, teacher.distill.kind, teacher.teacher.epochs) == (TINY_PLAIN, "none", 0)
    assert teacher.optimizer.lr == config.teacher.lr
    assert (plain.model.name, plain.distill.kind) == (TINY_PLAIN, "none")
    for derived in (teacher, plain):
        assert derived.data == config.data
        assert derived.seed == config.seed


def test_a_light_teacher_sees_crops_and_flips_alone():
    config = resolve(get_config())
    config.teacher.augment = "light"
    light, a = teacher_config(config).augment, config.augment
    assert (light.policy, light.erasing, light.mixup, light.cutmix, light.repeats) == ("none", 0, 0, 0, 1)
    assert (light.crop_scale, light.flip, light.label_smoothing) == (a.crop_scale, a.flip, a.label_smoothing)
    assert a.policy == "rand"


@pytest.mark.parametrize("epochs", [0, 1])
@pytest.mark.parametrize(("setting", "message"), [("teacher.init", "nowhere"), ("init", "nowhere")])
def test_bad_weights_are_named_before_anything_is_written(tmp_path, setting, message, epochs):
    config = whole_config()
    config.teacher.epochs = epochs if setting == "teacher.init" else 1
    config.update_from_flattened_dict({setting: str(tmp_path / "nowhere")})
    with pytest.raises(UserError, match=message):
        train_and_report(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
