"""Break runs in every way that is promised to be survived, and print how many of each were.

    python -m benchmarks.faults [--only=ROW,ROW] [--ROW=COUNT …] [--folder=DIR] [--output=FILE.json] [--seed=0]

Without counts it runs each row as often as ROWS says; docs/reliability.md has the promises. Rows can be run one after
the other, or again, with the same --output: it holds each row's newest figures, and the table that is printed at the
end shows all of them.

A start is a fork of a process that has imported everything and touched no device, with a compilation cache of its own.
Full disks need the right to mount a tmpfs.
"""

import argparse
import contextlib
import datetime
import gc
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import matplotlib.backends.backend_agg
import matplotlib.pyplot  # noqa: F401
import sklearn.datasets  # noqa: F401  what starts would import otherwise, three seconds each

from benchmarks.faults import disks, kills, processes, table
from benchmarks.faults.starts import crashed
from deit_jax.errors import UserError

ROWS: dict[str, tuple[Callable, int]] = {
    "saves": (kills.saves, 650),
    "labels": (kills.labels, 300),
    "kills": (kills.kills, 50),
    "damaged": (disks.damaged, 100),
    "flips": (disks.flips, 200),
    "full": (disks.full, 20),
    "doubles": (processes.doubles, 20),
    "signals": (processes.signals, 40),
}


@contextlib.contextmanager
def working_folder(given: str) -> Iterator[Path]:
    """The folder that is asked for, or a temporary one."""
    if given:
        Path(given).mkdir(parents=True, exist_ok=True)
        yield Path(given).absolute()
        return
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        yield Path(folder)


def first_line(work: Callable) -> str:
    """What a row is, from its docstring."""
    return str(work.__doc__).split("\n")[0].rstrip(".")


def campaign(counts: dict[str, int], folder: Path, output: Path, seed: int = 0) -> bool:
    """Run rows, keep their figures in `output` and print its table; returns whether all of them held."""
    compiled = os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
    jax.config.update("jax_compilation_cache_dir", compiled)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    gc.freeze()  # forks share what is there
    rows = table.read(output)
    every = True
    for name, count in counts.items():
        work, place = ROWS[name][0], folder / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        print(f"{name}: {count}", flush=True)
        begun = time.monotonic()
        try:
            outcome = work(count, place, random.Random(seed))
        except (RuntimeError, UserError) as error:
            outcome = table.Outcome()
            outcome.add(False, f"could not be run: {error}")
        outcome.failures += [f"crashed: {text}" for text in crashed]
        crashed.clear()
        every &= outcome.held == outcome.tried
        what = first_line(work)
        seconds, date = round(time.monotonic() - begun, 1), datetime.date.today().isoformat()
        table.write(output, rows, name, outcome, what=what, seconds=seconds, date=date, seed=seed)
    print(table.text(rows), flush=True)
    return every


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=str(__doc__).split("\n")[0])
    parser.add_argument("--only", default="", help=f"rows, separated by commas, of {', '.join(ROWS)}; all by default")
    for name, (work, count) in ROWS.items():
        parser.add_argument(f"--{name}", type=int, default=count, help=first_line(work).replace("%", "%%"))
    parser.add_argument("--seed", type=int, default=0, help="of the random moments, files and bits")
    parser.add_argument("--folder", default="", help="where to work; kept. Default: a temporary one")
    parser.add_argument("--output", default="", help="JSON file of the figures. Default: FOLDER/faults.json")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",") if arguments.only else list(ROWS)
    if unknown := [name for name in chosen if name not in ROWS]:
        parser.error(f"{unknown[0]} is not a row: use {', '.join(ROWS)}")
    counts = {name: getattr(arguments, name) for name in chosen if getattr(arguments, name)}
    with working_folder(arguments.folder) as folder:
        output = Path(arguments.output).absolute() if arguments.output else folder / "faults.json"
        sys.exit(0 if campaign(counts, folder, output, arguments.seed) else 1)


if __name__ == "__main__":
    main()
