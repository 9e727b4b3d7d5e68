"""Weights into other libraries' files and back.

    python -m deit_jax.convert SRC DST [--to=timm|huggingface|orbax] [--weights=params|ema]

SRC is whatever `deit_jax.load_model` takes: a hub name, a .safetensors or .pth file, an Orbax folder. DST says what is
written: `NAME.safetensors` is timm's (and the official code's) file, a folder is Orbax's, timm's with `--to=timm`
(model.safetensors and config.json), or Hugging Face's with `--to=huggingface` (preprocessor_config.json too, for
`transformers`). Round trips give every tensor back as it was. An existing DST is never overwritten.
"""

import argparse
import os
from pathlib import Path

from deit_jax.command import command
from deit_jax.errors import UserError
from deit_jax.runtime import storage
from deit_jax.weights import load_weights
from deit_jax.weights.write import save_huggingface, save_orbax, save_timm

FORMATS = {"timm": save_timm, "huggingface": save_huggingface, "orbax": save_orbax}


def convert(
    source: str | os.PathLike, destination: str | os.PathLike, *, to: str | None = None, weights: str = "params"
) -> Path:
    """Read `source` and write it to `destination`.

    Args:
        source: see `load_weights`.
        destination: a file NAME.safetensors (timm) or a new folder.
        to: "timm", "huggingface" or "orbax"; None: timm for a .safetensors file, Orbax for a folder.
        weights: of a training checkpoint, "params" or "ema".

    Returns:
        The path written.

    Raises:
        UserError: where `destination` exists or cannot be written, or the model has no such form.
    """
    path = storage.as_path(destination)
    is_file = path.suffix == ".safetensors"
    to = to or ("timm" if is_file else "orbax")
    if is_file and to != "timm":
        raise UserError(f"DST {destination} does not fit --to={to}: give a folder, without a suffix")
    if storage.is_bucket(path) or path.exists() or not path.parent.is_dir():
        raise UserError(f"DST {destination} exists already, or its folder does not: give a new name in a local folder")
    FORMATS[to](load_weights(source, weights=weights), path)
    return path


@command
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m deit_jax.convert", description="Convert weights between libraries."
    )
    parser.add_argument("source", metavar="SRC", help="hub name, .safetensors or .pth file, Orbax folder")
    parser.add_argument("destination", metavar="DST", help="NAME.safetensors (timm's), or a new folder")
    parser.add_argument(
        "--to", choices=tuple(FORMATS), help="default: timm for a .safetensors file, orbax for a folder"
    )
    parser.add_argument("--weights", choices=("params", "ema"), default="params", help="which of a training checkpoint")
    args = parser.parse_args(arguments)
    print(f"wrote {convert(args.source, args.destination, to=args.to, weights=args.weights)}")


if __name__ == "__main__":
    main()
