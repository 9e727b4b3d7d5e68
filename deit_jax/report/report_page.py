"""report.html: the report of one run or several as a page, one file that opens from disk without a network.

    deit-jax report RUN [RUN …] [--output=FILE.html] [--assets=DIR]

It is report.md, with curves to zoom and the confusion matrix as a heat map; of several runs, their curves overlaid, one
table of accuracies and one of settings, above each run's report. A run that is still training has its curves alone.
"""

import argparse
import base64
import html
import itertools
import json
import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deit_jax import plots
from deit_jax.command import command
from deit_jax.errors import UserError
from deit_jax.evaluate import tables
from deit_jax.losses import OBJECTIVES
from deit_jax.runtime import atomic, storage
from deit_jax.runtime.browser_files import PLOTLY, package_files
from deit_jax.train import log
from deit_jax.train.run import PLAIN_STUDENT
from deit_jax.weights.metadata import read_object

HERE = Path(__file__).parent
TRAINED = {"teacher": "teacher", "plain": PLAIN_STUDENT, ".": "student"}  # folder in a workdir: what it trained
DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}  # matplotlib's line styles: plotly's
HEAT_MAP = {  # of fractions; the page's script has its colours
    **{"type": "heatmap", "zmin": 0, "zmax": 1, "xgap": 1, "ygap": 1},
    "hovertemplate": "%{y} predicted as %{x}: %{text} images, %{z:.1%}<extra></extra>",
}

Plot = dict[str, Any]  # {"title", and plotly's "traces" and "layout"}


def trainings(workdir: Path) -> dict[str, Path]:
    """{what was trained in a workdir: its folder}."""
    return {title: workdir / name for name, title in TRAINED.items() if (workdir / name / "log.jsonl").exists()}


def read_curves(folders: dict[str, Path]) -> tuple[dict[str, list[dict]], dict[str, str]]:
    """(logs, objectives) of trainings, for `plots.curve_lines`."""
    kinds = {name: read_object(folder / "config.json")["distill.kind"] for name, folder in folders.items()}
    objectives = {name: OBJECTIVES[kind].title if kind in OBJECTIVES else kind for name, kind in kinds.items()}
    return {name: log.read_log(folder) for name, folder in folders.items()}, objectives


def curve_plots(folders: dict[str, Path]) -> list[Plot]:
    """A plot per panel of the trainings' curves."""
    logs, objectives = read_curves(folders)
    colors, made = dict(zip(logs, itertools.cycle(plots.COLORS), strict=False)), {}
    for line in plots.curve_lines(logs, objectives, detailed=True):
        empty = {"title": line.panel, "traces": [], "layout": {"xaxis": {"title": {"text": "epoch"}}}}
        values = [float(f"{value:.5g}") for value in line.values]
        look = {"color": colors[line.run], "dash": DASHES[line.style], "width": 2}
        mode = "lines" if len(values) > 1 else "markers"
        trace = {"x": line.epochs, "y": values, "name": line.label, "mode": mode, "line": look}
        made.setdefault(line.panel, empty)["traces"].append(trace)
    return list(made.values())


def confusion_plot(found: dict[str, Any]) -> Plot:
    """The confusion matrix as a heat map. found: of classes.json."""
    counts = np.array(found["confusion"])
    names = [plots.caption(one["name"], 24, lines=1) for one in found["classes"]]
    trace = HEAT_MAP | {"x": names, "y": names, "text": [[str(n or "") for n in row] for row in counts.tolist()]}
    trace["z"] = (counts / np.maximum(counts.sum(1, keepdims=True), 1)).round(4).tolist()
    if len(names) <= plots.MAX_CLASSES_WITH_COUNTS:
        trace["texttemplate"] = "%{text}"
    axis = lambda title: {"type": "category", "title": {"text": title}}  # names may be numbers
    layout = {"xaxis": axis("predicted"), "yaxis": axis("true") | {"autorange": "reversed"}}
    return {"title": "confusion matrix", "traces": [trace], "layout": layout | {"height": 240 + 20 * len(names)}}


def to_html(markdown: str, picture: Callable[[str, str], str]) -> str:
    """HTML of the Markdown that reports are made of: headings, paragraphs with code, tables, pictures, code blocks.

    picture: (description, file) → its HTML.
    """
    code = lambda text: re.sub("`([^`]+)`", r"<code>\1</code>", html.escape(text))
    parts = ["<section>"]
    for block in markdown.strip().split("\n\n"):
        heading = re.fullmatch("(##?) (.*)", block)
        if heading:
            level = len(heading[1])
            parts += ["</section>\n<section>"] * (level - 1) + [f"<h{level}>{code(heading[2])}</h{level}>"]
        elif block.startswith("```"):
            parts.append(f"<pre>{html.escape(block.strip('`').strip())}</pre>")
        elif block.startswith("| "):
            rows = [line[2:-2].split(" | ") for line in block.splitlines()]
            cell = lambda text, tag="td": "<{0}>{1}</{0}>".format(tag, code(text.replace("\\|", "|")))
            head = "".join(cell(text, "th") for text in rows[0])
            body = "\n".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows[2:])
            parts.append(f'<div class="table"><table>\n<tr>{head}</tr>\n{body}\n</table></div>')
        elif block.startswith("!["):
            parts.append(picture(*block[2:-1].split("](")))
        else:
            parts.append(f"<p>{code(block)}</p>")
    return "\n".join([*parts, "</section>"])


