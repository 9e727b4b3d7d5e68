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
from deit_jax.data.base import Source, Whole
from deit_jax.distill.teacher import load_teacher

NOTE = "no labels: classes and the labels of the evaluation images are the teacher's, top-1 is the agreement with it"


class TeacherLabelled(Whole):
    """All images of a source, with the teacher's classes; `predicted` holds its hard labels, None where unknown."""

    def __init__(self, source: Source, class_names: Sequence[str], predicted: np.ndarray | None = None):
        super().__init__(source, notes=[*source.notes, NOTE])
        self.class_names, self.num_classes, self.predicted = list(class_names), len(class_names), predicted

    @property
    def labels(self) -> np.ndarray:
        if self.predicted is None:
            raise AttributeError("its labels are not known")
        return self.predicted

    def __getitem__(self, index: int) -> dict:
        return {**self.source[index], "label": 0 if self.predicted is None else int(self.predicted[index])}


def label_by_teacher(config: Config, train: Source, evaluation: Source) -> tuple[Source, Source]:
    """Training images of the teacher's classes without labels, and evaluation images with its hard labels."""
    size = config.model.img_size or named_size(config.model.name)
    teacher = load_teacher(config, None, size, host=True)
    names = teacher.models[0].class_names
    mean, std = tuple(config.augment.mean), tuple(config.augment.std)
    logits = lambda arrays, images: cast(jax.Array, teacher.predict(arrays, {"image": normalize(images, mean, std)}))
    predict = lambda arrays, images: logits(arrays, images).argmax(-1)
    predict = predict if teacher.host else jax.jit(predict)
    batches = loader.eval_batches(config, evaluation, size=size)
    found = [np.asarray(predict(teacher.arrays, batch["image"]), np.int32) for batch in batches]
    predicted = np.concatenate(found)[: len(evaluation)]
    return TeacherLabelled(train, names), TeacherLabelled(evaluation, names, predicted)
