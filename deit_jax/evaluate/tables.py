"""Formatting helpers for reports, and the results of `--mode=evaluate` as Markdown."""

from collections.abc import Sequence
from typing import Any

WEIGHT_LABELS = {"params": "trained", "ema": "EMA"}
HEAD_NAMES = {
    "cls": "class head",
    "dist": "distillation head",
    "fused_logits": "fused (mean of logits)",
    "fused_probabilities": "fused (mean of probabilities)",
}

ACCURACY_HEADER = ["model", "head", "weights", "top-1 %", "top-5 %"]


def duration(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour."""
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{s:02d}" if hours else f"{minutes}:{s:02d}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    line = lambda cells: "| " + " | ".join(cells) + " |"
    return "\n".join([line(header), line(["---"] * len(header)), *map(line, rows)])


def accuracy_rows(results: Sequence[tuple[str, dict[str, Any]]]) -> list[list[str]]:
    """A row per head and set of weights: model, head, weights, top-1 and top-5 in percent.

    results: [(name, {"params" and "ema": of `evaluate_sets`})].
    """
    return [
        [name, HEAD_NAMES[head], WEIGHT_LABELS[weights], f"{r['top1']:.2f}", f"{r['top5']:.2f}"]
        for name, sets in results
        for weights, result in sets.items()
        for head, r in result["heads"].items()
    ]


def accuracy_table(results: Sequence[tuple[str, dict[str, Any]]], num_classes: int) -> str:
    """Markdown: the `accuracy_rows`; top-5 only where there are more than five classes."""
    shown = None if num_classes > 5 else -1
    return table(ACCURACY_HEADER[:shown], [row[:shown] for row in accuracy_rows(results)])


def models_table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line per set of weights, its top-1 on each data set."""
    columns = list(dict.fromkeys(name for row in rows for name in row["results"]))
    header = ["model", "weights", "parameters", "px", "crop", "GFLOPs", "images/s"]
    header += [f"{name}, top-1 %" for name in columns]
    lines = []
    for row in rows:
        found = row["results"]
        source = row["source"] + (f", {WEIGHT_LABELS[row['kind']]}" if row["kind"] == "ema" else "")
        first = [row["model"] or "-", source, f"{row['parameters']:,}", str(row["img_size"]), f"{row['crop']:g}"]
        first += [f"{row['flops'] / 1e9:.3g}", f"{row['images_per_second']:,.0f}"]
        lines.append(first + [f"{found[name]['top1']:.2f}" if name in found else "" for name in columns])
    return table(header, lines)


def heads_table(rows: list[dict[str, Any]]) -> str:
    """Markdown: every head's top-1, and top-5 among more than five classes, on every data set."""
    lines = []
    for row in rows:
        for name, result in row["results"].items():
            for head, r in result["heads"].items():
                top5 = f"{r['top5']:.2f}" if result["classes"] > 5 else ""
                first = [row["model"] or row["source"], WEIGHT_LABELS[row["kind"]], name, HEAD_NAMES[head]]
                lines.append([*first, f"{r['top1']:.2f}", top5, f"{r['loss']:.4f}"])
    return table(["model", "weights", "data", "head", "top-1 %", "top-5 %", "cross-entropy"], lines)


def evaluation_markdown(report: dict[str, Any]) -> str:
    """The whole report: one line per data set, the table of models, the table of heads."""
    lines = [f"- {name}: {about}" for name, about in report["data"].items()]
    batch = max(row["batch_size"] for row in report["rows"])
    footnote = (
        f"GFLOPs: per image, two per multiply-add. images/s: forward pass, batches of {batch}, on {report['device']}."
    )
    return "\n\n".join(["\n".join(lines), models_table(report["rows"]), footnote, heads_table(report["rows"])]) + "\n"
