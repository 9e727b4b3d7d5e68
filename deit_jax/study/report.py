"""What a study found: ablation.md (tables, paired tests, where and from what), ablation.json, bars and curves."""

import itertools
import json
import math
import shlex
import sys
from pathlib import Path

import numpy as np

from deit_jax.config import default_config, flat
from deit_jax.report import log, plots, tables
from deit_jax.runtime import atomic
from deit_jax.study import jobs

Scores = dict[str, dict[int, dict[str, float]]]  # arm, seed, head → top-1

LABELS = {
    "none": "no distillation", "soft": "soft, with token", "soft_no_token": "soft, no token",
    "hard": "hard, with token", "hard_no_token": "hard, no token", "second_cls": "second class token",
    "hard_live": "hard, teacher live",
}  # fmt: skip

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


def run_name(arm: str, seed: int) -> str:
    """The folder of a run, in the study's."""
    return f"{arm.replace(':', '-')}-{seed}"


def mean_and_deviation(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for one value)."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def paired(values: list[float], others: list[float]) -> tuple[float, float, float]:
    """(mean difference, its standard error, two-sided p of Student's paired t-test) over seeds, values - others."""
    from scipy import stats

    difference = np.round(np.subtract(values, others), 6)  # equal differences are equal, whatever their last bits
    if len(difference) < 2 or not np.ptp(difference):
        return float(difference.mean()), math.nan, math.nan
    test = stats.ttest_rel(values, others)
    return float(difference.mean()), float(difference.std(ddof=1) / math.sqrt(len(difference))), float(test.pvalue)


def by_head(runs: dict[int, dict[str, float]], head: str, fusion: str) -> dict[int, float]:
    """{seed: top-1} of a head; the fused prediction of a model with one head is that head's. {} where there is none."""
    key = f"fused_{fusion}" if head == "fused" else head
    return {seed: heads.get(key, heads["cls"] if head == "fused" else None) for seed, heads in runs.items()
            if key in heads or head == "fused"}  # fmt: skip


def scores_table(scores: Scores, fusion: str) -> str:
    rows = []
    for arm, runs in scores.items():
        cells = []
        for head in HEADS:
            alone = head == "fused" and not by_head(runs, "dist", fusion)
            values = [] if alone else list(by_head(runs, head, fusion).values())
            spread = f" ± {mean_and_deviation(values)[1]:.2f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.2f}{spread}" if values else "")
        rows.append([arm_label(arm), *cells, ", ".join(map(str, runs))])
    return tables.table(["arm", *HEADS.values(), "seeds"], rows)


def comparisons(scores: Scores, fusion: str) -> list[dict]:
    """The paired tests: of what COMPARISONS lists, and between teachers; each over the seeds that both arms have."""
    pairs = [(((a, "fused"), ("none", "fused")), "") for a in scores if "@" in a]
    for a, b in itertools.combinations(scores, 2):  # who teaches better?
        if "@" in a + b and a.partition("@")[0] == b.partition("@")[0]:
            pairs.append((((a, "fused"), (b, "fused")), ""))
    found = []
    for ((arm, head), (other, other_head)), paper in [((a, b), paper) for a, b, paper in COMPARISONS] + pairs:
        a = by_head(scores.get(arm, {}), head, fusion)
        b = by_head(scores.get(other, {}), other_head, fusion)
        seeds = sorted(a.keys() & b.keys())
        if seeds:
            mean, error, p = paired([a[s] for s in seeds], [b[s] for s in seeds])
            sides = [(x, h) for x, h in ((arm, head), (other, other_head))]
            found.append({"compared": sides, "difference": mean, "error": finite(error), "p": finite(p),
                          "seeds": len(seeds), "paper": paper})  # fmt: skip
    return found


def finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def comparisons_table(found: list[dict]) -> str:
    rows = []
    for c in found:
        (arm, head), (other, other_head) = c["compared"]
        if arm == other:
            name = f"{arm_label(arm)}: {HEADS[head]} - {HEADS[other_head]}"
        else:
            name = f"{arm_label(arm)} - {arm_label(other)}"
        error = "" if c["error"] is None else f"{c['error']:.2f}"
        p = "" if c["p"] is None else "< 0.001" if c["p"] < 0.001 else f"{c['p']:.3f}"
        rows.append([name, f"{c['difference']:+.2f}", error, p, str(c["seeds"]), c["paper"]])
    header = ["difference in top-1 (fused where there are two heads)", "points", "standard error", "p (paired t-test)"]
    return tables.table([*header, "seeds", "paper, DeiT-S"], rows)


def teachers(workdir: Path) -> list[tuple[str, float, float]]:
    """(folder's name, top-1, seconds) of every teacher that was trained."""
    found = [(folder.name, jobs.result(folder)) for folder in sorted(workdir.glob("teacher*"))]
    return [(name, r["teaches_with"], r["seconds"]) for name, r in found if r]


def finished(workdir: Path) -> dict[str, dict]:
    """{folder: result} of all that is done."""
    folders = sorted(path.parent for pattern in ("*", "labels/*") for path in workdir.glob(f"{pattern}/done.json"))
    return {folder.relative_to(workdir).as_posix(): jobs.result(folder) for folder in folders}


def text(workdir: Path, config, scores: Scores) -> str:
    """ablation.md."""
    fusion = config.evaluate.fusion
    trained = teachers(workdir)
    done = finished(workdir)
    seconds = sum(r["seconds"] for r in done.values())
    facts = [
        *sorted({r["where"] for r in done.values()}),
        f"{len(done)} runs (teachers, labels, students), {seconds / 60:.0f} minutes together, side by side if shared",
        *(f"{name}: {top1:.2f} % (the best on the held-out images teaches), {spent / 60:.0f} minutes"
          for name, top1, spent in trained),
    ]  # fmt: skip
    default = flat(default_config())
    changed = [f"{k} = {v}" for k, v in flat(config).items() if v != default[k] and k != "data.root"]
    parts = [
        f"# {config.model.name}: ablation",
        f"`{shlex.join(['python', *sys.argv])}`",
        "\n".join(f"- {fact}" for fact in facts),
        "Top-1 in percent on the held-out images, last weights, mean ± standard deviation over the seeds. Soft arms"
        " have the paper's lambda 0.1 and temperature 3.",
        scores_table(scores, fusion),
        "Differences are paired by seed; p is not corrected for the number of comparisons.",
        comparisons_table(comparisons(scores, fusion)),
        "![bars](ablation.png)",
        "![curves](curves.png)",
        "Settings that differ from the defaults:",
        "```\n" + "\n".join(changed) + "\n```",
    ]
    return "\n\n".join(parts)


def write(workdir: Path, config, scores: Scores) -> None:
    """WORKDIR/results: ablation.md, ablation.json, ablation.png, curves.png (of the first seed)."""
    if not scores:
        return
    folder, fusion = workdir / "results", config.evaluate.fusion
    folder.mkdir(exist_ok=True)
    atomic.write_text(folder / "ablation.md", text(workdir, config, scores) + "\n")
    record = {
        "scores": scores,
        "comparisons": comparisons(scores, fusion),
        "teachers": {name: top1 for name, top1, _ in teachers(workdir)},
        "seconds": {name: r["seconds"] for name, r in finished(workdir).items()},
        "config": json.loads(config.to_json_best_effort()),
    }  # fmt: skip
    atomic.write_json(folder / "ablation.json", record)
    best = {arm: list(by_head(runs, "fused", fusion).values()) for arm, runs in scores.items()}
    plots.bars(folder / "ablation.png", {arm_label(arm): mean_and_deviation(v) for arm, v in best.items()})
    logs = {arm: log.read_log(workdir / run_name(arm, min(runs))) for arm, runs in scores.items()}
    plots.curves(folder / "curves.png", {arm_label(arm): log for arm, log in logs.items()})
