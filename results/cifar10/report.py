"""Write the report of the CIFAR-10 study (README.md) from what its folder holds:

    python results/cifar10/report.py [RUNS [OUT]]      RUNS: the workdir of --mode=ablate; OUT: default RUNS/results

Without arguments, the committed records in runs/ beside this file are reported, into the folder of this file. They have
no predictions.npz, log.jsonl and config.json: agreement and settings are those that OUT/ablation.json records, and
curves.png stays as it is. Only seeds that every arm has finished are reported, so that all arms are compared over the
same ones; the study may still be running. Needs statsmodels.
"""

import argparse
import contextlib
import itertools
import json
import math
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from claims import ALPHA, MARGIN, Paired, Verdict, decide, detectable, difference
from matplotlib.figure import Figure

from deit_jax import losses, plots
from deit_jax.ablate import Scores, by_head, collect, job_result, run_name, spread
from deit_jax.config import default_config, flat
from deit_jax.evaluate.tables import table
from deit_jax.report.run_report import STUDENT_HEADS, disagreement
from deit_jax.runtime import atomic
from deit_jax.train.log import read_log
from deit_jax.train.run import PLAIN_STUDENT

HERE = Path(__file__).parent
PLACES = ("data.root", "teacher.init")  # folders of the machine it ran on

LABELS = {
    "none": "no distillation",
    "soft": "soft, with token",
    "soft_no_token": "soft, no token",
    "hard": "hard, with token",
    "hard_no_token": "hard, no token",
    "second_cls": "second class token",
}

# What the paper compares, (arm, head) - (arm, head), and by how much it differs for its DeiT-S on ImageNet (Table 3).
COMPARISONS: list[tuple[tuple[str, str], tuple[str, str], str]] = [
    (("soft", "fused"), ("none", "fused"), ""),
    (("soft_no_token", "cls"), ("none", "cls"), "0.0"),
    (("hard_no_token", "cls"), ("none", "cls"), "+1.1"),
    (("hard", "fused"), ("none", "fused"), "+1.4"),
    (("second_cls", "fused"), ("none", "fused"), ""),
    (("hard", "fused"), ("soft", "fused"), ""),
    (("hard", "fused"), ("soft_no_token", "cls"), "+1.4"),
    (("hard", "fused"), ("hard_no_token", "cls"), "+0.3"),
    (("hard", "fused"), ("second_cls", "fused"), ""),
    (("hard", "dist"), ("hard", "cls"), "+0.2"),
    (("hard", "fused"), ("hard", "dist"), "+0.1"),
]
HEADS = {"cls": "class head", "dist": "distillation head", "fused": "fused"}


def arm_label(arm: str) -> str:
    kind, _, teacher = arm.partition("@")
    name, _, epochs = teacher.partition(":")
    return LABELS[kind] + (f"; teacher {name}, {epochs} epochs" if teacher else "")


def objective(arm: str) -> str:
    """What an arm's loss is."""
    kind = arm.partition("@")[0]
    return losses.OBJECTIVES[kind if kind in losses.OBJECTIVES else kind.partition("_")[0]].title


def scores_table(scores: Scores, ema: Scores, fusion: str) -> str:
    """Mean ± deviation over the seeds, of each head's last weights; the last column: joint prediction of the EMA."""
    rows = []
    for arm, runs in scores.items():
        cells = [spread(list(by_head(runs, head, fusion).values())) for head in HEADS]
        if not by_head(runs, "dist", fusion):
            cells[list(HEADS).index("fused")] = ""
        cells.append(spread(list(by_head(ema.get(arm, {}), "fused", fusion).values())))
        rows.append([arm_label(arm), *cells, str(len(runs))])
    return table(["arm", *HEADS.values(), "EMA", "seeds"], rows)


def compared(scores: Scores) -> list[tuple[tuple[str, str], tuple[str, str], str]]:
    """What is compared in this study: COMPARISONS, arms with a teacher of their own against none and each other."""
    pairs = [((a, "fused"), ("none", "fused"), "") for a in scores if "@" in a]
    for a, b in itertools.combinations(scores, 2):
        if "@" in a + b and a.partition("@")[0] == b.partition("@")[0]:
            pairs.append(((a, "fused"), (b, "fused"), ""))
    return COMPARISONS + pairs


