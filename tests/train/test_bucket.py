"""A run in a bucket: checkpoints, log and resuming as on a disk, though nothing can be renamed or appended to."""

import functools

import jax
import numpy as np
import pytest
from helpers import tool
from small_state import META, shapes, state

from deit_jax.config import default_config, resolve
from deit_jax.distill.runs import train_run
from deit_jax.runtime import sharding, storage
from deit_jax.train import loop
from deit_jax.train.checkpoint import Checkpoints
from deit_jax.train.log import read_log
from deit_jax.weights import integrity
from deit_jax.weights.orbax import find_step, read_weights

pytestmark = pytest.mark.usefixtures("single", "unchecked")  # one device's checkpoints have fewer files


def save(folder, *steps):
    checkpoints = Checkpoints(folder)
    for step in steps:
        checkpoints.save(state(step), META, {"top1": 10.0 * step})
    checkpoints.close()


def restored(folder) -> int:
    checkpoints = Checkpoints(folder)
    found = checkpoints.restore(shapes(sharding.make_mesh()))
    checkpoints.close()
    step = int(found["step"])
    jax.tree.map(np.testing.assert_array_equal, found, state(step))
    return step


def test_checkpoints_are_saved_verified_and_set_aside(bucket, capsys):
    save(bucket, 2, 3)
    assert sorted(int(p.name) for p in integrity.steps_in(bucket / "checkpoints")) == [2, 3]
    assert tool("check", bucket).out.endswith("2 checked, 0 damaged\n")

    # a process that was killed while it saved step 4
    for path in storage.files(bucket / "checkpoints/3"):
        if path.name not in (integrity.COMMITTED, "scores.json"):
            path.copy(str(path).replace("/3/", "/4/", 1))
    assert find_step(bucket).name == "3"
    assert restored(bucket) == 3
    assert not (bucket / "checkpoints/4").exists()

    array = next(p for p in storage.files(bucket / "checkpoints/3/params") if "/d/" in str(p))
    array.write_bytes(array.read_bytes()[:-1] + b"x")
    assert "does not hold the bytes" in tool("check", bucket).out
    assert find_step(bucket).name == "3"
    assert "using step 2 instead" in capsys.readouterr().err or read_weights(bucket)[0]["step"] == 2
    assert restored(bucket) == 2
    assert f"{bucket}/checkpoints/3 is damaged" in capsys.readouterr().out
    assert (bucket / "damaged/3/checksums.json").exists()
    assert not (bucket / "checkpoints/3").exists()


def test_a_save_that_the_bucket_refuses_loses_no_training(bucket, gcs_server, capsys):
    checkpoints = Checkpoints(bucket)
    checkpoints.save(state(1), META)
    checkpoints.settle()
    for step, methods in ((2, ("POST", "PUT")), (3, ("GET", "POST", "PUT", "DELETE"))):
        gcs_server.failing, gcs_server.failing_methods = 403, methods
        checkpoints.save(state(step), META)
        checkpoints.settle()
        assert f"step {step} is not saved" in capsys.readouterr().out
    gcs_server.failing = 0
    assert checkpoints.save(state(4), META)
    checkpoints.close()
    assert restored(bucket) == 4


def test_a_killed_run_goes_on_bit_for_bit(bucket, tmp_path):
    config = default_config()
    config.data.name, config.model.name = "digits", "deit_digits_patch4_16"
    config.batch_size, config.epochs, config.data.limit, config.evaluate.limit = 32, 2, 96, 32
    config.augment.policy, config.augment.repeats, config.log.every, config.log.tensorboard = "none", 1, 2, False
    config.checkpoint.every = config.evaluate.every = 1
    config.optimizer.ema_decay = 0.0
    config = resolve(config)
    whole = train_run(config, tmp_path)
    save, killed = loop.save, RuntimeError("killed")

    def save_and_die(run, state, checkpoints, log):
        save(run, state, checkpoints, log)
        checkpoints.settle()
        log.close = lambda: None
        raise killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save", save_and_die)
        with pytest.raises(RuntimeError, match="killed"):
            train_run(config, bucket)
    assert 0 < int(find_step(bucket).name) < int(find_step(tmp_path).name)
    assert train_run(config, bucket) == whole
    same = functools.partial(jax.tree.map, np.testing.assert_array_equal)
    same(read_weights(bucket)[1], read_weights(tmp_path)[1])
    clock = {"images_per_second", "wait_share"}
    logs = [[{k: v for k, v in r.items() if k not in clock} for r in read_log(folder)] for folder in (bucket, tmp_path)]
    assert logs[0] == logs[1]
