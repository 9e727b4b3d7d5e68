"""Which output of a model stands for which class of a dataset: by what the classes are called, never by position."""

import dataclasses
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int32

from deit_jax.classes import imagenet
from deit_jax.errors import UserError, nearest

IMAGENET_CLASSES = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class ClassMap:
    """The model's output for each class of the data.

    Attributes:
        outputs: per class of the data, the index of the model's logit.
        num_outputs: logits that the model has.
        how: what the classes were matched by.
    """

    outputs: Int32[np.ndarray, " classes"]
    num_outputs: int
    how: str

    @property
    def is_identity(self) -> bool:
        """Whether labels and logits are numbered alike, so that nothing has to be mapped."""
        return np.array_equal(self.outputs, np.arange(self.num_outputs))

    @property
    def is_subset(self) -> bool:
        """Whether the model has classes that the data lacks."""
        return len(self.outputs) < self.num_outputs

    def describe(self) -> str:
        """One line: "200 of the weights' 1000 classes, matched by WordNet ids"."""
        share = f"{len(self.outputs)} of the weights' {self.num_outputs} classes"
        return f"{share if self.is_subset else f'{self.num_outputs} classes'}, matched by {self.how}"


def sort_classes(names: Iterable[str]) -> list[str]:
    """The order in which folders are numbered: numeric where every name is a whole number, else by code point.

    ImageNet-V2's folders are "0" … "999": by code point "10" would come before "2".
    """
    names = list(names)
    if all(is_number(name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def match_classes(
    data_names: Sequence[str],
    model_names: Sequence[str] | None,
    num_outputs: int | None = None,
    *,
    subset: bool = False,
    data: str = "the data",
    model: str = "the weights",
) -> ClassMap:
    """Map each class of the data to the model's logit.

    Tried in this order, each for all names together: the model's own class names; ImageNet's classes, each list
    being WordNet ids or WordNet's names, or numbers of a model of all 1000; and for a model whose classes have no names
    (LABEL_0, LABEL_1, … are none) numbers as logits, or position where there are as many classes.

    Args:
        data_names: class names of the data by label, all different.
        model_names: class names by logit, as the weights or the checkpoint record them; None: not known. A model of
            1000 nameless classes has ImageNet's, in their order.
        num_outputs: logits of the model; needed where model_names is None.
        subset: allow data that has some of the model's classes only.
        data, model: what error messages call the two, as "/data/photos" and "timm/deit_tiny_patch16_224.fb_in1k".

    Raises:
        UserError: with three of the names that could not be matched.
    """
    if model_names is not None and num_outputs not in (None, len(model_names)):
        raise UserError(f"{model} have {num_outputs} classes but names for {len(model_names)}: one of the two is wrong")
    count = len(model_names) if model_names is not None else num_outputs
    if model_names is not None and list(model_names) == [f"LABEL_{i}" for i in range(len(model_names))]:
        model_names = None
    if not count:
        raise UserError(f"{model} have no classes to match with those of {data}")
    found = (
        _by_name(data_names, model_names)
        or _by_imagenet(data_names, model_names, count, data)
        or (model_names is None and (_by_number(data_names, count) or _by_position(data_names, count)))
    )
    if not found:
        raise UserError(_complaint(data_names, model_names, count, data, model))
    outputs, how = found
    mapped = ClassMap(np.array(outputs, np.int32), count, how)
    if mapped.is_subset and not subset:
        known = model_names or [str(i) for i in range(count)]
        lacking = [known[i] for i in range(count) if i not in set(outputs)]
        raise UserError(
            f"{data} has {len(outputs)} of the {count} classes of {model}, it lacks {_three(lacking)}:"
            f" use data of all {count}"
        )
    return mapped


Matched = tuple[list[int], str]


def _by_name(data_names: Sequence[str], model_names: Sequence[str] | None) -> Matched | None:
    """By the model's own names, as written, else without regard to case, hyphens and underscores."""
    for form in (lambda name: unicodedata.normalize("NFC", name), imagenet.plain):
        number = {form(name): i for i, name in enumerate(model_names or [])}
        if model_names is None or len(number) < len(model_names):
            continue  # not known, or not told apart in this form
        outputs = _each_once(number.get(form(name)) for name in data_names)
        if outputs is not None:
            return outputs, "class names"
    return None


def _by_imagenet(data_names: Sequence[str], model_names: Sequence[str] | None, count: int, data: str) -> Matched | None:
    """By ImageNet's classes. Raises UserError for a name that two of them have."""
    if model_names is None:
        theirs = (list(range(count)), "") if count == IMAGENET_CLASSES else None
    else:
        theirs = _imagenet_numbers(model_names)
    if theirs is None:
        return None
    ours = _imagenet_numbers(data_names)
    if ours is None and count == IMAGENET_CLASSES and all(map(is_number, data_names)):
        ours = [int(name) for name in data_names], "ImageNet's class numbers"
    if len(data_names) < IMAGENET_CLASSES:
        _check_ambiguous(data_names, ours[0] if ours else [], data)
    if ours is None:
        return None
    logit = {number: i for i, number in enumerate(theirs[0])}
    outputs = _each_once(logit.get(number) for number in ours[0])
    return None if outputs is None else (outputs, ours[1])


def _check_ambiguous(names: Sequence[str], numbers: Sequence[int], data: str) -> None:
    """Raise UserError for a name of two of ImageNet's classes, unless the other classes of the name occur as well."""
    candidates = [imagenet.numbers_of(name) for name in names]
    if not all(candidates):
        return
    for name, found in zip(names, candidates, strict=True):
        if len(found) > 1 and len(set(found) - set(numbers)) > 0:
            table = imagenet.table()
            classes = " and ".join(f"{table[i][0]} ({', '.join(table[i][1])}; output {i})" for i in found)
            raise UserError(f"class '{name}' of {data} may be {classes} of ImageNet: name it by the WordNet id")


def _imagenet_numbers(names: Sequence[str]) -> Matched | None:
    """(ImageNet's number per name, what the names are), or None where they are not ImageNet's classes."""
    numbers = [imagenet.number_of(name) for name in names]
    complete = _each_once(numbers)
    if complete is not None:
        synsets = set(imagenet.synsets())
        return complete, "WordNet ids" if all(name in synsets for name in names) else "ImageNet's class names"
    if len(names) != IMAGENET_CLASSES:
        return None
    if sort_classes(names) == [str(i) for i in range(IMAGENET_CLASSES)]:
        return [int(name) for name in names], "ImageNet's class numbers"
    # published lists call two classes crane: all of them in their order leave no doubt
    in_order = all(i in imagenet.numbers_of(name) for i, name in enumerate(names))
    return (list(range(IMAGENET_CLASSES)), "ImageNet's class names") if in_order else None


def _by_number(data_names: Sequence[str], count: int) -> Matched | None:
    if not all(is_number(name) for name in data_names):
        return None
    outputs = _each_once(int(name) for name in data_names)
    return None if outputs is None or max(outputs) >= count else (outputs, "class numbers")


def _by_position(data_names: Sequence[str], count: int) -> Matched | None:
    if len(data_names) != count or all(map(is_number, data_names)):  # numbers would be outputs
        return None
    return list(range(count)), "position (the weights do not name their classes)"


def _each_once(numbers: Iterable[int | None]) -> list[int] | None:
    """The numbers, or None where one is missing or occurs twice."""
    wanted = list(numbers)
    found = [number for number in wanted if number is not None]
    return found if len(set(found)) == len(wanted) else None


def is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal()


def _three(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"'{name}'" for name in names[:3]) + more


def _complaint(data_names: Sequence[str], model_names: Sequence[str] | None, count: int, data: str, model: str) -> str:
    """What cannot be matched: names that the model lacks."""
    if model_names is None and count != IMAGENET_CLASSES:
        return (
            f"{data} has {len(data_names)} classes ({_three(data_names)}), {model} have {count} and do not name them:"
            f" name the folders 0 … {count - 1} by the weights' outputs"
        )
    known = list(model_names) if model_names is not None else imagenet.class_names()
    plain = {imagenet.plain(name) for name in known}
    numbers = {imagenet.number_of(name) for name in known} - {None}
    unmatched = [
        name for name in data_names if imagenet.plain(name) not in plain and imagenet.number_of(name) not in numbers
    ]
    if not unmatched:
        return f"two classes of {data} are the same class of {model}: {_three(data_names)}: put their images together"
    return (
        f"{len(unmatched)} of the {len(data_names)} classes of {data} are not classes of {model}: {_three(unmatched)}"
        f"{nearest(unmatched[0], known)}; {data} has {_three(data_names)}, {model} have {_three(known)}: name the"
        " classes as the weights do"
    )