def comparisons(scores: Scores, fusion: str) -> list[dict]:
    """The paired differences of what the study has: {"compared": [(arm, head), (arm, head)], "paper", "values": by
    seed, "detectable"} and the fields of `Paired` (None where not known)."""
    found = []
    for side, other, paper in compared(scores):
        result = difference(scores, side, other, fusion)
        if result:
            a, b = (by_head(scores[arm], head, fusion) for arm, head in (side, other))
            values = {seed: round(a[seed] - b[seed], 4) for seed in sorted(a.keys() & b.keys())}
            seen = detectable(result.deviation, result.seeds)
            found.append(
                {"compared": [side, other], "paper": paper, "values": values, "detectable": finite(seen)}
                | {k: finite(v) for k, v in result._asdict().items()}
            )
    return found


def number(x: float | None, form: str = ".2f") -> str:
    return "" if x is None or not math.isfinite(x) else format(x, form)


def p_text(p: float | None) -> str:
    return "" if p is None or math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def interval(found: Paired) -> str:
    """+1.23 (0.98 .. 1.48)"""
    known = math.isfinite(found.low)
    return f"{found.mean:+.2f}" + (f" ({found.low:+.2f} .. {found.high:+.2f})" if known else "")


def comparison_label(c: dict) -> str:
    (arm, head), (other, other_head) = c["compared"]
    if arm == other:
        return f"{arm_label(arm)}: {HEADS[head]} - {HEADS[other_head]}"
    return f"{arm_label(arm)} - {arm_label(other)}"


def comparisons_table(found: list[dict]) -> str:
    rows = []
    for c in found:
        between = "" if c["low"] is None else f"{c['low']:+.2f} .. {c['high']:+.2f}"
        rows.append(
            [
                comparison_label(c),
                f"{c['mean']:+.2f}",
                between,
                p_text(c["p"]),
                p_text(c["p_flips"]),
                number(c["detectable"]),
                str(c["seeds"]),
                c["paper"],
            ]
        )
    header = [
        "difference in top-1 (fused where there are two heads)",
        "points",
        "95 % interval",
        "p (paired t-test)",
        "p (sign flips)",
        "seen with 80 % power",
        "seeds",
        "paper, DeiT-S",
    ]
    return table(header, rows)


def claims_table(verdicts: list[Verdict]) -> str:
    """A line for each claim of the paper: its figure, this study's with interval, corrected p, power, verdict."""
    rows = [
        [d.claim.name, d.claim.paper, interval(d.found), p_text(d.p), " / ".join(map(number, d.detectable)), d.verdict]
        for d in verdicts
    ]
    header = ["claim", "paper, points", "here, points (95 %)", "p (Holm)", "seen with 80 % power", "verdict"]
    return table(header, rows)


def teachers(workdir: Path) -> dict[str, dict]:
    """{folder's name: result} of every teacher that was trained."""
    found = {folder.name: job_result(folder) for folder in sorted(workdir.glob("teacher*"))}
    return {name: r for name, r in found.items() if r}


def teacher_fact(name: str, r: dict) -> str:
    elsewhere = f", {r['evaluation']:.2f} % on the students' evaluation images" if "evaluation" in r else ""
    return f"{name}: {r['teaches_with']:.2f} % on its held-out images{elsewhere}, {r['seconds'] / 60:.0f} minutes"


def finished(workdir: Path) -> dict[str, dict]:
    """{folder: result} of all that is done."""
    folders = sorted(path.parent for pattern in ("*", "labels/*") for path in workdir.glob(f"{pattern}/done.json"))
    return {folder.relative_to(workdir).as_posix(): job_result(folder) or {} for folder in folders}


