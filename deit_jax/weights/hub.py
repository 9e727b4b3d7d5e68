"""The Hugging Face hub: a repository's weights and configuration, downloaded once and kept in the library's cache."""

import re
from pathlib import Path

from deit_jax.errors import UserError, first_line
from deit_jax.weights.weight_files import NAMES, is_weight_file

CONFIGURATION = ("config.json", "preprocessor_config.json")
PATIENCE = 3.0  # seconds for the hub's first answer


def is_hub_name(source: str) -> bool:
    """Whether `source` has the form owner/name of a hub repository, and not that of a file's name."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", source)) and not is_weight_file(Path(source))


def fetch(name: str) -> Path:
    """The weight file of a hub repository in the cache, with its configuration beside it; downloaded where it is not
    cached yet.

    Raises UserError where the name does not exist, holds no weights, or the hub does not answer within PATIENCE.
    """
    from huggingface_hub import errors  # here: it takes 0.3 s, and files need none of it

    try:
        offline = not answers(name)
        path = download(name, NAMES[0], offline) or download(name, NAMES[1], offline)
        if path is None:
            raise UserError(f"{name} holds neither {NAMES[0]} nor {NAMES[1]}: give another name")
        for extra in CONFIGURATION:
            download(name, extra, offline)
    except errors.GatedRepoError as error:
        raise UserError(f"{name} is gated: ask for access on its page, then log in with `hf auth login`") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise UserError(
            f"{name} does not exist, neither as a file or folder here nor on the hub: check the spelling (names are "
            "like timm/deit_small_patch16_224.fb_in1k), or log in with `hf auth login` where it is private"
        ) from error
    except (OSError, errors.HfHubHTTPError) as error:
        raise UserError(f"{name} could not be downloaded ({first_line(error)}): try again") from error
    return path


def answers(name: str) -> bool:
    """Whether the hub can be reached, asked once: the library's own downloads try for 23 s.

    Raises the library's error where the hub says that the repository does not exist or is closed.
    """
    import huggingface_hub as hub
    from huggingface_hub import errors

    try:
        hub.get_hf_file_metadata(hub.hf_hub_url(name, NAMES[0]), timeout=PATIENCE)
    except errors.EntryNotFoundError:
        return True
    except (errors.GatedRepoError, errors.RepositoryNotFoundError, errors.HFValidationError):
        raise
    except Exception:  # no network, offline mode, a proxy's or the hub's own trouble: each HTTP library has its own
        return False
    return True


def download(name: str, file: str, offline: bool) -> Path | None:
    """A repository's file in the cache, or None where it holds none."""
    import huggingface_hub as hub
    from huggingface_hub import errors

    try:
        return Path(hub.hf_hub_download(name, file, local_files_only=offline))
    except errors.LocalEntryNotFoundError as error:
        if file != NAMES[1]:
            return None
        raise UserError(
            f"{name} is not in the cache and the hub cannot be reached (offline mode or no network), nor is it a file "
            "or folder here: check the spelling, or connect and try again"
        ) from error
    except errors.EntryNotFoundError:
        return None
