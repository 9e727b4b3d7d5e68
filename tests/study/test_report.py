"""What a study's report says, from recorded runs."""

import json

import numpy as np
import pytest

from configs.cifar10 import get_config
from deit_jax.config import flat, resolve
from deit_jax.errors import UserError
from deit_jax.study import jobs, report
from deit_jax.study.__main__ import complete, main, recorded_config
from deit_jax.study.ablation import collect
from deit_jax.study.report import agreement_over_seeds, comparisons, cosines, mean_loss, scores_table, with_own_teacher

CONV, TRANSFORMER = "hard@regnety_digits:17", "hard@deit_digits_patch4_16:28"
IMAGES, TRUTH = 200, np.zeros(200, np.uint16)


def decide(rng, wrong: int) -> np.ndarray:
    out = TRUTH.copy()
    out[rng.permutation(IMAGES)[:wrong]] = 1
    return out


def record(folder, decisions: dict, **more) -> None:
    folder.mkdir(parents=True)
    np.savez_compressed(folder / "decisions.npz", **{f"params/{head}": x for head, x in decisions.items()})
    heads = {head: 100 * float((x == TRUTH).mean()) for head, x in decisions.items()}
    done = {"heads": heads, "ema": heads, "seconds": 60.0, "where": "here", **more}
    (folder / "done.json").write_text(json.dumps(done))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A study's folder: three seeds of five arms, two teachers."""
    folder, rng = tmp_path_factory.mktemp("runs"), np.random.default_rng(0)
    for name in ("teacher", "teacher-regnety_digits-17", "teacher-deit_digits_patch4_16-28"):
        record(folder / name, {"cls": decide(rng, 80)}, teaches_with=60.5, evaluation=60.0)
    for seed in range(3):
        record(folder / f"none-{seed}", {"cls": decide(rng, 100)})
        record(folder / f"hard_no_token-{seed}", {"cls": decide(rng, 90 + seed)})
        for arm in ("hard", CONV, TRANSFORMER):
            heads = {h: decide(rng, 90 - 2 * seed) for h in ("cls", "dist", "fused_logits", "fused_probabilities")}
            record(folder / report.run_name(arm, seed), heads, cosine=[0.1, 0.9 + 0.01 * seed])
    c = get_config("scale=cpu")
    c.ablate.seeds = tuple(range(10))  # seven have not run yet
    c = resolve(c)
    return folder, c, collect(folder, c)


def test_the_report_of_an_unfinished_study_has_what_is_there(runs):
    folder, config, scores = runs
    report.write(folder, config, scores, collect(folder, config, "ema"))
    text = (folder / "results/ablation.md").read_text()
    assert "| hard distillation > none | +2.1 / +1.1 / +1.2 (Ti / S / B) | +4.50 (+3.26 .. +5.74)" in text
    assert "ConvNet teacher > transformer teacher of equal accuracy" in text
    assert "soft distillation ≈ none" not in text  # those arms have not run
    assert "teacher: 60.50 % on its held-out images, 60.00 % on the students' evaluation images, 1 minutes" in text
    found = json.loads((folder / "results/ablation.json").read_text())
    assert found["claims"][0]["mean"] == pytest.approx(4.5)
    assert found["claims"][0]["seeds"] == 3
    assert found["token_cosine"]["hard"] == pytest.approx([0.1, 0.91])
    assert (folder / "results/differences.png").stat().st_size > 5000


def test_the_report_can_be_written_from_the_folder_alone(runs, tmp_path, capsys):
    folder, config, scores = runs
    former = {
        "optimizer.per": config.optimizer.lr_update,
        "optimizer.lr_update": None,
        "data.fingerprint": "f",
        "sharding": "fsdp",
    }
    recorded = json.loads(json.dumps(flat(config))) | former
    (folder / "config.json").write_text(json.dumps({k: v for k, v in recorded.items() if v is not None}))
    assert flat(recorded_config(folder)) == flat(config)
    for seed in (2, 3):
        record(folder / f"labels/teacher-{seed}-topk", {"cls": TRUTH})
    main([str(folder), str(tmp_path / "out")])
    assert [p.name for p in (tmp_path / "out/runs/labels").iterdir()] == ["teacher-2-topk"]  # seed 3 is not complete
    assert "3 seeds of 5 arms" in capsys.readouterr().out
    assert jobs.result(tmp_path / "out/runs/hard-2") == jobs.result(folder / "hard-2")
    assert json.loads((tmp_path / "out/ablation.json").read_text())["scores"] == json.loads(json.dumps(scores))
    with pytest.raises(UserError, match="holds no config.json"):
        main([str(tmp_path)])


