"""What a study found: ablation.md (claims, tables, paired differences, agreement; where and from what), ablation.json
and pictures."""

import itertools
import json
import math
import textwrap
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from deit_jax import losses, plots
from deit_jax.config import default_config, flat
from deit_jax.evaluate import tables
from deit_jax.report.agreement import PLAIN_STUDENT, STUDENT_HEADS, disagreement
from deit_jax.runtime import atomic
from deit_jax.study import decisions, jobs, statistics
from deit_jax.study.claims import ALPHA, MARGIN, Decision, Scores, by_head, decide, difference
from deit_jax.study.statistics import Paired
from deit_jax.train import log

LABELS = {
    "none": "no distillation",
    "soft": "soft, with token",
    "soft_no_token": "soft, no token",
    "hard": "hard, with token",
    "hard_no_token": "hard, no token",
    "second_cls": "second class token",
    "hard_live": "hard, teacher live",
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
    (("hard_live", "fused"), ("hard", "fused"), ""),
]
HEADS = {"cls": "class head", "dist": "distillation head", "fused": "fused"}


def arm_label(arm: str) -> str:
    kind, _, teacher = arm.partition("@")
    name, _, epochs = teacher.partition(":")
    return LABELS[kind] + (f"; teacher {name}, {epochs} epochs" if teacher else "")


def objective(arm: str) -> str:
    """What an arm's loss is."""
    kind = arm.partition("@")[0]
    return losses.KINDS[kind if kind in losses.KINDS else kind.partition("_")[0]]


def run_name(arm: str, seed: int) -> str:
    """The folder of a run, in the study's."""
    return f"{arm.replace(':', '-')}-{seed}"


def mean_and_deviation(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for one value)."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def scores_table(scores: Scores, averaged: Scores, fusion: str) -> str:
    """Mean ± deviation over the seeds, of each head's last weights; the last column is the joint prediction of the
    averaged weights."""
    rows = []
    for arm, runs in scores.items():
        cells = [spread(list(by_head(runs, head, fusion).values())) for head in HEADS]
        if not by_head(runs, "dist", fusion):
            cells[list(HEADS).index("fused")] = ""
        cells.append(spread(list(by_head(averaged.get(arm, {}), "fused", fusion).values())))
        rows.append([arm_label(arm), *cells, str(len(runs))])
    return tables.table(["arm", *HEADS.values(), "averaged weights", "seeds"], rows)


def spread(values: list[float]) -> str:
    if not values:
        return ""
    mean, deviation = mean_and_deviation(values)
    return f"{mean:.2f}" + (f" ± {deviation:.2f}" if len(values) > 1 else "")


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
            seen = statistics.detectable(result.deviation, result.seeds)
            found.append(
                {"compared": [side, other], "paper": paper, "values": values, "detectable": finite(seen)}
                | {k: finite(v) for k, v in result._asdict().items()}
            )
    return found


def finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


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
    return tables.table(header, rows)


def claims_table(decisions: list[Decision]) -> str:
    """A line for each claim of the paper: its figure, this study's with interval, corrected p, power, verdict."""
    rows = [
        [d.claim.name, d.claim.paper, interval(d.found), p_text(d.p), " / ".join(map(number, d.seen)), d.verdict]
        for d in decisions
    ]
    header = ["claim", "paper, points", "here, points (95 %)", "p (Holm)", "seen with 80 % power", "verdict"]
    return tables.table(header, rows)


def teachers(workdir: Path) -> dict[str, dict]:
    """{folder's name: result} of every teacher that was trained."""
    found = {folder.name: jobs.result(folder) for folder in sorted(workdir.glob("teacher*"))}
    return {name: r for name, r in found.items() if r}


def teacher_fact(name: str, r: dict) -> str:
    elsewhere = f", {r['evaluation']:.2f} % on the students' evaluation images" if "evaluation" in r else ""
    return f"{name}: {r['teaches_with']:.2f} % on its held-out images{elsewhere}, {r['seconds'] / 60:.0f} minutes"


def finished(workdir: Path) -> dict[str, dict]:
    """{folder: result} of all that is done."""
    folders = sorted(path.parent for pattern in ("*", "labels/*") for path in workdir.glob(f"{pattern}/done.json"))
    return {folder.relative_to(workdir).as_posix(): jobs.result(folder) or {} for folder in folders}


