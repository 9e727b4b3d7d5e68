"""Export a model for programs without JAX or without this package.

    deit-jax export WEIGHTS FILE.onnx [--opset=17] [--heads=both] [--layout=nhwc] [--input=uint8] [--dtype=fp16]
    deit-jax export WEIGHTS FILE.stablehlo [--beside] …

WEIGHTS is whatever `deit_jax.load_model` takes. The file is written, loaded again and compared with the model on
batches of 1, 3 and 32 images before it gets its name; FILE.json beside it says what the images must be.
"""

import argparse
import functools
import importlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deit_jax.classes.imagenet import output_names
from deit_jax.command import command
from deit_jax.errors import UserError
from deit_jax.export.exportable import DTYPES, Exportable, Form, load_exportable
from deit_jax.runtime import atomic
from deit_jax.runtime.timing import time_calls
from deit_jax.version import __version__
from deit_jax.weights.write import pretrained_cfg

BATCHES = (1, 3, 32)
TOLERANCE = 1e-4  # of the largest number of an output
TIMED = 2.0  # seconds that a timing takes, and a little more
SUFFIXES = (".onnx", ".stablehlo")
OPSETS = range(17, 24)  # LayerNormalization came with 17

Run = Callable[[np.ndarray], dict[str, np.ndarray]]


def description(exportable: Exportable, form: dict[str, Any]) -> dict[str, Any]:
    """What a program must know to use the file, in the words of timm's config.json and its pretrained_cfg."""
    weights = exportable.weights
    return {
        "architecture": weights.name or weights.architecture.module.__name__,
        "num_classes": weights.num_classes,
        "label_names": output_names(weights.class_names, weights.num_classes),
        "pretrained_cfg": pretrained_cfg(weights, fixed_size=True),
        "made_from": weights.source,
        "made_by": f"deit_jax {__version__}",
        "file": form,
    }


