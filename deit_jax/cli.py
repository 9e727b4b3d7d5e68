"""The command line: `deit-jax MODE …`, `deit-jax TOOL …`, `python main.py --mode=MODE …`."""

import functools
import importlib
import sys
from pathlib import Path
from typing import Any, cast

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from deit_jax.command import command
from deit_jax.config.checks import validate
from deit_jax.config.recipes import named_size, resolve
from deit_jax.config.settings import SETTINGS, Config, default_config, flat
from deit_jax.errors import UserError, nearest
from deit_jax.own import is_own
from deit_jax.runtime import host_memory, storage
from deit_jax.version import __version__

MODES = ("train", "evaluate", "label", "ablate", "plan", "benchmark", "show")
TOOLS = {  # name: module
    "predict": "predict",
    "convert": "convert",
    "certify": "certify",
    "check": "check",
    "config": "config.__main__",
    "prepare": "data.tools.prepare",
    "doctor": "data.tools.doctor",
    "export": "export.export_command",
    "page": "export.page",
    "push": "export.push",
    "report": "report.report_page",
}
USAGE = f"""deit-jax MODE --config=NAME_OR_FILE --workdir=DIR [--config.a.b=VALUE …]
deit-jax TOOL …

MODE: {", ".join(MODES)}
TOOL: {", ".join(TOOLS)}; each explains itself with --help
NAME: a shipped config (deit-jax train --config=digits --workdir=runs/digits), or the file of one"""


