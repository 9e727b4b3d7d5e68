"""Files of npm packages: read from a folder, fetched once, never another file than the one that was tested."""

import hashlib
import shutil

import pytest

from deit_jax.errors import UserError
from deit_jax.runtime.browser_files import NpmPackage, package_files

SUMS = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("a.mjs", "b.wasm")}
PACKAGE = NpmPackage("some-package", "1.2.3", "dist", SUMS)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_files_are_read_from_a_folder_and_checked(tmp_path, monkeypatch, cache):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        UserError,
        match=r"npm does not fetch \(.*No such file.*\): give --assets=DIR, the folder .* with a.mjs and b.wasm",
    ):
        package_files(PACKAGE)
    (tmp_path / "a.mjs").write_text("a.mjs")
    with pytest.raises(UserError, match=r"b\.wasm cannot be read"):
        package_files(PACKAGE, str(tmp_path))
    (tmp_path / "b.wasm").write_text("b.wasm")
    assert package_files(PACKAGE, str(tmp_path)) == [b"a.mjs", b"b.wasm"]
    (tmp_path / "b.wasm").write_text("another")
    with pytest.raises(UserError, match=r"b\.wasm is not the file of some-package 1\.2\.3"):
        package_files(PACKAGE, str(tmp_path))


@pytest.mark.parametrize("folder", ["dist", "."])
def test_npm_fills_the_cache_once(tmp_path, monkeypatch, cache, folder):
    package = PACKAGE._replace(folder=folder)
    (tmp_path / "package" / folder).mkdir(parents=True)
    for name in SUMS:
        (tmp_path / "package" / folder / name).write_text(name)
    shutil.make_archive(str(tmp_path / "made"), "gztar", tmp_path, "package")
    (tmp_path / "npm").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\ncp {tmp_path}/made.tar.gz x.tgz\n')
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert not package.cached
    for _ in range(2):
        assert package_files(package) == [b"a.mjs", b"b.wasm"]
        assert package.cached
    assert (tmp_path / "calls").read_text() == "pack --silent some-package@1.2.3\n"
    (tmp_path / "npm").write_text("#!/bin/sh\necho npm error offline >&2\nexit 1\n")
    shutil.rmtree(cache)
    with pytest.raises(UserError, match=r"npm does not fetch \(npm error offline\): give --assets"):
        package_files(package)
