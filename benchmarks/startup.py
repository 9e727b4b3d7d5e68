"""Time from the start of the process to the first finished training step, as a user feels it.

    python benchmarks/startup.py [--config=configs/deit_ti.py] [--batch=32] [--rounds=3] [--output=FILE] [NAME=VALUE …]

Runs main.py on a folder of noise as JPEG files, with an empty cache of compiled programs ("first start") and then with
what that run left ("second start"). Needs what main.py needs.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, cells, parser, save, table


def make_images(folder: Path, count: int, classes: int = 4) -> None:
    """Noise of a photo's size, so that the host's work is like that of real images."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, number in (("train", count), ("val", classes)):
        for i in range(number):
            path = folder / split / f"class{i % classes}" / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8))
            coarse.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)


def first_step(command: list[str], workdir: Path, cache: Path) -> float:
    """Seconds from starting the command to the first line of its log that has a loss; then it is ended."""
    log = workdir / "log.jsonl"
    begun = time.perf_counter()
    output = workdir.with_suffix(".txt")
    with open(output, "w") as out:
        environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
        process = subprocess.Popen(
            [*command, f"--workdir={workdir}"], cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, env=environment
        )
        try:
            while not (log.exists() and '"loss"' in log.read_text()):
                if process.poll() is not None:
                    sys.exit(f"error: the run ended before its first step:\n{output.read_text()[-2000:]}")
                time.sleep(0.02)
            return time.perf_counter() - begun
        finally:
            process.kill()
            process.wait()


def main() -> None:
    line = parser(__doc__, config="configs/deit_ti.py", batch=32, rounds=3, output="")
    line.add_argument("settings", nargs="*")
    flags = line.parse_args()
    seconds: dict[str, list[float]] = {"first start": [], "second start": []}
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "images"
        make_images(data, 2 * flags.batch)
        command = [sys.executable, "main.py", f"--config={flags.config}", f"--config.data.root={data}"]
        command += [f"--config.batch_size={flags.batch}", "--config.log.every=1", "--config.epochs=2"]
        command += [f"--config.{text}" for text in flags.settings]
        for turn in range(flags.rounds):
            cache = Path(scratch) / f"cache{turn}"
            for name, values in seconds.items():
                values.append(first_step(command, Path(scratch) / f"{name} {turn}".replace(" ", "_"), cache))
    print(f"{flags.config}, batch {flags.batch}: seconds from the start of the process to the first training step")
    print(table(["", "min", "median", "max"], [[name, *cells(values)] for name, values in seconds.items()]))
    save(flags.output, config=flags.config, batch=flags.batch, seconds=seconds)


if __name__ == "__main__":
    main()
