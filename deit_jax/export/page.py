"""A page in which a model can be tried without a server: one HTML file that opens from disk or any static host.

    deit-jax page WEIGHTS FILE.html [--examples=IMAGE_OR_FOLDER …] [--dtype=fp16] [--assets=DIR]

The model, ONNX Runtime for browsers and the examples are inside. The latter's files are fetched once, by npm, into the
user's cache; `--assets` names a folder that holds them.
"""

import base64
import dataclasses
import gzip
import html
import io
import json
import string
import tempfile
from pathlib import Path
from typing import Any

import jax
from PIL import Image, ImageOps

from deit_jax.classes.imagenet import output_names
from deit_jax.command import command
from deit_jax.errors import UserError
from deit_jax.export.export_command import check_file, compare_exports, export_parser, needs_extra
from deit_jax.export.exportable import Exportable, Form, load_exportable
from deit_jax.models.vit import ViT
from deit_jax.predict import find_images
from deit_jax.runtime import atomic
from deit_jax.runtime.browser_files import ONNXRUNTIME, package_files
from deit_jax.weights.load import view_of

HERE = Path(__file__).parent
LARGEST = 360_000_000  # bytes of a model: browsers hold half a gigabyte of text
EXAMPLES, EXAMPLE_SIDE = 12, 640  # how many, and pixels of their longer side


def example(path: str) -> str:
    """The data: URL of an image for the page, made smaller. Raises UserError where it is not an image."""
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError) as error:
        raise UserError(f"example {path} is not a readable image: give JPEG or PNG files") from error
    image.thumbnail((EXAMPLE_SIDE, EXAMPLE_SIDE))
    kind = "png" if max(image.size) < 100 else "jpeg"  # JPEG would blur small ones
    image.save(content := io.BytesIO(), kind, quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"


def page_settings(exportable: Exportable, examples: list[tuple[str, str]]) -> dict[str, Any]:
    """What the page's script must know."""
    weights, form, (height, width) = exportable.weights, exportable.form, exportable.size
    if height != width:
        raise UserError(f"{weights.source} sees images of {height}x{width} pixels: a page shows square views")
    view = view_of(weights, height)
    titles = ("Both together", "Class head", "Distillation head") if form.heads == "both" else ("Classes",)
    outputs = dict(zip(form.names(), titles, strict=True))
    about = {
        "outputs": {name: outputs[name] for name in [*form.names()[1:], form.names()[0]]},
        "classes": output_names(weights.class_names, weights.num_classes),
        "examples": examples,
        **{key: getattr(view, key) for key in ("size", "crop", "interpolation", "fit")},
    }
    if form.attention:
        model = exportable.model()
        shape = {"depth": model.depth, "heads": model.num_heads, "prefix": model.prefix_tokens, "grid": model.grid}
        about |= shape | {"tokens": ("Class token", "Distillation token")[: 1 + model.distilled]}
    return about


def packed(content: bytes) -> str:
    """Bytes as the page's script unpacks them."""
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()


def make_page(exportable: Exportable, runtime: list[bytes], examples: list[tuple[str, str]]) -> str:
    """The page, of a model that was compared as an .onnx file. runtime: the files of ONNXRUNTIME."""
    from deit_jax.export import onnx_file  # here: it needs the extra

    about = page_settings(exportable, examples)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        onnx_file.save_onnx(onnx_file.make_onnx(exportable), path)
        if path.stat().st_size > LARGEST:
            size = atomic.readable(path.stat().st_size)
            raise UserError(f"{exportable.weights.source} has {size}, too much for a page: try --dtype=fp16")
        compare_exports(exportable, onnx_file.open_onnx(path), path.name, batches=(1,))
        model = path.read_bytes()
    weights, size = exportable.weights, exportable.size[0]
    count = sum(leaf.size for leaf in jax.tree.leaves(weights.tree["params"]))
    name = weights.name or weights.architecture.describe()
    script, wasm = runtime
    values = {
        "title": html.escape(name),
        "subtitle": f"{count / 1e6:.3g} million parameters, {weights.num_classes} classes, {size} px",
        "credits": f"Made by deit_jax; run by {ONNXRUNTIME.name} {ONNXRUNTIME.version} (MIT licence).",
        "about": json.dumps(about).replace("<", "\\u003c"),  # no class name ends the element
        "runtime": packed(script),
        "wasm": packed(wasm),
        "model": packed(model),
        "style": (HERE / "page.css").read_text(),
        "script": (HERE / "page.js").read_text(),
    }
    return string.Template((HERE / "page.html").read_text()).substitute(values)


@command
def main(arguments: list[str] | None = None) -> None:
    parser = export_parser("page", "Make a page in which a model can be tried.", "NAME.html")
    parser.add_argument("--examples", action="append", default=[], help="an image or a folder of them; repeatable")
    parser.add_argument("--assets", default="", help=ONNXRUNTIME.assets)
    args = parser.parse_args(arguments)
    path = check_file(args.file, (".html",))
    found = find_images(args.examples)
    found = found[:: -(-len(found) // EXAMPLES) or 1]  # of all folders
    examples = [(Path(path).stem, example(path)) for path in found]
    runtime = package_files(ONNXRUNTIME, args.assets)
    form = Form(layout="nhwc", pixels="uint8", dtype=args.dtype)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        exportable = load_exportable(args.source, form, weights=args.weights)
        model = exportable.model()
        heads = "both" if getattr(model, "two_heads", False) else "fused"
        form = dataclasses.replace(form, heads=heads, attention=isinstance(model, ViT))
        try:
            page = make_page(dataclasses.replace(exportable, form=form), runtime, examples)
        except ImportError as error:
            raise needs_extra(error) from error
    atomic.write_text(path, page)
    print(f"wrote {path} ({atomic.readable(path.stat().st_size)}): open it in a browser")


if __name__ == "__main__":
    main()
