"""The hub, played by a server of our own."""

import functools
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers import SMALL
from safetensors.numpy import save_file

from deit_jax.weights import hub, load_weights
from deit_jax.weights.write import DISTILLED, tensors

CLIENT = """
import sys, time
import deit_jax
time.sleep = lambda seconds: None  # the hub's client waits 23 s between its tries
for name in sys.argv[1:]:
    try:
        weights = deit_jax.load_weights(name)
        print("read", weights.name, weights.num_classes, weights.mean[0], (weights.class_names or ["-"])[0])
    except deit_jax.UserError as error:
        print("error", error)
"""


@pytest.mark.parametrize(
    ("source", "right"),
    [("timm/deit_tiny_patch16_224.fb_in1k", True), ("runs/x.pth.tar", False), ("a/b.safetensors", False), ("a", False)],
)
def test_hub_names(source, right):
    assert hub.is_hub_name(source) == right


class Hub(SimpleHTTPRequestHandler):
    """Files as the hub gives them: FOLDER/OWNER/NAME/resolve/main/FILE."""

    def send_error(self, code, message=None, explain=None):
        known = Path(self.translate_path(self.path)).parent.is_dir()
        self.send_response(404 if known else 401)
        self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def end_headers(self):
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{abs(hash(self.path))}"')
        super().end_headers()

    def log_message(self, format, *args):
        pass


def ask(home, endpoint: str, *names: str, offline: bool = False) -> list[str]:
    environment = os.environ | {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": str(int(offline))}
    done = subprocess.run([sys.executable, "-c", CLIENT, *names], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_repositories(tmp_path, small):
    path, _ = small
    weights = load_weights(path)
    timm_config = {
        "architecture": SMALL,
        "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 16, 16]},
    }
    save_file(tensors(weights.tree, DISTILLED), tmp_path / "hf.safetensors")
    sizes = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 384}
    sizes |= {"image_size": 16, "patch_size": 4, "layer_norm_eps": 1e-6}
    hf_config = sizes | {"model_type": "deit", "id2label": {str(i): f"digit {i}" for i in range(10)}}
    for repository, weight_file, config in (
        ("timm/small.test", path, timm_config),
        ("facebook/small-distilled", tmp_path / "hf.safetensors", hf_config),
        ("owner/no-weights", None, {}),
    ):
        folder = tmp_path / "hub" / repository / "resolve/main"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        if weight_file:
            shutil.copy(weight_file, folder / "model.safetensors")
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Hub, directory=str(tmp_path / "hub")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    names = ["timm/small.test", "facebook/small-distilled", "owner/nothing", "owner/no-weights", "owner/a b"]
    said = ask(tmp_path / "home", address, *names)
    server.shutdown()
    server.server_close()
    assert said[0] == f"read {SMALL} 10 0.5 -"
    assert said[1] == f"read {SMALL} 10 0.485 digit 0"
    assert said[2].startswith("error owner/nothing does not exist, neither as a file or folder here nor on the hub")
    assert said[3].startswith("error owner/no-weights holds neither model.safetensors nor pytorch_model.bin")
    assert said[4].startswith("error owner/a b does not exist")
    assert len(said) == len(names)
    # no network: what was read is in the cache, the rest is told
    for offline in (True, False):
        cached, missing = ask(tmp_path / "home", address, "timm/small.test", "timm/other", offline=offline)
        assert cached == said[0]
        assert missing.startswith("error timm/other is no file or folder here, and the hub does not give it")
