"""Shards read by ranges hold what array_record reads from them, on a disk and in a bucket."""

import dataclasses
import pickle

import numpy as np
import pytest
from helpers import folder_of_images, tool

from deit_jax.data import shards
from deit_jax.data.ranged import BLOCK, RangedRecords, Shard
from deit_jax.errors import UserError

FREE = BLOCK - 24 - 40 - 5  # bytes of a record that fill a block to its end, nearly
SIZES = {
    "one": [5],
    "none in them": [0, 1, 127, 128, 16_383, 16_384],
    "around a block's end": [FREE + i for i in range(-4, 12)],
    "over several blocks": [3 * BLOCK, 10, 2 * BLOCK - 24, 200_000],
    "an index of several blocks": [30] * 9_000,
}


def written(path, sizes) -> list[bytes]:
    from array_record.python.array_record_module import ArrayRecordWriter

    rng = np.random.default_rng(0)
    writer, records = ArrayRecordWriter(str(path), "group_size:1,uncompressed"), [rng.bytes(size) for size in sizes]
    for record in records:
        writer.write(record)
    writer.close()
    return records


@pytest.mark.parametrize("sizes", SIZES.values(), ids=list(SIZES))
def test_every_record_is_read(tmp_path, sizes):
    records = written(tmp_path / "a", sizes)
    other = written(tmp_path / "b", sizes[:1])
    parts = [Shard(tmp_path / n, count, (tmp_path / n).stat().st_size) for n, count in (("a", len(sizes)), ("b", 1))]
    found = pickle.loads(pickle.dumps(RangedRecords(parts)))
    assert [found[i] for i in range(len(found))] == records + other


def test_damage_is_an_error(tmp_path):
    written(tmp_path / "a", [100, 200, 300])
    content = (tmp_path / "a").read_bytes()
    shard = Shard(tmp_path / "a", 3, len(content))
    for place in (72, 88, len(content) - BLOCK + 32, len(content) - BLOCK + 64):  # of sizes, kinds and the index
        (tmp_path / "a").write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        with pytest.raises((ValueError, IndexError, OSError)):
            [RangedRecords([shard])[i] for i in range(3)]
    (tmp_path / "a").write_bytes(content)
    records = RangedRecords([dataclasses.replace(shard, records=4)])
    with pytest.raises(ValueError, match="3 records instead of 4"):
        records[0]


def test_shards_in_a_bucket_are_those_of_a_disk(bucket, tmp_path):
    assert tool("data.prepare", folder_of_images(tmp_path / "images", classes=3), tmp_path / "shards").code == 0
    for path in (tmp_path / "shards").iterdir():
        (bucket / path.name).upload(path)
    splits = {"train_split": "train", "eval_split": "", "holdout": 0.25}
    here, there = (shards.open_shards(root, **splits) for root in (tmp_path / "shards", bucket))
    for ours, theirs in zip(there, here, strict=True):
        assert ours.fingerprint == theirs.fingerprint
        assert [ours[i]["image"] for i in range(len(ours))] == [theirs[i]["image"] for i in range(len(theirs))]
    next(bucket.glob("*.array_record")).write_bytes(b"cut")
    with pytest.raises(UserError, match="has 3 bytes instead of"):
        shards.open_shards(bucket, **splits)
    with pytest.raises(UserError, match=r"data.root gs://bucket/runs/x holds no shards.*data.prepare"):
        shards.check_place(bucket / "x", "data.root")
