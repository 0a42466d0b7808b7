"""What the engine's tests share: weights, an engine on the CPU, and small pictures."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy.engine import URL

from nst_engine.config import TransferConfig
from nst_engine.images import MAX_PIXELS, encode_png
from nst_engine.samples import content_sample, style_sample
from nst_engine.weights import Weights, random_weights
from storage.database import open_database
from storage.jobs import JobStore
from storage.models import Job
from storage.workspace import Workspace
from tests.intake_home import Place
from tests.postgresql_server import PostgresqlServer, running_server

if TYPE_CHECKING:
    from nst_engine.engine import Engine

# TensorFlow reads it once, when it is imported.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
# So does Prefect, which some test modules import; as flows.local_api has it.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")

STANDIN_MAKER = Path(__file__).resolve().parents[2] / "shared" / "weights" / "make_vgg19_standin.py"


@pytest.fixture(scope="session")
def standin_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weight file with the layout of Keras' and most of its numbers; see its maker."""
    if not STANDIN_MAKER.is_file():
        pytest.skip(f"{STANDIN_MAKER} is not there to make the stand-in weights")
    path = tmp_path_factory.mktemp("weights") / "standin.h5"
    subprocess.run([sys.executable, STANDIN_MAKER, path], check=True)
    return path


@pytest.fixture(scope="session")
def weights_choice(request: pytest.FixtureRequest) -> str:
    """The stand-in weights where they can be made, else the seeded random ones."""
    if not STANDIN_MAKER.is_file():
        return "random"
    return str(request.getfixturevalue("standin_weights"))


@pytest.fixture(scope="session")
def weight_file(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, random_network: Weights
) -> Path:
    """A whole weight file: the stand-in where it can be made, else the random weights in the same layout."""
    if STANDIN_MAKER.is_file():
        return Path(request.getfixturevalue("standin_weights"))
    path = tmp_path_factory.mktemp("weights") / "random.h5"
    with h5py.File(path, "w") as file:
        for name, arrays in random_network.kernels.items():
            group = file.create_group(name)
            group.attrs["weight_names"] = [b"kernel:0", b"bias:0"]
            for part, array in zip(("kernel:0", "bias:0"), arrays, strict=True):
                group.create_dataset(part, data=array)
    return path


@pytest.fixture(scope="session")
def random_network() -> Weights:
    """The seeded random weights, which are on every machine."""
    return random_weights()


@pytest.fixture(scope="session")
def engine() -> Engine:
    """An engine on the CPU, the same for all tests, so that most traces are made once."""
    # Imported here: the tests that need no TensorFlow should not wait for it.
    from nst_engine.engine import Engine

    return Engine("cpu")


@pytest.fixture(scope="session")
def quick(weights_choice: str) -> TransferConfig:
    """Adam on few pixels and two blocks, for tests to which the network does not matter."""
    return TransferConfig().with_overrides(
        {
            "rows": 32,
            "content_layers": "block2_conv2",
            "style_layers": "block1_conv1,block2_conv1",
            "optimizer": "adam",
            "learning_rate": 4.0,
            # Random weights give gradients that would be small beside the usual 1e-7.
            "epsilon": 1e-15,
            "iterations": 6,
            "precision": "float32",
            "weights": weights_choice,
        }
    )


@pytest.fixture(scope="session")
def content() -> NDArray[np.uint8]:
    """A wide content picture, uint8 RGB (96, 128, 3)."""
    return content_sample(96, 128)


@pytest.fixture(scope="session")
def style() -> NDArray[np.uint8]:
    """A style picture of another shape, uint8 RGB (96, 96, 3)."""
    return style_sample(96, 96)


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One temporary Prefect API for all flows that run in this process; its start is most of a flow's time."""
    from flows.local_api import prepare_api

    os.environ["PREFECT_HOME"] = str(tmp_path_factory.mktemp("prefect"))
    prepare_api(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database, made once."""
    path = tmp_path_factory.mktemp("template") / "nst.db"
    open_database(path).close()
    return path


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    """A PostgreSQL server without databases."""
    with running_server() as server:
        yield server


@pytest.fixture(scope="session")
def postgresql_template(postgresql: PostgresqlServer) -> URL:
    """A database with our tables and no rows, made once."""
    url = postgresql.new_database()
    open_database(str(url)).close()
    return url


@pytest.fixture(scope="session")
def new_url(request: pytest.FixtureRequest) -> Callable[[str, Path], str]:
    """Gives the URL of a new database of a kind; one of SQLite is in the folder."""

    def make(kind: str, folder: Path) -> str:
        if kind == "sqlite":
            return f"sqlite:///{folder}/nst.db"
        server: PostgresqlServer = request.getfixturevalue("postgresql")
        return str(server.new_database(like=request.getfixturevalue("postgresql_template")))

    return make


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path, new_url: Callable[[str, Path], str]) -> str:
    """The URL of a new database, of each kind that nst keeps."""
    return new_url(request.param, tmp_path)


@pytest.fixture
def place(tmp_path: Path, template: Path) -> Iterator[Place]:
    """An empty home whose intake looks when it is told to."""
    place = Place(tmp_path / "home", template)
    yield place
    place.close()


@pytest.fixture(scope="session")
def dead_pid() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """The folders of an empty home."""
    workspace = Workspace(tmp_path / "home")
    workspace.create()
    return workspace


@pytest.fixture
def in_a_burst(prefect_api: None) -> Iterator[None]:
    """As in a run that the service has started."""
    from flows.attempt import burst_stop

    token = burst_stop.set(threading.Event())
    yield
    burst_stop.reset(token)


@pytest.fixture
def content_file(tmp_path: Path, content: NDArray[np.uint8]) -> Path:
    """The content sample as a file of the user's."""
    return _saved(content, tmp_path / "pictures" / "lake.png")


@pytest.fixture
def style_file(tmp_path: Path, style: NDArray[np.uint8]) -> Path:
    """The style sample as a file of the user's."""
    return _saved(style, tmp_path / "pictures" / "swirls.png")


@pytest.fixture
def claim_pair(content_file: Path, style_file: Path) -> Callable[..., Job]:
    """Makes a pending job of the two pictures."""
    from flows.claim import claim

    def make(store: JobStore, workspace: Workspace, config: TransferConfig, **more: Any) -> Job:
        pictures = {"content": content_file, "styles": [style_file]}
        return claim(store, workspace, **pictures, preset="default", config=config, max_pixels=MAX_PIXELS, **more)

    return make


def _saved(picture: NDArray[np.uint8], path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    encode_png(picture, path)
    return path