def test_only_seeds_that_every_arm_has_are_reported():
    x = {"cls": 50.0}
    kept, left_out = complete({"none": {0: x, 1: x, 2: x}, "hard": {0: x, 2: x, 3: x}, "hard_live": {0: x}})
    assert {arm: set(runs) for arm, runs in kept.items()} == {"none": {0, 2}, "hard": {0, 2}, "hard_live": {0}}
    assert left_out == [1, 3]
    assert complete({"none": {0: x}, "hard": {1: x}}) == ({}, [0, 1])
    assert complete({}) == ({}, [])


def test_agreement_is_the_mean_over_seeds(runs):
    folder, _, scores = runs
    found = agreement_over_seeds(folder, scores, "logits")
    assert list(found) == [
        "true label",
        "teacher",
        "student without a teacher",
        "class head",
        "distillation head",
        "both heads",
    ]
    load = lambda run, head: np.load(folder / run / "decisions.npz")[f"params/{head}"]
    by_hand = np.mean([(load(f"hard-{s}", "dist") != load("teacher", "cls")).mean() for s in range(3)])
    assert found["teacher"]["distillation head"] == pytest.approx(100 * by_hand)
    assert found["distillation head"]["teacher"] == found["teacher"]["distillation head"]
    assert found["true label"]["student without a teacher"] == pytest.approx(50)
    assert found["class head"]["true label"] == pytest.approx(np.mean([45, 44, 43]))


def test_students_are_compared_with_their_own_teacher(runs):
    folder, _, scores = runs
    found = with_own_teacher(folder, scores, "logits")
    assert set(found) == {"hard_no_token", "hard", CONV, TRANSFORMER}
    own = np.load(folder / "teacher-regnety_digits-17/decisions.npz")["params/cls"]
    fused = [np.load(folder / f"hard@regnety_digits-17-{s}/decisions.npz")["params/fused_logits"] for s in range(3)]
    assert found[CONV] == pytest.approx(100 * np.mean([f != own for f in fused]))
    assert set(cosines(folder, scores)) == {"hard", CONV, TRANSFORMER}


def test_runs_without_decisions_say_nothing_of_agreement(tmp_path):
    scores = {"none": {0: {"cls": 50.0}}, "hard": {0: {"cls": 50.0, "dist": 50.0, "fused_logits": 50.0}}}
    assert agreement_over_seeds(tmp_path, scores, "logits") == {}
    assert with_own_teacher(tmp_path, scores, "logits") == {}


def test_loss_is_averaged_where_all_runs_have_it():
    logs = [
        [
            {"step": 50, "epoch": 1.0, "loss": 2.0},
            {"step": 100, "epoch": 2.0, "loss": 1.0},
            {"step": 100, "eval/top1": 9},
        ],
        [{"step": 50, "epoch": 1.0, "loss": 4.0}],
    ]
    assert mean_loss(logs) == [{"step": 50, "epoch": 1.0, "loss": 3.0}]
    assert mean_loss([*logs, []]) == mean_loss(logs)  # a run whose record alone was kept
    assert mean_loss([[]]) == []


def test_comparisons_are_over_the_seeds_both_arms_have():
    scores = {
        "none": {0: {"cls": 50.0}, 1: {"cls": 52.0}, 2: {"cls": 90.0}},
        "hard": {s: {"cls": 60.0 + s, "dist": 61.0, "fused_logits": 62.0 + 3 * s} for s in (0, 1)},
    }
    found = {tuple(c["compared"]): c for c in comparisons(scores, "logits")}
    against_none = found[("hard", "fused"), ("none", "fused")]
    assert (against_none["mean"], against_none["seeds"], against_none["values"]) == (12.5, 2, {0: 12.0, 1: 13.0})
    assert found[("hard", "dist"), ("hard", "cls")]["mean"] == 0.5
    assert len(found) == 3
    scores[CONV] = {0: {"cls": 70.0, "dist": 70.0, "fused_logits": 61.0}}
    more = {tuple(c["compared"]): c for c in comparisons(scores, "logits")}
    assert more[("hard", "fused"), (CONV, "fused")]["mean"] == 1.0
    assert more[(CONV, "fused"), ("none", "fused")]["p"] is None
    assert "| no distillation | 64.00 ± 22.54 |  |  |  | 3 |" in scores_table(scores, {}, "logits")
