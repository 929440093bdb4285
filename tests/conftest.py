"""What several folders of tests share: one exported bundle, its network, real media."""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from rvos_deploy.cache_folder import VARIABLE
from rvos_deploy.networks.pan2024.config import preset

# pytest's importlib mode leaves these folders off the path; these modules lie in them.
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "stand_ins")]
pytest_plugins = [
    "command_line",
    "emoji_font",
    "file_server",
    "gpu_fixtures",
    "live_server",
    "rtsp_server",
    "stalled_sources",
]

SHARED = Path(__file__).parents[2] / "shared"

# nohup, and a shell that runs tests in the background, start pytest with signals that are ignored.
# Its children would inherit that, and the tests of stops would wait for ever. A handler that does
# nothing ignores a signal here, and is reset in children.
for _stop in (signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGINT)):
    if signal.getsignal(_stop) is signal.SIG_IGN:
        signal.signal(_stop, lambda number, frame: None)


# Some tests look for temporary files that a process left. They must not find those of tests that
# another worker of pytest-xdist runs at the same time. The name is short, as sockets need it.
if "PYTEST_XDIST_WORKER" in os.environ:
    _temporary = Path(tempfile.gettempdir(), secrets.token_hex(3))
    _temporary.mkdir(mode=0o700)
    os.environ["TMPDIR"] = tempfile.tempdir = str(_temporary)
    atexit.register(shutil.rmtree, _temporary, ignore_errors=True)


_started_in = str(Path.cwd())


@pytest.fixture(scope="session", autouse=True)
def no_cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give tests, and the processes that they start, an empty cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None]:
    """Blame a test that leaves the process elsewhere: its folder goes, and others would fail."""
    yield
    if _started_in != (found := _working_folder()):
        os.chdir(_started_in)
        pytest.fail(f"the test left the process in {found}; use monkeypatch.chdir")


def _working_folder() -> str:
    try:
        return str(Path.cwd())
    except FileNotFoundError:
        return "a folder that is gone"


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a bundle that is exported once, also for the other workers of pytest-xdist.

    An environment variable may name a ready one.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def find(name: str, variable: str, export: Callable[[Path], object]) -> Path:
        if ready := os.environ.get(variable):
            return Path(ready)
        pytest.importorskip("torch")
        from filelock import FileLock  # torch brings it

        out = root / "bundles" / name
        out.parent.mkdir(exist_ok=True)
        with FileLock(f"{out}.lock"):
            if not out.exists():
                export(out)
        return out

    return find


@pytest.fixture(scope="session")
def tiny_bundle(exported: Callable[..., Path]) -> Path:
    """The tiny network at random weights."""

    def export(out: Path) -> None:
        from rvos_deploy.export.pan2024 import export_bundle
        from rvos_deploy.export.weights import Weights

        export_bundle(preset("tiny"), out, Weights(random=True))

    return exported("tiny", "RVOS_TEST_BUNDLE", export)


@pytest.fixture(scope="session")
def tiny_bundle_fp16(exported: Callable[..., Path]) -> Path:
    """The same network computing in float16."""

    def export(out: Path) -> None:
        from rvos_deploy.export.pan2024 import export_bundle
        from rvos_deploy.export.weights import Weights

        export_bundle(preset("tiny"), out, Weights(random=True, precision="fp16"))

    return exported("tiny-fp16", "RVOS_TEST_BUNDLE_FP16", export)


@pytest.fixture(scope="session")
def static_bundle(exported: Callable[..., Path]) -> Path:
    """The same network, every size fixed: 64x96, 2 expressions, 16 tokens, 8 frames."""

    def export(out: Path) -> None:
        from rvos_deploy.export.graph_form import GraphForm, StaticShapes
        from rvos_deploy.export.pan2024 import export_bundle
        from rvos_deploy.export.weights import Weights

        form = GraphForm(static=StaticShapes(64, 96, 2, 16, 8))
        export_bundle(preset("tiny"), out, Weights(random=True), form=form)

    return exported("tiny-static", "RVOS_TEST_BUNDLE_STATIC", export)


@pytest.fixture(scope="session")
def online_refer_bundle(exported: Callable[..., Path]) -> Path:
    """OnlineRefer's small configuration at random weights."""

    def export(out: Path) -> None:
        from rvos_deploy.export.online_refer import OnlineReferWeights, export_bundle
        from rvos_deploy.networks.online_refer import config

        export_bundle(config.preset("onlinerefer-tiny"), out, OnlineReferWeights())

    return exported("online-refer", "RVOS_TEST_BUNDLE_ONLINE_REFER", export)


@pytest.fixture(scope="session")
def tiny_network():  # type: ignore[no-untyped-def]
    """The network that the bundle was exported from, in eval mode. Do not change it."""
    pytest.importorskip("torch")
    from rvos_deploy.export.weights import Weights, load_network

    return load_network(preset("tiny"), Weights(random=True))


@pytest.fixture(scope="session")
def shared_media() -> Path:
    """Real clips; the test skips where they are absent."""
    if not (SHARED / "media").is_dir():
        pytest.skip("../shared/media is absent")
    return SHARED / "media"