def figures(made: list[Plot], drawn: list[Plot]) -> str:
    """HTML of new plots, which join those that the page's script draws."""
    each = [
        f'<figure><figcaption>{html.escape(plot["title"])}</figcaption><div class="plot" data-plot="{i}" '
        f'role="img" aria-label="{html.escape(plot["title"])}"></div></figure>'
        for i, plot in enumerate(made, len(drawn))
    ]
    drawn += made
    return f'<div class="plots">{"".join(each)}</div>'


def run_html(folder: Path, drawn: list[Plot]) -> str:
    """HTML of one run's report."""

    def picture(description: str, file: str) -> str:
        if file == "curves.png":
            return figures(curve_plots(trainings(folder)), drawn)
        if file == "confusion.png":
            return figures([confusion_plot(read_object(folder / "classes.json"))], drawn)
        content = base64.b64encode((folder / file).read_bytes()).decode()
        shown = f'<img src="data:image/png;base64,{content}" alt="">'
        return f"<figure>{shown}<figcaption>{html.escape(description)}</figcaption></figure>"

    if (folder / "report.md").exists():
        return to_html((folder / "report.md").read_text(), picture)
    model = read_object(folder / "config.json")["model.name"]
    return to_html(f"# {model}\n\nThis run is not finished.\n\n![curves](curves.png)", picture)


def comparison_html(runs: dict[str, Path], drawn: list[Plot]) -> str:
    """HTML of several runs: the students' curves and accuracies, the settings, each run's report folded."""
    settings = {name: read_object(folder / "config.json") for name, folder in runs.items()}
    results = {
        name: [(settings[name]["model.name"], read_object(folder / "results.json")["student"])]
        for name, folder in runs.items()
        if (folder / "results.json").exists()
    }
    accuracies = [[name, *row] for name, found in results.items() for row in tables.accuracy_rows(found)]
    values = {key: [str(found.get(key)) for found in settings.values()] for one in settings.values() for key in one}
    unlike = [[key, *found] for key, found in values.items() if len(set(found)) > 1]
    text = [
        f"# {len(runs)} runs",
        "Of each run the student; its teacher and the student without one are in its report below.",
        "![curves](curves.png)",
        tables.table(["run", *tables.ACCURACY_HEADER], accuracies),
        "## Settings that differ among the runs",
        tables.table(["setting", *runs], unlike),
    ]
    parts = [to_html("\n\n".join(text), lambda *_: figures(curve_plots(runs), drawn))]
    for name, folder in runs.items():
        parts.append(f"<details><summary>{html.escape(name)}</summary>\n{run_html(folder, drawn)}\n</details>")
    return "\n".join(parts)


def write_page(path: Path, runs: dict[str, Path], assets: str = "") -> None:
    """Write the page of {name: folder} of runs. assets: of `browser_files.package_files`."""
    (library,) = package_files(PLOTLY, assets)
    drawn: list[Plot] = []
    body = comparison_html(runs, drawn) if len(runs) > 1 else run_html(next(iter(runs.values())), drawn)
    values = {
        "title": html.escape(", ".join(runs)),
        "body": body,
        "plots": json.dumps(log.to_json(drawn)).replace("<", "\\u003c"),  # no name ends the element
        "library": library.decode(),
        "style": (HERE.parent / "export" / "page.css").read_text(),
        "script": (HERE / "report.js").read_text(),
    }
    atomic.write_text(path, string.Template((HERE / "report.html").read_text()).substitute(values))


@command
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("deit-jax report", description="Make a page of one run, or of several.")
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a workdir of training, finished or not")
    parser.add_argument("--output", default="", metavar="FILE.html", help="of one run, RUN/report.html unless given")
    parser.add_argument("--assets", default="", help=PLOTLY.assets)
    args = parser.parse_args(arguments)
    runs = {name: storage.as_path(name) for name in args.runs}
    for name, folder in runs.items():
        if not log.read_log(folder):
            raise UserError(f"{name} holds no log of a training (log.jsonl): give the workdir of one")
    if len(runs) > 1 and not args.output:
        raise UserError("several runs make one page: name it, as --output=runs.html")
    path = storage.as_path(args.output) if args.output else next(iter(runs.values())) / "report.html"
    write_page(path, runs, args.assets)
    print(f"wrote {path} ({atomic.readable(path.stat().st_size)}): open it in a browser")


if __name__ == "__main__":
    main()