def pictures(exportable: Exportable, batch: int) -> np.ndarray:
    """Random images for a comparison: coarse patterns under noise, so that they differ from each other."""
    rng, form, (height, width) = np.random.default_rng(batch), exportable.form, exportable.size
    coarse = rng.standard_normal((batch, 4, 4, 3)).repeat(-(-height // 4), 1).repeat(-(-width // 4), 2)
    images = coarse[:, :height, :width] + 0.5 * rng.standard_normal((batch, height, width, 3))
    if form.pixels == "uint8":
        images = np.clip(127 + 60 * images, 0, 255)
    images = images if form.layout == "nhwc" else images.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(images, exportable.images(batch).dtype)


def compare_exports(exportable: Exportable, run: Run, name: str, batches: Sequence[int] = BATCHES) -> float:
    """The largest difference of any output from the model's, over the output's largest number.

    Raises UserError where it is above TOLERANCE, or where a predicted class differs.
    """
    worst = 0.0
    for batch in batches:
        images = pictures(exportable, batch)
        ours, theirs = exportable.reference(images), run(images)
        for output, value in ours.items():
            difference = float(np.abs(theirs[output] - value).max() / np.abs(value).max())
            classes = output not in exportable.form.names() or (theirs[output].argmax(1) == value.argmax(1)).all()
            if not difference <= TOLERANCE or not classes:
                raise UserError(
                    f"{name} differs from the model by {difference:.1e} of the largest of '{output}' with {batch}"
                    f" images{'' if classes else ', and in the classes'} ({TOLERANCE:g} is allowed): it is not kept"
                )
            worst = max(worst, difference)
    return worst


def write_export(exportable: Exportable, path: Path, *, opset: int = 17, beside: bool = False) -> list[str]:
    """Write `path` and what lies beside it, after a comparison. Returns what to print, a line each.

    Raises UserError where a package is missing, the model cannot be written, or the file differs from the model.
    """
    module = importlib.import_module(f"deit_jax.export.{path.suffix[1:]}_file")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        part = Path(folder, path.name)
        if path.suffix == ".onnx":
            module.save_onnx(module.make_onnx(exportable, opset), part)
            run, form = module.open_onnx(part), {"opset": opset}
        else:
            module.save_stablehlo(exportable, part, beside=beside)
            run, form = module.open_stablehlo(part), {"platforms": list(module.PLATFORMS)}
        difference = compare_exports(exportable, run, path.name)
        lines = [f"largest difference {difference:.1e} (batches {', '.join(map(str, BATCHES))}), classes equal"]
        for batch in (BATCHES[0], BATCHES[-1]):
            images = pictures(exportable, batch)
            calls = (functools.partial(one, images) for one in (run, exportable.reference))
            theirs, ours = (time_calls(call, samples=5, seconds=TIMED / 5).minimum for call in calls)
            lines.append(f"batch {batch}: {batch / theirs:.4g} images/s, here by JAX {batch / ours:.4g}")
        asked = exportable.form
        form |= {"input": asked.pixels, "layout": asked.layout, "dtype": asked.dtype, "outputs": list(asked.names())}
        text = json.dumps(description(exportable, form), indent=1)
        Path(folder, f"{path.name}.json").write_text(text)
        sizes = []
        for file in sorted(Path(folder).iterdir(), reverse=True):  # the file itself, the shortest name, comes last
            sizes.insert(0, f"{path.with_name(file.name)} ({atomic.readable(file.stat().st_size)})")
            with atomic.replacing(path.with_name(file.name)) as placed:
                os.replace(file, placed)
    return [f"wrote {', '.join(sizes)}", *lines]


def check_file(text: str, suffixes: tuple[str, ...]) -> Path:
    """The path of a file to be written. Raises UserError where it is another kind, exists, or has no folder."""
    path = Path(text).expanduser().absolute()
    if path.suffix not in suffixes or not path.parent.is_dir():
        raise UserError(f"FILE {text} cannot be written: give NAME{' or NAME'.join(suffixes)} in a folder that exists")
    if path.exists():
        raise UserError(f"FILE {text} exists already: remove it or give another name")
    return path


def needs_extra(error: ImportError) -> UserError:
    """The error for a package of the extra that is not installed."""
    return UserError(f"export needs more packages ({error}): pip install onnx onnxruntime flatbuffers")


def export_parser(tool: str, description: str, file: str) -> argparse.ArgumentParser:
    """The arguments that the commands share which write weights as one FILE. file: its help."""
    parser = argparse.ArgumentParser(f"deit-jax {tool}", description=description)
    parser.add_argument("source", metavar="WEIGHTS", help="hub name, .safetensors or .pth file, Orbax folder, workdir")
    parser.add_argument("file", metavar="FILE", help=file)
    parser.add_argument("--weights", choices=("params", "ema"), default="params", help="which of a training run")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32", help="of the stored weights")
    return parser


@command
def main(arguments: list[str] | None = None) -> None:
    parser = export_parser("export", "Export a model to ONNX or StableHLO.", "NAME.onnx or NAME.stablehlo")
    parser.add_argument("--heads", choices=("fused", "both"), default="fused", help="both: also each head's output")
    parser.add_argument("--layout", choices=("nchw", "nhwc"), default="nchw", help="of the images")
    parser.add_argument(
        "--input", choices=("float", "uint8"), default="float", help="uint8: normalizes, returns probabilities"
    )
    parser.add_argument("--attention", action="store_true", help="also return the attention, and its rollout")
    parser.add_argument("--opset", type=int, choices=OPSETS, default=17, help="of an .onnx file")
    parser.add_argument("--beside", action="store_true", help="weights of a .stablehlo file in a file beside it")
    args = parser.parse_args(arguments)
    path = check_file(args.file, SUFFIXES)
    form = Form(args.heads, args.layout, args.input, args.attention, args.dtype)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):  # where float32 is float32, as in ONNX Runtime
        exportable = load_exportable(args.source, form, weights=args.weights)
        try:
            lines = write_export(exportable, path, opset=args.opset, beside=args.beside)
        except ImportError as error:
            raise needs_extra(error) from error
    print("\n".join(lines))


if __name__ == "__main__":
    main()
