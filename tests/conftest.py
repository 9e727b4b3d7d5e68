"""Every test sees eight simulated devices, so that what works on one also works on many; what is compiled is kept, and
compiled with less optimization: compiling is most of what the suite does. Models, losses and the train step are
compiled as for users (`helpers.AS_USERS`), and `.ci/run` trains once as a user would."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

# many tests, and the commands they start, compile the same small models: once a session is enough
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    cache = tempfile.TemporaryDirectory(prefix="deit_jax_compiled_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

# devices that wait for each other on a busy machine: XLA ends the process after 40 seconds
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + "".join(
    f" --xla_cpu_collective_{wait}_seconds=1500"
    for wait in ("call_warn_stuck_timeout", "call_terminate_timeout", "timeout")
)
# code that takes half the time to make, and is as fast on arrays as small as the tests'
if "xla_backend_optimization_level" not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=1 --xla_cpu_use_fusion_emitters=false"

import jax  # after the environment it reads is set
import jaxtyping

LESS_OPTIMIZED = "xla_cpu_use_fusion_emitters=false" in os.environ["XLA_FLAGS"]
CHECKED = (
    *("augment", "classes", "distill", "evaluate.classifier", "evaluate.inference", "evaluate.class_report"),
    *("losses", "models", "report", "train.optimizer", "train.run", "train.step"),
)
TYPECHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"  # an int is a float, as for pyright
# before deit_jax is imported: annotated types and shapes are checked at each call
jaxtyping.install_import_hook([f"deit_jax.{room}" for room in CHECKED], TYPECHECKER)

jax.config.update("jax_num_cpu_devices", 8)


# by CPU seconds, most first: the rest of the suite is short files, which even out
LONGEST = (
    *("test_processes", "test_label", "test_experiment", "test_ablate", "test_main", "test_terminals"),
    *("test_campaign", "test_models", "test_train", "test_efficientnet", "test_convert", "test_export", "test_meshes"),
    *("test_policies", "test_ops", "test_fsdp", "test_linen", "test_compare", "test_teacher", "test_pipeline"),
    *("test_stability", "test_evaluation_command", "test_own_teacher", "test_files", "test_page"),
)


def pytest_collection_modifyitems(items):
    """Optimized files come first, then long ones: at the end of the suite one would keep one process busy and the other
    waiting."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (not item.get_closest_marker("long_runs"), place.get(item.path.stem, len(place))))


@pytest.fixture(scope="session", autouse=True)
def temporary_files(tmp_path_factory):
    """What libraries leave in the temp directory (TFDS: a folder per dataset opened) goes into pytest's, which removes
    it after a few sessions."""
    folder = str(tmp_path_factory.mktemp("temporary"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", folder)
        patch.setenv("TMPDIR", folder)
        yield


@pytest.fixture(scope="module", autouse=True)
def optimization(request):
    """Nearly none, where a file does not say `pytest.mark.long_runs`: most compile much and run it briefly. A level in
    XLA_FLAGS holds for all."""
    from helpers import optimize

    optimize(request.node.get_closest_marker("long_runs") is not None or not LESS_OPTIMIZED)


@pytest.fixture
def single():
    """One of the simulated devices, for whole runs that are not about devices."""
    from helpers import one_device

    with one_device():
        yield


@pytest.fixture
def unchecked(monkeypatch):
    """Annotations are not checked, as for a user: the test is about a message on bad input, or about a path in a
    bucket, which has the methods of the Path that is annotated."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """The whole suite runs in two processes, a file at a time, where pytest-xdist is there and nothing else is asked.

    Most of it is compilation, which keeps one core busy.
    """
    option = config.option
    worker = "PYTEST_XDIST_WORKER" in os.environ
    whole = config.args_source == config.ArgsSource.TESTPATHS and not worker
    if whole and getattr(option, "numprocesses", 0) is None and not option.usepdb and not option.collectonly:
        option.numprocesses, option.dist, option.loadscopereorder = 2, "loadfile", False
        option.maxworkerrestart = "0"  # a process that dies ends the suite: xdist waits for ever where one is replaced


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory) -> Path:
    """The folder of `helpers.whole_config`, trained and reported: made once for all test processes; nobody may change
    it."""
    from filelock import FileLock
    from helpers import make_whole_run

    base = tmp_path_factory.getbasetemp()
    made = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "whole_run"
    with FileLock(f"{made}.lock"):
        if not (made / "opened.json").exists():
            make_whole_run(made)
    return made


@pytest.fixture
def own_run(whole_run, tmp_path) -> Path:
    """A copy of `whole_run`, on one device, to be changed. Of files marked `long_runs`: they compile as it was made."""
    from helpers import one_device

    with one_device():
        yield shutil.copytree(whole_run, tmp_path / "run")


@pytest.fixture(scope="session")
def gcs_emulator():
    """An emulator of Google Cloud Storage on this machine, with the bucket "runs"."""
    os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # read on import; asks Google's own service otherwise
    pytest.importorskip("gcsfs", reason="needs the extra gcs")
    from gcp_storage_emulator.server import create_server

    server = create_server("localhost", 0, in_memory=True, default_bucket="runs")
    server.start()
    yield f"http://localhost:{server._api._httpd.server_port}"
    server.stop()


@pytest.fixture
def bucket(gcs_emulator, monkeypatch):
    """An empty folder in a bucket."""
    from deit_jax.runtime import storage

    for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
        monkeypatch.setenv(name, gcs_emulator)
    folder = storage.as_path("gs://runs/run")
    storage.remove(folder)
    return folder


@pytest.fixture(scope="module")
def browser():
    """Debian's headless Chromium, without a network. Of one file: its event loop is in the way of Orbax's."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    program = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    if program is None:
        pytest.skip("needs the program chromium-headless-shell or chromium")
    quiet = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync"
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=program, args=quiet.split())
        yield opened
        opened.close()


@pytest.fixture
def tab(browser):
    """A phone-sized window; a request that leaves the page fails the test."""
    requests, errors = [], []
    opened = browser.new_page(viewport={"width": 390, "height": 780})
    opened.set_default_timeout(1_500_000)
    opened.on("request", lambda request: requests.append(request.url))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda message: message.type == "error" and errors.append(message.text))
    yield opened
    opened.close()
    assert not errors
    assert {url.partition(":")[0] for url in requests} <= {"file", "data", "blob"}
    assert sum(url.startswith("file") for url in requests) == 1


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hugging Face hub of our own, with a token for it and an empty cache."""
    import hub_server
    from huggingface_hub import constants

    with hub_server.serve() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", served.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
        yield served
