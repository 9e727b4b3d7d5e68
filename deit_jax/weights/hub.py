"""The Hugging Face hub: a repository's weights and configuration, downloaded once and kept in the library's cache."""

import re
from pathlib import Path

from deit_jax.errors import UserError
from deit_jax.weights.description import first_line
from deit_jax.weights.files import INDEX, NAMES, open_index
from deit_jax.weights.pickles import is_pickle

CONFIGURATION = ("config.json", "preprocessor_config.json")
PATIENCE = 3.0  # seconds for the hub's first answer


def is_hub_name(source: str) -> bool:
    """Whether `source` has the form owner/name of a hub repository, and not that of a file's name."""
    path = Path(source)
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", source)) and path.suffix != ".safetensors" and not is_pickle(path)


def fetch(name: str) -> Path:
    """The weight file of a hub repository in the cache, with its configuration beside it; downloaded where it is not
    there yet.

    Raises UserError where the name does not exist, holds no weights, or the hub does not answer within PATIENCE.
    """
    import huggingface_hub as hub  # here: it takes 0.3 s, and files need none of it
    from huggingface_hub import errors

    try:
        offline = not answers(name)
        path = first_of(name, NAMES, offline)
        if path is None:
            raise UserError(f"{name} holds neither {NAMES[0]} nor {NAMES[2]}: give another name")
        if path.name.endswith(INDEX):
            for file in sorted(set(open_index(path).values())):
                hub.hf_hub_download(name, file, local_files_only=offline)
        for extra in CONFIGURATION:
            first_of(name, (extra,), offline)  # it says what the weights' shapes do not; some have none
    except errors.GatedRepoError as error:
        raise UserError(f"{name} is gated: ask for access on its page, then log in with `hf auth login`") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise UserError(
            f"{name} does not exist, neither as a file or folder here nor on the hub: check the spelling (names are "
            "like timm/deit_small_patch16_224.fb_in1k), or log in with `hf auth login` where it is private"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise UserError(
            f"{name} is not in the cache and the hub cannot be reached (offline mode or no network), nor is it a file "
            "or folder here: check the spelling, or connect and try again"
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


def first_of(name: str, files: tuple[str, ...], offline: bool) -> Path | None:
    """The first of `files` that the repository holds, in the cache; None where it holds none of them."""
    import huggingface_hub as hub
    from huggingface_hub import errors

    missing = None
    for file in files:
        try:
            return Path(hub.hf_hub_download(name, file, local_files_only=offline))
        except errors.LocalEntryNotFoundError as error:
            missing = error
        except errors.EntryNotFoundError:
            continue
    if missing is not None and files == NAMES:
        raise missing
    return None
