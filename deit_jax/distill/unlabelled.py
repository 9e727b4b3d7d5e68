"""Images without classes (`data.layout=unlabelled`), for a student that learns from its teacher alone.

The classes are the teacher's, and so are the labels of the evaluation images: their top-1 is the agreement with the
teacher, by which the best checkpoint is chosen.
"""

from collections.abc import Sequence
from typing import cast

import jax
import numpy as np

from deit_jax.augment import normalize
from deit_jax.config import Config
from deit_jax.config.recipes import named_size
from deit_jax.data import loader
from deit_jax.data.base import Source, Subset, cached
from deit_jax.distill.own_teacher import open_own
from deit_jax.distill.teacher import load_teacher
from deit_jax.errors import UserError
from deit_jax.own import is_own
from deit_jax.weights import load_weights, split_sources

NOTE = "no labels: classes and the labels of the evaluation images are the teacher's, top-1 is the agreement with it"


class TeacherLabelled(Subset):
    """All images of a source, with the teacher's classes; `predicted` holds its hard labels, None where unknown."""

    def __init__(self, source: Source, class_names: Sequence[str], predicted: np.ndarray | None = None):
        super().__init__(source, np.arange(len(source)), notes=[*source.notes, NOTE])
        self.class_names, self.num_classes, self.predicted = list(class_names), len(class_names), predicted

    @cached
    def fingerprint(self) -> str:
        return self.source.fingerprint

    @property
    def labels(self) -> np.ndarray:
        if self.predicted is None:
            raise AttributeError("its labels are not known")
        return self.predicted

    def __getitem__(self, index: int) -> dict:
        return {**self.source[index], "label": 0 if self.predicted is None else int(self.predicted[index])}


def teacher_classes(config: Config) -> list[str]:
    """The names of the (first) teacher's classes, their numbers where it has none. Raises UserError without weights."""
    name = config.teacher.name.split(",")[0]
    if is_own(name):
        own, (count,) = open_own(name)
        names = own.class_names
    elif config.teacher.init:
        weights = load_weights(split_sources(config.teacher.init)[0], name=name)
        names, count = weights.class_names, weights.num_classes
    else:
        raise UserError(
            "data.layout unlabelled takes its classes from the teacher, also with stored labels: give"
            " --config.teacher.init= its weights, or --config.teacher.name=module:function"
        )
    return list(names) if names else [str(number) for number in range(count)]


def label_by_teacher(config: Config, train: Source, evaluation: Source) -> tuple[Source, Source]:
    """Training images of the teacher's classes without labels, and evaluation images with its hard labels."""
    names, size = teacher_classes(config), config.model.img_size or named_size(config.model.name)
    evaluation = TeacherLabelled(evaluation, names)
    teacher = load_teacher(config, names, size, host=True)
    mean, std = tuple(config.augment.mean), tuple(config.augment.std)
    logits = lambda arrays, images: cast(jax.Array, teacher.predict(arrays, {"image": normalize(images, mean, std)}))
    predict = lambda arrays, images: logits(arrays, images).argmax(-1)
    predict = predict if teacher.host else jax.jit(predict)
    batches = loader.eval_batches(config, evaluation, size=size)
    found = [np.asarray(predict(teacher.arrays, batch["image"]), np.int32) for batch in batches]
    predicted = np.concatenate(found)[: len(evaluation)]
    return TeacherLabelled(train, names), TeacherLabelled(evaluation.source, names, predicted)
