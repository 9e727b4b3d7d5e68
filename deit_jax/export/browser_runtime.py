"""ONNX Runtime for browsers: two files of the npm package onnxruntime-web, fetched once into the user's cache."""

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from deit_jax.errors import UserError
from deit_jax.runtime import atomic
from deit_jax.runtime.compile_cache import compile_cache_folder

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
FILES = {  # of its dist folder: SHA-256
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}


def runtime_files(assets: str = "") -> list[bytes]:
    """The contents of FILES: of the folder `assets`, else of the cache, which is filled where it is empty.

    Raises UserError for a file that is missing or another, and where they cannot be fetched.
    """
    if assets:
        return [read_checked(Path(assets, name)) for name in FILES]
    cache = compile_cache_folder().parent / f"{PACKAGE}-{VERSION}"
    if not all((cache / name).is_file() for name in FILES):
        fetch_runtime(cache)
    return [read_checked(cache / name) for name in FILES]


def read_checked(path: Path) -> bytes:
    """A file of FILES. Raises UserError unless it is the one that was tested."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): --assets is the dist folder of {PACKAGE}"
        ) from error
    if hashlib.sha256(content).hexdigest() != FILES[path.name]:
        raise UserError(f"{path} is not the file of {PACKAGE} {VERSION} (its SHA-256 differs): remove or replace it")
    return content


def fetch_runtime(cache: Path) -> None:
    """Fill the cache by npm."""
    advice = f"give --assets=DIR, the dist folder of the npm package {PACKAGE} {VERSION}"
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(f"a page needs {PACKAGE} {VERSION}, and npm, which fetches it, is not installed: {advice}")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", "--silent", f"{PACKAGE}@{VERSION}"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        archives = list(Path(folder).glob("*.tgz"))
        if done.returncode or not archives:
            why = next(iter(done.stderr.strip().splitlines()), f"exit code {done.returncode}")
            raise UserError(f"npm does not give {PACKAGE} {VERSION} ({why}): {advice}")
        with tarfile.open(archives[0]) as archive:
            for name in FILES:
                archive.extract(f"package/dist/{name}", folder, filter="data")
        cache.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            atomic.write_bytes(cache / name, read_checked(Path(folder, "package/dist", name)))