def agreement_over_seeds(workdir: Path, scores: Scores, fusion: str, arm: str = "hard") -> dict[str, dict[str, float]]:
    """The paper's Table 4, averaged over the seeds: percent of the evaluation images for which two classifiers
    predict different classes. {} where the runs kept no predictions."""
    teacher = read_predictions(workdir / "teacher").get("cls")
    found = []
    for seed in sorted(scores.get(arm, {}).keys() & scores.get("none", {}).keys()):
        plain, heads = (read_predictions(workdir / run_name(a, seed)) for a in ("none", arm))
        if teacher is None or "cls" not in plain or "dist" not in heads:
            continue
        heads["fused"] = heads[f"fused_{fusion}"]
        named = {"teacher": teacher, PLAIN_STUDENT: plain["cls"]}
        named |= {label: heads[head] for head, label in STUDENT_HEADS.items()}
        percent = disagreement(named)
        top1 = {head: by_head(scores[arm], head, fusion)[seed] for head in STUDENT_HEADS}
        finished_teacher = job_result(workdir / "teacher") or {}
        wrong = {"teacher": 100 - finished_teacher["evaluation"], PLAIN_STUDENT: 100 - scores["none"][seed]["cls"]}
        wrong |= {label: 100 - top1[head] for head, label in STUDENT_HEADS.items()}
        labels = {"true label": {"true label": 0.0, **wrong}}
        found.append(labels | {k: {"true label": wrong[k], **v} for k, v in percent.items()})
    if not found:
        return {}
    return {a: {b: float(np.mean([t[a][b] for t in found])) for b in row} for a, row in found[0].items()}


def with_own_teacher(workdir: Path, scores: Scores, fusion: str) -> dict[str, float]:
    """{arm: percent of the evaluation images for which student (joint prediction) and its own teacher differ},
    averaged over seeds."""
    out = {}
    for arm, runs in scores.items():
        _, at, name = arm.partition("@")
        if arm in ("none", "second_cls"):
            continue
        teacher = read_predictions(workdir / (f"teacher-{name.replace(':', '-')}" if at else "teacher")).get("cls")
        values = []
        for seed in runs:
            heads = read_predictions(workdir / run_name(arm, seed))
            if heads and teacher is not None:
                values.append(100 * float((heads.get(f"fused_{fusion}", heads["cls"]) != teacher).mean()))
        if values:
            out[arm] = float(np.mean(values))
    return out


def cosines(workdir: Path, scores: Scores) -> dict[str, list[float]]:
    """{arm: mean over seeds of the cosine between the two tokens, before the first block and after each}."""
    out = {}
    for arm, runs in scores.items():
        values = [r["cosine"] for seed in runs if "cosine" in (r := job_result(workdir / run_name(arm, seed)) or {})]
        if values:
            out[arm] = np.mean(values, axis=0).round(4).tolist()
    return out


def agreement_text(results: dict[str, Any]) -> list[str]:
    """The section about agreement. results: of `analyze`."""
    parts = []
    if percent := results["agreement"]:
        rows = [[a, *(f"{row[b]:.1f}" if a != b else "" for b in percent)] for a, row in percent.items()]
        parts += [
            "## Agreement",
            "Percent of the evaluation images for which two classifiers predict different classes, mean over the seeds"
            " (paper, Table 4; student: hard, with token):",
            table(["", *percent], rows),
        ]
    if own := results["disagreement_with_own_teacher"]:
        rows = [[arm_label(arm), f"{x:.1f}"] for arm, x in own.items()]
        parts += ["Student (joint prediction) and its own teacher:", table(["arm", "differ, %"], rows)]
    if tokens := results["token_cosine"]:
        layers = [str(i) for i in range(len(next(iter(tokens.values()))))]
        rows = [[arm_label(arm), *(f"{x:.2f}" for x in values)] for arm, values in tokens.items()]
        parts += [
            "Cosine between the two tokens, mean over seeds and images (0: before the first block; the paper:"
            " 0.06 there, 0.93 at the end):",
            table(["after block", *layers], rows),
        ]
    return parts


