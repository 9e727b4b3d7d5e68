"""Hostile inputs: each must end as what is right, or as one line with exit code 2, soon and in little memory."""

import io
import json
import os
import pickle
import random
import resource
import socket
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from benchmarks.faults.starts import Start
from benchmarks.faults.table import Outcome
from deit_jax import models, predict
from deit_jax.data.shards import INDEX
from deit_jax.data.tools import doctor, prepare
from deit_jax.weights.names import Timm, entries

LONGEST = 30  # seconds; two processes share a core here, and the first forward pass is compiled
MEMORY = 3 << 30  # bytes that a start may take beyond what it began with
TINY = "deit_digits_distilled_patch4_16"
GOOD = "ant/0.png,ant\nant/1.png,ant\nbee/0.png,bee\nbee/1.png,bee\n"


class Case(NamedTuple):
    """An input and what must come of it.

    Attributes:
        name: for the table.
        tool: what a user calls.
        arguments: of its command line.
        right: text that a correct end prints; "" where the input must be refused.
        code: the exit code of a correct end.
    """

    name: str
    tool: Callable[[], None]
    arguments: list[Any]
    right: str = ""
    code: int = 0


def image(number: int = 0, kind: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (8, 8), **options) -> bytes:
    """A picture's bytes."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (number % 256, 0, 0)).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def claiming(width: int, height: int) -> bytes:
    """A small PNG that claims a size: grey, with a thousand bytes of pixels."""
    parts = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")):
        parts += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return parts


def classes(root: Path, *names: str | bytes) -> Path:
    """Class folders of two images each."""
    for number, name in enumerate(names or ("ant", "bee")):
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(path)
        for i in range(2):
            Path(os.fsdecode(os.path.join(path, b"%d.png" % i))).write_bytes(image(10 * number + i) + bytes([i]))
    return root


def names(folder: Path) -> list[Case]:
    """Names of class folders."""
    odd = [
        "$x_^",
        "a\x1b[31mred",
        "tab\there",
        "line\nbreak",
        b"\xff\xfe",
        "u\u0308",
        "\u202egnp",
        "-rf",
        "x...",
        "日本",
        "a b ",
        "C:",
        "%s{}",
        "~",
        "*",
        "'\"",
        "n" * 255,
        "NaN",
    ]
    return [
        Case(f"class {n}", doctor.main, [classes(folder / f"name{i}", "plain", n)], "0 unreadable")
        for i, n in enumerate(odd)
    ]


def things(folder: Path) -> list[Case]:
    """What is not a file in a class folder, and roots that are not data."""
    cases = []
    for name, make in {
        "named pipe": lambda p: os.mkfifo(p),
        "dangling link": lambda p: p.symlink_to("nowhere"),
        "loop": lambda p: p.symlink_to(p.name),
        "link upwards": lambda p: p.symlink_to(".."),
        "device": lambda p: p.symlink_to("/dev/zero"),
        "directory": lambda p: p.mkdir(),
    }.items():
        root = classes(folder / name)
        make(root / "ant" / "odd.png")
        cases.append(Case(name, doctor.main, [root], "0 unreadable"))
    root = classes(folder / "socket")
    here = os.getcwd()
    os.chdir(root / "ant")  # a socket's path may have 108 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("odd.png")
    os.chdir(here)
    cases.append(Case("socket", doctor.main, [root], "0 unreadable"))
    os.mkfifo(folder / "pipe")
    (folder / "empty").mkdir()
    for root in ("/dev/zero", "/dev/null", folder / "nowhere", folder / "pipe", folder / "empty", ""):
        cases.append(Case(f"root {root}", doctor.main, [root]))
    return cases


def images(folder: Path) -> list[Case]:
    """Pictures that are none, are cut short, claim absurd sizes, or are odd but right."""
    jpeg, png = image(1, "JPEG", size=(60, 40)), image(1, size=(60, 40))
    place = jpeg.index(b"\xff\xc0") + 5
    broken = {
        "empty": b"",
        "two bytes": b"\xff\xd8",
        "text": b"no image",
        "zeros": bytes(5000),
        "png head": b"\x89PNG\r\n\x1a\n" + bytes(50),
        "half a jpeg": jpeg[: len(jpeg) // 2],
        "half a png": png[: len(png) // 2],
        "jpeg of 65500x65500": jpeg[:place] + b"\xff\xdc\xff\xdc" + jpeg[place + 4 :],
        "png of 2^31 pixels per side": claiming(2**31 - 1, 2**31 - 1),
        "bomb": claiming(100_000, 100_000),
        "html": b"<html>404</html>",
        "gzip": b"\x1f\x8b" + bytes(100),
        "float": image(1, "TIFF", "F"),
    }
    right = {
        "strip": image(1, size=(1, 50_000)),
        "flat strip": image(1, size=(50_000, 1)),
        "pixel": image(1, size=(1, 1)),
        "cmyk": image(1, "JPEG", "CMYK"),
        "palette": image(1, "GIF", "P"),
        "bilevel": image(1, "TIFF", "1"),
        "alpha": image(1, "WEBP", "RGBA"),
        "trailing bytes": png + bytes(1000),
        "progressive": image(1, "JPEG", progressive=True),
    }
    cases = []
    for name, content in (broken | right).items():
        root = classes(folder / f"image {name}")
        (root / "ant" / "odd.jpg").write_bytes(content)
        bad = name in broken
        cases.append(Case(name, doctor.main, [root], f"{int(bad)} unreadable", int(bad)))
    return cases


def tables(folder: Path) -> list[Case]:
    """CSV files."""
    wrong = {
        "missing file": GOOD.replace("bee/1", "bee/9"),
        "device": GOOD.replace("bee/1.png", "/dev/zero"),
        "zero byte": GOOD.replace("bee/1", "bee/\x001"),
        "zeros": "\0" * 10_000,
        "semicolons": GOOD.replace(",", ";"),
        "huge label": "ant/0.png," + "9" * 5000 + "\nant/1.png,1\n",
        "long field": GOOD + "x" * 200_000 + ",1\n",
        "open quote": GOOD + '"ant/0.png,ant\n',
        "negative": "ant/0.png,0\nant/1.png,1\nbee/0.png,-1\n",
        "two names of one number": "ant/0.png,1\nant/1.png,01\n",
        "empty": "",
    }
    right = {
        "label 999999999": GOOD.replace(",ant", ",999999999").replace(",bee", ",1"),
        "crlf": GOOD.replace("\n", "\r\n"),
    }
    cases = []
    for name, text in (wrong | right).items():
        root = classes(folder / f"table {name}")
        (root / "list.csv").write_text(text, newline="")
        cases.append(Case(f"table: {name}", doctor.main, [root / "list.csv"], "0 unreadable" if name in right else ""))
    return [*cases, Case("table: /dev/zero", doctor.main, ["/dev/zero/list.csv"])]


def indexes(folder: Path) -> list[Case]:
    """Indexes of shards."""
    source = folder / "whole"
    prepare.prepare(classes(folder / "for shards"), source)
    good = json.loads((source / INDEX).read_text())
    changes: dict[str, dict[str, Any]] = {
        f"{key}={value!r:.20}": {key: value}
        for key, value in [
            ("records", 1 << 60),
            ("records", -1),
            ("records", "4"),
            ("bytes", 1e30),
            ("labels", [[0, 1 << 50]]),
            ("labels", [[99, 4]]),
            ("labels", 7),
            ("file", "../../etc/passwd"),
            ("file", 5),
        ]
    }
    texts = {
        "empty": "",
        "list": "[]",
        "deep": "[" * 10_000,
        "zero": "\x00",
        "classes": json.dumps(good | {"classes": 5}),
    }
    for name, change in changes.items():
        index = json.loads((source / INDEX).read_text())
        index["splits"]["train"][0].update(change)
        texts[name] = json.dumps(index)
    cases = []
    for number, (name, text) in enumerate(texts.items()):
        root = folder / f"index{number}"
        root.mkdir()
        for file in source.iterdir():
            (root / file.name).symlink_to(file)
        (root / INDEX).unlink()
        (root / INDEX).write_text(text)
        cases.append(Case(f"index: {name}", doctor.main, [root]))
    return cases


def tars(folder: Path) -> list[Case]:
    """Archives of images."""
    cases = []
    for name in ("../a/1.png", "a/../../b/1.png"):
        path = folder / f"tar{len(cases)}.tar"
        with tarfile.open(path, "w") as archive:
            for member in (name, "ant/0.png", "bee/0.png"):
                info = tarfile.TarInfo(member)
                info.size = len(image())
                archive.addfile(info, io.BytesIO(image()))
        cases.append(Case(f"tar with {name}", prepare.main, [path, folder / f"out{len(cases)}"]))
    whole = (folder / "tar0.tar").read_bytes()
    for name, content in {"empty": b"", "cut": whole[:700], "noise": bytes(range(256)) * 40}.items():
        (folder / f"{name}.tar").write_bytes(content)
        cases.append(Case(f"tar: {name}", prepare.main, [folder / f"{name}.tar", folder / f"out {name}"]))
    return cases


def weights(folder: Path) -> list[Case]:
    """Weight files, given to `predict`; the first one is whole."""
    _, params, batch_stats = models.abstract(models.constructor(TINY, num_classes=10))
    shapes = entries({"params": params, "batch_stats": batch_stats}, Timm())
    rng = np.random.default_rng(0)
    state = {e.key: rng.normal(0, 0.02, e.shape).astype(np.float32) for e in shapes}
    photo = folder / "photo.png"
    photo.write_bytes(image(7, size=(40, 30)))
    tensors = {
        "whole": state,
        "NaN": state | {"norm.weight": np.full_like(state["norm.weight"], np.nan)},
        "far block": state | {"blocks.99999999.norm1.weight": np.zeros(96, np.float32)},
        "many unknown": state | {f"x{i}": np.zeros(1, np.float32) for i in range(3000)},
        "one missing": {k: v for k, v in state.items() if k != "norm.bias"},
        "none": {},
        "odd head": state | {"head.bias": np.zeros(7, np.float32)},
        "escape in a name": state | {"\x1b[31mred": np.zeros(1, np.float32)},
    }
    (folder / "config.json").write_text(json.dumps({"architecture": TINY}))
    for name, found in tensors.items():
        save_file(found, folder / f"{name}.safetensors")
    whole = (folder / "whole.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "emptied.safetensors").write_bytes(b"")
    huge = b'{"a":{"dtype":"F32","shape":[4611686018427387904,4611686018427387904],"data_offsets":[0,4]}}'
    headers = {
        "deep list": b"[" * 1_000_000,
        "deep object": b'{"a":' * 100_000,
        "huge shape": huge,
        "no object": b"[1]",
        "huge integer": b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}',
        "negative shape": b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
        "other type": b'{"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}',
    }
    for name, header in headers.items():
        (folder / f"{name}.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"0000")
    (folder / "huge header.safetensors").write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    cases = [
        Case(f"weights: {path.stem}", predict.main, [path, photo], "class " if path.stem == "whole" else "")
        for path in sorted(folder.glob("*.safetensors"))
    ]
    for name, content in {
        "marks": b"\x80\x02" + b"(" * 200_000,
        "code": pickle.dumps(os.system),
        "long": pickle.dumps(list(range(400_000))),
        "empty": b"",
        "noise": bytes(range(256)) * 100,
    }.items():
        (folder / f"{name}.pth").write_bytes(content)
        cases.append(Case(f"pickle: {name}", predict.main, [folder / f"{name}.pth", photo]))
    with zipfile.ZipFile(folder / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"(" * (33 << 20))
    cases.append(Case("pickle: bomb", predict.main, [folder / "bomb.pth", photo]))
    return cases


KINDS = (names, things, images, tables, indexes, tars, weights)


def judge(case: Case, start: Start) -> str:
    """What is wrong with how a start ended, or ""."""
    text = start.log.read_text(errors="replace")
    if start.code is None:
        return f"not done after {LONGEST} s"
    if "Traceback" in text or "\x1b[31m" in text:
        return f"a traceback, or an escape code: {text[-300:]!r}"
    if case.right:
        return "" if start.code == case.code and case.right in text else f"code {start.code}: {text[-300:]!r}"
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    return (
        ""
        if start.code == 2 and len(errors) == 1 and text.endswith(errors[0] + "\n")
        else f"code {start.code}: {text[-300:]!r}"
    )


def hostile(count: int, folder: Path, rng: random.Random) -> Outcome:
    """Odd names, files, tables, archives, shards and weights: right, or one line and exit code 2."""
    cases = []
    for kind in KINDS:
        (folder / kind.__name__).mkdir(parents=True)
        cases += kind(folder / kind.__name__)
    rng.shuffle(cases)
    outcome, slowest = Outcome(), 0.0
    for case in cases[:count]:

        def work(case: Case = case) -> None:

            limit = MEMORY + 4096 * int(Path("/proc/self/statm").read_text().split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            sys.argv = ["tool", *map(str, case.arguments)]
            case.tool()

        start = Start(work, folder / "case.log")
        start.wait(LONGEST)
        wrong = judge(case, start)
        start.kill()
        slowest = max(slowest, start.seconds)
        outcome.add(not wrong, f"{case.name}: {wrong}")
    outcome.seen = f"{len(cases)} cases; slowest {slowest:.1f} s"
    return outcome
