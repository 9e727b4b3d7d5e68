"""The model card of a repository on the hub: README.md, with the metadata that the hub reads on top."""

import json
from pathlib import Path

from deit_jax.data.hf_source import HUB
from deit_jax.errors import printable
from deit_jax.evaluate import tables
from deit_jax.version import __version__
from deit_jax.weights import Weights
from deit_jax.weights.load import View, view_of
from deit_jax.weights.metadata import read_object

PICTURES = {  # of a run's folder: what they show
    "curves.png": "loss and accuracy",
    "attention.png": "attention of the tokens in the last block, mean over heads",
    "confusion.png": "confusion of the classes",
}
SHOWN = 20  # class names
TIMM = """```python
import timm, transformers

model = timm.create_model("hf-hub:{name}", pretrained=True).eval()
classify = transformers.pipeline("image-classification", "{name}")  # needs timm, too
```"""
TRANSFORMERS = """```python
import transformers

classify = transformers.pipeline("image-classification", "{name}")
```"""
OURS = """```python
import deit_jax

model = deit_jax.load_model("{name}")
```"""


def model_card(name: str, licence: str, run: Path, weights: Weights, *, timm: bool, kind: str) -> str:
    """README.md of the repository `name`.

    Args:
        name: user/name.
        licence: the hub's name of one; "" leaves it open.
        run: the folder that the weights come from; without a run's records, what they would tell is left out.
        weights: what is uploaded.
        timm: whether in timm's form.
        kind: "params" or "ema".
    """
    size = weights.architecture.img_size
    view = view_of(weights, size) if isinstance(size, int) else View(min(size), *view_of(weights, min(size))[1:])
    settings, results = (
        read_object(path) if (path := run / file).is_file() else {} for file in ("config.json", "results.json")
    )
    header = {
        "license": licence or "unknown",
        "library_name": "timm" if timm else "transformers",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "vision", "deit", "jax"],
    }
    names = [printable(one).replace("|", "\\|") for one in weights.class_names or []]
    listed = ", ".join(names[:SHOWN]) + (f", and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    parts = [
        # JSON is YAML, too
        "---\n" + "\n".join(f"{key}: {json.dumps(value)}" for key, value in header.items()) + "\n---",
        f"# {name}",
        f"{weights.architecture.describe()}, written by deit_jax {__version__}; {tables.WEIGHT_LABELS[kind]} weights.",
        "## Use",
        (TIMM if timm else TRANSFORMERS).format(name=name),
        OURS.format(name=name),
        f"Images: {view.describe()}.",
        f"Classes ({weights.num_classes})" + (f": {listed}." if listed else "."),
    ]
    if settings:
        own = [f"`{key}={value}`" for key, value in settings.items() if key.endswith(".name") and ":" in str(value)]
        root = str(settings["data.root"] or settings["data.name"])
        shown = root if root.startswith(HUB) else Path(root).name  # where a folder lies is nobody's business
        parts += ["## Training", f"Data: `{printable(shown)}`.", *command_lines(run)]
        parts += [f"The command needs the author's own code, which is not in this repository: {one}." for one in own]
    scored = [(key, results[key]) for key in ("student", "plain", "teacher") if isinstance(results.get(key), dict)]
    if scored:
        images = scored[0][1]["params"]["images"]
        of = "of the weights after the last step; those here are of the best checkpoint"
        parts += ["## Accuracy", f"On {images} evaluation images, in percent, {of}."]
        parts.append(tables.accuracy_table(scored, weights.num_classes))
    parts += [f"![{shown}]({file})" for file, shown in PICTURES.items() if (run / file).is_file()]
    parts += [
        "## Limits",
        f"The model answers with one of its {weights.num_classes} classes for every image, also for one that shows none"
        " of them, and its probabilities are not calibrated. Accuracy is known for images like those above alone: test"
        " it on your own before you rely on it.",
        "## Licence",
        f"{licence or 'Not named yet'}, as named by who uploaded it.",
    ]
    return "\n\n".join(parts) + "\n"


def command_lines(run: Path) -> list[str]:
    """The command that the run's report records, as a code block; none without a report."""
    report = run / "report.md"
    lines = report.read_text().splitlines() if report.is_file() else []
    return [f"```\n{line.strip('`')}\n```" for line in lines if line.startswith("`python ")]
