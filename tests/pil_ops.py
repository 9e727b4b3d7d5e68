"""timm's ops in PIL, the reference for ours; `arg` is what `deit_jax.augment.apply_op` takes."""

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
WARPS = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")


def pil_op(name, image, arg=0.0, resampling="bilinear", fill=(124, 116, 104)):
    """One op on a uint8 (H, W, 3) array."""
    picture, name = Image.fromarray(image), name.removesuffix("Increasing")
    height, width = image.shape[:2]
    how = {"resample": RESAMPLING[resampling], "fillcolor": fill}

    def affine(*matrix):
        return picture.transform(picture.size, Image.Transform.AFFINE, matrix, **how)

    def each_value(function):
        return picture.point([function(value) for value in range(256)] * 3)

    if name in ("Color", "Contrast", "Brightness", "Sharpness"):
        out = getattr(ImageEnhance, name)(picture).enhance(arg)
    else:
        out = {
            "AutoContrast": lambda: ImageOps.autocontrast(picture),
            "Equalize": lambda: ImageOps.equalize(picture),
            "Invert": lambda: ImageOps.invert(picture),
            "Rotate": lambda: picture.rotate(arg, **how),
            "Posterize": lambda: each_value(lambda v: v & ~(2 ** (8 - int(arg)) - 1)),
            "Solarize": lambda: ImageOps.solarize(picture, int(arg)),
            "SolarizeAdd": lambda: each_value(lambda v: min(255, v + int(arg)) if v < 128 else v),
            "ShearX": lambda: affine(1, arg, 0, 0, 1, 0),
            "ShearY": lambda: affine(1, 0, 0, arg, 1, 0),
            "TranslateXRel": lambda: affine(1, 0, arg * width, 0, 1, 0),
            "TranslateYRel": lambda: affine(1, 0, 0, 0, 1, arg * height),
        }[name]()
    return np.asarray(out)


def timm_arg(name, magnitude, sign):
    """timm's argument for an "increasing" op at a magnitude of 0..10 (its `LEVEL_TO_ARG`)."""
    level = magnitude / 10
    return {
        "Rotate": 30 * level * sign,
        "PosterizeIncreasing": 4 - int(4 * level),
        "SolarizeIncreasing": 256 - int(256 * level),
        "SolarizeAdd": int(110 * level),
        "ColorIncreasing": 1 + 0.9 * level * sign,
        "ContrastIncreasing": 1 + 0.9 * level * sign,
        "BrightnessIncreasing": 1 + 0.9 * level * sign,
        "SharpnessIncreasing": 1 + 0.9 * level * sign,
        "ShearX": 0.3 * level * sign,
        "ShearY": 0.3 * level * sign,
        "TranslateXRel": 0.45 * level * sign,
        "TranslateYRel": 0.45 * level * sign,
    }.get(name, 0.0)


def assert_close(got, expected, mean=0.5, within=2, share=0.99):
    """The project's bound: mean absolute difference at most half a level, 99 % of the values within two."""
    difference = np.abs(np.asarray(got).astype(int) - np.asarray(expected).astype(int))
    assert difference.mean() <= mean, f"mean difference {difference.mean():.3f}"
    assert np.mean(difference <= within) >= share, f"{np.mean(difference <= within):.2%} within {within}"
