"""What `nst doctor` looks at first: what is installed, what computes, the weights, and the room for large pictures."""

from __future__ import annotations

import os
import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from typing import TYPE_CHECKING, Final

from packaging.requirements import Requirement

from flows.doctor.finding import Finding
from flows.network import weights_document
from flows.settings import Settings
from flows.versions import versions
from nst_engine import weights
from nst_engine.errors import EngineError
from nst_engine.startup import load_tensorflow

if TYPE_CHECKING:
    from nst_engine.hardware import Device

LEAST_FREE_BYTES: Final = 2_000_000_000


def versions_here(_: Settings) -> list[Finding]:
    """The versions of what nst is built on, and those that do not fit."""
    wrong = [
        Finding(
            "versions",
            f"nst needs {requirement.name}{requirement.specifier}, and here is {found or 'none'}",
            "install nst from its lock file again: pip install -r requirements.lock",
        )
        for requirement in map(Requirement, requires("nst") or ())
        if (requirement.marker is None or requirement.marker.evaluate({"extra": ""}))
        and not requirement.specifier.contains(found := _installed(requirement.name), prereleases=True)
    ]
    return wrong or [Finding("versions", ", ".join(f"{name} {number}" for name, number in versions().items()))]


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def device(settings: Settings) -> list[Finding]:
    """What could compute, and which the settings mean."""
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
        return [Finding("device", str(error), "set NST_DEVICE, --device or device in nst.toml to one of these")]
    remedy = ""
    if chosen.name == "cpu" and shutil.which("nvidia-smi"):
        remedy = "this machine has an NVIDIA driver that TensorFlow does not use: pip install 'nst[gpu]'"
    return [Finding("device", f"{listed}; '{settings.device}' means {chosen.name}", remedy)]


def precision(_: Settings) -> list[Finding]:
    """What precision = "auto" means here."""
    load_tensorflow()
    from nst_engine.hardware import choose_precision, cpu_bfloat16_speedup, devices

    meanings = ", ".join(f"{choose_precision('auto', device)} on {device.name}" for device in devices())
    speedup = f"there bfloat16 products run {cpu_bfloat16_speedup():.2g} times as fast"
    return [Finding("precision", f"'auto' means {meanings} ({speedup})")]


def gpu(settings: Settings) -> list[Finding]:
    """How a GPU would compute."""
    same = "the same" if settings.deterministic else "not always the same"
    return [Finding("gpu", f"{'with' if settings.xla else 'without'} XLA; {same} float32 picture bit for bit")]


def weights_here(_: Settings) -> list[Finding]:
    """The network's weights: there, whole, and which."""
    document = weights_document()
    if not document["verified"]:
        place = f" ({document['path']})" if document["path"] else ""
        return [
            Finding(
                "weights",
                f"{document['problem']}{place}",
                f"nst weights --fetch, or set {weights.ENVIRONMENT_VARIABLE} to the file",
            )
        ]
    found = f"{document['name']}, {document['path']} (by {document['found_by']})"
    return [Finding("weights", f"{found}, SHA-256 {document['sha256'][:12]}")]


def scratch(_: Settings) -> list[Finding]:
    """The folder for what very large pictures need beside the memory."""
    from nst_engine.arrays import scratch_folder

    folder = scratch_folder()
    if not folder.is_dir():
        return [Finding("scratch", f"there is no folder {folder} for large pictures", "make it, or set TMPDIR")]
    if not os.access(folder, os.W_OK | os.X_OK):
        return [Finding("scratch", f"{folder} cannot be written to", "mend its permissions, or set TMPDIR")]
    free = shutil.disk_usage(folder).free
    remedy = "" if free >= LEAST_FREE_BYTES else f"free some space on the disk of {folder}, or set TMPDIR"
    return [Finding("scratch", f"{free / 1e9:.1f} GB free in {folder} for large pictures", remedy)]
