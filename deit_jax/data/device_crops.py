"""`data.cache=device`: training images that stay on the devices, where the crops that the host draws are cut out.

Each device keeps an equal share of the images. It hands on those of them that a batch needs, and cuts the crops of its
own rows. PIL's bicubic resizing is repeated in its own integers, so that the pixels are the host's to the bit: weights
of 22 bits, along the rows first, rounded to a byte after each pass. Images are only enlarged here; where they shrink,
PIL's order of the passes depends on its version.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int, Integer, UInt8

from deit_jax.arrays import AnyArray
from deit_jax.config import Config
from deit_jax.config.recipes import named_size
from deit_jax.data import cache
from deit_jax.data.assemble import decoding_threads, read, run_in_threads
from deit_jax.data.base import Source, Whole, cached
from deit_jax.data.images import decode
from deit_jax.errors import UserError
from deit_jax.runtime import hardware, sharding
from deit_jax.runtime.atomic import readable

TAPS = 4  # pixels that a bicubic filter looks at where it enlarges
BITS = 22  # of the weights' fractions
LARGEST = 2 * hardware.GIB  # bytes of images that "auto" puts on the devices

Cut = Callable[[Int[np.ndarray, "batch"], Int[np.ndarray, "batch 4"]], UInt8[Array, "batch size size 3"]]


def keep_on_devices(config: Config, source: Source) -> Source:
    """The training images, as `OnDevices` where `data.cache` asks for that.

    "auto" does on accelerators, for small images in memory. Raises UserError where it is device, and they cannot be cut
    there or do not fit.
    """
    how, side = config.data.cache, config.data.device_size
    in_memory = cache.is_decoded(source) or isinstance(source, cache.Cached)
    exact = config.augment.crop == "inception" and config.data.resize == "exact"
    if how != "device" and not (how == "auto" and in_memory and exact and hardware.target().platform != "cpu"):
        return source
    largest = config.model.img_size or named_size(config.model.name)
    limit = math.inf if how == "device" else LARGEST
    shape = (side, side, 3) if side else common_shape(source, config.data.exif, largest, limit)
    if shape and max(shape) <= largest:
        kept, devices = OnDevices(config, source, shape), jax.local_devices()
        memory = hardware.device_memory(devices[0].device_kind, len(devices))
        if memory is None or kept.bytes < memory:
            return kept
        problem = f"one has {readable(memory)}, for {kept.size}: use more devices, a smaller data.device_size"
    else:
        given = f"data.device_size is {side}" if side else f"those of {source.title} are others"
        problem = f"it takes readable images of one size, {largest} pixels at most, and {given}: use"
        problem += f" --config.data.device_size={largest}"
    if how == "device":
        raise UserError(f"data.cache is device, but {problem}, or data.cache=ram without data.device_size")
    return source


def common_shape(source: Source, exif: bool, largest: int, limit: float) -> tuple[int, ...] | None:
    """(height, width, 3) of all images; None where one cannot be read, is of another size or has a side of over
    `largest` pixels, or all are of more than `limit` bytes."""
    shape = None
    for index in range(len(source)):
        try:
            found = decode(source[index]["image"], exif).shape
        except OSError:
            return None
        if shape not in (None, found) or max(found) > largest or math.prod(found) * len(source) > limit:
            return None
        shape = found
    return shape


class OnDevices(Whole):
    """Training images that the devices keep, once `kept` is asked for. As items they are the source's.

    Attributes:
      shape: of each image: height, width and 3 channels.
      mesh: the devices.
      share, bytes: images and bytes per device; zeros fill up the last ones.
      size: all of that in words.
    """

    def __init__(self, config: Config, source: Source, shape: tuple[int, ...]):
        self.config, self.shape, self.mesh = config, shape, sharding.make_mesh(jax.local_devices())
        self.share = -(-len(source) // self.mesh.size)
        self.bytes = self.share * math.prod(shape)
        self.size = f"{len(source):,} images of {shape[1]} x {shape[0]} pixels"
        self.size += f", {readable(self.bytes)} per device ({self.mesh.size})"
        resized = ", resized first, which is not the recipe: that crops originals" * bool(config.data.device_size)
        super().__init__(source, notes=[*source.notes, f"kept on the devices: {self.size}{resized}"])

    @cached
    def kept(self) -> "tuple[UInt8[Array, 'n height width 3'], Standins]":
        """The images, split over the devices, and what the host still reads. It decodes and holds a share at a time."""
        host, shares = Standins(self.source, self.shape), []
        for number, device in enumerate(self.mesh.devices.flat):
            shares.append(jax.device_put(self.decode_share(number * self.share, host), device).block_until_ready())
        shape, split = (self.share * len(shares), *self.shape), sharding.batch_sharding(self.mesh)
        return jax.make_array_from_single_device_arrays(shape, split, shares), host

    def decode_share(self, first: int, host: "Standins") -> UInt8[np.ndarray, "share height width 3"]:
        """The pixels of one device's images, `first` and on; their labels and errors go to `host`."""
        pixels, exif = np.zeros((self.share, *self.shape), np.uint8), self.config.data.exif

        def load(row: int) -> None:
            index = first + row
            try:
                pixels[row], sample = read(self.source, index, lambda image: decode(image, exif))
                host.known[index] = sample["label"]
            except OSError as error:
                host.broken[index] = str(error)

        count = min(self.share, max(0, len(self) - first))
        run_in_threads(decoding_threads(self.config), count, load, "training images decoded")
        return pixels


