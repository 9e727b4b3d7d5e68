"""Tables and figures in words, for reports and the terminal."""

from collections.abc import Sequence
from typing import Any

KINDS = {"params": "trained", "ema": "averaged"}  # sets of weights
HEAD_NAMES = {
    "cls": "class head",
    "dist": "distillation head",
    "fused_logits": "fused (mean of logits)",
    "fused_probabilities": "fused (mean of probabilities)",
}


def duration(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour."""
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{s:02d}" if hours else f"{minutes}:{s:02d}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    line = lambda cells: "| " + " | ".join(cells) + " |"
    return "\n".join([line(header), line(["---"] * len(header)), *map(line, rows)])


def accuracy_table(results: Sequence[tuple[str, dict[str, Any]]], num_classes: int) -> str:
    """Markdown: a row per head and set of weights; top-5 only where there are more than five classes.

    results: [(name, {"params" and "ema": of `evaluate_sets`})].
    """
    header, rows = ["model", "head", "weights", "top-1 %", "top-5 %"], []
    for name, sets in results:
        for weights, result in sets.items():
            for head, r in result["heads"].items():
                rows.append([name, HEAD_NAMES[head], KINDS[weights], f"{r['top1']:.2f}", f"{r['top5']:.2f}"])
    shown = len(header) if num_classes > 5 else len(header) - 1
    return table(header[:shown], [row[:shown] for row in rows])
