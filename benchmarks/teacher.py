"""What a teacher costs: a step without one, with stored labels, and with the teacher in the same jit.

    python benchmarks/teacher.py [--model=deit_small_distilled_patch16_224] [--teacher=regnety_160] [--batch=256]
        [--rounds=5] [--seconds=2] [--output=FILE]

The live teacher's share is set against what its arithmetic would cost at the rate of the student's step.
"""

import argparse
import json

from common import on_gpu, ratios, save, settings, spread, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_small_distilled_patch16_224")
    parser.add_argument("--teacher", default="regnety_160")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="a stretch lasts about")
    parser.add_argument("--output", default="")
    flags = parser.parse_args()

    from deit_jax.runtime import host_memory

    if not on_gpu():
        host_memory.keep_freed_memory()
    from deit_jax.benchmark import Workload
    from deit_jax.runtime.timing import calls_within, time_once

    common = {"model.name": flags.model, "batch_size": flags.batch, "teacher.name": flags.teacher}
    ways = {
        "no teacher": {"distill.kind": "none"},
        "stored labels": {"distill.kind": "hard", "distill.labels": "(random)"},
        "live teacher": {"distill.kind": "hard"},
    }
    work = {name: Workload(settings({**common, **changes})) for name, changes in ways.items()}
    counts = {name: calls_within(w.train, flags.seconds) for name, w in work.items()}
    times: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(flags.rounds):
        for name in work if turn % 2 == 0 else reversed(work):
            times[name].append(time_once(work[name].train, counts[name]))

    flops = {name: w.flops()["train"] for name, w in work.items()}
    rows = []
    for name, values in times.items():
        s, r = spread(values), ratios(values, times["no teacher"])
        cells = [f"{1e3 * s[k]:.1f}" for k in ("min", "median", "max")]
        rows.append([name, *cells, f"{r['median']:.3f}x ({r['min']:.3f} .. {r['max']:.3f})"])
    print(f"{flags.model} with {flags.teacher}, batch {flags.batch}")
    print(table(["milliseconds a step", "min", "median", "max", "against no teacher"], rows))
    extra = [a - b for a, b in zip(times["live teacher"], times["stored labels"], strict=True)]
    at_rate = [
        (flops["live teacher"] - flops["stored labels"]) * t / flops["stored labels"] for t in times["stored labels"]
    ]
    cost = ratios(extra, at_rate)
    print(
        f"the live teacher takes {cost['median']:.2f}x ({cost['min']:.2f} .. {cost['max']:.2f}) of what its arithmetic"
    )
    print("would cost at the student's rate")
    print(json.dumps({"seconds": times, "flops": flops, "teacher_at_students_rate": cost}))
    save(flags.output, flags=vars(flags), seconds=times, flops=flops, teacher_at_students_rate=cost)


if __name__ == "__main__":
    main()
