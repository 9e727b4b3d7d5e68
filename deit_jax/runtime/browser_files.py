"""Files of npm packages that pages hold, fetched once, by version and SHA-256, into the user's cache."""

import hashlib
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from deit_jax.errors import UserError
from deit_jax.runtime import atomic
from deit_jax.runtime.compile_cache import compile_cache_folder


class NpmPackage(NamedTuple):
    """What is used of a package.

    Attributes:
        name, version: npm's.
        folder: of the package, that holds the files; "." is its top.
        files: {name: SHA-256}.
    """

    name: str
    version: str
    folder: str
    files: dict[str, str]

    @property
    def cache(self) -> Path:
        """The folder its files are kept in."""
        return compile_cache_folder().parent / f"{self.name}-{self.version}"

    @property
    def cached(self) -> bool:
        """Whether they are there."""
        return all((self.cache / name).is_file() for name in self.files)

    @property
    def assets(self) -> str:
        """What --assets names."""
        return f"the folder of the npm package {self.name} {self.version} with {' and '.join(self.files)}"


ONNXRUNTIME = NpmPackage(
    "onnxruntime-web",
    "1.30.0",
    "dist",
    {
        "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
        "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    },
)
PLOTLY = NpmPackage(  # of its bundles the smallest with heat maps
    "plotly.js-cartesian-dist-min",
    "4.1.1",
    ".",
    {"plotly-cartesian.min.js": "79542150855a52c567260e3137095dbe2b744e6d702a5cabe67da246942fba7a"},
)


def package_files(package: NpmPackage, assets: str = "") -> list[bytes]:
    """The contents of a package's files: of the folder `assets`, else of the cache, which is filled where it is empty.

    Raises UserError for a file that is missing or another, and where they cannot be fetched.
    """
    if not assets and not package.cached:
        fill_cache(package)
    return [read_checked(Path(assets or package.cache, name), package) for name in package.files]


def read_checked(path: Path, package: NpmPackage) -> bytes:
    """One of its files. Raises UserError unless it is the one that was tested."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): --assets is {package.assets}") from error
    if hashlib.sha256(content).hexdigest() != package.files[path.name]:
        raise UserError(
            f"{path} is not the file of {package.name} {package.version} (its SHA-256 differs): remove or replace it"
        )
    return content


def fill_cache(package: NpmPackage) -> None:
    """Fill the cache by npm."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
        try:
            subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:  # npm is missing, or tells why on stderr
            why = (getattr(error, "stderr", "").strip() or str(error)).splitlines()[0]
            raise UserError(
                f"the page needs {package.name} {package.version}, which npm does not fetch ({why}): give --assets=DIR,"
                f" {package.assets}"
            ) from error
        inside = Path("package", package.folder)
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as archive:
            for name in package.files:
                packed: Any = archive.extractfile(str(inside / name))
                Path(folder, name).write_bytes(packed.read())
        package.cache.mkdir(parents=True, exist_ok=True)
        for name in package.files:
            atomic.write_bytes(package.cache / name, read_checked(Path(folder, name), package))
