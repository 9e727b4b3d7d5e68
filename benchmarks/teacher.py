"""What a teacher costs: a step without one, with stored labels (hard, or logits of 1,000 classes), and with the teacher
in the same jit.

    python benchmarks/teacher.py [--model=deit_small_distilled_patch16_224] [--teacher=regnety_160] [--batch=256]
        [--rounds=5] [--seconds=2] [--output=FILE]

The live teacher's share is set against what its arithmetic would cost at the rate of the student's step.
"""

from common import cells, middle, on_gpu, parser, ratios, save, settings, spread, table


def main() -> None:
    models = {"model": "deit_small_distilled_patch16_224", "teacher": "regnety_160"}
    flags = parser(__doc__, **models, batch=256, rounds=5, seconds=2.0, output="").parse_args()

    from deit_jax.runtime import host_memory

    if not on_gpu():
        host_memory.keep_freed_memory()
    from deit_jax.benchmark import Workload
    from deit_jax.runtime.timing import calls_within, time_once

    common = {"model.name": flags.model, "batch_size": flags.batch, "teacher.name": flags.teacher}
    ways = {
        "no teacher": {"distill.kind": "none"},
        "stored labels": {"distill.kind": "hard", "distill.labels": "(random)"},
        "stored logits": {"distill.kind": "soft", "distill.labels": "(random)", "label.k": 1000},
        "live teacher": {"distill.kind": "hard"},
    }
    work = {name: Workload(settings({**common, **changes})) for name, changes in ways.items()}
    counts = {name: calls_within(w.train, flags.seconds) for name, w in work.items()}
    times: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(flags.rounds):
        for name in work if turn % 2 == 0 else reversed(work):
            times[name].append(time_once(work[name].train, counts[name]))

    flops = {name: w.flops()["train"] for name, w in work.items()}
    against = lambda values: middle(ratios(values, times["no teacher"]), ".3f")
    rows = [[name, *cells([1e3 * t for t in values]), against(values)] for name, values in times.items()]
    print(f"{flags.model} with {flags.teacher}, batch {flags.batch}")
    print(table(["milliseconds a step", "min", "median", "max", "/ no teacher"], rows))
    extra = [a - b for a, b in zip(times["live teacher"], times["stored labels"], strict=True)]
    at_rate = [
        (flops["live teacher"] - flops["stored labels"]) * t / flops["stored labels"] for t in times["stored labels"]
    ]
    cost = ratios(extra, at_rate)
    print(f"the live teacher takes {middle(cost, '.2f')} of what its arithmetic would cost at the student's rate")
    save(flags.output, flags=vars(flags), seconds=times, flops=flops, teacher_at_students_rate=spread(cost))


if __name__ == "__main__":
    main()