def agreement_over_seeds(workdir: Path, scores: Scores, fusion: str, arm: str = "hard") -> dict[str, dict[str, float]]:
    """The paper's Table 4, averaged over the seeds: percent of the evaluation images that two classifiers decide
    differently. {} where the runs kept no decisions."""
    teacher = decisions.read(workdir / "teacher").get("cls")
    found = []
    for seed in sorted(scores.get(arm, {}).keys() & scores.get("none", {}).keys()):
        plain, heads = (decisions.read(workdir / run_name(a, seed)) for a in ("none", arm))
        if teacher is None or "cls" not in plain or "dist" not in heads:
            continue
        heads["fused"] = heads[f"fused_{fusion}"]
        named = {"teacher": teacher, PLAIN_STUDENT: plain["cls"]}
        named |= {label: heads[head] for head, label in STUDENT_HEADS.items()}
        table = disagreement(named)
        top1 = {head: by_head(scores[arm], head, fusion)[seed] for head in STUDENT_HEADS}
        finished_teacher = jobs.result(workdir / "teacher") or {}
        wrong = {"teacher": 100 - finished_teacher["evaluation"], PLAIN_STUDENT: 100 - scores["none"][seed]["cls"]}
        wrong |= {label: 100 - top1[head] for head, label in STUDENT_HEADS.items()}
        table = {"true label": {"true label": 0.0, **wrong}} | {
            k: {"true label": wrong[k], **v} for k, v in table.items()
        }
        found.append(table)
    if not found:
        return {}
    return {a: {b: float(np.mean([t[a][b] for t in found])) for b in row} for a, row in found[0].items()}


def with_own_teacher(workdir: Path, scores: Scores, fusion: str) -> dict[str, float]:
    """{arm: percent of the evaluation images that student (joint prediction) and its own teacher decide differently},
    averaged over seeds."""
    out = {}
    for arm, runs in scores.items():
        _, at, name = arm.partition("@")
        if arm in ("none", "second_cls"):
            continue
        teacher = decisions.read(workdir / (f"teacher-{name.replace(':', '-')}" if at else "teacher")).get("cls")
        values = []
        for seed in runs:
            heads = decisions.read(workdir / run_name(arm, seed))
            if heads and teacher is not None:
                values.append(100 * float((heads.get(f"fused_{fusion}", heads["cls"]) != teacher).mean()))
        if values:
            out[arm] = float(np.mean(values))
    return out


def cosines(workdir: Path, scores: Scores) -> dict[str, list[float]]:
    """{arm: mean over seeds of the cosine between the two tokens, before the first block and after each}."""
    out = {}
    for arm, runs in scores.items():
        values = [r["cosine"] for seed in runs if "cosine" in (r := jobs.result(workdir / run_name(arm, seed)) or {})]
        if values:
            out[arm] = np.mean(values, axis=0).round(4).tolist()
    return out


def agreement_text(workdir: Path, scores: Scores, fusion: str) -> list[str]:
    parts = []
    table = agreement_over_seeds(workdir, scores, fusion)
    if table:
        rows = [[a, *(f"{row[b]:.1f}" if a != b else "" for b in table)] for a, row in table.items()]
        parts += [
            "## Agreement",
            "Percent of the evaluation images that two classifiers decide differently, mean over"
            " the seeds (paper, Table 4; student: hard, with token):",
            tables.table(["", *table], rows),
        ]
    own = with_own_teacher(workdir, scores, fusion)
    if own:
        rows = [[arm_label(arm), f"{x:.1f}"] for arm, x in own.items()]
        parts += ["Student (joint prediction) and its own teacher:", tables.table(["arm", "differ, %"], rows)]
    tokens = cosines(workdir, scores)
    if tokens:
        layers = [str(i) for i in range(len(next(iter(tokens.values()))))]
        rows = [[arm_label(arm), *(f"{x:.2f}" for x in values)] for arm, values in tokens.items()]
        parts += [
            "Cosine between the two tokens, mean over seeds and images (0: before the first block; the paper:"
            " 0.06 there, 0.93 at the end):",
            tables.table(["after block", *layers], rows),
        ]
    return parts


def text(workdir: Path, config, scores: Scores, averaged: Scores, command: str = "") -> str:
    """ablation.md."""
    fusion = config.evaluate.fusion
    done = finished(workdir)
    seconds = sum(r["seconds"] for r in done.values())
    facts = [
        *sorted({r["where"] for r in done.values()}),
        f"{len(done)} runs (teachers, labels, students), {seconds / 60:.0f} minutes together, side by side if shared",
        *(teacher_fact(name, r) for name, r in teachers(workdir).items()),
    ]
    default = flat(default_config())
    changed = [f"{k} = {v}" for k, v in flat(config).items() if v != default[k] and k != "data.root"]
    decided = decide(scores, fusion)
    claims = [
        f"## The paper's claims\n\nDifferences paired by seed; intervals by Student's t; p corrected over the family"
        f" (Holm), decided at {ALPHA}. ≈ means within ± {MARGIN:g} point (two one-sided tests). Power: the smallest"
        " true difference seen in 80 % of such studies, by an uncorrected test / at Holm's strictest level.",
        claims_table(decided),
        "![differences](differences.png)",
    ]
    parts = [
        f"# {config.model.name}: ablation",
        *([f"`{command}`"] if command else []),
        "\n".join(f"- {fact}" for fact in facts),
        *(claims if decided else []),
        "## Arms",
        "Top-1 in percent on the evaluation images, last weights (and the joint prediction of the averaged ones), mean"
        " ± standard deviation over the seeds. Soft arms have the paper's lambda 0.1 and temperature 3.",
        scores_table(scores, averaged, fusion),
        "All differences, paired by seed; p is not corrected here.",
        comparisons_table(comparisons(scores, fusion)),
        *agreement_text(workdir, scores, fusion),
        "![curves](curves.png)",
        "Settings that differ from the defaults:",
        "```\n" + "\n".join(changed) + "\n```",
    ]
    return "\n\n".join(parts)


