"""The study, whole but short: arms, teachers, stored labels, the report; how its runs are shared out."""

import contextlib
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from configs.digits import get_config
from deit_jax.config import resolve, validate
from deit_jax.errors import UserError
from deit_jax.runtime import atomic, lock
from deit_jax.study import jobs
from deit_jax.study.ablation import ARMS, ablate, arm_config, parse_arm, plan_jobs
from deit_jax.study.report import LABELS, by_head, comparisons, mean_and_deviation, paired, scores_table

OTHER = "hard@deit_digits_patch4_16:1"


def digits(**changes):
    config = get_config()
    config.epochs, config.teacher.epochs = 1, 1
    config.update_from_flattened_dict(changes)
    return resolve(config)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    arms = ("none", "hard", "hard_live", OTHER)
    config = digits(**{"ablate.seeds": (0, 1), "ablate.arms": arms, "ablate.store_labels": True})
    return folder, config, ablate(config, folder)


def test_a_study_has_every_arm_for_every_seed(study):
    _, _, scores = study
    heads = {"cls", "dist", "fused_logits", "fused_probabilities"}
    assert {arm: {seed: set(h) for seed, h in runs.items()} for arm, runs in scores.items()} == {
        "none": {0: {"cls"}, 1: {"cls"}},
        "hard": {0: heads, 1: heads},
        "hard_live": {0: heads},
        OTHER: {0: heads, 1: heads},
    }


def test_stored_labels_train_the_same_student(study):
    _, _, scores = study
    assert scores["hard_live"][0] == scores["hard"][0]
    assert scores[OTHER][0] != scores["hard"][0]


def test_its_report_says_what_was_found(study):
    folder, _, scores = study
    text = (folder / "results/ablation.md").read_text()
    mean, deviation = mean_and_deviation([runs["dist"] for runs in scores["hard"].values()])
    assert f"{mean:.2f} ± {deviation:.2f}" in text
    assert "hard, with token; teacher deit_digits_patch4_16, 1 epochs" in text
    assert "teacher-deit_digits_patch4_16-1: " in text
    record = json.loads((folder / "results/ablation.json").read_text())
    assert record["scores"] == json.loads(json.dumps(scores))
    assert set(record["teachers"]) == {"teacher", "teacher-deit_digits_patch4_16-1"}
    assert "NaN" not in (folder / "results/ablation.json").read_text()
    assert jobs.where() in text
    for picture in ("ablation.png", "curves.png"):
        assert (folder / "results" / picture).stat().st_size > 5000


def test_a_finished_study_trains_nothing_again(study, capsys):
    folder, config, scores = study
    assert ablate(config, folder) == scores
    assert "first step" not in capsys.readouterr().out


def test_teachers_and_labels_come_before_who_needs_them(tmp_path):
    config = digits(**{"ablate.arms": ("none", "hard", "hard_live", OTHER), "ablate.store_labels": True})
    planned = {job.folder.relative_to(tmp_path).as_posix(): job for job in plan_jobs(config, tmp_path, {
        name: parse_arm(name) for name in config.ablate.arms})}  # fmt: skip
    needs = lambda name: [f.relative_to(tmp_path).as_posix() for f in planned[name].needs]  # noqa: E731
    assert needs("none-0") == needs("teacher") == []
    assert needs("labels/teacher-2-hard") == needs("hard_live-0") == ["teacher"]
    assert needs("hard-2") == ["labels/teacher-2-hard"]
    assert needs("hard@deit_digits_patch4_16-1-2") == ["labels/teacher-deit_digits_patch4_16-1-2-hard"]
    assert "hard_live-1" not in planned


