"""What is wrong with this machine and how to mend it: one check a line, each with its finding."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from flows.network import weights_document
from flows.prefect_server import api_url
from flows.settings import Settings
from flows.versions import versions
from nst_engine import weights
from nst_engine.errors import EngineError
from nst_engine.startup import load_tensorflow
from storage.database import open_database
from storage.errors import StorageError
from storage.workspace import Workspace, check_writable

if TYPE_CHECKING:
    from nst_engine.hardware import Device

_LEAST_FREE_BYTES: Final = 2_000_000_000


@dataclass(frozen=True)
class Finding:
    """What a check found; `remedy` is empty where nothing is wrong."""

    check: str
    finding: str
    remedy: str = ""

    @property
    def healthy(self) -> bool:
        """Whether there is nothing to mend."""
        return not self.remedy

    def document(self) -> dict[str, str | bool]:
        """For JSON."""
        return {**asdict(self), "healthy": self.healthy}


def examine(settings: Settings) -> list[Finding]:
    """Run all checks of the service at `settings.home`."""
    checks: list[Callable[[Settings], Finding]] = [
        _versions,
        _device,
        _precision,
        _gpu,
        _weights,
        _home,
        _database,
        _disk,
        _prefect,
    ]
    return [check(settings) for check in checks]


def _versions(_: Settings) -> Finding:
    return Finding("versions", ", ".join(f"{name} {number}" for name, number in versions().items()))


def _device(settings: Settings) -> Finding:
    load_tensorflow()
    from nst_engine.gpu_memory import memory_of
    from nst_engine.hardware import choose_device, devices

    def listing(device: Device) -> str:
        memory = memory_of(device)
        free = f", {memory.free / 1e9:.1f} of {memory.most / 1e9:.1f} GB free" if memory else ""
        return f"{device.name} ({device.description}{free})"

    listed = ", ".join(map(listing, devices()))
    try:
        chosen = choose_device(settings.device)
    except EngineError as error:
        return Finding("device", str(error), "set NST_DEVICE, --device or device in nst.toml to one of these")
    remedy = ""
    if chosen.name == "cpu" and shutil.which("nvidia-smi"):
        remedy = "this machine has an NVIDIA driver that TensorFlow does not use: pip install 'nst[gpu]'"
    return Finding("device", f"{listed}; '{settings.device}' means {chosen.name}", remedy)


def _precision(settings: Settings) -> Finding:
    load_tensorflow()
    from nst_engine.hardware import choose_precision, cpu_bfloat16_speedup, devices

    meanings = ", ".join(f"{choose_precision('auto', device)} on {device.name}" for device in devices())
    return Finding(
        "precision",
        f"'auto' means {meanings} (there bfloat16 products run {cpu_bfloat16_speedup():.2g} times as fast)",
    )


def _gpu(settings: Settings) -> Finding:
    same = "the same" if settings.deterministic else "not always the same"
    return Finding("gpu", f"{'with' if settings.xla else 'without'} XLA; {same} float32 picture bit for bit")


def _weights(_: Settings) -> Finding:
    document = weights_document()
    if not document["verified"]:
        place = f" ({document['path']})" if document["path"] else ""
        return Finding(
            "weights",
            f"{document['problem']}{place}",
            f"nst weights --fetch, or set {weights.ENVIRONMENT_VARIABLE} to the file",
        )
    found = f"{document['name']}, {document['path']} (by {document['found_by']})"
    return Finding("weights", f"{found}, SHA-256 {document['sha256'][:12]}")


def _home(settings: Settings) -> Finding:
    try:
        check_writable(settings.home)
    except StorageError as error:
        return Finding("home", str(error), "mend its permissions or name another home with --home or NST_HOME")
    return Finding("home", str(settings.home))


def _database(settings: Settings) -> Finding:
    path = Workspace(settings.home).database_path
    if not path.exists():
        return Finding("database", f"none yet; the first job makes {path}")
    try:
        with open_database(path) as database:
            problems = database.integrity()
    except StorageError as error:
        return Finding("database", str(error), "restore it from a backup, or move it away to begin a new one")
    if problems:
        return Finding("database", f"{path}: {problems[0]}", "restore it from a backup")
    return Finding("database", f"{path}, whole, {path.stat().st_size / 1e6:.1f} MB")


def _disk(settings: Settings) -> Finding:
    place = settings.home
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    remedy = "" if free >= _LEAST_FREE_BYTES else f"free some space on the disk of {place}"
    return Finding("disk", f"{free / 1e9:.1f} GB free for {settings.home}", remedy)


def _prefect(settings: Settings) -> Finding:
    url = os.environ.get("PREFECT_API_URL")
    own = f"`nst up` runs a server at {api_url(settings.host, settings.prefect_port)}, `nst run` a temporary one"
    return Finding("prefect", f"API at {url}" if url else own)
