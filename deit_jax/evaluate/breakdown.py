"""The part of a report about single classes and images: scores per class, confusion, calibration, mistakes, heads."""

import heapq
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Integer, UInt8

from deit_jax.evaluate import class_plots
from deit_jax.evaluate.classification import calibration, class_scores, confusion_matrix, most_confused
from deit_jax.evaluate.tables import table
from deit_jax.runtime import atomic

SHOWN = 16  # images on a contact sheet
MOST_CLASSES = 50  # in a picture, and in the report's table
FILES = ("classes.json", "confusion.png", "reliability.png", "mistakes.png", "heads.png")


class Shown(NamedTuple):
    """An image on a contact sheet.

    Attributes:
        probability: of the joint prediction.
        position: among the evaluation images, from 0.
        label: its class.
        decisions: {head: predicted class}; "joint" is the joint prediction.
        image: (H, W, 3) uint8, as the model saw it.
    """

    probability: float
    position: int
    label: int
    decisions: dict[str, int]
    image: UInt8[np.ndarray, "height width 3"]


class Outcomes:
    """What a model predicted for labelled images, collected batch by batch; of the images themselves, only those on
    the contact sheets are kept.

    Args:
        class_names: in the order of the labels.
    """

    def __init__(self, class_names: list[str]):
        self.class_names = class_names
        self.parts: list[tuple[np.ndarray, np.ndarray]] = []
        self.heads: dict[str, list[np.ndarray]] = {}
        self.kept: dict[str, list[tuple[float, int, Shown]]] = {"mistakes": [], "heads": []}
        self.seen = 0

    def add(
        self,
        images: UInt8[np.ndarray, "batch height width 3"],
        labels: Integer[np.ndarray, " batch"],
        probabilities: Float[np.ndarray, "batch classes"],
        decisions: dict[str, Integer[np.ndarray, " batch"]],
    ) -> None:
        """Add a batch. probabilities: of the joint prediction; decisions: {head: predicted class}."""
        self.parts.append((labels, probabilities))
        for head, classes in decisions.items():
            self.heads.setdefault(head, []).append(classes)
        joint = probabilities.argmax(1)
        readable = labels >= 0  # an unreadable image is black, and says nothing about the model
        differ = decisions["cls"] != decisions["dist"] if "dist" in decisions else np.zeros(len(labels), bool)
        for name, chosen in (("mistakes", joint != labels), ("heads", differ)):
            for i in np.flatnonzero(chosen & readable):
                every = {head: int(classes[i]) for head, classes in decisions.items()} | {"joint": int(joint[i])}
                probability, position = float(probabilities[i, joint[i]]), self.seen + int(i)
                self.keep(name, Shown(probability, position, int(labels[i]), every, images[i]))
        self.seen += len(labels)

    def keep(self, name: str, shown: Shown) -> None:
        """Keep the SHOWN most confident of a sheet; of equals, the first."""
        heap, entry = self.kept[name], (shown.probability, -shown.position, shown)
        if len(heap) < SHOWN:
            heapq.heappush(heap, entry)
        elif entry[:2] > heap[0][:2]:
            heapq.heapreplace(heap, entry)

    def sheet(self, name: str) -> list[Shown]:
        """The images of a contact sheet, "mistakes" or "heads", most confident first."""
        return [shown for *_, shown in sorted(self.kept[name], key=lambda entry: entry[:2], reverse=True)]

    @property
    def labels(self) -> Integer[np.ndarray, " images"]:
        return np.concatenate([labels for labels, _ in self.parts])

    @property
    def probabilities(self) -> Float[np.ndarray, "images classes"]:
        return np.concatenate([probabilities for _, probabilities in self.parts])

    @property
    def decisions(self) -> dict[str, Integer[np.ndarray, " images"]]:
        """{head: predicted class}, of all images."""
        return {head: np.concatenate(parts) for head, parts in self.heads.items()}


def analyze(outcomes: Outcomes) -> dict[str, Any]:
    """Everything the section says, as JSON: {"classes", "confusion", "most_confused", "calibration", "mistakes",
    "heads"}; "heads" only of a model with two. A share of nothing is None.

    Images that could not be read count as images of no class, and are left out.
    """
    names, labels = outcomes.class_names, outcomes.labels
    readable = labels >= 0
    labels, probabilities = labels[readable], outcomes.probabilities[readable]
    matrix = confusion_matrix(labels, probabilities.argmax(1), len(names))
    scores = class_scores(matrix)
    reliability = calibration(probabilities, labels)
    found: dict[str, Any] = {
        "images": len(labels),
        "classes": [
            {"name": name, **{field: finite(values[i]) for field, values in scores._asdict().items()}}
            for i, name in enumerate(names)
        ],
        "most_confused": [{"class": names[a], "taken_for": names[b], "images": n} for a, b, n in most_confused(matrix)],
        "calibration": {
            "expected_calibration_error": reliability.error,
            "largest_difference": reliability.largest,
            "bin_edges": reliability.edges.tolist(),
            "images": reliability.images.tolist(),
            "confidence": [finite(x) for x in reliability.confidence],
            "accuracy": [finite(x) for x in reliability.accuracy],
        },
        "mistakes": [described(shown, names) for shown in outcomes.sheet("mistakes")],
    }
    if len(names) <= MOST_CLASSES:
        found["confusion"] = matrix.tolist()
    decisions = {head: classes[readable] for head, classes in outcomes.decisions.items()}
    if "dist" in decisions:
        cls, dist = decisions["cls"], decisions["dist"]
        differ = cls != dist
        found["heads"] = {
            "disagree": int(differ.sum()),
            "class_head_right": int((differ & (cls == labels)).sum()),
            "distillation_head_right": int((differ & (dist == labels)).sum()),
            "examples": [described(shown, names) for shown in outcomes.sheet("heads")],
        }
    return found


