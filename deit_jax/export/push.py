"""Put a model on the Hugging Face hub.

    deit-jax push RUN user/name --licence=apache-2.0 [--dry-run] [--to=huggingface] [--weights=ema] [--orbax]

RUN is a run's folder, or whatever else `deit_jax.load_model` takes. The repository gets the weights as safetensors with
their config.json, which timm and transformers load, and a model card. HF_ENDPOINT, HF_TOKEN and `hf auth login` count
as for any other program of that library. A repository that holds something else stays as it is without --overwrite.
"""

import argparse
import tempfile
import time
from pathlib import Path

from deit_jax.command import command
from deit_jax.errors import UserError, first_line, printable
from deit_jax.export.model_card import PICTURES, model_card
from deit_jax.runtime import atomic, storage
from deit_jax.weights import Weights, hub, load_weights
from deit_jax.weights.write import save_huggingface, save_orbax, save_timm

TRIES = 3  # of an upload that the hub or the network breaks off
PAUSE = 5.0  # seconds before the next
# what an overwrite deletes where it is not new
OWN_FILES: list[str] = ["*.safetensors", "*.json", "*.png", "README.md", "orbax/*"]


def write_repository(folder: Path, run: Path, weights: Weights, name: str, args: argparse.Namespace) -> None:
    """Fill a new `folder` with what the repository `name` will hold."""
    (save_huggingface if args.to == "huggingface" else save_timm)(weights, folder)
    if args.orbax:
        save_orbax(weights, folder / "orbax")
    for picture in PICTURES:
        if (run / picture).is_file():
            (folder / picture).write_bytes((run / picture).read_bytes())
    card = model_card(name, args.licence, run, weights, timm=args.to == "timm", kind=args.weights)
    atomic.write_text(folder / "README.md", card)


def upload(folder: Path, name: str, *, overwrite: bool = False, private: bool = False) -> str:
    """Make the hub's repository `name` hold the files of `folder`. Returns its address.

    A broken connection and the hub's own faults (5xx) are tried again. Raises UserError where it does not succeed.
    """
    import huggingface_hub  # here: it takes 0.3 s
    from huggingface_hub import errors

    api = huggingface_hub.HfApi()
    if not huggingface_hub.get_token():
        raise UserError(f"{name} needs a token of the hub that may write: set HF_TOKEN, or run `hf auth login`")

    checked = overwrite
    what = {"repo_id": name, "folder_path": folder, "commit_message": "Model of deit_jax"}
    for left in reversed(range(TRIES)):
        try:
            address = str(api.create_repo(name, private=private or None, exist_ok=True))
            kept = set() if checked else set(api.list_repo_files(name)) - {".gitattributes"}
            if kept:
                raise UserError(
                    f"{name} exists on the hub and holds {len(kept)} files ({', '.join(sorted(kept)[:3])}): give"
                    " another name, or --overwrite to replace them"
                )
            checked = True  # what a later try finds there may be an upload of this one whose answer was lost
            api.upload_folder(**what, delete_patterns=OWN_FILES if overwrite else None)
            return address
        # the second: of the HTTP client, whose package depends on huggingface_hub's version
        except (OSError, errors.HTTPError) as error:  # pyright: ignore[reportPrivateImportUsage]
            status = getattr(getattr(error, "response", None), "status_code", 0)
            if status in (401, 403):
                raise UserError(f"{name} may not be written with this token ({status}): check HF_TOKEN") from error
            if (status and status < 500) or not left:
                raise UserError(
                    f"{name} could not be uploaded, the hub or the network failed ({first_line(error)}): try again"
                ) from error
            print(f"{printable(first_line(error))}: another try in {PAUSE:g} s", flush=True)
            time.sleep(PAUSE)
    raise AssertionError("unreachable")


@command
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("deit-jax push", description="Put a model on the Hugging Face hub.")
    parser.add_argument("run", metavar="RUN", help="a run's folder, a .safetensors or .pth file, an Orbax folder")
    parser.add_argument("name", metavar="user/name", help="of the repository; made where there is none")
    parser.add_argument("--licence", "--license", default="", help="of the weights: apache-2.0, cc-by-nc-4.0, other, …")
    parser.add_argument("--dry-run", action="store_true", help="list the files, upload nothing")
    parser.add_argument(
        "--to", choices=("timm", "huggingface"), default="timm", help="whose names; transformers loads both"
    )
    parser.add_argument("--weights", choices=("params", "ema"), default="params", help="which of a training run")
    parser.add_argument("--orbax", action="store_true", help="also the weights as Orbax, in a folder orbax")
    parser.add_argument("--private", action="store_true", help="a new repository only you can see")
    parser.add_argument("--overwrite", action="store_true", help="replace what the repository holds")
    args = parser.parse_args(arguments)
    if not hub.is_hub_name(args.name):
        raise UserError(f"{args.name} is no name of a repository: give user/name")
    if not (args.licence or args.dry_run):
        raise UserError("no licence: name the one of your weights and images, as --licence=apache-2.0")
    weights = load_weights(args.run, weights=args.weights)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made, "repository")
        write_repository(folder, storage.as_path(args.run), weights, args.name, args)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for path in files:
            print(f"{atomic.readable(path.stat().st_size):>9}  {path.relative_to(folder)}")
        if args.dry_run:
            print("nothing is uploaded" + ("" if args.licence else "; the upload needs --licence"))
        else:
            print(f"uploaded {upload(folder, args.name, overwrite=args.overwrite, private=args.private)}")


if __name__ == "__main__":
    main()