class Standins(Whole):
    """What the host reads of images that are on the devices: their labels, and zeros of their size."""

    def __init__(self, source: Source, shape: tuple[int, ...]):
        super().__init__(source)
        self.known, self.zeros = np.zeros(len(source), np.int32), np.zeros(shape, np.uint8)
        self.broken: dict[int, str] = {}

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index in self.broken:
            raise OSError(self.broken[index])
        return {"image": self.zeros, "label": int(self.known[index]), "name": f"image {index}"}


def open_crops(source: Source, size: int) -> tuple[Source, Cut | None]:
    """What the host reads, and (image indices, boxes) → views of `size` pixels per side, cut from what the devices
    keep; None where the host makes them too. The boxes are `draw_crop`'s."""
    if not isinstance(source, OnDevices):
        return source, None
    if max(source.shape) > size:  # of a teacher that is smaller
        return source.source, None
    images, host = source.kept
    return host, functools.partial(cut_crops, images, size=size, mesh=source.mesh)


@functools.partial(jax.jit, static_argnames=("size", "mesh"))
def cut_crops(
    images: UInt8[AnyArray, "n h w 3"],
    index: Integer[AnyArray, "b"],
    boxes: Integer[AnyArray, "b 4"],
    *,
    size: int,
    mesh: Mesh,
) -> UInt8[Array, "b size size 3"]:
    """`random_resized_crop` of box i (top, left, height, width) of image `index[i]`, none larger than `size`.

    Images, boxes and results are split over the mesh along their first axis, whose length its devices divide.
    """
    starts, weights = map(jnp.asarray, bicubic_filters(size))

    def resize(pixels, first, length):
        taken = pixels[first + starts[length][:, None] + jnp.arange(TAPS)].astype(jnp.int32)
        total = jnp.einsum("st,stpc->spc", weights[length], taken)
        return ((total + (1 << BITS - 1)) >> BITS).clip(0, 255)

    def cut(image, box):
        top, left, height, width = box
        rows = resize(image.swapaxes(0, 1), left, width).swapaxes(0, 1)
        return resize(rows, top, height).astype(jnp.uint8)

    def on_each(images, index, boxes):
        here = index - jax.lax.axis_index(sharding.BATCH_AXES) * len(images)
        ours = (here >= 0) & (here < len(images))
        found = jnp.where(ours[:, None, None, None], images[here.clip(0, len(images) - 1)], 0)
        return jax.vmap(cut)(jax.lax.psum_scatter(found, sharding.BATCH_AXES, tiled=True), boxes)

    split = sharding.batch_sharding(mesh).spec
    return jax.shard_map(on_each, mesh=mesh, in_specs=(split, P(), split), out_specs=split)(images, index, boxes)


@functools.cache
def bicubic_filters(size: int) -> tuple[Int[np.ndarray, "lengths size"], Int[np.ndarray, "lengths size taps"]]:
    """PIL's filters that enlarge 0 … `size` pixels to `size`: the first pixel that each looks at, and its weights."""
    starts, weights = np.zeros((size + 1, size), np.int32), np.zeros((size + 1, size, TAPS), np.int32)
    for length in range(1, size + 1):
        for place in range(size):
            centre = (place + 0.5) * (length / size)
            first, last = max(0, int(centre - 1.5)), min(length, int(centre + 2.5))
            taps = [keys_cubic(abs(x - centre + 0.5)) for x in range(first, last)]
            scaled = [tap / sum(taps) * (1 << BITS) for tap in taps]
            starts[length, place] = first
            weights[length, place, : len(taps)] = [int(math.copysign(0.5, tap) + tap) for tap in scaled]
    return starts, weights


def keys_cubic(x: float) -> float:
    """Keys' kernel with a = -0.5 at a distance of x >= 0 pixels, in PIL's order of operations."""
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * -0.5 if x < 2 else 0.0
