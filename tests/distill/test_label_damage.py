"""Damage to a store of labels is noticed, said in one line and made again; no store takes over another's chunks."""

import json
import random
import shutil

import numpy as np
import pytest
import tensorstore as ts

from deit_jax import check
from deit_jax.distill.label_store import CHUNK, LabelStore, digest
from deit_jax.errors import UserError
from deit_jax.label import prepare_store

STEPS, BATCH, CLASSES = 2 * CHUNK, 8, 10


def header(seed: int = 0) -> dict:
    both = {"images": {"seed": seed, "data.classes": CLASSES}, "teacher": {}}
    form = {"kind": "hard", "k": 1, "dtype": "uint16", "tau": 1.0, "batch_size": BATCH}
    return form | both | {"hash": digest(both)}


def fill(store: LabelStore) -> None:
    rng = np.random.default_rng(0)
    for chunk in range(STEPS // CHUNK):
        for write in store.write(chunk, {"label": rng.integers(0, CLASSES, (CHUNK, BATCH)).astype(np.uint16)}):
            write.result()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    fill(LabelStore.create(folder, header(), STEPS))
    return folder


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "labels")


def test_every_flipped_bit_of_a_chunk_is_noticed(folder):
    chunk, rng = folder / "label/c/1/0", random.Random(0)
    whole = chunk.read_bytes()
    truth = LabelStore(folder).read_steps(CHUNK, STEPS)["label"]
    for _ in range(100):
        content = bytearray(whole)
        bit = rng.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        chunk.write_bytes(content)
        store = LabelStore(folder)
        if 1 in store.present():
            with pytest.raises(UserError, match=r"run --mode=label again"):
                store.read_steps(CHUNK, STEPS)
        assert list(store.damaged()) == [1]
    chunk.write_bytes(whole)
    np.testing.assert_array_equal(LabelStore(folder).read_steps(CHUNK, STEPS)["label"], truth)
    assert LabelStore(folder).damaged() == {}


@pytest.mark.parametrize("size", [0, 5, -1])
def test_a_chunk_that_was_cut_short_is_not_stored(folder, size, capsys):
    chunk = folder / "label/c/0/0"
    chunk.write_bytes(chunk.read_bytes()[:size])
    assert LabelStore(folder).missing(STEPS) == [0]
    prepare_store(folder, header(), STEPS)
    assert not chunk.exists()
    assert "chunk 0 is damaged" in capsys.readouterr().out


def test_classes_beyond_the_data_are_refused(folder):
    store = LabelStore(folder)
    store.write(0, {"label": np.full((CHUNK, BATCH), CLASSES, np.uint16)})[0].result()
    with pytest.raises(UserError, match=r"name class 10, the data has 10"):
        LabelStore(folder).read(3)


def test_chunks_of_a_lost_header_are_not_taken_over(folder):
    (folder / "labels.json").unlink()
    with pytest.raises(UserError, match="were made for other settings"):
        LabelStore.create(folder, header(seed=1), STEPS)
    assert not (folder / "labels.json").exists()
    assert LabelStore.create(folder, header(), STEPS).missing(STEPS) == []
    (folder / "labels.json").unlink()
    (folder / "label/zarr.json").unlink()
    with pytest.raises(UserError, match="whose zarr.json is lost"):
        LabelStore.create(folder, header(seed=1), STEPS)


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_damaged_metadata_is_one_line(folder, content, capsys):
    (folder / "label/zarr.json").write_text(content)
    with pytest.raises(UserError, match=r"zarr.json cannot be read .*restore it") as caught:
        LabelStore(folder).read(0)
    assert "\n" not in str(caught.value)
    with pytest.raises(SystemExit, match="^1$"):
        check.main([str(folder)])
    assert "DAMAGED" in capsys.readouterr().out


def test_new_chunks_end_in_a_checksum(folder):
    codecs = json.loads((folder / "label/zarr.json").read_text())["codecs"]
    assert [codec["name"] for codec in codecs] == ["bytes", "blosc", "crc32c"]
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder / "label")}}
    assert ts.open(spec).result().shape == (STEPS, BATCH)
