"""Write the report of a study from what its folder holds; runs nothing, so also while the study is running:

python -m deit_jax.study WORKDIR [OUT]       OUT: where the report goes, default WORKDIR/results

Only seeds that every arm has finished are reported, so that all arms are compared over the same ones. OUT/runs gets the
record of each finished run (done.json): copied into a workdir, they let `--mode=ablate` resume from there.
"""

import argparse
import contextlib
import json
from pathlib import Path

from deit_jax.command import command
from deit_jax.config import default_config, flat
from deit_jax.errors import UserError
from deit_jax.runtime import atomic
from deit_jax.study import report
from deit_jax.study.ablation import LIVE, collect
from deit_jax.study.claims import Scores


def recorded_config(workdir: Path):
    """The resolved config that a study's folder was begun with. Raises UserError where there is none."""
    try:
        values = json.loads((workdir / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{workdir} holds no config.json: give the --workdir of an --mode=ablate run") from error
    config = default_config()
    known = flat(config).keys()
    for name, value in values.items():
        if name in known:
            with contextlib.suppress(TypeError):  # renamed with another type (sharding, now mesh.fsdp): the default
                config.update_from_flattened_dict({name: tuple(value) if isinstance(value, list) else value})
    return config


@command
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m deit_jax.study", description="Write a study's report from what its folder holds."
    )
    parser.add_argument("workdir", type=Path, help="of an --mode=ablate run, which may still be running")
    parser.add_argument("out", type=Path, nargs="?", help="where the report goes (default: WORKDIR/results)")
    given = parser.parse_args(arguments)
    workdir = given.workdir
    config = recorded_config(workdir)
    scores, left_out = complete(collect(workdir, config))
    if not scores:
        raise UserError(f"{workdir} holds no seed that every arm has finished")
    seeds = next(iter(scores.values())).keys()
    averaged = {a: {s: r for s, r in runs.items() if s in seeds} for a, runs in collect(workdir, config, "ema").items()}
    folder = given.out or workdir / "results"
    report.write(workdir, config, scores, averaged, folder)
    copy_records(workdir, folder / "runs", set(seeds))
    print(f"{len(seeds)} seeds of {len(scores)} arms: {folder / 'ablation.md'}")
    if left_out:
        print(f"left out: seeds {', '.join(map(str, left_out))}, which only some arms have finished")


def complete(scores: Scores) -> tuple[Scores, list[int]]:
    """The scores of the seeds that every arm has ("hard_live" runs one alone), and the seeds left out."""
    many = {arm: runs for arm, runs in scores.items() if not arm.startswith(LIVE)}
    every = set.intersection(*(set(runs) for runs in many.values())) if many else set()
    kept = {arm: {s: r for s, r in runs.items() if s in every} for arm, runs in scores.items()} if every else {}
    return kept, sorted({s for runs in scores.values() for s in runs} - every)


def copy_records(workdir: Path, folder: Path, seeds: set[int]) -> None:
    """Copy each run's record; of stored labels only those of complete `seeds`: runs of others still need the labels
    themselves."""
    for name, result in report.finished(workdir).items():
        if name.startswith("labels/") and int(name.split("-")[-2]) not in seeds:
            continue
        (folder / name).mkdir(parents=True, exist_ok=True)
        atomic.write_json(folder / name / "done.json", result)


if __name__ == "__main__":
    main()
