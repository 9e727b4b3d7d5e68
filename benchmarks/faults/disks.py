"""Files that were damaged, and disks that are full."""

import collections
import random
import shutil
import subprocess
from pathlib import Path

from benchmarks.faults import toys
from benchmarks.faults.kills import whole_run
from benchmarks.faults.starts import Start, in_child, state_bits
from benchmarks.faults.table import Outcome
from deit_jax.distill.label_store import LabelStore
from deit_jax.weights import integrity

STEPS = 4


def short_run(workdir: Path):
    """A toy run of a few steps."""
    return toys.toy_run(workdir, STEPS)


def summed_files(step: Path) -> list[Path]:
    """The files of a checkpoint that its checksums cover."""
    return [p for p in step.rglob("*") if p.is_file() and p.name not in integrity.UNSUMMED]


def damage(step: Path, rng: random.Random) -> str:
    """Damage a checkpoint in a random way; returns which."""
    victim = rng.choice([*summed_files(step), step / integrity.SUMS])
    kind = rng.choice(("cut", "emptied", "deleted", "item deleted"))
    if kind == "item deleted":
        shutil.rmtree(rng.choice([p for p in step.iterdir() if p.is_dir()]))
    elif kind == "deleted" and victim.name != integrity.SUMS:  # without sums it is a checkpoint of an older version
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2 if kind == "cut" else 0])
    return kind


def damaged(count: int, folder: Path, rng: random.Random) -> Outcome:
    """Newest checkpoint damaged: set aside, and the step before resumed; the end compared bit for bit."""
    truth = whole_run(short_run, state_bits, folder / "whole")
    run, kinds = folder / "run", collections.Counter()

    def trials() -> Outcome:
        outcome = Outcome()
        for _ in range(count):
            shutil.rmtree(run, ignore_errors=True)
            shutil.copytree(folder / "whole", run)
            kind = damage(run / f"checkpoints/{STEPS}", rng)
            kinds[kind] += 1
            short_run(run)()
            aside = (run / f"damaged/{STEPS}").is_dir()
            outcome.add(aside and state_bits(run) == truth, f"{kind}, set aside: {aside}", kept=run)
        outcome.seen = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
        return outcome

    return in_child(trials, folder)


def flips(count: int, folder: Path, rng: random.Random) -> Outcome:
    """One bit flipped in a checkpoint's files, its checksums.json or a label chunk: noticed before use."""
    whole_run(short_run, state_bits, folder / "whole")
    labels = folder / "labels"
    Start(toys.toy_labels(labels, 3), folder / "labels.log").wait()
    step = folder / f"whole/checkpoints/{STEPS}"
    files = [*summed_files(step), step / integrity.SUMS, *labels.glob("label/c/*/0")]

    def trials() -> Outcome:
        outcome, where = Outcome(), collections.Counter()
        for _ in range(count):
            path = rng.choice(files)
            whole = path.read_bytes()
            bit = rng.randrange(8 * len(whole))
            changed = bytearray(whole)
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
            of_labels = labels in path.parents
            noticed = bool(LabelStore(labels).damaged() if of_labels else integrity.damage(step))
            path.write_bytes(whole)
            where["label chunks" if of_labels else "checkpoints"] += 1
            outcome.add(noticed, f"bit {bit} of {path}")
        outcome.seen = ", ".join(f"{n} in {name}" for name, n in where.items())
        return outcome

    return in_child(trials, folder)


def full(count: int, folder: Path, rng: random.Random) -> Outcome:
    """Disk full while saving: the run ends with one line; with room again the same command finishes it."""
    small, log, outcome = folder / "small", folder / "run.log", Outcome()
    small.mkdir(parents=True, exist_ok=True)
    failed = 0
    for _ in range(count):
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small]
        if subprocess.run(mount, capture_output=True).returncode:
            raise RuntimeError("no right to mount a tmpfs")
        try:
            (small / "filler").write_bytes(bytes(rng.randrange(600_000, 1_000_000)))
            start = Start(toys.toy_run(small / "run", 10), log)
            code, lines = start.wait(), start.lines()
            failed += code != 0
            last = lines[-1] if lines else ""  # behind Orbax's log, which the command switches off
            named = last.startswith("UserError: ") and "cannot be written" in last
            plain = not lines if code == 0 else code == 70 and named
            (small / "filler").unlink()
            again = Start(toys.toy_run(small / "run", 10), log).wait()
            done = again == 0 and in_child(lambda: state_bits(small / "run")["step"], folder) == "10"
            outcome.add(plain and done, f"exit codes {code}, {again}: {lines[-2:]}")
        finally:
            subprocess.run(["umount", small], check=True)
    outcome.seen = f"1 MB tmpfs; {failed} with a save that failed"
    return outcome