def markdown(workdir: Path, config: Any, results: dict[str, Any], verdicts: list[Verdict]) -> str:
    """ablation.md. results: of `analyze`."""
    seconds = sum(results["seconds"].values())
    facts = [
        *results["where"],
        f"{len(results['seconds'])} runs (teachers, labels, students), {seconds / 60:.0f} minutes together, side by"
        " side if shared",
        *(teacher_fact(name, r) for name, r in teachers(workdir).items()),
    ]
    default = flat(default_config())
    changed = [f"{k} = {v}" for k, v in flat(config).items() if v != default[k] and k not in PLACES]
    claims = [
        f"## The paper's claims\n\nDifferences paired by seed; intervals by Student's t; p corrected over the family"
        f" (Holm), decided at {ALPHA}. ≈ means within ± {MARGIN:g} point (two one-sided tests). Power: the smallest"
        " true difference seen in 80 % of such studies, by an uncorrected test / at Holm's strictest level.",
        claims_table(verdicts),
        "![differences](differences.png)",
    ]
    parts = [
        f"# {config.model.name}: ablation",
        "\n".join(f"- {fact}" for fact in facts),
        *(claims if verdicts else []),
        "## Arms",
        "Top-1 in percent on the evaluation images, last weights (and the joint prediction of their EMA), mean ±"
        " standard deviation over the seeds. Soft arms have the paper's lambda 0.1 and temperature 3.",
        scores_table(results["scores"], results["scores_averaged_weights"], config.evaluate.fusion),
        "All differences, paired by seed; p is not corrected here.",
        comparisons_table(results["comparisons"]),
        *agreement_text(results),
        "![curves](curves.png)",
        "Settings that differ from the defaults:",
        "```\n" + "\n".join(changed) + "\n```",
    ]
    return "\n\n".join(parts) + "\n"


def analyze(workdir: Path, config: Any, scores: Scores, ema: Scores, verdicts: list[Verdict]) -> dict[str, Any]:
    """The content of ablation.json, without the config."""
    fusion, done = config.evaluate.fusion, finished(workdir)
    return {
        "scores": scores,
        "scores_averaged_weights": ema,
        "claims": [claim_record(d) for d in verdicts],
        "comparisons": comparisons(scores, fusion),
        "agreement": agreement_over_seeds(workdir, scores, fusion),
        "disagreement_with_own_teacher": with_own_teacher(workdir, scores, fusion),
        "token_cosine": cosines(workdir, scores),
        "teachers": {
            name: {k: r[k] for k in ("teaches_with", "evaluation") if k in r} for name, r in teachers(workdir).items()
        },
        "seconds": {name: r["seconds"] for name, r in done.items()},
        "where": sorted({r["where"] for r in done.values()}),
    }


def write(workdir: Path, folder: Path) -> None:
    """ablation.md, ablation.json, differences.png and, of runs with a log, curves.png (mean over the seeds)."""
    before = json.loads((folder / "ablation.json").read_text()) if (folder / "ablation.json").exists() else {}
    record = workdir / "config.json"
    recorded = json.loads(record.read_text()) if record.exists() else before.get("config", {})
    config = recorded_config(recorded)
    scores, left_out = complete(collect(workdir, config))
    if not scores:
        raise SystemExit(f"{workdir} holds no seed that every arm has finished")
    seeds = next(iter(scores.values())).keys()
    ema = {a: {s: r for s, r in runs.items() if s in seeds} for a, runs in collect(workdir, config, "ema").items()}
    verdicts = decide(scores, config.evaluate.fusion)
    recorded |= {name: "" for name in PLACES if name in recorded}
    results = analyze(workdir, config, scores, ema, verdicts)
    for name in ("agreement", "disagreement_with_own_teacher"):
        results[name] = results[name] or before.get(name, {})
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_text(folder / "ablation.md", markdown(workdir, config, results, verdicts))
    atomic.write_json(folder / "ablation.json", results | {"config": recorded})
    if results["comparisons"]:
        draw_differences(folder / "differences.png", results["comparisons"])
    logs = {arm: [read_log(workdir / run_name(arm, seed)) for seed in runs] for arm, runs in scores.items()}
    losses = {arm_label(arm): mean_loss(records) for arm, records in logs.items()}
    if any(losses.values()):
        plots.curves(folder / "curves.png", losses, {arm_label(arm): objective(arm) for arm in logs})
    copy_records(workdir, folder / "runs", set(seeds))
    print(f"{len(seeds)} seeds of {len(scores)} arms: {folder / 'ablation.md'}")
    if left_out:
        print(f"left out: seeds {', '.join(map(str, left_out))}, which only some arms have finished")


