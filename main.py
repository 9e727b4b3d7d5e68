"""Train, distil, evaluate: `python main.py --config=configs/digits.py --workdir=runs/digits`. See README.md."""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

from deit_jax.config import (
    check_config_file,
    check_override,
    default_config,
    evaluation,
    flat,
    resolve,
    validate,
)
from deit_jax.errors import UserError, nearest
from deit_jax.runtime import host_memory

MODES = ("train", "evaluate", "label", "ablate", "plan", "benchmark")
FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "A file of configs/, with arguments after a colon.", lock_config=True)
flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, log, report.")
flags.DEFINE_string("mode", "train", f"What to do: {', '.join(MODES)}.")
flags.DEFINE_integer("verify", 0, "label: make so many stored batches again and compare.", lower_bound=0)
flags.DEFINE_string("topology", "", "plan: a TPU that is not here, as v5e:4x4; '' plans for the devices at hand.")
flags.DEFINE_multi_string("checkpoint", [], "evaluate: weights instead of the workdir's best; several, or A,B.")
flags.DEFINE_multi_string("data", [], "evaluate: [NAME=]ROOT[,labels=FILE][,split=NAME]; several make one table.")
flags.DEFINE_string("weights", "", "evaluate: params, or ema (averaged), of a run; '' both where both are there.")
flags.DEFINE_string("output", "", "evaluate: folder for evaluation.md, .json and .csv.")


def main(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    if len(argv) > 1:
        raise UserError(f"argument '{argv[1]}' is not a flag: write --{argv[1].lstrip('-')}")
    mode = FLAGS.mode
    if mode not in MODES:
        raise UserError(f"mode '{mode}' is not known{nearest(mode, MODES)}: use {', '.join(MODES)}")
    if FLAGS.config is None:
        raise UserError("no config: give --config=configs/FILE.py (configs/digits.py needs no data)")
    if mode in ("train", "label", "ablate") and not FLAGS.workdir:
        raise UserError("no workdir: give --workdir=FOLDER")

    if mode == "plan":
        from deit_jax.runtime.topologies import prepare_environment

        prepare_environment(FLAGS.topology)

    if host_memory.cpu_only():
        host_memory.keep_freed_memory()
    import jax

    from deit_jax.runtime import sharding
    from deit_jax.runtime.compile_cache import use_compile_cache

    if mode not in ("plan", "benchmark"):  # which tell how long compiling takes
        use_compile_cache()
    sharding.start_processes()
    if mode == "evaluate":
        from deit_jax.evaluate import Request, evaluate_command

        given = config_flags.get_override_values(FLAGS["config"])
        request = Request(tuple(FLAGS.checkpoint), tuple(FLAGS.data), FLAGS.weights, FLAGS.workdir or "", FLAGS.output)
        evaluate_command(FLAGS.config, changed(FLAGS.config) | given, request)
        return
    config = resolve(FLAGS.config)
    validate(config, num_devices=jax.device_count())
    if mode == "train":
        if config.finetune.epochs:
            from deit_jax.chain import chain as run
        else:
            from deit_jax.run import run

        run(config, FLAGS.workdir)
    elif mode == "ablate":
        from deit_jax.study.ablation import ablate

        ablate(config, FLAGS.workdir)
    elif mode == "label":
        from deit_jax.distill.label import label

        label(config, FLAGS.workdir, verify=FLAGS.verify)
    elif mode == "plan":
        from deit_jax.plan import plan

        plan(config, FLAGS.topology)
    elif mode == "benchmark":
        from deit_jax.benchmark import benchmark

        benchmark(config)


def changed(config) -> dict:
    """{setting: value} of the settings that differ from their defaults."""
    defaults = flat(default_config())
    return {path: value for path, value in flat(config).items() if value != defaults[path]}


def join_values(argv: list[str]) -> list[str]:
    """`--config FILE` and `--config.a.b VALUE` as `--config=FILE` and `--config.a.b=VALUE`."""
    out: list[str] = []
    for argument in argv:
        before = out[-1] if out else ""
        waits = before.startswith("--config") and "=" not in before and not argument.startswith("--")
        if waits:
            out[-1] = f"{before}={argument}"
        else:
            out.append(argument)
    return out


def parse(argv: list[str]) -> list[str]:
    """absl's flags; what a user can mend is said in one line, before absl's own checks where those would be many."""
    argv = join_values(argv)
    names = [argument.lstrip("-").partition("=")[0] for argument in argv[1:] if argument.startswith("--")]
    if "config" not in names and ("--mode=evaluate" in argv or " --mode evaluate" in " ".join(argv)):
        argv.insert(1, f"--config={evaluation.__file__}")  # every setting at its default
    for argument in argv[1:]:
        name, equals, value = argument.lstrip("-").partition("=")
        if name == "config" and equals:
            check_config_file(value.partition(":")[0])
        elif name.startswith("config.") and argument.startswith("--"):
            check_override(name.removeprefix("config."), value if equals else None)
    try:
        return FLAGS(argv)
    except flags.Error as error:
        causes: list[BaseException] = [error]
        while cause := causes[-1].__cause__ or causes[-1].__context__:
            causes.append(cause)
        for cause in reversed(causes):  # a config file's own complaint lies deepest, under wrappings with its traceback
            if isinstance(cause, UserError):
                raise cause from None
        raise UserError(" ".join(str(error).split())) from error


def entry() -> None:
    """The command line: what a user can mend ends in one line and exit code 2; an interruption in 130."""
    from deit_jax.runtime.interrupt import Interrupted

    try:
        app.run(main, flags_parser=parse)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as stop:
        print(stop)
        sys.exit(130)
    except KeyboardInterrupt:
        print("stopped")
        sys.exit(130)


if __name__ == "__main__":
    entry()
