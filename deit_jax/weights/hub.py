"""The Hugging Face hub: a repository's weights and configuration, downloaded once and kept in the library's cache."""

import re
from pathlib import Path

from deit_jax.errors import UserError, first_line
from deit_jax.weights.weight_files import NAMES, is_weight_file

CONFIGURATION = ("config.json", "preprocessor_config.json")


def is_hub_name(source: str) -> bool:
    """Whether `source` has the form owner/name of a hub repository, and not that of a file's name."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", source)) and not is_weight_file(Path(source))


def fetch(name: str) -> Path:
    """The weight file of a hub repository in the cache, with its configuration beside it; downloaded where it is not
    cached yet.

    Raises UserError where the name does not exist, holds no weights, or neither hub nor cache has it.
    """
    import huggingface_hub  # here: it takes 0.3 s, and files need none of it
    from huggingface_hub import errors

    try:
        for file in NAMES:
            folder = huggingface_hub.snapshot_download(name, allow_patterns=[file, *CONFIGURATION])
            if (path := Path(folder, file)).exists():
                return path
    except (OSError, errors.HfHubHTTPError, errors.HFValidationError) as error:
        raise UserError(
            f"{name} is no file or folder here, and the hub does not give it ({first_line(error)}): check the spelling"
            " (names are like timm/deit_small_patch16_224.fb_in1k), or log in with `hf auth login`"
        ) from error
    raise UserError(f"{name} holds neither {NAMES[0]} nor {NAMES[1]}, or the hub does not answer: give another name")
