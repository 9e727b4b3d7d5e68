"""How long the compilation of a train step takes, with an empty cache of compiled programs and with a filled one.

    python benchmarks/compile_time.py [--model=deit_base_patch16_224] [--batch=32] [--rounds=3] [--output=FILE]
        [NAME=VALUE …]

Each is a process of its own; tracing, lowering and compiling are counted, importing and data are not (startup.py has
those). The cache is what main.py uses (deit_jax/runtime/compile_cache.py).
"""

import json
import os
import subprocess
import sys
import tempfile

from common import ROOT, cells, changes_of, parser, save, settings, table


def compile_once(flags) -> None:
    from deit_jax.runtime.compile_cache import use_compile_cache

    use_compile_cache()
    from deit_jax.benchmark import Workload

    work = Workload(settings({"model.name": flags.model, "batch_size": flags.batch, **changes_of(flags.settings)}))
    print(json.dumps(work.compile_seconds))


def main() -> None:
    line = parser(__doc__, model="deit_base_patch16_224", batch=32, rounds=3, output="")
    line.add_argument("--once", action="store_true", help="what each process does")
    line.add_argument("settings", nargs="*")
    flags = line.parse_args()
    if flags.once:
        compile_once(flags)
        return
    seconds: dict[str, list[float]] = {"empty cache": [], "filled cache": []}
    command = [sys.executable, __file__, "--once", f"--model={flags.model}", f"--batch={flags.batch}", *flags.settings]
    for _ in range(flags.rounds):
        with tempfile.TemporaryDirectory() as cache:
            for values in seconds.values():
                environment = os.environ | {"XDG_CACHE_HOME": cache, "PYTHONPATH": str(ROOT)}
                said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
                values.append(json.loads(said.splitlines()[-1]))
    print(f"{flags.model}, batch {flags.batch}: seconds to trace, lower and compile a train step")
    print(table(["", "min", "median", "max"], [[name, *cells(values)] for name, values in seconds.items()]))
    save(flags.output, model=flags.model, batch=flags.batch, seconds=seconds)


if __name__ == "__main__":
    main()
