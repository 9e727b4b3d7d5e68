"""Tables of image files: .csv and .tsv."""

import csv
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deit_jax.classes.match import is_number, sort_classes
from deit_jax.data.base import FileSource, Source, not_used
from deit_jax.data.splits import TRAIN, Splits, open_splits
from deit_jax.errors import UserError, first_line

DELIMITERS = {".csv": ",", ".tsv": "\t"}
HEADINGS = {  # column: how a first line may call it
    "path": "path file filename file_name filepath file_path image image_path img name imageid".split(),
    "label": "label class class_name classname target category predictionstring".split(),
    "split": "split subset set".split(),
}


class Row(NamedTuple):
    """A line of a table; `split` is "" where the table has none."""

    line: int
    path: str
    label: str
    split: str = ""


def is_table(path: Path) -> bool:
    """Whether a path is named as a table."""
    return path.suffix.lower() in DELIMITERS


def open_csv(path: str, splits: Splits) -> tuple[Source | None, Source]:
    """The images of a table with one per line: `path,label` or `path,label,split`; splits as `open_splits`.

    Paths are relative to the table's folder. A first line that names the columns is a heading; columns of other names
    are left out. Labels are class names, or numbers: 0 … n - 1 are labels, other whole numbers are names in numeric
    order. Raises UserError naming the line, for what is not such a table, and for files that do not exist.
    """
    parts: dict[str, list[Row]] = {}
    for row in read_rows(path):
        parts.setdefault(row.split or TRAIN, []).append(row)

    def make(split: str, *described: Any) -> FileSource:
        for row in parts[split]:
            if not os.path.isfile(Path(path).parent / row.path):
                raise UserError(
                    f"{path}, line {row.line} names {row.path}, which cannot be read: paths start at its folder"
                )
        return FileSource(Path(path).parent, [row.path for row in parts[split]], *described)

    return open_labelled(parts, lambda split: [row.label for row in parts[split]], make, path, splits)


def open_labelled(
    parts: Mapping[str, Sized],
    read_labels: Callable[[str], Sequence[str]],
    make: Callable[..., Source],
    where: str,
    splits: Splits,
) -> tuple[Source | None, Source]:
    """The images of rows with labels as text, as `open_splits`; classes are those of the splits that are used.

    Args:
      parts: split → its rows.
      read_labels: split → its rows' labels.
      make: (split, labels int32 (n,), class names, title, notes) → its source.
    """

    def open_used(used: list[str]) -> dict[str, Source]:
        labels = {split: read_labels(split) for split in used}
        classes = sort_classes({label for found in labels.values() for label in found})
        check_labels(classes, where)
        number = {name: index for index, name in enumerate(classes)}
        notes = not_used(
            [f"split {name} ({len(rows)} images)" for name, rows in sorted(parts.items()) if name not in used]
        )
        title = lambda split: where if len(parts) == 1 else f"{where}, split {split}"
        return {
            split: make(split, np.array([number[x] for x in found], np.int32), classes, title(split), notes)
            for split, found in labels.items()
        }

    return open_splits(open_used, parts, where, splits)


def check_labels(labels: Iterable[str], path: str | os.PathLike) -> None:
    """Raise UserError for a label that marks images without a class, and where all are numbers, for one that is not
    whole, is below 0, or is written in two ways."""
    labels = sorted(labels)
    numbers = all(re.fullmatch(r"-?[0-9]+(\.[0-9]*)?", label) for label in labels)
    wrong = [label for label in labels if label.lower() in ("nan", "<na>") or (numbers and not is_number(label))]
    if wrong:
        raise UserError(f"{path} has the label {wrong[0]}: give every image a class name, or a whole number from 0 on")
    if numbers and len({int(label) for label in labels}) < len(labels):
        raise UserError(f"{path} writes a number in two ways, as 1 and 01: write it in one")


def read_rows(path: str | os.PathLike) -> list[Row]:
    """The lines of a table. Raises UserError naming a line that is not path,label or path,label,split."""
    delimiter = DELIMITERS[Path(path).suffix.lower()]
    form = f"path{delimiter}label".expandtabs(1)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, delimiter=delimiter)
            cells = [(lines.line_num, [cell.strip() for cell in line]) for line in lines if any(map(str.strip, line))]
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        what = "not text in UTF-8" if isinstance(error, UnicodeDecodeError) else "not a table"
        raise UserError(f"{path} is {what} ({first_line(error)}): give lines of {form} in UTF-8") from error
    columns = _heading(cells[0][1], path) if cells else None
    if columns:
        cells = cells[1:]
    if not cells:
        raise UserError(f"{path} lists no image: each line must be {form}")
    rows = []
    for number, line in cells:
        picked = [line[i] if i < len(line) else "" for i in columns] if columns else line
        if len(picked) not in (2, 3) or not all(picked):
            text = delimiter.join(line)[:80]
            raise UserError(f"{path}, line {number} is '{text}': it must be {form} or {form}{delimiter}split")
        rows.append(Row(number, *picked))
    return rows


def _heading(cells: Sequence[str], path: str | os.PathLike) -> list[int] | None:
    """Where the columns path, label and, if there is one, split are; None where a first line is not a heading. Raises
    UserError for a heading without a label."""
    lowered = [cell.lower() for cell in cells]
    found = {
        column: next((i for i, cell in enumerate(lowered) if cell in names), None) for column, names in HEADINGS.items()
    }
    if found["path"] is None:
        return None
    if found["label"] is None:
        raise UserError(f"{path} has the columns {', '.join(cells)[:80]}, none of which is called label: name it so")
    return [i for i in found.values() if i is not None]
