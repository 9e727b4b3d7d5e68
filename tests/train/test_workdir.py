"""Which settings name the same weights."""

import pytest

from deit_jax.train.workdir import absolute, same_sources


def test_relative_and_absolute_names_of_weights_are_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.safetensors").write_bytes(b"")
    there = str(tmp_path / "w.safetensors")
    assert absolute("w.safetensors,timm/x,") == f"{there},timm/x,"
    assert same_sources("init", "w.safetensors", there)
    assert same_sources("teacher.init", f"{there},timm/x", "./w.safetensors,timm/x")


@pytest.mark.parametrize(
    ("key", "ours", "theirs"),
    [("init", "a", "b"), ("init", "", "a"), ("model.name", "a", "./a"), ("init", None, "a"), ("init", "a", "a,a")],
)
def test_other_weights_are_others(key, ours, theirs):
    assert not same_sources(key, ours, theirs)
