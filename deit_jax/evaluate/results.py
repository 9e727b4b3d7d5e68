"""The results of `--mode=evaluate` as Markdown, JSON and CSV: a row per set of weights, as the paper's Table 5."""

import csv
import io
import json
from typing import Any

from deit_jax.evaluate.tables import HEAD_NAMES, KINDS, table


def columns(rows: list[dict[str, Any]]) -> list[str]:
    """Headings of the rows' data sets; one whose classes are a subset of the model's has two, see `scores`."""
    return list(dict.fromkeys(heading for row in rows for heading in scores(row)))


def scores(row: dict[str, Any]) -> dict[str, float]:
    """{heading: top-1} of one row.

    Where data has a subset of the model's classes, its own heading has the accuracy of decisions between these alone
    (as ImageNet-A's and -R's authors count), and "NAME, all classes" that of decisions between all.
    """
    out = {}
    for name, result in row["results"].items():
        if "subset" in result:
            out[name] = result["subset"]["top1"]
            out[f"{name}, all classes"] = result["top1"]
        else:
            out[name] = result["top1"]
    return out


def cells(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """(header, a line per row), of text."""
    headings = columns(rows)
    header = ["model", "weights", "parameters", "px", "crop", "GFLOPs", "images/s"]
    header += [f"{heading}, top-1 %" for heading in headings]
    lines = []
    for row in rows:
        found = scores(row)
        source = row["source"] + (f", {KINDS[row['kind']]}" if row["kind"] == "ema" else "")
        first = [row["model"] or "-", source, f"{row['parameters']:,}", str(row["img_size"]), f"{row['crop']:g}"]
        first += [f"{row['flops'] / 1e9:.3g}", f"{row['images_per_second']:,.0f}"]
        lines.append(first + [f"{found[h]:.2f}" if h in found else "" for h in headings])
    return header, lines


def heads_table(rows: list[dict[str, Any]]) -> str:
    """Markdown: every head's top-1, and top-5 among more than five classes, on every data set."""
    lines = []
    for row in rows:
        for name, result in row["results"].items():
            protocols = [(name, result)]
            if "subset" in result:
                protocols = [(name, result["subset"]), (f"{name}, all classes", result)]
            for heading, counted in protocols:
                few = result["classes" if counted is not result else "outputs"] <= 5
                for head, r in counted["heads"].items():
                    top5 = "" if few else f"{r['top5']:.2f}"
                    shown = [row["model"] or row["source"], KINDS[row["kind"]], heading, HEAD_NAMES[head]]
                    lines.append([*shown, f"{r['top1']:.2f}", top5, f"{r['loss']:.4f}"])
    return table(["model", "weights", "data", "head", "top-1 %", "top-5 %", "cross-entropy"], lines)


def markdown(report: dict[str, Any]) -> str:
    """The whole report: one line per data set, the table of models, the table of heads."""
    lines = [f"- {name}: {about}" for name, about in report["data"].items()]
    header, rows = cells(report["rows"])
    batch = max(row["batch_size"] for row in report["rows"])
    footnote = (
        f"GFLOPs: per image, two per multiply-add. images/s: forward pass, batches of {batch}, on {report['device']}."
    )
    return "\n\n".join(["\n".join(lines), table(header, rows), footnote, heads_table(report["rows"])]) + "\n"


def as_csv(report: dict[str, Any]) -> str:
    """One line per set of weights; numbers as measured, not rounded."""
    headings = columns(report["rows"])
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    fixed = ["model", "source", "kind", "parameters", "img_size", "crop", "interpolation", "flops", "images_per_second"]
    writer.writerow([*fixed, *(f"{heading} top1" for heading in headings)])
    for row in report["rows"]:
        found = scores(row)
        writer.writerow([row[key] for key in fixed] + [found.get(heading, "") for heading in headings])
    return buffer.getvalue()


def as_json(report: dict[str, Any]) -> str:
    return json.dumps(report, indent=1) + "\n"
