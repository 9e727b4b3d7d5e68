"""What the files in `configs/` share: arguments after the colon, DeiT on ImageNet-1k by size."""

from deit_jax.config.settings import Config, default_config
from deit_jax.errors import UserError, nearest


def arguments(text: str | None, allowed: tuple[str, ...]) -> dict[str, str]:
    """Parse what follows the colon of `--config=FILE:key=value,…`. Raises UserError for a key not in `allowed`."""
    out = {}
    for part in filter(None, (text or "").split(",")):
        key, equals, value = part.partition("=")
        if key not in allowed or not equals or not value:
            takes = ", ".join(f"{k}=…" for k in allowed)
            raise UserError(f"config argument '{part}' is not known{nearest(key, allowed)}: this config takes {takes}")
        out[key] = value
    return out


def epochs_of(given: dict[str, str], default: int) -> int:
    """The config argument `epochs`, or the default. Raises UserError where it is not a whole number."""
    epochs = given.get("epochs", str(default))
    if not epochs.isdigit():
        raise UserError(f"config argument epochs={epochs} is not a whole number: use epochs={default}")
    return int(epochs)


def model_of(weights: str) -> str:
    """The registry name that weights' own name starts with (`timm/regnety_160.deit_in1k`), or "": what they are."""
    from deit_jax.models import list_models  # here: flags are checked without the models

    stem = weights.rstrip("/").split("/")[-1].split(".")[0]
    return stem if stem in list_models() else ""


def deit(size: str, text: str | None = "") -> Config:
    """The config of a DeiT on ImageNet-1k: `size` tiny, small or base; `text` the arguments of `--config=FILE:text`.

    distill=none|soft|hard; teacher= weights, of a model named alike (default RegNetY-16GF as released); epochs=.
    """
    given = arguments(text, ("distill", "teacher", "epochs"))
    kind = given.get("distill", "none")
    c = default_config()
    c.model.name = f"deit_{size}{'' if kind == 'none' else '_distilled'}_patch16_224"
    c.distill.kind = kind
    if kind != "none":
        c.teacher.init = given.get("teacher", "timm/regnety_160.deit_in1k")
        c.teacher.name = model_of(c.teacher.init)
    c.epochs = epochs_of(given, 300)
    c.data.resize = "fast"  # three times what timm's loader gives a core
    return c
