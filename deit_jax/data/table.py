"""Tables of image files: .csv and .tsv."""

import codecs
import concurrent.futures
import csv
import io
import os
import re
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deit_jax.classes.match import sort_classes
from deit_jax.data.base import FileSource, Source, hold_out, not_used
from deit_jax.data.layout import TRAIN, check_named, choose_splits
from deit_jax.errors import UserError, nearest

DELIMITERS = {".csv": ",", ".tsv": "\t"}
HEADINGS = {  # column: how a first line may call it
    "path": "path file filename file_name filepath file_path image image_path img".split(),
    "label": "label class class_name classname target category".split(),
    "split": "split subset set".split(),
}
MAX_LABEL = 255  # characters
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


class Row(NamedTuple):
    """A line of a table; `split` is "" where the table has none."""

    line: int
    path: str
    label: str
    split: str


def is_table(path: Path) -> bool:
    """Whether a path is named as a table."""
    return path.suffix.lower() in DELIMITERS


def open_csv(
    path: str,
    *,
    train_split: str,
    eval_split: str,
    holdout: float,
) -> tuple[Source | None, Source]:
    """The images of a table with one per line: `path,label` or `path,label,split`.

    Paths are relative to the table's folder. A first line that names the columns is a heading; columns of other names
    are left out. Labels are class names, or numbers: 0 … n - 1 are labels, other whole numbers are names in numeric
    order. Splits and `holdout` as `folders.open_folder`.

    Raises:
      UserError: naming the line, for what is not such a table, and for files that are not there.
    """
    rows = read_rows(path)
    known_splits = {row.split or TRAIN for row in rows}
    check_named(known_splits, train_split, eval_split, f"does not occur in {path}")
    train_name, eval_name = choose_splits(known_splits, train_split, eval_split, path)
    if train_name is None and eval_name is None:
        raise UserError(f"{path} has nothing to evaluate on: its splits are {', '.join(sorted(known_splits))}")
    parts = {
        name: [row for row in rows if (row.split or TRAIN) == name]
        for name in (train_name, eval_name)
        if name is not None
    }
    unused = [
        f"split {name} ({sum((row.split or TRAIN) == name for row in rows)} images)"
        for name in sorted(known_splits - set(parts))
    ]
    first = next(iter(parts.values()))  # the training images, where there are some
    names = classes_of((row.label for row in first), path)
    number = {name: label for label, name in enumerate(names)}
    for row in (row for part in parts.values() for row in part):
        if row.label not in number:
            hint = nearest(row.label, number)
            raise UserError(f"{path}, line {row.line}: '{row.label}' is a class the training images lack{hint}")
    _check_files(path, [row for part in parts.values() for row in part])
    notes = not_used(unused) + _named_by_numbers(names)

    def source(split: str) -> FileSource:
        labels = np.array([number[row.label] for row in parts[split]], np.int32)
        title = path if len(known_splits) == 1 else f"{path}, split {split}"
        paths = [row.path for row in parts[split]]
        return FileSource(Path(path).parent, paths, labels, names, title=title, notes=notes)

    train = source(train_name) if train_name is not None else None
    if eval_name is not None:
        return train, source(eval_name)
    assert train is not None
    return hold_out(train, train.labels, holdout)


def classes_of(labels: Iterable[str], path: str) -> list[str]:
    """The class names of a table's labels, by label. Raises UserError for numbers that cannot be told apart or that
    mark images without a class."""
    present = set(labels)
    if all(re.fullmatch(r"-?[0-9]+", label) for label in present):
        negative = sorted(label for label in present if label.startswith("-"))
        if negative:
            raise UserError(f"{path} has the label {negative[0]}: leave images without a class out, or name classes")
        by_value: dict[int, str] = {}
        for label in sorted(present):
            other = by_value.setdefault(int(label), label)
            if other != label:
                raise UserError(f"{path} has the labels '{other}' and '{label}', the same number: write it in one way")
    return sort_classes(present)


