"""The command line: `python main.py --mode=MODE …`, `deit-jax MODE …`, `deit-jax TOOL …`."""

import runpy
import sys
from pathlib import Path

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
from deit_jax.errors import Interrupted, UserError, nearest
from deit_jax.runtime import host_memory, storage
from deit_jax.version import __version__

EXIT_INTERRUPTED = 130  # as a shell's after SIGINT
MODES = ("train", "evaluate", "label", "ablate", "plan", "benchmark")
# what a tool's `python -m deit_jax.…` name is
TOOLS = {
    "predict": "predict",
    "convert": "convert",
    "compare": "compare",
    "certify": "certify",
    "check": "check",
    "config": "config",
    "study": "study",
    "prepare": "data.prepare",
    "doctor": "data.doctor",
    "show": "data.show",
}
USAGE = f"""deit-jax MODE --config=NAME_OR_FILE --workdir=DIR [--config.a.b=VALUE …]
deit-jax TOOL …

MODE: {", ".join(MODES)}
TOOL: {", ".join(TOOLS)}; each explains itself with --help
NAME: a shipped config (deit-jax train --config=digits --workdir=runs/digits), or the file of one"""
FLAGS = flags.FLAGS


def define_flags() -> None:
    """Define the flags of the modes; not on import, as a tool may have a --config of its own."""
    config_flags.DEFINE_config_file(
        "config", None, "A file of configs/, with arguments after a colon.", lock_config=True
    )
    flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, log, report.")
    flags.DEFINE_string("mode", "train", f"What to do: {', '.join(MODES)}.")
    flags.DEFINE_integer("verify", 0, "label: compute this many stored batches again and compare.", lower_bound=0)
    flags.DEFINE_string("topology", "", "plan: a TPU that is not here, as v5e:4x4; '' plans for the devices at hand.")
    flags.DEFINE_multi_string("checkpoint", [], "evaluate: weights instead of the workdir's best; several, or A,B.")
    flags.DEFINE_multi_string("data", [], "evaluate: [NAME=]ROOT[,labels=FILE][,split=NAME]; several make one table.")
    flags.DEFINE_string("weights", "", "evaluate: params, or ema (averaged), of a run; '': both where both exist.")
    flags.DEFINE_string("output", "", "evaluate: folder for evaluation.md, .json and .csv.")


