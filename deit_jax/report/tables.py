"""Tables and figures in words, for reports and the terminal."""

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
    line = lambda cells: "| " + " | ".join(cells) + " |"  # noqa: E731
    return "\n".join([line(header), line(["---"] * len(header)), *map(line, rows)])


def accuracy_rows(name: str, results: dict) -> list[list[str]]:
    """A row a head and set of weights: [name, head, weights, top-1, top-5]."""
    rows = []
    for weights, result in results.items():
        kind = {"params": "last", "ema": "averaged"}[weights]
        for head, r in result["heads"].items():
            rows.append([name, HEAD_NAMES[head], kind, f"{r['top1']:.2f}", f"{r['top5']:.2f}"])
    return rows