def finite(value: Any) -> Any:
    """A NumPy number as JSON's; NaN is None."""
    number = value.item()
    return None if isinstance(number, float) and math.isnan(number) else number


def described(shown: Shown, names: list[str]) -> dict[str, Any]:
    """An image of a contact sheet, for JSON."""
    said = {head: names[index] for head, index in shown.decisions.items()}
    return {
        "position": shown.position,
        "label": names[shown.label],
        "probability": shown.probability,
        "predicted": said,
    }


def write(folder: Path, outcomes: Outcomes) -> dict[str, Any]:
    """FILES in `folder`; what would be empty is not written, and one of an earlier report is removed. Returns what
    `analyze` found."""
    found = analyze(outcomes)
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    atomic.write_json(folder / "classes.json", found)
    names = outcomes.class_names
    readable = outcomes.labels >= 0
    labels, probabilities = outcomes.labels[readable], outcomes.probabilities[readable]
    if len(names) <= MOST_CLASSES:
        matrix = confusion_matrix(labels, probabilities.argmax(1), len(names))
        class_plots.confusion(folder / "confusion.png", matrix, names)
    class_plots.reliability(folder / "reliability.png", calibration(probabilities, labels))
    mistakes, heads = outcomes.sheet("mistakes"), outcomes.sheet("heads")
    if mistakes:
        lines = [
            [f"true: {names[s.label]}", f"{100 * s.probability:.0f} %: {names[s.decisions['joint']]}"] for s in mistakes
        ]
        class_plots.contact_sheet(folder / "mistakes.png", [s.image for s in mistakes], lines)
    if heads:
        lines = [
            [f"true: {names[s.label]}", f"class: {names[s.decisions['cls']]}", f"dist.: {names[s.decisions['dist']]}"]
            for s in heads
        ]
        class_plots.contact_sheet(folder / "heads.png", [s.image for s in heads], lines)
    return found


def section(found: dict[str, Any], folder: Path) -> str:
    """The report's Markdown about classes and images. found: of `write`, whose pictures are in `folder`."""
    picture = lambda name, text: [f"![{text}]({name})"] if (folder / name).exists() else []
    classes, error = found["classes"], found["calibration"]["expected_calibration_error"]
    shown, heading = classes, "Per class:"
    if len(classes) > MOST_CLASSES:
        with_images = [one for one in classes if one["images"]]
        shown = sorted(with_images, key=lambda one: one["recall"])[:20]
        heading = "The 20 classes of the lowest recall (all are in `classes.json`):"
    text = ["## Classes", heading, class_table(shown), *picture("confusion.png", "confusion matrix")]
    if found["most_confused"]:
        rows = [[cell(p["class"]), cell(p["taken_for"]), str(p["images"])] for p in found["most_confused"]]
        text += ["Most frequent mistakes:", table(["class", "taken for", "images"], rows)]
    text += [
        "## Calibration",
        f"The probability of the predicted class differs from the accuracy by {100 * error:.1f} points on average "
        "(expected calibration error, 15 bins).",
        *picture("reliability.png", "reliability diagram"),
    ]
    if found["mistakes"]:
        text += ["## Most confident mistakes", *picture("mistakes.png", "the most confident mistakes")]
    if "heads" in found:
        heads = found["heads"]
        share = 100 * heads["disagree"] / found["images"]
        neither = heads["disagree"] - heads["class_head_right"] - heads["distillation_head_right"]
        text += [
            "## Class head against distillation head",
            f"They decide differently on {heads['disagree']} of {found['images']} images ({share:.1f} %); there the "
            f"class head is right on {heads['class_head_right']}, the distillation head on "
            f"{heads['distillation_head_right']}, neither on {neither}.",
            *picture("heads.png", "images on which the heads disagree"),
        ]
    return "\n\n".join(text)


def class_table(classes: list[dict[str, Any]]) -> str:
    percent = lambda share: "-" if share is None else f"{100 * share:.1f}"
    rows = [
        [
            cell(c["name"]),
            str(c["images"]),
            str(c["predicted"]),
            percent(c["precision"]),
            percent(c["recall"]),
            percent(c["f1"]),
        ]
        for c in classes
    ]
    return table(["class", "images", "predicted", "precision %", "recall %", "F1 %"], rows)


def cell(name: str) -> str:
    """A name in a Markdown table."""
    return " ".join(name.split()).replace("|", "\\|")