def _named_by_numbers(names: Sequence[str]) -> list[str]:
    """What is said of labels that are numbers but not 0 … n - 1; [] for others."""
    numbers = all(name.isascii() and name.isdecimal() for name in names)
    if not numbers or list(names) == [str(i) for i in range(len(names))]:
        return []
    return [f"labels that are not 0 … n - 1 are names in numeric order: {', '.join(names[:3])} … are classes 0, 1, 2 …"]


def _check_files(path: str, rows: Sequence[Row]) -> None:
    """Raise UserError, naming the first line, where files are not there or not files."""
    folder = Path(path).parent

    def wrong(row: Row) -> str:
        try:
            mode = os.stat(os.path.join(folder, row.path)).st_mode
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            return getattr(error, "strerror", None) or str(error)
        return "" if stat.S_ISREG(mode) else "it is not a file"

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        complaints = list(pool.map(wrong, rows))
    bad = [i for i, complaint in enumerate(complaints) if complaint]
    if bad:
        row, more = rows[bad[0]], f", and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise UserError(
            f"{path}, line {row.line} names {row.path}, which cannot be read ({complaints[bad[0]]}){more}: paths are"
            " taken from the table's own folder"
        )


def read_rows(path: str) -> list[Row]:
    """The lines of a table. Raises UserError naming a line that is not path,label or path,label,split."""
    delimiter = DELIMITERS[Path(path).suffix.lower()]
    form = f"path{delimiter}label".expandtabs(1)
    try:
        lines = csv.reader(io.StringIO(_text(path), newline=""), delimiter=delimiter)
        cells = [(lines.line_num, [cell.strip() for cell in line]) for line in lines if any(map(str.strip, line))]
    except csv.Error as error:
        raise UserError(f"{path} is not a table ({error}): each line must be {form}") from error
    columns = _heading(cells[0][1]) if cells else None
    if columns:
        cells = cells[1:]
    if not cells:
        raise UserError(f"{path} lists no image: each line must be {form}")
    rows = []
    for number, line in cells:
        picked = [line[i] if i < len(line) else "" for i in columns] if columns else line
        if len(picked) not in (2, 3) or not all(picked):
            text = delimiter.join(line)
            hint = "; is it separated by semicolons?" if ";" in text and len(line) == 1 else ""
            raise UserError(
                f"{path}, line {number} is '{text[:80]}': it must be {form} or {form}{delimiter}split{hint}"
            )
        if len(picked[1]) > MAX_LABEL:
            raise UserError(f"{path}, line {number} has a label of {len(picked[1])} characters: it must be {form}")
        rows.append(Row(number, *picked, *[""] * (3 - len(picked))))
    return rows


def _heading(cells: list[str]) -> list[int] | None:
    """Where the columns path, label and, if there is one, split are; None where a first line is not a heading."""
    lowered = [cell.lower() for cell in cells]
    found = {
        column: next((i for i, cell in enumerate(lowered) if cell in names), None) for column, names in HEADINGS.items()
    }
    if found["path"] is None or found["label"] is None:
        return [0, 1, 2][: len(cells)] if lowered and lowered[0] == "path" else None
    return [i for i in found.values() if i is not None]


def _text(path: str) -> str:
    """A table's text: UTF-8, or UTF-16 with its mark. Raises UserError for other encodings."""
    try:
        with open(path, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UserError(f"{path} is not a regular file: give a table of path,label")
            data = file.read(4096)
            if b"\0" in data and not data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise UserError(f"{path} is not text in UTF-8 (it holds zero bytes): save it as UTF-8")
            data += file.read()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a table of path,label") from error
    encoding = next((name for mark, name in MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}, line {line} is not text in {encoding.removesuffix('-sig').upper()} (byte"
            f" 0x{data[error.start]:02x}): save the table as UTF-8"
        ) from error
