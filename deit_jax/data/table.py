"""Tables of image files: .csv and .tsv."""

import concurrent.futures
import csv
import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deit_jax.classes.match import sort_classes
from deit_jax.data.base import FileSource, Source, hold_out, not_used
from deit_jax.data.folder_layout import TRAIN, check_named, choose_splits
from deit_jax.errors import UserError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
HEADINGS = {  # column: how a first line may call it
    "path": "path file filename file_name filepath file_path image image_path img name imageid".split(),
    "label": "label class class_name classname target category predictionstring".split(),
    "split": "split subset set".split(),
}
MAX_LABEL = 4000  # characters


class Row(NamedTuple):
    """A line of a table; `split` is "" where the table has none."""

    line: int
    path: str
    label: str
    split: str


def is_table(path: Path) -> bool:
    """Whether a path is named as a table."""
    return path.suffix.lower() in DELIMITERS


def open_csv(path: str, *, train_split: str, eval_split: str, holdout: float) -> tuple[Source | None, Source]:
    """The images of a table with one per line: `path,label` or `path,label,split`.

    Paths are relative to the table's folder. A first line that names the columns is a heading; columns of other names
    are left out. Labels are class names, or numbers: 0 … n - 1 are labels, other whole numbers are names in numeric
    order. Splits and `holdout` as `folders.open_folder`.

    Raises:
      UserError: naming the line, for what is not such a table, and for files that do not exist.
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
    names = sort_classes({row.label for part in parts.values() for row in part})
    number = {name: label for label, name in enumerate(names)}
    notes = not_used(unused) + _named_by_numbers(names)

    def source(split: str) -> FileSource:
        labels = np.array([number[row.label] for row in parts[split]], np.int32)
        title = path if len(known_splits) == 1 else f"{path}, split {split}"
        return FileSource(Path(path).parent, _find_files(path, parts[split]), labels, names, title=title, notes=notes)

    train = source(train_name) if train_name is not None else None
    if eval_name is not None:
        return train, source(eval_name)
    assert train is not None
    return hold_out(train, train.labels, holdout)


def plain_labels(labels: Iterable[str], path: str) -> dict[str, str]:
    """The class name that each label of a table stands for: NFC, and whole numbers without their decimals (pandas
    writes 1.0). Raises UserError for numbers that are written in two ways, and for what marks images without a class.
    """
    names = {label: unicodedata.normalize("NFC", label) for label in labels}
    missing = sorted(name for name in names if name.lower() in ("nan", "<na>"))
    if missing:
        raise UserError(f"{path} has the label {missing[0]}, a missing value: leave images without a class out")
    if not all(re.fullmatch(r"-?[0-9]+(\.0*)?", name) for name in names):
        return names
    names = {label: label.partition(".")[0] for label in names}
    negative = sorted(name for name in names.values() if name.startswith("-"))
    if negative:
        raise UserError(f"{path} has the label {negative[0]}: leave images without a class out, or name classes")
    by_value: dict[int, str] = {}
    for name in sorted(set(names.values())):
        other = by_value.setdefault(int(name), name)
        if other != name:
            raise UserError(f"{path} has the labels '{other}' and '{name}', the same number: write it in one way")
    return names


def _named_by_numbers(names: Sequence[str]) -> list[str]:
    """The note about labels that are numbers but not 0 … n - 1; [] for others."""
    numbers = all(name.isascii() and name.isdecimal() for name in names)
    if not numbers or list(names) == [str(i) for i in range(len(names))]:
        return []
    return [f"labels that are not 0 … n - 1 are names in numeric order: {', '.join(names[:3])} … are classes 0, 1, 2 …"]


def _find_files(path: str, rows: Sequence[Row]) -> list[str]:
    """The rows' paths as the disk spells them. Raises UserError, naming the first line whose file cannot be read."""
    folder = Path(path).parent

    def find(row: Row) -> tuple[str, str]:
        problem = ""
        for spelled in dict.fromkeys([row.path, *(unicodedata.normalize(form, row.path) for form in ("NFC", "NFD"))]):
            try:
                regular = stat.S_ISREG(os.stat(os.path.join(folder, spelled)).st_mode)
                return spelled, "" if regular else "it is not a file"
            except (OSError, ValueError) as error:  # ValueError: a NUL in the name
                problem = problem or getattr(error, "strerror", None) or str(error)
        return row.path, problem

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        found = list(pool.map(find, rows))
    bad = [i for i, (_, problem) in enumerate(found) if problem]
    if bad:
        row, more = rows[bad[0]], f", and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise UserError(
            f"{path}, line {row.line} names {row.path}, which cannot be read ({found[bad[0]][1]}){more}: paths are"
            " taken from the table's own folder"
        )
    return [spelled for spelled, _ in found]


def read_rows(path: str | os.PathLike) -> list[Row]:
    """The lines of a table, labels as `plain_labels`. Raises UserError naming a line that is not path,label or
    path,label,split."""
    delimiter = DELIMITERS[Path(path).suffix.lower()]
    form = f"path{delimiter}label".expandtabs(1)
    try:
        if not Path(path).is_file():
            raise UserError(f"{path} is not a file: give a table of path,label")
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, delimiter=delimiter)
            cells = [(lines.line_num, [cell.strip() for cell in line]) for line in lines if any(map(str.strip, line))]
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not text in UTF-8 (byte 0x{error.object[error.start]:02x}): save the table as UTF-8"
        ) from error
    except csv.Error as error:
        raise UserError(f"{path} is not a table ({error}): each line must be {form}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a table of path,label") from error
    columns = _heading(cells[0][1], path) if cells else None
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
    names = plain_labels({row.label for row in rows}, os.fspath(path))
    return [row._replace(label=names[row.label]) for row in rows]


def _heading(cells: list[str], path: str | os.PathLike) -> list[int] | None:
    """Where the columns path, label and, if there is one, split are; None where a first line is not a heading. Raises
    UserError for a heading without a label, as one-hot tables have."""
    lowered = [cell.lower() for cell in cells]
    found = {
        column: next((i for i, cell in enumerate(lowered) if cell in names), None) for column, names in HEADINGS.items()
    }
    if found["path"] is None:
        return None
    if found["label"] is None:
        raise UserError(
            f"{path} has the columns {', '.join(cells[:4])}{' …' * (len(cells) > 4)}, none of which is called label:"
            " name it so (of a table with a column per class, make one of path,label)"
        )
    return [i for i in found.values() if i is not None]
