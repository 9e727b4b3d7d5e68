"""How fast a core makes training images: this pipeline beside timm's full recipe and tf.data.

    python benchmarks/input.py FOLDER [--timm_python=PYTHON] [--tf_python=PYTHON] [--rounds=7] [--output=input.json]

FOLDER holds images by class. Every contestant is a process of its own, pinned to the same core, and they take turns on
the same files, so that a busy machine slows all alike. timm does the whole recipe on the host (decode, crop, flip,
RandAugment, normalize, erase); ours and tf.data leave all but decode and crop to the accelerator. PYTHON is an
interpreter with timm (torch, torchvision) or tensorflow; contestants whose packages are missing are left out.
"""

import itertools
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from common import cells, import_timm, parser, save, table

SIZE, BATCH = 224, 64
EXTENSIONS = (".jpg", ".jpeg")
RECIPE = "rand-m9-mstd0.5-inc1"


def serve_ours(folder: str, repeats: int, resize: str) -> Callable[[int], Iterator[int]]:
    """This package's pipeline, as a run uses it, with one decoding thread."""
    from deit_jax.config import default_config, resolve
    from deit_jax.data import loader, sources

    config = default_config()
    config.data.root, config.batch_size, config.augment.repeats = folder, BATCH, repeats
    config.data.threads, config.data.prefetch, config.data.holdout = 1, 1, 0.0
    config.data.resize = resize
    if resize == "fast":
        import cykooz_resizer  # noqa: F401
    config = resolve(config)
    source, _ = sources.open_sources(config)
    position = 0

    def batches(count):
        nonlocal position
        stream = loader.train_batches(config, source, size=SIZE, start=position)
        for _ in range(-(-count // BATCH)):
            position += 1
            yield len(next(stream)["label"])
        stream.close()

    return batches


def serve_timm(folder: str, whole: bool) -> Callable[[int], Iterator[int]]:
    """timm's transforms on PIL images, collated as the released code's loader does; or its crop alone."""
    import numpy as np
    import torch
    from PIL import Image, ImageOps

    torch.set_num_threads(1)
    import_timm()
    from timm.data import create_transform

    posterize = ImageOps.posterize  # PIL 13 refuses the 0 bits that timm's posterize sometimes asks for
    ImageOps.posterize = lambda image, bits: posterize(image, max(bits, 1))

    transform = create_transform(
        SIZE,
        is_training=True,
        color_jitter=0.3,
        auto_augment=RECIPE,
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
    )
    if not whole:
        crop = transform.transforms[0]

        def transform(image):
            return torch.from_numpy(np.array(crop(image)))

    files = cycle(folder)

    def batches(count):
        for _ in range(-(-count // BATCH)):
            images = []
            for _ in range(BATCH):
                with Image.open(next(files)) as image:
                    images.append(transform(image.convert("RGB")))
            yield len(torch.stack(images))

    return batches


def serve_tf(folder: str) -> Callable[[int], Iterator[int]]:
    """tf.data: decode only the crop (to whole JPEG blocks), bicubic resize without antialiasing."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)

    def load(path):
        data = tf.io.read_file(path)
        box, size, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(data),
            tf.zeros([1, 0, 4]),
            area_range=(0.08, 1.0),
            aspect_ratio_range=(3 / 4, 4 / 3),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        image = tf.image.decode_and_crop_jpeg(data, tf.concat([box[:2], size[:2]], 0), channels=3)
        return tf.cast(tf.clip_by_value(tf.image.resize(image, (SIZE, SIZE), method="bicubic"), 0, 255), tf.uint8)

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    files = tf.data.Dataset.from_tensor_slices(shuffled(folder)).repeat()
    stream = iter(files.map(load).batch(BATCH, drop_remainder=True).with_options(options))

    def batches(count):
        for _ in range(-(-count // BATCH)):
            yield len(next(stream).numpy())

    return batches


def serve_kept(folder: str, repeats: int) -> Callable[[int], Iterator[int]]:
    """This package's host where the devices keep the images at 160 pixels (`data.device_size`) and cut the crops."""
    from deit_jax.config import default_config, resolve
    from deit_jax.data import assemble, device_crops, sources

    config = default_config()
    config.data.update({"root": folder, "cache": "device", "device_size": 160, "holdout": 0.0, "threads": 1})
    config.batch_size, config.augment.repeats = BATCH, repeats
    config = resolve(config)
    kept = device_crops.keep_on_devices(config, sources.open_sources(config)[0])
    source, _ = device_crops.open_crops(kept, SIZE)
    make = assemble.TrainBatchMaker(source, config, SIZE, slice(0, BATCH), 1, crops_on_host=False)
    steps = itertools.count()

    def batches(count):
        for _ in range(-(-count // BATCH)):
            yield len(make(next(steps))["label"])

    return batches


CONTESTANTS: dict[str, tuple[str, Callable]] = {
    "deit_jax, 3 views per image, fast resize": ("ours", lambda folder: serve_ours(folder, 3, "fast")),
    "deit_jax, 3 views per image": ("ours", lambda folder: serve_ours(folder, 3, "exact")),
    "deit_jax, 3 views per image, kept on the devices": ("ours", lambda folder: serve_kept(folder, 3)),
    "deit_jax, kept on the devices": ("ours", lambda folder: serve_kept(folder, 1)),
    "deit_jax, fast resize": ("ours", lambda folder: serve_ours(folder, 1, "fast")),
    "deit_jax": ("ours", lambda folder: serve_ours(folder, 1, "exact")),
    "timm, whole recipe": ("timm", lambda folder: serve_timm(folder, True)),
    "timm, decode and crop only": ("timm", lambda folder: serve_timm(folder, False)),
    "tf.data decode and crop": ("tf", serve_tf),
}
BASE = "timm, whole recipe"


def shuffled(folder: str) -> list[str]:
    files = sorted(str(path) for path in Path(folder).rglob("*") if path.suffix.lower() in EXTENSIONS)
    random.Random(0).shuffle(files)
    return files


def cycle(folder: str) -> Iterator[str]:
    files = shuffled(folder)
    while True:
        yield from files


def serve(name: str, folder: str) -> None:
    """Answer each line "N" on stdin with images, seconds and processor seconds after making N images."""
    try:
        batches = CONTESTANTS[name][1](folder)
        for _ in batches(BATCH):
            pass
    except ImportError as error:
        print(f"missing {error.name}", flush=True)
        return
    print("ready", flush=True)
    for line in sys.stdin:
        begun, spent = time.perf_counter(), time.process_time()
        made = sum(batches(int(line)))
        print(made, time.perf_counter() - begun, time.process_time() - spent, flush=True)


def start(name: str, folder: str, pythons: dict[str, str], core: int) -> subprocess.Popen | None:
    """A contestant's process, ready to go; None where its packages are missing."""
    command = [pythons[CONTESTANTS[name][0]], __file__, folder, f"--serve={name}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(process.pid, {core})
    answer = process.stdout.readline().strip()
    if answer == "ready":
        return process
    print(f"left out: {name} ({answer or 'it ended early'})", file=sys.stderr)
    process.wait()
    return None


def measure(folder: str, pythons: dict[str, str], rounds: int, images: int, core: int) -> dict[str, dict]:
    """{contestant: {"cpu": …, "wall": …}}: images a second of its own processor time, and of the clock, each round."""
    running = {name: process for name in CONTESTANTS if (process := start(name, folder, pythons, core))}
    rates: dict[str, dict] = {name: {"cpu": [], "wall": []} for name in running}
    for turn in range(rounds):
        for name in random.Random(turn).sample(sorted(running), len(running)):
            process = running[name]
            print(images, file=process.stdin, flush=True)
            answer = process.stdout.readline().split()
            if len(answer) != 3:
                sys.exit(f"error: '{name}' ended early: run it alone with --serve='{name}' and type {images}")
            made, wall, cpu = map(float, answer)
            rates[name]["wall"].append(made / wall)
            rates[name]["cpu"].append(made / cpu)
    for process in running.values():
        process.stdin.close()
        process.wait()
    return rates


def describe(rates: dict[str, dict]) -> str:
    """By processor time, which other programs on the machine change least; the clock's median beside it."""
    base = statistics.median(rates[BASE]["cpu"]) if BASE in rates else None
    rows = []
    for name, values in rates.items():
        median, clock = statistics.median(values["cpu"]), statistics.median(values["wall"])
        rows.append([name, *cells(values["cpu"], ".0f"), f"{median / base:.2f}x" if base else "-", f"{clock:.0f}"])
    return table(["images/s per core", "min", "median", "max", "against timm", "by the clock"], rows)


def main() -> None:
    pythons = {"timm_python": sys.executable, "tf_python": sys.executable, "serve": ""}
    line = parser(__doc__, **pythons, rounds=7, images=384, core=0, output="")
    line.add_argument("folder")
    flags = line.parse_args()
    if flags.serve:
        serve(flags.serve, flags.folder)
        return
    files = shuffled(flags.folder)
    if not files:
        sys.exit(f"error: {flags.folder} holds no JPEG: give a folder of images by class")
    pythons = {"ours": sys.executable, "timm": flags.timm_python, "tf": flags.tf_python}
    rates = measure(flags.folder, pythons, flags.rounds, flags.images, flags.core)
    kilobytes = statistics.mean(os.path.getsize(path) for path in files) / 1000
    print(f"{len(files)} JPEG, {kilobytes:.0f} kB on average; {flags.rounds} rounds of {flags.images} images")
    print(describe(rates))
    save(flags.output, images=len(files), kilobytes=kilobytes, images_per_second=rates)


if __name__ == "__main__":
    main()
