"""Checkpoints in a bucket: saved, restored, verified, and the newest intact one used."""

import jax
import numpy as np
import pytest
from small_state import META, restored, state

from deit_jax import check
from deit_jax.runtime import storage
from deit_jax.train.checkpoint import Checkpoints
from deit_jax.weights import integrity
from deit_jax.weights.orbax import read_weights

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unchecked")]


def test_what_is_saved_in_a_bucket_comes_back_and_damage_is_noticed(bucket, capsys):
    checkpoints = Checkpoints(bucket)
    for step in (1, 2):
        checkpoints.score(step, {"top1": 10.0 * step})
        checkpoints.save(state(step), META)
    checkpoints.close()
    assert [path.name for path in integrity.steps_in(bucket / "checkpoints")] == ["2", "1"]
    assert all(finding.damage is None for finding in check.check(bucket))

    jax.tree.map(np.testing.assert_array_equal, restored(bucket), state(2))
    opened = Checkpoints(bucket)
    opened.score(2, {"top1": 5.0})
    opened.close()
    assert read_weights(bucket)[0]["step"] == 1

    array = next(path for path in storage.files(bucket / "checkpoints/2/params") if "/d/" in str(path))
    array.write_bytes(b"damaged")
    assert len([finding for finding in check.check(bucket) if finding.damage]) == 1
    capsys.readouterr()
    assert int(restored(bucket)["step"]) == 1
    assert f"checkpoint {bucket}/checkpoints/2 is damaged (params/d/" in capsys.readouterr().out