def write(workdir: Path, config, scores: Scores, averaged: Scores, folder: Path | None = None, command="") -> None:
    """In `folder` (default WORKDIR/results): ablation.md, ablation.json, differences.png, curves.png (mean over seeds).

    averaged: the scores of the averaged weights. command: that the study was run by, for the text.
    """
    if not scores:
        return
    folder, fusion = folder or workdir / "results", config.evaluate.fusion
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_text(folder / "ablation.md", text(workdir, config, scores, averaged, command) + "\n")
    found = comparisons(scores, fusion)
    record = {
        "scores": scores,
        "scores_averaged_weights": averaged,
        "claims": [claim_record(d) for d in decide(scores, fusion)],
        "comparisons": found,
        "agreement": agreement_over_seeds(workdir, scores, fusion),
        "disagreement_with_own_teacher": with_own_teacher(workdir, scores, fusion),
        "token_cosine": cosines(workdir, scores),
        "teachers": {
            name: {k: r[k] for k in ("teaches_with", "evaluation") if k in r} for name, r in teachers(workdir).items()
        },
        "seconds": {name: r["seconds"] for name, r in finished(workdir).items()},
        "where": sorted({r["where"] for r in finished(workdir).values()}),
        "config": json.loads(config.to_json_best_effort()),
    }
    atomic.write_json(folder / "ablation.json", record)
    unknown = lambda x: math.nan if x is None else x
    rows = [
        (comparison_label(c), c["mean"], unknown(c["low"]), unknown(c["high"]), list(c["values"].values()))
        for c in found
    ]
    if rows:
        differences(folder / "differences.png", rows)
    logs = {arm: [log.read_log(workdir / run_name(arm, seed)) for seed in runs] for arm, runs in scores.items()}
    losses = {arm_label(arm): mean_loss(records) for arm, records in logs.items()}
    plots.curves(folder / "curves.png", losses, {arm_label(arm): objective(arm) for arm in logs})


def mean_loss(logs: list[list[dict]]) -> list[dict]:
    """One log of the training loss, averaged over runs where all that kept a log have it."""
    losses = [{r["step"]: (r["epoch"], r["loss"]) for r in records if "loss" in r} for records in logs if records]
    steps = sorted(set.intersection(*map(set, losses))) if losses else []
    return [{"step": s, "epoch": losses[0][s][0], "loss": float(np.mean([run[s][1] for run in losses]))} for s in steps]


def claim_record(d: Decision) -> dict:
    numbers = {k: finite(v) for k, v in d.found._asdict().items()}
    return {
        "claim": d.claim.name,
        "compared": [d.claim.better, d.claim.worse],
        "paper": d.claim.paper,
        **numbers,
        "p_holm": finite(d.p),
        "verdict": d.verdict,
        "detectable": [finite(x) for x in d.seen],
    }


@plots.plain_text
def differences(path: Path, rows: list[tuple[str, float, float, float, list[float]]]) -> None:
    """Paired differences as dots with their confidence intervals, one row each; small dots are the single pairs.

    rows: (label, mean, low, high, values); low and high may be nan (no interval drawn).
    """
    figure = Figure(figsize=(8.6, 0.6 + 0.42 * len(rows)))
    axis = figure.subplots()
    for y, (_, mean, low, high, values) in enumerate(rows):
        axis.plot(values, [y + 0.18] * len(values), "o", color=plots.COLORS[4], alpha=0.55, markersize=3.5, linewidth=0)
        if np.isfinite([low, high]).all():
            axis.plot([low, high], [y, y], color=plots.COLORS[0], linewidth=2.2, solid_capstyle="butt")
        axis.plot([mean], [y], "o", color=plots.COLORS[0], markersize=6)
        place = {"xy": (1.01, y), "xycoords": ("axes fraction", "data"), "va": "center"}
        axis.annotate(f"{mean:+.2f}", **place, fontsize=8, color=plots.INK)
    axis.axvline(0, color=plots.INK, linewidth=0.9, linestyle="--")
    axis.set_yticks(range(len(rows)), [textwrap.fill(label, 62) for label, *_ in rows], fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    plots.tidy(axis, "difference in top-1, points", "")
    axis.grid(axis="x", color=plots.GRID, linewidth=0.8)
    axis.grid(axis="y", visible=False)
    plots.save(figure, path)
