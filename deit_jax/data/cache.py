"""`data.cache`: decoded originals kept in memory, so that no image is decoded twice. That changes no pixel;
`data.device_size`, images resized before they are cropped, does."""

import functools
from typing import Any

import numpy as np

from deit_jax.config import Config
from deit_jax.data.assemble import read
from deit_jax.data.base import ArraySource, Source, Subset, Whole
from deit_jax.data.images import decode, eval_image
from deit_jax.errors import UserError
from deit_jax.runtime import hardware

AUTO_FRACTION = 0.25  # of the free memory, which "auto" takes at most
SAMPLE = 16  # images whose size stands for that of all


class Resized(Whole):
    """Images as the evaluation sees them: the short side resized to `side` pixels, and cropped to the centre square."""

    def __init__(self, source: Source, side: int, exif: bool):
        super().__init__(source)
        self.view = functools.partial(eval_image, size=side, crop=1.0, exif=exif)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, sample = read(self.source, index, self.view)
        return {**sample, "image": image}


class Cached(Whole):
    """All images of a source as uint8 pixels (height, width, 3), each decoded when it is first read.

    What cannot be decoded is handed on as it is, for its reader to name. Worker processes keep an own copy each.
    """

    def __init__(self, source: Source, exif: bool):
        super().__init__(source)
        self.exif = exif
        self.kept: dict[int, dict[str, Any]] = {}

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index not in self.kept:
            sample = self.source[index]
            try:
                sample = {**sample, "image": decode(sample["image"], self.exif)}
            except OSError:
                return sample
            self.kept[index] = sample
        return self.kept[index]

    def estimate(self) -> float:
        """Bytes of all images, by those of some spread over the source."""
        sizes = []
        for index in np.linspace(0, len(self) - 1, min(SAMPLE, len(self))).astype(int).tolist():
            try:
                image = self[index]["image"]
            except OSError:  # its reader names it
                continue
            sizes += [image.nbytes] if isinstance(image, np.ndarray) else []
        return float(np.mean(sizes)) * len(self) if sizes else 0.0


def keep_decoded(config: Config, *sources: Source) -> list[Source]:
    """The sources, training images first, with decoded images in memory where `data.cache` asks for it and that helps.

    "auto": where all of them together fit in a quarter of the free memory, with as many copies as worker processes;
    "device": the same without the training images (`device_crops`). Raises UserError where "ram" does not fit.
    """
    how, copies = config.data.cache, max(1, config.data.workers)
    if how == "none":
        return list(sources)
    left = [(how == "device" and source is sources[0]) or is_decoded(source) for source in sources]
    kept = [s if alone else Cached(s, config.data.exif) for s, alone in zip(sources, left, strict=True)]
    wanted = copies * sum(source.estimate() for source in kept if isinstance(source, Cached))
    free = hardware.free_memory()
    if how == "ram" and wanted > free:
        raise UserError(
            f"data.cache is ram, but the decoded images of {sources[0].title} take {wanted / hardware.GIB:,.1f} GiB"
            f" and {free / hardware.GIB:,.1f} GiB are free: use --config.data.cache=none"
        )
    return kept if how == "ram" or wanted <= AUTO_FRACTION * free else list(sources)


def is_decoded(source: Source) -> bool:
    """Whether a source, or what it is a part of, holds pixels in memory already."""
    while isinstance(source, Subset):
        source = source.source
    return isinstance(source, ArraySource)