def test_arms_differ_only_as_they_should():
    config = digits()
    configs = {arm: arm_config(config, arm, 3) for arm in (*ARMS, OTHER)}
    for c in configs.values():
        validate(c)
        assert c.seed == 3
        assert not c.train_baseline
    assert configs["second_cls"].model.name == config.model.name
    assert configs["hard_no_token"].model.name == "deit_digits_patch4_16"
    assert (configs["soft"].distill.alpha, configs["soft"].distill.tau) == (0.1, 3.0)
    assert configs["none"].teacher.epochs == configs["second_cls"].teacher.epochs == 0
    assert (configs[OTHER].teacher.name, configs[OTHER].teacher.lr) == ("deit_digits_patch4_16", 0)
    assert configs["hard"].teacher.lr == arm_config(config, "hard@regnety_digits:3", 3).teacher.lr == 0.03


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ("hart", "did you mean hard"),
        ("none@regnety_digits:1", "another teacher is given as hard@MODEL:EPOCHS"),
        ("hard@regnety_digits", "another teacher is given as hard@MODEL:EPOCHS"),
        ("hard@regnety_digits:0", "another teacher is given as hard@MODEL:EPOCHS"),
        ("hard@regnety_digits:²", "another teacher is given as hard@MODEL:EPOCHS"),
        ("hard@regnety_digit:3", "did you mean regnety_digits"),
        ("hard@timm/regnety_digits:3", "give a name of deit_jax.list_models"),
        ("hard@deit_digits_distilled_patch4_16:3", "use deit_digits_patch4_16"),
    ],
)
def test_unknown_arms_are_named(tmp_path, arm, message):
    with pytest.raises(UserError, match=message):
        ablate(digits(**{"ablate.arms": (arm,)}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_plain_model_is_no_study(tmp_path):
    config = digits(**{"model.name": "deit_digits_patch4_16", "distill.kind": "none"})
    with pytest.raises(UserError, match="configs/deit_s.py:distill=hard"):
        ablate(config, tmp_path)


def test_without_taught_arms_no_teacher_is_asked_for(tmp_path):
    arms = {"none": parse_arm("none"), "second_cls": parse_arm("second_cls")}
    planned = plan_jobs(digits(**{"ablate.store_labels": True}), tmp_path, arms)
    assert {job.folder.name for job in planned} == {f"{arm}-{seed}" for arm in arms for seed in (0, 1, 2)}


def test_every_arm_has_a_name_for_people():
    assert set(LABELS) == set(ARMS)


def test_paired_is_students_test():
    mean, error, p = paired([3.0, 5.0, 7.0], [2.0, 3.0, 4.0])
    assert (mean, error) == (2.0, pytest.approx(1 / math.sqrt(3)))
    assert p == pytest.approx(0.0742, abs=1e-4)  # t = 3.4641 at two degrees of freedom, from a table
    assert all(math.isnan(x) for x in paired([1.0], [0.5])[1:])
    assert all(math.isnan(x) for x in paired([40.1, 50.3, 60.7], [30.1, 40.3, 50.7])[1:])  # 10, but for rounding


def test_comparisons_are_over_the_seeds_both_arms_have():
    scores = {
        "none": {0: {"cls": 50.0}, 1: {"cls": 52.0}, 2: {"cls": 90.0}},
        "hard": {s: {"cls": 60.0 + s, "dist": 61.0, "fused_logits": 62.0 + 3 * s} for s in (0, 1)},
    }
    found = {tuple(c["compared"]): c for c in comparisons(scores, "logits")}
    against_none = found[("hard", "fused"), ("none", "fused")]
    assert (against_none["difference"], against_none["seeds"]) == (12.5, 2)
    assert found[("hard", "dist"), ("hard", "cls")]["difference"] == 0.5
    assert len(found) == 3
    scores["hard@other:5"] = {0: {"cls": 70.0, "dist": 70.0, "fused_logits": 61.0}}
    more = {tuple(c["compared"]): c for c in comparisons(scores, "logits")}
    assert more[("hard", "fused"), ("hard@other:5", "fused")]["difference"] == 1.0
    assert more[("hard@other:5", "fused"), ("none", "fused")]["p"] is None
    assert by_head(scores["none"], "dist", "logits") == {}
    assert "| no distillation | 64.00 ± 22.54 |  |  | 0, 1, 2 |" in scores_table(scores, "logits")


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
    assert jobs.result(tmp_path / "labels")["n"] == "labels"


def test_what_another_is_at_is_left_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "POLL", 0.01)
    seen = []
    work = lambda name: jobs.Job(tmp_path / name, (), lambda: seen.append(name) or {})  # noqa: E731
    there = {tmp_path / "first": "process 1 elsewhere"}
    monkeypatch.setattr(lock, "try_hold", lambda folder: contextlib.nullcontext(there.get(folder)))

    def other_finishes():
        atomic.write_json(tmp_path / "first/done.json", {})

    (tmp_path / "first").mkdir()
    jobs.run_jobs([work("first"), work("second")], other_finishes)
    assert seen == ["second"]


PROCESS = """
import sys, time
from pathlib import Path
from deit_jax.study import jobs
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


def test_processes_share_the_runs_out(tmp_path):
    command = [sys.executable, "-c", PROCESS, str(tmp_path)]
    running = [subprocess.Popen(command, cwd=Path(__file__).parents[2]) for _ in range(2)]
    assert [process.wait(120) for process in running] == [0, 0]
    assert sorted((tmp_path / "log").read_text().split()) == [f"run{i}" for i in range(8)]


def test_seconds_of_a_run_in_pieces_add_up(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    atomic.write_json(folder / "seconds.json", 100.0)

    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jobs.finish(jobs.Job(folder, (), stopped))
    assert jobs.result(folder) is None
    jobs.finish(jobs.Job(folder, (), dict))
    assert jobs.result(folder)["seconds"] >= 100
