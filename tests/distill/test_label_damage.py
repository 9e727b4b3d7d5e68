"""Damage to a store of labels is noticed, said in one line, and made again."""

import random
import shutil

import numpy as np
import pytest
from small_state import label_header, label_store

from deit_jax import check
from deit_jax.distill.label_store import CHUNK, LabelStore
from deit_jax.errors import UserError
from deit_jax.label import prepare_store

STEPS, BATCH, CLASSES = 2 * CHUNK, 8, 10


def fill(store: LabelStore) -> None:
    rng = np.random.default_rng(0)
    for chunk in range(STEPS // CHUNK):
        for write in store.write(chunk, {"label": rng.integers(0, CLASSES, (CHUNK, BATCH)).astype(np.uint16)}):
            write.result()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    fill(label_store(folder, STEPS))
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
        with pytest.raises(UserError, match=r"run --mode=label again"):
            LabelStore(folder).read_steps(CHUNK, STEPS)
        assert list(LabelStore(folder).damaged()) == [1]
    chunk.write_bytes(whole)
    np.testing.assert_array_equal(LabelStore(folder).read_steps(CHUNK, STEPS)["label"], truth)
    assert LabelStore(folder).damaged() == {}


@pytest.mark.parametrize("size", [0, 5, -1])
def test_a_chunk_that_was_cut_short_is_made_again(folder, size, capsys):
    chunk = folder / "label/c/0/0"
    chunk.write_bytes(chunk.read_bytes()[:size])
    prepare_store(folder, label_header(), STEPS)
    assert LabelStore(folder).missing(STEPS) == [0]
    assert "chunk 0 is damaged" in capsys.readouterr().out


def test_chunks_of_a_lost_header_are_not_taken_over(folder):
    (folder / "labels.json").unlink()
    with pytest.raises(UserError, match="labels.json is lost"):
        label_store(folder, STEPS, seed=1)
    assert not (folder / "labels.json").exists()


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_damaged_metadata_is_one_line(folder, content, capsys):
    (folder / "label/zarr.json").write_text(content)
    with pytest.raises(UserError, match=r"zarr.json cannot be read .*restore it"):
        LabelStore(folder).read(0)
    with pytest.raises(SystemExit, match="^1$"):
        check.main([str(folder)])
    assert "DAMAGED" in capsys.readouterr().out