def recorded_config(recorded: dict[str, Any]) -> Any:
    """The config that a study's folder was begun with; settings of a former version are left out."""
    config = default_config()
    known = flat(config)
    for name, value in flatten(recorded).items():
        if name in known:
            with contextlib.suppress(TypeError):  # of another type today
                config.update_from_flattened_dict({name: tuple(value) if isinstance(value, list) else value})
    return config


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} → {"a.b": 1}."""
    out = {}
    for name, value in tree.items():
        out |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return out


def complete(scores: Scores) -> tuple[Scores, list[int]]:
    """The scores of the seeds that every arm has, and the seeds left out."""
    every = set.intersection(*map(set, scores.values())) if scores else set()
    kept = {arm: {s: r for s, r in runs.items() if s in every} for arm, runs in scores.items()} if every else {}
    return kept, sorted({s for runs in scores.values() for s in runs} - every)


def copy_records(workdir: Path, folder: Path, seeds: set[int]) -> None:
    """Copy each run's record; of stored labels only those of complete `seeds`: runs of others still need the labels
    themselves."""
    for name, result in finished(workdir).items():
        if name.startswith("labels/") and int(name.split("-")[-2]) not in seeds:
            continue
        (folder / name).mkdir(parents=True, exist_ok=True)
        atomic.write_json(folder / name / "done.json", result)


def read_predictions(folder: Path) -> dict[str, np.ndarray]:
    """{head: classes (images,)} of the last weights; {} for a run that kept none."""
    path = folder / "predictions.npz"
    if not path.exists():
        return {}
    with np.load(path) as arrays:
        return {name.partition("/")[2]: arrays[name] for name in arrays.files if name.startswith("params/")}


def finite(x: float) -> float | None:
    """x, or None for nan."""
    return x if math.isfinite(x) else None


def mean_loss(logs: list[list[dict]]) -> list[dict]:
    """One log of the training loss, averaged over runs where all that kept a log have it."""
    losses = [{r["step"]: (r["epoch"], r["loss"]) for r in records if "loss" in r} for records in logs if records]
    steps = sorted(set.intersection(*map(set, losses))) if losses else []
    return [{"step": s, "epoch": losses[0][s][0], "loss": float(np.mean([run[s][1] for run in losses]))} for s in steps]


def claim_record(d: Verdict) -> dict:
    numbers = {k: finite(v) for k, v in d.found._asdict().items()}
    return {
        "claim": d.claim.name,
        "compared": [d.claim.better, d.claim.worse],
        "paper": d.claim.paper,
        **numbers,
        "p_holm": finite(d.p),
        "verdict": d.verdict,
        "detectable": [finite(x) for x in d.detectable],
    }


@plots.plain_text
def draw_differences(path: Path, found: list[dict]) -> None:
    """Paired differences as dots with their confidence intervals, one row each; small dots are the single pairs."""
    figure = Figure(figsize=(8.6, 0.6 + 0.42 * len(found)))
    axis = figure.subplots()
    for y, c in enumerate(found):
        values = list(c["values"].values())
        axis.plot(values, [y + 0.18] * len(values), "o", color=plots.COLORS[4], alpha=0.55, markersize=3.5, linewidth=0)
        if c["low"] is not None:
            axis.plot([c["low"], c["high"]], [y, y], color=plots.COLORS[0], linewidth=2.2, solid_capstyle="butt")
        axis.plot([c["mean"]], [y], "o", color=plots.COLORS[0], markersize=6)
        place: dict[str, Any] = {"xy": (1.01, y), "xycoords": ("axes fraction", "data"), "va": "center"}
        axis.annotate(f"{c['mean']:+.2f}", **place, fontsize=8, color=plots.INK)
    axis.axvline(0, color=plots.INK, linewidth=0.9, linestyle="--")
    axis.set_yticks(range(len(found)), [textwrap.fill(comparison_label(c), 62) for c in found], fontsize=8)
    axis.set_ylim(len(found) - 0.5, -0.5)
    plots.tidy(axis, "difference in top-1, points", "")
    axis.grid(axis="x", color=plots.GRID, linewidth=0.8)
    axis.grid(axis="y", visible=False)
    plots.save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the report of the CIFAR-10 study from its records.")
    parser.add_argument("workdir", type=Path, nargs="?", help="of an --mode=ablate run, which may still be running")
    parser.add_argument("out", type=Path, nargs="?", help="where the report goes (default: WORKDIR/results)")
    given = parser.parse_args()
    if given.workdir is None:
        write(HERE / "runs", HERE)
    else:
        write(given.workdir, given.out or given.workdir / "results")


if __name__ == "__main__":
    main()
