"""Listings of folders in which others write and remove."""

import pytest

from deit_jax.runtime import storage


def test_what_is_removed_while_a_folder_is_listed_is_left_out(tmp_path, monkeypatch):
    """As when Orbax clears away a killed save while a run starts."""
    (tmp_path / "step" / "params").mkdir(parents=True)
    (tmp_path / "step" / "kept").write_bytes(b"123")
    walk = storage.os.walk

    def walk_and_remove(folder, **more):
        for parent, folders, names in walk(folder, **more):
            yield parent, folders, [*names, "gone"]

    assert storage.folders(tmp_path) == [tmp_path / "step", tmp_path / "step" / "params"]
    monkeypatch.setattr(storage.os, "walk", walk_and_remove)
    assert storage.files(tmp_path) == {tmp_path / "step" / "kept": 3}


def test_a_disk_that_fails_in_a_listing_is_told(tmp_path):
    assert storage.files(tmp_path / "gone") == {}
    with pytest.raises(OSError, match="Stale file handle"):
        storage.unless_gone(OSError(116, "Stale file handle"))
