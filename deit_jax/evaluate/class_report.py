"""The part of a report about single classes and images: scores per class, confusion, calibration, mistakes, heads."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer, Shaped, UInt8

from deit_jax import plots
from deit_jax.errors import printable
from deit_jax.evaluate.tables import table
from deit_jax.runtime import atomic

MAX_EXAMPLES = 16  # images on a contact sheet
MAX_CLASSES = 50  # in a picture, and in the report's table
OTHER_COLUMNS = ("label", "index", "confidence", "joint")  # of `Outcomes`, beside those of the heads
FILES = ("classes.json", "confusion.png", "mistakes.png", "heads.png")


class Outcomes:
    """What a model predicted for labelled images, collected batch by batch; of the images themselves, only those on
    the contact sheets are kept.

    Args:
        class_names: in the order of the labels.

    Attributes:
        sheets: {"mistakes", "heads"}: [(-probability of the joint prediction, position among the evaluation images,
            image as the model saw it)], the most confident first; of wrong predictions, and where the heads disagree.
    """

    def __init__(self, class_names: list[str]):
        self.class_names = [printable(name) for name in class_names]
        self.parts: list[dict[str, np.ndarray]] = []
        self.rows = 0  # of the batches so far
        self.sheets: dict[str, list[tuple[float, int, UInt8[np.ndarray, "height width 3"]]]]
        self.sheets = {"mistakes": [], "heads": []}

    def add(
        self, batch: dict[str, Shaped[np.ndarray, "batch ..."]], predictions: dict[str, Shaped[np.ndarray, " batch"]]
    ) -> None:
        """Add the images of a batch whose mask is 1. predictions: of `inference.predict`."""
        real, start = batch["mask"] > 0, sum(len(part["label"]) for part in self.parts)
        part = {name: x[real] for name, x in predictions.items()} | {"label": batch["label"][real]}
        self.parts.append(part | {"index": self.rows + np.flatnonzero(real)})
        self.rows += len(real)
        images = batch["image"][real]
        readable = part["label"] >= 0  # an unreadable image is black, and says nothing about the model
        wrong = {"mistakes": part["joint"] != part["label"], "heads": part["cls"] != part.get("dist", part["cls"])}
        for name, chosen in wrong.items():
            found = [
                (-float(part["confidence"][i]), start + int(i), images[i]) for i in np.flatnonzero(chosen & readable)
            ]
            self.sheets[name] = sorted([*self.sheets[name], *found], key=lambda one: one[:2])[:MAX_EXAMPLES]

    def column(self, name: str, *, readable: bool = False) -> Shaped[np.ndarray, " images"]:
        """Of all images, or those that could be read: "label", "confidence", a head's predicted class, or "index", in
        the source."""
        return np.concatenate([part[name][part["label"] >= 0] if readable else part[name] for part in self.parts])

    @property
    def heads(self) -> dict[str, Integer[np.ndarray, " images"]]:
        """{head: predicted class}, of all images."""
        return {name: self.column(name) for name in self.parts[0] if name not in OTHER_COLUMNS}

    def examples(self, sheet: str) -> list[dict[str, Any]]:
        """The images of a contact sheet as JSON: position, class, predicted class of each head and "joint"."""
        names, labels, predicted = self.class_names, self.column("label"), self.heads | {"joint": self.column("joint")}
        return [
            {
                "position": position,
                "label": names[labels[position]],
                "probability": -confidence,
                "predicted": {head: names[classes[position]] for head, classes in predicted.items()},
            }
            for confidence, position, _ in self.sheets[sheet]
        ]


def analyze(outcomes: Outcomes) -> dict[str, Any]:
    """The content of the section, as JSON: {"images", "classes", "most_confused", "calibration_error", "mistakes"};
    with few classes "confusion"; "heads" of a model with two. A fraction of nothing is None.

    Images that could not be read count as images of no class, and are left out.
    """
    from sklearn import metrics as sklearn_metrics  # here: it takes a second to import

    names, labels = outcomes.class_names, outcomes.column("label", readable=True)
    joint, confidence = (outcomes.column(name, readable=True) for name in ("joint", "confidence"))
    classes, predicted = np.arange(len(names)), np.bincount(joint, minlength=len(names))
    undefined: Any = np.nan
    measured: Any = sklearn_metrics.precision_recall_fscore_support(
        labels, joint, labels=classes, zero_division=undefined
    )
    listed = [[None if x != x else x for x in values.tolist()] for values in measured]  # NaN: nothing to count
    scores: dict[str, Any] = dict(zip(("precision", "recall", "f1", "images"), listed, strict=True))
    scores["predicted"] = predicted.tolist()
    found: dict[str, Any] = {
        "images": len(labels),
        "classes": [{"name": name} | {k: v[i] for k, v in scores.items()} for i, name in enumerate(names)],
        "most_confused": [
            {"class": names[a], "taken_for": names[b], "images": n} for a, b, n in most_confused(labels, joint)
        ],
        "calibration_error": calibration_error(confidence, joint == labels),
        "mistakes": outcomes.examples("mistakes"),
    }
    if len(names) <= MAX_CLASSES:
        found["confusion"] = sklearn_metrics.confusion_matrix(labels, joint, labels=classes).tolist()
    if "dist" in outcomes.heads:
        cls, dist = (outcomes.column(name, readable=True) for name in ("cls", "dist"))
        differ = cls != dist
        found["heads"] = {
            "disagree": int(differ.sum()),
            "class_head_right": int((differ & (cls == labels)).sum()),
            "distillation_head_right": int((differ & (dist == labels)).sum()),
            "examples": outcomes.examples("heads"),
        }
    return found


def write_class_report(folder: Path, outcomes: Outcomes) -> str:
    """Write FILES in `folder`, without those that would be empty; an earlier report's are removed.

    Returns the section as Markdown.
    """
    found, names = analyze(outcomes), outcomes.class_names
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    atomic.write_json(folder / "classes.json", found)
    if "confusion" in found:
        plots.confusion(folder / "confusion.png", np.array(found["confusion"]), names)
    mistake = lambda one: [f"predicted: {one['predicted']['joint']} ({100 * one['probability']:.0f} %)"]
    heads = lambda one: [f"class: {one['predicted']['cls']}", f"dist.: {one['predicted']['dist']}"]
    disagreements = found.get("heads", {}).get("examples", [])
    for sheet, examples, predicted in (("mistakes", found["mistakes"], mistake), ("heads", disagreements, heads)):
        captions = ["\n".join([f"true: {one['label']}", *predicted(one)]) for one in examples]
        if captions:
            plots.contact_sheet(folder / f"{sheet}.png", [image for *_, image in outcomes.sheets[sheet]], captions)
    return class_section(found, folder)


def class_section(found: dict[str, Any], folder: Path) -> str:
    """The report's Markdown about classes and images. found: of `analyze`; folder: of the pictures."""
    picture = lambda name, text: [f"![{text}]({name})"] if (folder / name).exists() else []
    classes = found["classes"]
    listed, heading = classes, "Per class:"
    if len(classes) > MAX_CLASSES:
        with_images = [one for one in classes if one["images"]]
        listed = sorted(with_images, key=lambda one: one["recall"])[:20]
        heading = "The 20 classes of the lowest recall (all are in `classes.json`):"
    percent = lambda fraction: "-" if fraction is None else f"{100 * fraction:.1f}"
    rows = [
        [
            cell(c["name"]),
            str(c["images"]),
            str(c["predicted"]),
            *(percent(c[k]) for k in ("precision", "recall", "f1")),
        ]
        for c in listed
    ]
    scores = table(["class", "images", "predicted", "precision %", "recall %", "F1 %"], rows)
    text = ["## Classes", heading, scores, *picture("confusion.png", "confusion matrix")]
    if found["most_confused"]:
        rows = [[cell(p["class"]), cell(p["taken_for"]), str(p["images"])] for p in found["most_confused"]]
        text += ["Most frequent mistakes:", table(["class", "predicted as", "images"], rows)]
    text += [
        "## Calibration",
        f"The probability of the predicted class differs from the accuracy by {100 * found['calibration_error']:.1f} "
        "points on average (expected calibration error, 15 bins).",
    ]
    if found["mistakes"]:
        text += ["## Most confident mistakes", *picture("mistakes.png", "the most confident mistakes")]
    if "heads" in found:
        heads = found["heads"]
        percent = 100 * heads["disagree"] / found["images"]
        neither = heads["disagree"] - heads["class_head_right"] - heads["distillation_head_right"]
        text += [
            "## Class head against distillation head",
            f"Their predictions differ on {heads['disagree']} of {found['images']} images ({percent:.1f} %); there the "
            f"class head is right on {heads['class_head_right']}, the distillation head on "
            f"{heads['distillation_head_right']}, neither on {neither}.",
            *picture("heads.png", "images on which the heads disagree"),
        ]
    return "\n\n".join(text)