def main(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    if len(argv) > 1:
        flag = f"config={argv[1]}" if Path(argv[1].partition(":")[0]).suffix == ".py" else argv[1].lstrip("-")
        raise UserError(f"argument '{argv[1]}' is not a flag: write --{flag}")
    mode = FLAGS.mode
    if mode not in MODES:
        raise UserError(f"mode '{mode}' is not known{nearest(mode, MODES)}: use {', '.join(MODES)}")
    if FLAGS.config is None:
        raise UserError("no config: give --config=configs/FILE.py (configs/digits.py needs no data)")
    if mode in ("train", "label", "ablate") and not FLAGS.workdir:
        raise UserError("no workdir: give --workdir=FOLDER")

    if FLAGS.workdir:
        FLAGS.workdir = storage.local_text("workdir", FLAGS.workdir)
        if mode == "ablate" and storage.is_bucket(FLAGS.workdir):
            raise UserError(
                f"workdir {FLAGS.workdir} is in a bucket: an ablation shares its runs by locks of a file system, give a"
                " path"
            )
    FLAGS.output = storage.local_text("output", FLAGS.output)
    if mode == "plan":
        from deit_jax.runtime.topologies import prepare_environment

        prepare_environment(FLAGS.topology)

    if host_memory.cpu_only():
        host_memory.keep_freed_memory()
    from deit_jax.runtime import sharding
    from deit_jax.runtime.compile_cache import use_compile_cache

    if mode not in ("plan", "benchmark"):  # which tell how long compiling takes
        use_compile_cache()
    sharding.start_processes(FLAGS.config.processes.heartbeat_timeout)
    run_mode(mode)


def run_mode(mode: str) -> None:
    """Do what a mode does."""
    import jax  # here and below: a wrong command line is reported before jax is loaded

    if mode == "evaluate":
        from deit_jax.evaluate.evaluation_command import Request, evaluate_command

        given = config_flags.get_override_values(FLAGS["config"])
        request = Request(tuple(FLAGS.checkpoint), tuple(FLAGS.data), FLAGS.weights, FLAGS.workdir or "", FLAGS.output)
        evaluate_command(FLAGS.config, changed(FLAGS.config) | given, request)
        return
    config = resolve(FLAGS.config)
    validate(config, num_devices=jax.device_count())
    if config.init and mode in ("train", "label", "ablate"):
        from deit_jax.data.sources import check_root
        from deit_jax.weights.normalization import adopt_normalization

        check_root(config.data.root)  # before weights are read, which may come from a hub
        given = config_flags.get_override_values(FLAGS["config"])
        adopted = adopt_normalization(config, FLAGS.workdir, given)
        if adopted is not config:
            print(f"images are normalized as for {config.init}: mean {adopted.augment.mean}, std {adopted.augment.std}")
        config = adopted
    if mode == "train":
        from deit_jax.experiment import chain, run

        (chain if config.finetune.epochs else run)(config, FLAGS.workdir)
    elif mode == "ablate":
        from deit_jax.study.ablation import ablate

        ablate(config, FLAGS.workdir)
    elif mode == "label":
        from deit_jax.label import label

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


def shipped_configs() -> Path:
    """The folder of the configs that come with the package: beside it in a checkout, inside it once installed."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "configs"


def config_path(text: str) -> str:
    """`--config=`'s FILE:ARGUMENTS, where FILE may be the name of a shipped config instead of a file."""
    name, colon, arguments = text.partition(":")
    shipped = shipped_configs() / f"{name}.py"
    return f"{shipped}{colon}{arguments}" if not Path(name).exists() and shipped.is_file() else text


def config_argument(argument: str) -> str:
    """An argument of the command line, with the file of the config that `--config=NAME` names."""
    name, equals, value = argument.partition("=")
    return f"--config={config_path(value)}" if equals and name.lstrip("-") == "config" else argument


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
    """absl's flags; what a user can fix is said in one line, before absl's own checks where those would be many."""
    if {"-h", "-help", "--help"} & set(argv[1:]):
        print(f"{USAGE}\n\nFlags:\n{FLAGS.module_help(__name__)}")
        print("\nEvery setting of --config: python -m deit_jax.config")
        sys.exit(0)
    argv = join_values(argv)
    names = [argument.lstrip("-").partition("=")[0] for argument in argv[1:] if argument.startswith("--")]
    if "config" not in names and ("--mode=evaluate" in argv or " --mode evaluate" in " ".join(argv)):
        argv.insert(1, f"--config={evaluation.__file__}")  # every setting at its default
    for place, argument in enumerate(argv[1:], 1):
        name, equals, value = argument.lstrip("-").partition("=")
        if name == "config" and equals:
            argv[place] = config_argument(argument)
            shipped = sorted(p.stem for p in shipped_configs().glob("[!_]*.py"))
            check_config_file(config_path(value).partition(":")[0], shipped)
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
    """The command line.

    Exit codes: 2 for what a user can fix, in one line; 130 after Ctrl-C, or a stop with everything saved; 134 from jax
    when another process of the run was lost; 1 for a fault of this program, with its traceback.
    """
    define_flags()
    try:
        app.run(main, flags_parser=parse)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if not storage.is_bucket(str(error.filename or "")):
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    except (Interrupted, KeyboardInterrupt) as stop:
        print(str(stop) or "stopped", flush=True)
        sys.exit(EXIT_INTERRUPTED)


def run() -> None:
    """The console command `deit-jax`."""
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help", "help"):
        print(USAGE)
    elif command == "--version":
        print(__version__)
    elif command in TOOLS:
        named = [config_argument(argument) for argument in join_values(arguments)]
        sys.argv = [f"deit-jax {command}", *named]
        runpy.run_module(f"deit_jax.{TOOLS[command]}", run_name="__main__")
    elif command in MODES:
        sys.argv = [f"deit-jax {command}", f"--mode={command}", *arguments]
        entry()
    else:
        print(f"error: '{command}' is not a command{nearest(command, [*MODES, *TOOLS])}\n\n{USAGE}", file=sys.stderr)
        sys.exit(2)
