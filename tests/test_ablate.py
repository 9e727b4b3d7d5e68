"""An ablation, whole but short: arms, teachers, stored labels, the table; how processes share its runs."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import TINY, TINY_PLAIN, one_device

from configs.digits import get_config
from deit_jax import ablate as jobs
from deit_jax.ablate import ARMS, ablate, arm_config, job_result, paired_difference, parse_arm, plan_jobs, spread
from deit_jax.config import resolve, validate
from deit_jax.data.sources import open_sources
from deit_jax.errors import UserError

pytestmark = pytest.mark.long_runs

PLAIN = "deit_digits_patch4_16"
OTHER = f"hard@{PLAIN}:1"
TAUGHT = f"hard@{TINY_PLAIN}:1"


def digits(**changes):
    config = get_config()
    config.epochs, config.teacher.epochs, config.data.limit = 1, 1, 512
    config.update_from_flattened_dict(changes)
    return resolve(config)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    small = {"model.name": TINY, "teacher.name": TINY_PLAIN, "teacher.epochs": 2, "batch_size": 32}
    small |= {"epochs": 3, "optimizer.warmup_epochs": 1.0, "optimizer.lr": 3.2e-2}  # so that they learn something
    arms = {"ablate.seeds": (0, 1), "ablate.arms": ("none", "hard", TAUGHT), "ablate.store_labels": True}
    with one_device():
        config = digits(**small | arms)
        return folder, config, ablate(config, folder)


@pytest.mark.slow
def test_a_study_has_every_arm_for_every_seed_and_trains_nothing_again(study, capsys):
    folder, config, scores = study
    heads = {"cls", "dist", "fused_logits", "fused_probabilities"}
    assert {arm: {seed: set(h) for seed, h in runs.items()} for arm, runs in scores.items()} == {
        "none": {0: {"cls"}, 1: {"cls"}},
        "hard": {0: heads, 1: heads},
        TAUGHT: {0: heads, 1: heads},
    }
    assert scores[TAUGHT][0] != scores["hard"][0]
    assert ablate(config, folder) == scores
    assert "first step" not in capsys.readouterr().out


@pytest.mark.slow
def test_runs_record_the_ema_predictions_and_token_cosines(study):
    folder, _, scores = study
    done = job_result(folder / "hard-0")
    assert done["ema"].keys() == scores["hard"][0].keys()
    assert len(done["cosine"]) == 3  # of depth 2
    assert "cosine" not in job_result(folder / "none-0")
    predictions = np.load(folder / "hard-0/predictions.npz")
    truth = open_sources(digits())[1].source.labels[open_sources(digits())[1].positions]
    for head, top1 in scores["hard"][0].items():
        assert 100 * (predictions[f"params/{head}"] == truth).mean() == pytest.approx(top1)
    teacher = job_result(folder / "teacher")
    right = np.load(folder / "teacher/predictions.npz")["params/cls"] == truth
    assert 100 * right.mean() == pytest.approx(teacher["evaluation"]) == pytest.approx(teacher["teaches_with"])


@pytest.mark.slow
def test_its_table_has_the_means_and_the_paired_differences(study):
    folder, _, scores = study
    text = (folder / "results/ablation.md").read_text()
    values = [runs["dist"] for runs in scores["hard"].values()]
    assert f"| hard | {spread([runs['cls'] for runs in scores['hard'].values()])} | {spread(values)} |" in text
    assert spread(values) == f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"
    record = json.loads((folder / "results/ablation.json").read_text())
    assert record["scores"] == json.loads(json.dumps(scores))
    found = record["differences"]["hard - none"]
    by_hand = {seed: scores["hard"][seed]["fused_logits"] - scores["none"][seed]["cls"] for seed in (0, 1)}
    assert found["values"] == {str(seed): pytest.approx(value, abs=1e-6) for seed, value in by_hand.items()}
    assert f"| {found['mean']:+.2f} (" in text
    assert "NaN" not in (folder / "results/ablation.json").read_text()


def test_paired_differences_are_students_test():
    """Student's own data (1908): hours of sleep won by two drugs, ten patients."""
    drug_1 = dict(enumerate([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]))
    drug_2 = dict(enumerate([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]))
    found = paired_difference(drug_2 | {10: 1.0}, drug_1)
    assert found["mean"] == pytest.approx(1.58)
    assert found["p"] == pytest.approx(0.002833, abs=1e-6)  # R: t.test(extra ~ group, paired = TRUE)
    assert (found["low"], found["high"]) == pytest.approx((0.7001142, 2.4598858), abs=1e-6)
    for a, b in (({0: 1.0}, {0: 0.5}), ({0: 40.1, 1: 50.3}, {0: 30.1, 1: 40.3})):  # one seed; equal but for rounding
        assert paired_difference(a, b)["low"] is None
    assert paired_difference({0: 1.0}, {1: 1.0})["mean"] is None