@command
def main(arguments: list[str] | None = None) -> int | None:
    """Run a command line, the process's own unless given; a failure exits with the code of `command`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    first, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if first in TOOLS:
        return importlib.import_module(f"deit_jax.{TOOLS[first]}").main(rest)
    if first in MODES:
        first, arguments = "--mode", [f"--mode={first}", *rest]
    if "--version" in arguments[:1]:
        print(__version__)
    elif first == "help" or {"-h", "-help", "--help"} & {first, *rest}:
        print(f"{USAGE}\n\nFlags:\n{define_flags(['--config']).get_help()}")
        print("\nEvery setting of --config: python -m deit_jax.config")
    elif first.startswith("-"):
        run_mode(parse(arguments))
    else:
        raise UserError(f"'{first}' is not a command{nearest(first, [*MODES, *TOOLS])}: deit-jax --help lists all")


def define_flags(argv: list[str]) -> flags.FlagValues:
    """The flags of the modes, not parsed. argv: the command line, in which --config reads its overrides."""
    found = flags.FlagValues()  # of their own: another program may have a --config, and a process many commands
    if names_config(argv):
        meaning = "A file of configs/, or a shipped config's name; arguments after a colon."
        config_flags.DEFINE_config_file("config", None, meaning, found, sys_argv=argv)
    else:  # evaluate needs none: a run's checkpoint brings its own settings
        defaults = cast(ConfigDict, default_config())
        config_flags.DEFINE_config_dict("config", defaults, "Settings.", found, sys_argv=argv)
    text = functools.partial(flags.DEFINE_string, flag_values=found)
    texts = functools.partial(flags.DEFINE_multi_string, flag_values=found)
    number = functools.partial(flags.DEFINE_integer, flag_values=found, lower_bound=0)
    text("workdir", None, "Folder of the run: checkpoints, log, report.")
    flags.DEFINE_enum("mode", "train", MODES, "What to do.", flag_values=found)
    number("verify", 0, "label: compute this many stored batches again and compare.")
    text("topology", "", "plan: devices that are not here, h100:8 or v5e:4x4; '' plans for this machine's.")
    flags.DEFINE_float("price", 0.0, "plan: of a device's hour, for the forecast.", 0.0, flag_values=found)
    texts("checkpoint", [], "evaluate: weights instead of the workdir's best; several, or A,B.")
    texts("data", [], "evaluate: [NAME=]ROOT[,labels=FILE][,split=NAME]; several make one table.")
    text("probe", "", "evaluate: knn, or linear, of the features instead of the head; docs/evaluation.md.")
    text("weights", "", "evaluate: params, or ema, of a run; '': both where both exist.")
    text("output", "", "evaluate: folder for evaluation.md and .json; show: the picture to write.")
    number("step", 0, "show: the step whose batch is drawn.")
    return found


def names_config(argv: list[str]) -> bool:
    return any(argument.partition("=")[0] in ("-config", "--config") for argument in argv)


def parse(arguments: list[str]) -> flags.FlagValues:
    """The parsed flags of a mode. Raises UserError for what absl or ml-collections refuse, or a config file raises."""
    argv = [sys.argv[0]]
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if argv[-1] == "--config":
            argument = config_path(argument)
        elif name == "--config" and equals:
            argument = f"{name}={config_path(value)}"
        elif name.startswith("--config."):
            check_name(name.removeprefix("--config."))
        argv.append(argument)
    found = define_flags(argv)
    try:
        left = found(argv)
    except Exception as error:
        cause = error.__cause__ or error.__context__
        while cause and not isinstance(cause, UserError):  # a config file's own lies deep, under its traceback
            cause = cause.__cause__ or cause.__context__
        raise cause or UserError(str(error).strip().splitlines()[-1]) from None
    if len(left) > 1:
        raise UserError(f"argument '{left[1]}' is not a flag: write --{left[1]}")
    if found.mode != "evaluate" and not names_config(argv):
        raise UserError("no config: give --config=configs/FILE.py (configs/digits.py needs no data)")
    flags.FLAGS.mark_as_parsed()  # libraries ask for flags of their own, which stay at their defaults
    return found


def check_name(path: str) -> None:
    """Raise UserError unless `path` is a setting; names those of that name within groups, else the nearest one."""
    known = flat(SETTINGS)
    if path not in known:
        namesakes = [other for other in known if other.rpartition(".")[2] == path]
        hint = f" (did you mean {' or '.join(namesakes)}?)" if namesakes else nearest(path, known)
        raise UserError(f"config.{path} is not a setting{hint}: python -m deit_jax.config lists all")


def config_path(text: str) -> str:
    """The FILE:ARGUMENTS that `--config=` names: a file's or a shipped config's. Raises UserError without a file."""
    name, colon, arguments = text.partition(":")
    if storage.as_path(name).is_file():
        return f"{storage.as_path(name)}{colon}{arguments}"
    inside = Path(__file__).parent / "configs"  # once installed; in a checkout, beside the package
    shipped = inside if inside.is_dir() else inside.parents[1] / "configs"
    known = {path.stem: path for path in sorted(shipped.glob("*.py"))}
    if name in known:
        return f"{known[name]}{colon}{arguments}"
    raise UserError(f"config {name} does not exist{nearest(Path(name).stem, known)}: shipped are {', '.join(known)}")


def run_mode(given: flags.FlagValues) -> None:
    """Run what the parsed flags ask for. Imports that need jax come late: a wrong command line is reported first."""
    logging.get_absl_logger().setLevel("CRITICAL")  # Orbax and Grain log what they also raise, and what is of no use
    workdir, output = (str(storage.as_path(path)) if path else "" for path in (given.workdir, given.output))
    if given.mode in ("train", "label", "ablate") and not workdir:
        raise UserError("no workdir: give --workdir=FOLDER")
    if given.mode == "ablate" and storage.is_bucket(workdir):
        raise UserError(f"workdir {workdir} is in a bucket, which has no locks to share runs: give a path")
    start_jax(given)
    overrides = config_flags.get_override_values(given["config"])
    if given.mode == "evaluate":
        evaluate(given, workdir, output, overrides)
        return
    config = complete_config(given, workdir, overrides)
    match given.mode:
        case "train":
            from deit_jax.experiment import train_and_report

            train_and_report(config, workdir)
        case "ablate":
            from deit_jax.ablate import ablate

            ablate(config, workdir)
        case "label":
            from deit_jax.label import label

            label(config, workdir, verify=given.verify)
        case "plan":
            from deit_jax.plan import plan

            plan(config, given.topology, given.price)
        case "benchmark":
            from deit_jax.benchmark import benchmark

            benchmark(config)
        case "show":
            from deit_jax.data.tools.show import show

            show(config, output or "augmented.png", given.step)


def start_jax(given: flags.FlagValues) -> None:
    """Choose devices and memory settings, the compilation cache, and join the other processes of the run."""
    if given.mode == "plan":
        from deit_jax.runtime.topologies import prepare_environment

        prepare_environment(given.topology)
    if host_memory.cpu_only() and (given.mode == "evaluate" or has_many_pixels(given.config)):
        host_memory.keep_freed_memory()
    from deit_jax.runtime import sharding
    from deit_jax.runtime.compile_cache import use_compile_cache

    if given.mode not in ("plan", "benchmark"):  # which report how long compiling takes
        use_compile_cache()
    sharding.start_processes(given.config.processes.heartbeat_timeout)


def has_many_pixels(config: Config) -> bool:
    """Whether training batches are so large that `keep_freed_memory` saves time."""
    name = config.model.name
    size = config.model.img_size or (224 if is_own(name) else named_size(name))
    return config.batch_size * max(size, config.teacher.img_size) ** 2 >= host_memory.MANY_PIXELS


def complete_config(given: flags.FlagValues, workdir: str, overrides: dict[str, Any]) -> Config:
    """The config of a mode, resolved and valid. overrides: what the command line gives. Raises UserError."""
    import jax

    config = resolve(given.config, given=overrides)
    validate(config, num_devices=jax.device_count())
    if given.mode not in ("train", "label", "ablate"):
        return config
    from deit_jax.data.sources import check_root
    from deit_jax.weights.load import adopt_normalization

    check_root(config.data.root)  # before weights are read, which may come from a hub
    config = adopt_normalization(config, workdir, overrides)
    validate(config)
    return config


def evaluate(given: flags.FlagValues, workdir: str, output: str, overrides: dict[str, Any]) -> None:
    """`--mode=evaluate`, of a head or of features. Arguments as `complete_config`."""
    from deit_jax.evaluate.evaluation_command import Request, evaluate_command
    from deit_jax.evaluate.probe import probe_command

    defaults = flat(default_config())
    changed = {path: value for path, value in flat(given.config).items() if value != defaults[path]} | overrides
    request = Request(tuple(given.checkpoint), tuple(given.data), given.weights, workdir, output)
    if given.probe:
        probe_command(given.config, changed, request, given.probe)
    else:
        evaluate_command(given.config, changed, request)
