"""timm's ops by name and number."""

# timm's `_RAND_INCREASING_TRANSFORMS` in its order: rand-m9-mstd0.5-inc1 draws from these.
OPS = (
    "AutoContrast Equalize Invert Rotate PosterizeIncreasing SolarizeIncreasing SolarizeAdd ColorIncreasing"
    " ContrastIncreasing BrightnessIncreasing SharpnessIncreasing ShearX ShearY TranslateXRel TranslateYRel"
).split()
IDS = {name.removesuffix("Increasing"): number for number, name in enumerate(OPS)}
