"""A damaged checkpoint is noticed whatever is wrong with it, set aside, and the one before it used; so is one that
could not be saved."""

import json
import random
import shutil

import numpy as np
import pytest
from small_state import META, restored, state

from deit_jax.errors import UserError
from deit_jax.train.checkpoint import Checkpoints
from deit_jax.weights import integrity
from deit_jax.weights.orbax import read_weights


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run's folder with steps 1 and 2, the second of which is the better one."""
    folder = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(folder)
    for step in (1, 2):
        checkpoints.score(step, {"top1": 10.0 * step})
        checkpoints.save(state(step), META)
    checkpoints.close()
    return folder


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def files(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in integrity.UNSUMMED)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


DAMAGE = {"cut": cut, "emptied": lambda path: path.write_bytes(b""), "deleted": lambda path: path.unlink()}


@pytest.mark.parametrize("kind", DAMAGE)
def test_every_file_of_a_checkpoint_is_watched(run, kind):
    step = run / "checkpoints/2"
    assert integrity.damage(step) is None
    for path in files(step):
        before = path.read_bytes()
        DAMAGE[kind](path)
        assert path.relative_to(step).as_posix() in integrity.damage(step)
        path.write_bytes(before)
    assert integrity.damage(step) is None


def test_every_flipped_bit_is_noticed(run):
    step, rng = run / "checkpoints/2", random.Random(0)
    every = [*files(step), step / integrity.SUMS]
    for _ in range(200):
        path = rng.choice(every)
        bit = rng.randrange(8 * path.stat().st_size)
        flip(path, bit)
        assert integrity.damage(step), (path, bit)
        flip(path, bit)


@pytest.mark.parametrize("part", ["params", "rest", "ema", "meta", "checksums.json", "params/manifest.ocdbt"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_used(run, part, capsys):
    path = run / "checkpoints/2" / part
    shutil.rmtree(path) if path.is_dir() else cut(path)
    assert int(restored(run)["step"]) == 1
    checkpoints = Checkpoints(run)
    checkpoints.save(state(2), META)
    checkpoints.close()
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert part in said
    assert "set aside in" in said
    assert (run / "damaged/2").is_dir()
    assert integrity.damage(run / "checkpoints/2") is None


def test_weights_come_from_the_best_intact_checkpoint_and_nothing_is_moved(run, capsys):
    cut(next((run / "checkpoints/2/params/d").iterdir()))
    _, weights = read_weights(run)
    np.testing.assert_array_equal(weights["params"]["head"]["kernel"], state(1)["params"]["head"]["kernel"])
    assert "checkpoints/2 is damaged (params/d/" in capsys.readouterr().err
    assert not (run / "damaged").exists()
    read_weights(run, "ema")  # whose files of step 2 are whole
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match=r"checkpoints/2 is damaged \(params/d/.*no intact one"):
        read_weights(run / "checkpoints/2")


def test_a_run_without_an_intact_checkpoint_is_refused_and_left_alone(run):
    for step in (1, 2):
        (run / f"checkpoints/{step}/rest/_METADATA").unlink()
    before = sorted(run.rglob("*"))
    with pytest.raises(UserError, match="no checkpoint in .* is intact .*rest/_METADATA is missing"):
        Checkpoints(run)
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize("content", [None, "", "{"])
@pytest.mark.parametrize("name", ["commit_success.txt", "_CHECKPOINT_METADATA"])
def test_orbax_own_files_do_not_decide(run, name, content):
    path = run / "checkpoints/2" / name
    path.unlink(missing_ok=True) if content is None else path.write_text(content)
    assert int(restored(run)["step"]) == 2


def test_a_damaged_evaluation_counts_as_none(run):
    checkpoints = Checkpoints(run)
    checkpoints.score(1, {"top1": 90.0})
    checkpoints.close()
    scores = run / "checkpoints/1/scores.json"
    assert Checkpoints(run).scores[1]["top1"] == 90.0
    cut(scores)
    assert Checkpoints(run).scores[1]["top1"] == 10.0


@pytest.mark.parametrize("then", ["wait_for_save", "close", "save"])
def test_a_save_that_fails_ends_the_run_and_leaves_the_last_step(tmp_path, monkeypatch, capsys, then):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1), META)
    checkpoints.wait_for_save()
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(integrity, "write_sums", lambda folder: (_ for _ in ()).throw(full))
    checkpoints.save(state(2), META)
    with pytest.raises(UserError, match=r"checkpoints/2 cannot be written \(No space left.* free in .*") as error:
        checkpoints.save(state(3), META) if then == "save" else getattr(checkpoints, then)()
    assert str(error.value).endswith("; the last saved step is 1: the same command resumes from there")
    checkpoints.close()
    assert capsys.readouterr() == ("", "")
    monkeypatch.undo()
    resumed = Checkpoints(tmp_path)
    assert resumed.latest() == 1
    resumed.save(state(2), META)
    resumed.close()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["1", "2"], "what was left is removed"


def test_weights_that_have_grown_beyond_bounds_are_not_healthy(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    checkpoints.save(state(1), META)
    huge = state(2)
    huge["params"]["head"]["kernel"] *= 1e20
    checkpoints.save(huge, META)
    assert checkpoints.last_good() == 1  # although the second is still being written
    checkpoints.close()
    assert not json.loads((tmp_path / "checkpoints/2/meta/metadata").read_text())["healthy"]
