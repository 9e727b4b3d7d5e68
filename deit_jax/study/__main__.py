"""Write the report of a study from what its folder holds; runs nothing, so also while the study is running:

python -m deit_jax.study WORKDIR [OUT]       OUT: where the report goes, default WORKDIR/results
"""

import json
import sys
from pathlib import Path

from deit_jax.config import default_config, flat
from deit_jax.config.settings import RENAMED
from deit_jax.errors import UserError
from deit_jax.study import report
from deit_jax.study.ablation import collect


def recorded_config(workdir: Path):
    """The resolved config that a study's folder was begun with. Raises UserError where there is none."""
    try:
        values = json.loads((workdir / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{workdir} holds no config.json: give the --workdir of an --mode=ablate run") from error
    config = default_config()
    known = flat(config).keys()
    for name, value in values.items():
        name = RENAMED.get(name, name)
        if name in known:
            config.update_from_flattened_dict({name: tuple(value) if isinstance(value, list) else value})
    return config


def main(arguments: list[str]) -> None:
    if not 1 <= len(arguments) <= 2:
        raise UserError("python -m deit_jax.study WORKDIR [OUT]")
    workdir = Path(arguments[0])
    config = recorded_config(workdir)
    scores, averaged = collect(workdir, config), collect(workdir, config, "ema")
    if not scores:
        raise UserError(f"{workdir} holds no finished run")
    folder = Path(arguments[1]) if len(arguments) == 2 else workdir / "results"
    report.write(workdir, config, scores, averaged, folder)
    print(f"{sum(map(len, scores.values()))} runs: {folder / 'ablation.md'}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
