"""Images without classes: the teacher's classes, evaluation by agreement with it, and what is refused."""

import jax
import numpy as np
import pytest
from helpers import TINY_PLAIN, tiny_config
from PIL import Image

from deit_jax import OwnTeacher
from deit_jax.config import validate
from deit_jax.data.sources import open_digits
from deit_jax.distill import own_teacher
from deit_jax.errors import UserError
from deit_jax.experiment import train_and_report
from deit_jax.train.run import open_data

NAMES = ["dark", "middle", "light"]


def teacher():
    """Three classes by the mean of the middle."""

    def predict(arrays, images):
        value = images[:, 4:12, 4:12].mean((1, 2, 3))
        return jax.numpy.stack([-value, 0.3 - abs(value), value], -1) * 5

    return OwnTeacher(predict, (), 16, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), NAMES, version="1")


@pytest.fixture
def photos(tmp_path, monkeypatch):
    folder, (digits, _) = tmp_path / "photos/inner", open_digits()
    folder.mkdir(parents=True)
    for number in range(160):
        Image.fromarray(digits[number]["image"]).save(folder / f"{number}.png")
    monkeypatch.setattr(own_teacher, "call_function", lambda name: teacher())
    return folder.parent


def config(photos, **changes):
    here = {"data.root": str(photos), "data.layout": "unlabelled", "batch_size": 16, "epochs": 10, "data.holdout": 0.25}
    taught = {"distill.kind": "soft", "distill.alpha": 1.0, "distill.normalization": "paper", "teacher.name": "a:b"}
    return tiny_config(**here | taught | {"model.name": TINY_PLAIN} | changes)


@pytest.mark.slow
@pytest.mark.usefixtures("single")
def test_a_student_learns_to_agree_with_the_teacher_without_a_label(photos, tmp_path):
    c = config(photos)
    data = open_data(c)
    assert data.train.class_names == data.evaluation.class_names == NAMES
    assert (len(data.train), len(data.evaluation)) == (120, 40)
    assert {data.train[i]["label"] for i in range(120)} == {0}
    assert len(np.unique(data.evaluation.labels)) > 1, "one class would prove nothing"
    results = train_and_report(c, tmp_path / "run")
    most = 100 * np.bincount(data.evaluation.labels).max() / 40
    assert results["student"]["params"]["top1"] > most
    assert "class_loss" not in (tmp_path / "run/log.jsonl").read_text()
    assert (tmp_path / "run/report.md").exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"distill.alpha": 0.5}, "distill.kind soft with distill.alpha 0.5 needs"),
        ({"distill.kind": "none"}, "distill.kind none with"),
        ({"distill.kind": "second_cls"}, "distill.kind second_cls with"),
        ({"train_baseline": True}, "train_baseline needs: set --config.train_baseline=0"),
        ({"teacher.epochs": 1}, "teacher.epochs needs: set --config.teacher.epochs=0"),
    ],
)
def test_what_needs_labels_is_refused_in_one_line(photos, changes, named):
    with pytest.raises(UserError, match=named):
        validate(config(photos, **changes))


def test_without_layout_a_flat_folder_names_it(photos):
    with pytest.raises(UserError, match="data.layout=unlabelled"):
        open_data(config(photos / "inner", **{"data.layout": "auto"}))
    with pytest.raises(UserError, match="regnety_digits has no weights"):
        open_data(config(photos, **{"teacher.name": "regnety_digits"}))
