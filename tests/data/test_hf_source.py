"""Data of Hugging Face's `datasets`, in each form that people keep: the same images and classes as their folder."""

import pickle
import sys

import numpy as np
import pytest
from helpers import held, opened, refusal
from PIL import Image

from deit_jax.evaluate import test_sets as testsets

datasets = pytest.importorskip("datasets")
from datasets.table import embed_table_storage  # noqa: E402

COUNTS = {"train": 6, "val": 3, "test": 3}
CLASSES = ["2", "10", "1"]  # as folders: in numeric order


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Images by split and class, and a cache of one's own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rng = np.random.default_rng(0)
    for split, count in COUNTS.items():
        for i in range(count):
            path = tmp_path / "photos" / split / CLASSES[i % 3] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).save(path)
    return tmp_path / "photos"


def saved(folder, target):
    datasets.load_dataset("imagefolder", data_dir=str(folder)).save_to_disk(str(target))


def embedded(folder, target):
    """As the hub stores them."""
    for split, rows in datasets.load_dataset("imagefolder", data_dir=str(folder)).items():
        rows = rows.with_format("arrow").map(embed_table_storage, batched=True).with_format(None)
        for i in range(2):
            file = target / f"data/{split}-0000{i}-of-00002.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            rows.shard(2, i, contiguous=True).to_parquet(file)


def binary(folder, target):
    """Encoded bytes in a column that is no image to `datasets`."""
    target.mkdir()
    for split in COUNTS:
        paths = sorted((folder / split).rglob("*.png"))
        columns = {"picture": [path.read_bytes() for path in paths], "label": [int(path.parent.name) for path in paths]}
        datasets.Dataset.from_dict(columns).to_parquet(target / f"{split}-0.parquet")


@pytest.mark.parametrize("make", [saved, embedded, binary])
def test_every_form_holds_the_folder(folder, tmp_path, make):
    make(folder, tmp_path / "made")
    ours, theirs = opened(tmp_path / "made"), opened(folder)
    for source, expected in zip(ours, theirs, strict=True):
        assert source.class_names == expected.class_names == ["1", "2", "10"]
        assert held(source) == held(expected)
        assert held(pickle.loads(pickle.dumps(source))) == held(expected)  # for worker processes
        assert [source[i]["label"] for i in range(len(source))] == source.labels.tolist()
    assert "split" in ours[0].notes[0]
    assert ours[0].fingerprint == opened(tmp_path / "made")[0].fingerprint != ours[1].fingerprint
    tested = testsets.open_eval_set(f"mine={tmp_path / 'made'}")
    assert held(tested.source) == held(theirs[1])


def test_an_image_without_its_bytes_is_named(folder, tmp_path):
    images = [{"bytes": None, "path": f"{i}.png"} for i in range(4)]
    datasets.Dataset.from_dict({"image": images, "label": ["a", "b"] * 2}).to_parquet(tmp_path / "made.parquet")
    with pytest.raises(OSError, match=r"0.png holds no image's bytes"):
        opened(tmp_path / "made.parquet", holdout=0.0)[0][0]


def test_a_single_parquet_file_is_held_out_of(folder, tmp_path):
    binary(folder, tmp_path / "made")
    train, evaluation = opened(tmp_path / "made/train-0.parquet", holdout=0.5)
    assert (len(train), len(evaluation)) == (3, 3)


def test_what_is_wrong_is_one_line(folder, tmp_path, monkeypatch):
    def refused(content: dict, **settings) -> str:
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.parquet"
        datasets.Dataset.from_dict(content).to_parquet(file)
        return refusal(file, **settings)

    image, label = {"image": [b"x"] * 4}, {"label": ["a", "b"] * 2}
    assert "no column of labels: give --config.data.columns=IMAGE,LABEL (its columns are image, x)" in refused(
        image | {"x": ["a", "b"] * 2}
    )
    assert "no column of images" in refused(label)
    two = image | label | {"mask": [b"y"] * 4}
    assert "several columns of images (image, mask)" in refused(two)
    assert "data.columns 'image,lab' are not" in refused(two, columns="image,lab")
    assert "images without a label (row 2)" in refused(image | {"label": ["a", "b", None, "a"]})
    (tmp_path / "no.parquet").write_bytes(b"PAR1")
    assert "no.parquet cannot be read by datasets" in refusal(tmp_path / "no.parquet")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert "data.root hf:me/photos cannot be read by datasets: Couldn't reach" in refusal("hf:me/photos")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install datasets" in refusal("hf:me/photos")