def test_teachers_and_labels_come_before_who_needs_them(tmp_path):
    config = digits(**{"ablate.arms": ("none", "hard", OTHER), "ablate.store_labels": True})
    planned = {
        job.folder.relative_to(tmp_path).as_posix(): job
        for job in plan_jobs(config, tmp_path, {name: parse_arm(name) for name in config.ablate.arms})
    }
    needs = lambda name: [f.relative_to(tmp_path).as_posix() for f in planned[name].needs]
    assert needs("none-0") == needs("teacher") == []
    assert needs("labels/teacher-2-hard") == ["teacher"]
    assert needs("hard-2") == ["labels/teacher-2-hard"]
    assert needs(f"hard@{PLAIN}-1-2") == [f"labels/teacher-{PLAIN}-1-2-hard"]
    seeds = [name[-1] for name in planned if name.startswith(("none", "hard@"))]
    assert seeds == ["0", "0", "1", "1", "2", "2"]  # an unfinished study has whole seeds
    assert list(planned)[:2] == ["teacher", f"teacher-{PLAIN}-1"]
    untaught = plan_jobs(config, tmp_path, {name: parse_arm(name) for name in ("none", "second_cls")})
    assert {job.folder.name[:-2] for job in untaught} == {"none", "second_cls"}, "no teacher is asked for"


def test_arms_differ_only_as_they_should():
    config = digits()
    configs = {arm: arm_config(config, arm, 3) for arm in (*ARMS, OTHER)}
    for c in configs.values():
        validate(c)
        assert c.seed == 3
        assert not c.train_baseline
    assert configs["second_cls"].model.name == config.model.name
    assert configs["hard_no_token"].model.name == "deit_mini_patch4_16"
    assert (configs["soft"].distill.alpha, configs["soft"].distill.tau) == (0.1, 3.0)
    assert configs["none"].teacher.epochs == configs["second_cls"].teacher.epochs == 0
    assert (configs[OTHER].teacher.name, configs[OTHER].teacher.lr) == (PLAIN, 0)
    assert configs["hard"].teacher.lr == arm_config(config, "hard@regnety_mini:3", 3).teacher.lr == 0.04


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ("hart", "did you mean hard"),
        ("none@regnety_digits:1", "another teacher, trained here, is given as"),
        ("hard@regnety_digits:0", "another teacher, trained here, is given as"),
        ("hard@regnety_digit:3", "did you mean regnety_digits"),
        ("hard@timm/regnety_digits:3", "another teacher, trained here, is given as"),
        ("hard@deit_digits_distilled_patch4_16:3", "use deit_digits_patch4_16"),
    ],
)
def test_unknown_arms_are_named(tmp_path, arm, message):
    with pytest.raises(UserError, match=message):
        ablate(digits(**{"ablate.arms": (arm,)}), tmp_path)
    with pytest.raises(UserError, match="configs/deit_s.py:distill=hard"):
        ablate(digits(**{"model.name": PLAIN, "distill.kind": "none"}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_jobs_are_done_once_and_in_an_order_their_needs_allow(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "POLL", 0.01)
    seen = []

    def job(name, *needs):
        return jobs.Job(tmp_path / name, tuple(tmp_path / n for n in needs), lambda: seen.append(name) or {"n": name})

    planned = [job("student", "labels"), job("labels", "teacher"), job("plain"), job("teacher")]
    done = []
    jobs.run_jobs(planned, lambda: done.append(len(seen)))
    assert seen == ["plain", "teacher", "labels", "student"]
    assert done == [1, 2, 3, 4]
    jobs.run_jobs(planned, done.clear)
    assert len(seen) == len(done) == 4
    assert job_result(tmp_path / "labels")["n"] == "labels"


PROCESS = """
import sys, time
from pathlib import Path
from deit_jax import ablate as jobs
root = Path(sys.argv[1])
jobs.POLL = 0.02
def work(name):
    with open(root / "log", "a") as log:
        log.write(name + "\\n")
    time.sleep(0.1)
    return {}
names = [f"run{i}" for i in range(8)]
jobs.run_jobs([jobs.Job(root / n, (root / "run0",) if n != "run0" else (), lambda n=n: work(n)) for n in names], str)
"""


@pytest.mark.slow
def test_processes_share_the_runs(tmp_path):
    command = [sys.executable, "-c", PROCESS, str(tmp_path)]
    running = [subprocess.Popen(command, cwd=Path(__file__).parents[1]) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    assert sorted((tmp_path / "log").read_text().split()) == [f"run{i}" for i in range(8)]
