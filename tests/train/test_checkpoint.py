"""What is saved comes back, on any mesh; the newest and the best are kept; a folder says what it holds."""

import jax
import numpy as np
import pytest
from small_state import META, restored, state

from deit_jax.config import default_config, resolve
from deit_jax.errors import UserError
from deit_jax.runtime import sharding
from deit_jax.train.checkpoint import Checkpoints
from deit_jax.train.run import claim_workdir
from deit_jax.weights.orbax import best_checkpoint, read_meta, read_weights


@pytest.mark.parametrize("sizes", [{}, {"fsdp": -1}, {"fsdp": 2}], ids=["replicated", "fsdp", "both"])
def test_round_trip_over_meshes(tmp_path, sizes):
    saved = Checkpoints(tmp_path)
    saved.save(jax.device_put(state(3), sharding.replicated(sharding.make_mesh(jax.devices()[:1]))), META)
    saved.close()
    back = restored(tmp_path, **sizes)
    jax.tree.map(np.testing.assert_array_equal, back, state(3))
    assert len(back["params"]["head"]["kernel"].sharding.device_set) == 8


def test_the_newest_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, top1 in enumerate([10.0, 50.0, 20.0, None, 30.0, 40.0]):
        if top1 is not None:
            checkpoints.score(step, {"top1": top1})
        checkpoints.save(state(step), META)
    checkpoints.close()
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()) == [1, 4, 5]
    assert best_checkpoint(tmp_path).name == "1"
    assert read_meta(best_checkpoint(tmp_path))["metrics"]["top1"] == 50.0


def test_weights_are_read_without_a_mesh(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(2), META)
    checkpoints.close()
    for folder in (tmp_path, tmp_path / "checkpoints", tmp_path / "checkpoints" / "2"):
        meta, weights = read_weights(folder)
        assert meta["model"] == META["model"]
        np.testing.assert_array_equal(weights["params"]["head"]["kernel"], state(2)["params"]["head"]["kernel"])
    _, averaged = read_weights(tmp_path, "ema")
    np.testing.assert_array_equal(averaged["params"]["head"]["kernel"], state(2)["ema"]["params"]["head"]["kernel"])
    with pytest.raises(UserError, match="holds no checkpoint"):
        read_weights(tmp_path / "nothing")


def test_roll_back_skips_what_was_saved_in_trouble(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=5)
    for step, bad in ((1, 0), (2, 0), (3, 4)):
        checkpoints.save(state(step, bad), META)
    checkpoints.manager.wait_until_finished()
    assert checkpoints.last_good() == 2
    checkpoints.discard_after(2)
    assert checkpoints.latest() == 2
    checkpoints.close()


def test_a_workdir_belongs_to_one_run(tmp_path):
    config = resolve(default_config())
    claim_workdir(tmp_path / "run", config, "photos")
    claim_workdir(tmp_path / "run", config, "photos")
    with pytest.raises(UserError, match="training data changed"):
        claim_workdir(tmp_path / "run", config, "other photos")
    claim_workdir(tmp_path / "other", config, "photos", "val")
    with pytest.raises(UserError, match="evaluation data changed"):
        claim_workdir(tmp_path / "other", config, "photos", "half of val")