def cell(name: str) -> str:
    """A name in a Markdown table."""
    return " ".join(name.split()).replace("|", "\\|")


def most_confused(
    labels: Integer[np.ndarray, " images"], predictions: Integer[np.ndarray, " _"], count: int = 20
) -> list[tuple[int, int, int]]:
    """The `count` most frequent mistakes, (class, predicted class, images), by index; ties in the order of the classes.

    Its memory grows with the images, however many classes there are.
    """
    wrong = np.stack([labels, predictions])[:, labels != predictions]
    pairs, images = np.unique(wrong, axis=1, return_counts=True)
    order = np.argsort(-images, kind="stable")[:count]
    return [tuple(row) for row in np.stack([*pairs, images])[:, order].T.tolist()]


def calibration_error(
    confidence: Float[np.ndarray, " images"], correct: Bool[np.ndarray, " _"], bins: int = 15
) -> float:
    """The expected calibration error (Guo et al. 2017): mean of |accuracy - confidence| over bins of equal width,
    weighted by their images.

    Args:
        confidence: the probability of the predicted class; a bin holds its upper edge.
        correct: whether that is the image's class.
        bins: number of bins in 0..1.
    """
    place = np.ceil(confidence * bins).astype(int)
    return float(np.abs(np.bincount(place, correct - confidence)).sum() / len(correct))
