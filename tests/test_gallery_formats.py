"""Results of every kind in the gallery: looked at smaller, opened where browsers can show them, saved as they are."""

from __future__ import annotations

import io
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from flows.gallery.export import write_export
from flows.settings import Settings
from nst_engine.config import TransferConfig
from nst_engine.encode import encode
from tests.gallery_home import GalleryHome, serving

RED = (200, 30, 30)


def home_with(folder: Path, *, kind: str, name: str, bits: int) -> tuple[GalleryHome, str]:
    """A home whose one job has a red result of that kind."""
    home = GalleryHome(folder)
    job = home.start("lake", iteration=20)
    place = home.finish(job, files={"result": name})
    (place / "result.png").unlink()
    picture = np.full((48, 64, 3), RED, np.uint8)
    config = TransferConfig().with_overrides({"format": kind, "bits": bits})
    encode(picture if bits == 8 else picture * np.uint16(257), place / name, config=config, settings={})
    return home, job.id


@pytest.mark.parametrize(
    ("kind", "name", "bits", "media_type", "opened"),
    [
        pytest.param("jpeg", "result.jpg", 8, "image/jpeg", "files", id="jpeg"),
        pytest.param("webp", "result.webp", 8, "image/webp", "files", id="webp"),
        pytest.param("avif", "result.avif", 8, "image/avif", "files", id="avif"),
        pytest.param("png", "result.png", 16, "image/png", "files", id="png 16"),
        # No browser but one shows TIFF.
        pytest.param("tiff", "result.tif", 16, "image/tiff", "view", id="tiff 16"),
    ],
)
def test_a_result_of_every_kind_is_shown_opened_and_saved(
    tmp_path: Path, kind: str, name: str, bits: int, media_type: str, opened: str
) -> None:
    home, job_id = home_with(tmp_path / "home", kind=kind, name=name, bits=bits)
    with serving(home.workspace.home) as address, httpx.Client(base_url=address) as client:
        page = client.get(f"/jobs/{job_id}").text
        assert f'<a href="/jobs/{job_id}/{opened}/result"><img' in page
        assert f'href="/jobs/{job_id}/files/result" download="{name}"' in page
        shown = client.get(f"/jobs/{job_id}/{opened}/result")
        assert shown.headers["content-type"] == ("image/webp" if opened == "view" else media_type)
        for small in ("thumbnail/cover", "view/result"):
            with Image.open(io.BytesIO(client.get(f"/jobs/{job_id}/{small}").content)) as image:
                assert (image.format, image.size) == ("WEBP", (64, 48))
                assert np.abs(np.subtract(image.convert("RGB").getpixel((30, 20)), RED)).max() < 12
        saved = client.get(f"/jobs/{job_id}/files/result")
        assert (saved.headers["content-type"], saved.headers["content-disposition"].endswith(f'{name[6:]}"')) == (
            media_type,
            True,
        )
        assert saved.content == (home.workspace.outbox / job_id / name).read_bytes()
    assert write_export(Settings(home=home.workspace.home), tmp_path / "export") == 1
    exported = tmp_path / "export" / "jobs" / job_id
    assert (exported / f"result{Path(name).suffix}").read_bytes() == saved.content
    link = f'<a href="../../jobs/{job_id}/result' + ("-view.webp" if opened == "view" else Path(name).suffix)
    assert link in (exported / "index.html").read_text()
