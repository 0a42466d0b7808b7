"""The gallery's pages, files and headers, asked as a browser asks; what it must not serve; and its export."""

from __future__ import annotations

import contextlib
import http.client
import io
import math
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image, ImageCms

from flows.addresses import may_ask
from flows.errors import SettingsError
from flows.gallery.curve import draw
from flows.gallery.export import write_export
from flows.gallery.links import ServerLinks
from flows.gallery.pages import Pages
from flows.gallery.thumbnails import Thumbnails, small_picture
from flows.settings import Settings
from nst_engine.errors import ImageError
from nst_engine.images import encode_png
from storage.browse import Browser
from storage.errors import DatabaseError
from storage.models import LossPoint
from storage.retention import RetentionStore
from tests.gallery_home import ITERATIONS, NASTY, GalleryHome, full_home, serving
from tests.service_process import REPOSITORY, free_port

POLICY = (
    "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)


@contextlib.contextmanager
def client_of(home: Path, **settings: object) -> Iterator[httpx.Client]:
    """What a browser on this machine gets from the gallery of a home."""
    with serving(home, **settings) as address, httpx.Client(base_url=address, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GalleryHome]:
    made = full_home(tmp_path_factory.mktemp("home"))
    yield made
    made.database.close()


@pytest.fixture(scope="module")
def client(home: GalleryHome) -> Iterator[httpx.Client]:
    with client_of(home.workspace.home) as client:
        yield client


def nst_gallery(*options: str) -> subprocess.Popen[str]:
    """The command itself."""
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "gallery", *options],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class _Page(HTMLParser):
    """The links, pictures, scripts and texts of a page, and attributes and elements that no page may have."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [str(value) for name, value in attrs if name in ("href", "src", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


def names_on(answer: httpx.Response) -> list[str]:
    """The names of the jobs on a page of the list."""
    return re.findall(r'<span class="name">([^<]*)</span>', answer.text)


def picture_of(answer: httpx.Response) -> Image.Image:
    return Image.open(io.BytesIO(answer.content))


def all_pages(home: GalleryHome) -> list[str]:
    jobs = home.store.recent(limit=100)
    return ["/", "/?page=2", "/collections", "/collections/Old%20harbour", *(f"/jobs/{job.id}" for job in jobs)]


def test_every_page_answers_with_links_that_lead_somewhere(client: httpx.Client, home: GalleryHome) -> None:
    seen: set[str] = set()
    left = set(all_pages(home))
    while left:
        address = left.pop()
        seen.add(address)
        answer = client.get(address)
        assert (address, answer.status_code) == (address, 200)
        if answer.headers["content-type"].startswith("text/html"):
            here = {link for link in _Page(answer.text).links if link.startswith("/")}
            left |= here - seen
    assert {re.sub(r"/[0-9a-z]{10}(?=/|$)", "/ID", urlsplit(address).path) for address in seen} >= {
        "/",
        "/jobs/ID",
        "/jobs/ID/files/result",
        "/jobs/ID/thumbnail/cover",
        "/jobs/ID/view/latest",
        "/jobs/ID/losses.csv",
        "/collections/Studio",
        "/nights/ID/contact-sheet",
        "/static/gallery.css",
        "/static/gallery.js",
    }


def test_the_list_has_all_jobs_newest_first_on_two_pages(client: httpx.Client, home: GalleryHome) -> None:
    first, second = client.get("/"), client.get("/?page=2")
    found = [unescaped(name) for name in [*names_on(first), *names_on(second)]]
    assert found == [job.name for job in home.store.recent(limit=100)]
    assert (len(names_on(first)), "31 pictures, page 1 of 2" in first.text) == (24, True)
    assert first.text.count('loading="lazy"') == 24


def unescaped(text: str) -> str:
    return _Page(text).text


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("q=LAKE_1", [f"lake_{number}" for number in range(19, 9, -1)]),
        ("q=%25", []),
        ("q=_0&collection=Old+harbour", ["lake_09", "lake_07", "lake_05", "lake_03", "lake_01"]),
        ("state=failed", ["broken"]),
        ("state=running", ["now"]),
        ("preset=gatys-2015", [NASTY]),
        ("state=&preset=&collection=&q=broken", ["broken"]),
        ("collection=nowhere", []),
        ("q=broken&page=99", ["broken"]),
        ("q=broken&page=-1", ["broken"]),
        ("q=broken&page=99999999999999999999", ["broken"]),
        ("q=%00broken", ["broken"]),
    ],
)
def test_the_form_narrows_the_list(client: httpx.Client, query: str, found: list[str]) -> None:
    answer = client.get(f"/?{query}")
    assert answer.status_code == 200
    assert [unescaped(name) for name in names_on(answer)] == found


def test_the_form_and_the_pages_keep_what_was_asked_for(client: httpx.Client) -> None:
    answer = client.get("/?q=lake&state=completed&preset=default")
    assert 'name="q" value="lake"' in answer.text
    assert [option in answer.text for option in ("<option selected>completed<", "<option selected>default<")] == [
        True
    ] * 2
    assert '"/?state=completed&amp;preset=default&amp;q=lake&amp;page=2"' in answer.text


def test_a_name_of_markup_is_text_on_every_page(client: httpx.Client, home: GalleryHome) -> None:
    job = next(job for job in home.store.recent(limit=100) if job.name == NASTY)
    for address in ("/", f"/jobs/{job.id}", "/?q=%3Cb%3E", '/?q="><script>alert(2)</script>'):
        page = _Page(client.get(address).text)
        assert "b" not in page.tags
        assert page.tags.count("script") == 1
        if "alert(2)" not in address:
            assert NASTY in page.text


def test_no_page_has_a_script_or_style_of_its_own(client: httpx.Client, home: GalleryHome) -> None:
    for address in all_pages(home):
        page = _Page(client.get(address).text)
        assert "style" not in page.tags
        assert not {name for name in page.attributes if name == "style" or name.startswith("on")}
        assert [link for link in page.links if "://" in link and "/runs/flow-run/run-1" not in link] == []


def test_a_job_s_page_says_all_about_it(client: httpx.Client, home: GalleryHome) -> None:
    job = next(job for job in home.store.recent(limit=100) if job.name == NASTY)
    page = _Page(client.get(f"/jobs/{job.id}").text)
    for said in (
        "64 × 48 pixels",
        "Style 1",
        "Style 2",
        "gatys-2015",
        "block5_conv1: 0.2",
        "ab" * 32,
        "studio",
        "lbfgs",
    ):
        assert said in page.text
    assert f"/jobs/{job.id}/files/style2" in page.links
    assert "http://127.0.0.1:4200/runs/flow-run/run-1" in page.links


def test_a_failed_job_s_page_has_its_sentence_and_its_sources(client: httpx.Client, home: GalleryHome) -> None:
    job = home.store.find("broken")
    page = _Page(client.get(f"/jobs/{job.id}").text)
    assert "The disk is full; free some space." in page.text
    assert [f"/jobs/{job.id}/thumbnail/{role}" in page.links for role in ("content", "style", "result")] == [
        True,
        True,
        False,
    ]


def test_a_running_job_s_page_has_its_progress_and_asks_again(client: httpx.Client, home: GalleryHome) -> None:
    running, ended = home.store.find("now"), home.store.find("broken")
    answer = client.get(f"/jobs/{running.id}").text
    assert f'Iteration <span id="iteration">5</span> of {ITERATIONS}' in answer
    assert '<progress max="100" value="25"' in answer
    assert 'data-refresh="2000"' in answer
    assert '<noscript><meta http-equiv="refresh" content="2"></noscript>' in answer
    assert "refresh" not in client.get(f"/jobs/{ended.id}").text
    # Its place is kept while the next one loads: it has the shape of the content.
    assert 'alt="The picture as it is now" width="64" height="48"' in answer
    latest = picture_of(client.get(f"/jobs/{running.id}/view/latest")).convert("RGB")
    assert abs(latest.getpixel((5, 5))[0] - 90) < 4  # type: ignore[index]


def test_a_collection_has_its_nights_problems_sheet_and_pictures(client: httpx.Client, home: GalleryHome) -> None:
    page = _Page(client.get("/collections/Old%20harbour").text)
    assert "contents/<i>.jpg" in page.text
    # A name that runs from right to left turns nothing beside it round.
    assert page.tags.count("bdi") == 1
    assert "/?collection=Old+harbour" in page.links
    rows = re.findall(r"<tr><th scope=\"row\">.*?</tr>", client.get("/collections/Old%20harbour").text, re.DOTALL)
    numbers = [re.findall(r"<td>(\d+|–)</td>", row) for row in rows]
    assert numbers == [["14", "13", "0", "1", "0"], ["13", "0", "13", "0", "0"]]
    (sheet,) = {link for link in page.links if "contact-sheet" in link}
    assert picture_of(client.get(sheet)).size == (160, 120)
    listed = _Page(client.get("/collections").text)
    assert [name in listed.text for name in ("Old harbour", "13 pictures", "Studio", "no night yet")] == [True] * 4


def test_files_come_as_they_are_with_a_safe_name(client: httpx.Client, home: GalleryHome) -> None:
    job = next(job for job in home.store.recent(limit=100) if job.name == NASTY)
    answer = client.get(f"/jobs/{job.id}/files/result")
    assert answer.content == (Path(str(job.result_folder)) / "result.png").read_bytes()
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["content-disposition"].startswith("inline; filename")
    assert not set("<>\"'&/") & set(unquote(answer.headers["content-disposition"].split("=", 1)[1]).strip('"'))
    record = client.get(f"/jobs/{job.id}/files/record")
    assert record.headers["content-disposition"].startswith("attachment; filename")
    losses = client.get(f"/jobs/{job.id}/losses.csv")
    assert losses.text.splitlines()[0].startswith("iteration,total,content,style,tv,seconds")
    assert len(losses.text.splitlines()) == ITERATIONS + 2


def test_pictures_are_small_kept_and_asked_for_once(client: httpx.Client, home: GalleryHome) -> None:
    job = home.store.find("lake_03")
    encode_png(np.zeros((600, 900, 3), np.uint8), Path(str(job.result_folder)) / "result.png")
    sizes = {size: picture_of(client.get(f"/jobs/{job.id}/{size}/result")).size for size in ("thumbnail", "view")}
    assert sizes == {"thumbnail": (480, 320), "view": (900, 600)}
    folder = home.workspace.home / "cache" / "thumbnails" / job.id
    before = {path.name for path in folder.iterdir()}
    answer = client.get(f"/jobs/{job.id}/thumbnail/result")
    assert "max-age" in answer.headers["cache-control"]
    again = client.get(f"/jobs/{job.id}/thumbnail/result", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["cache-control"] == answer.headers["cache-control"]
    assert {path.name for path in folder.iterdir()} == before
    encode_png(np.full((300, 300, 3), 200, np.uint8), Path(str(job.result_folder)) / "result.png")
    assert picture_of(client.get(f"/jobs/{job.id}/thumbnail/result")).size == (300, 300)
    assert len(list(folder.iterdir())) == len(before)


def test_a_broken_or_missing_picture_is_a_placeholder(client: httpx.Client, home: GalleryHome) -> None:
    broken, gone = home.store.find("lake_05"), home.store.find("lake_07")
    (Path(str(broken.result_folder)) / "result.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    (Path(str(gone.result_folder)) / "result.png").unlink()
    for job in (broken, gone):
        answer = client.get(f"/jobs/{job.id}/thumbnail/cover")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/svg+xml")
        assert answer.headers["cache-control"] == "no-store"
    assert client.get(f"/jobs/{gone.id}/files/result").status_code == 404
    assert "The result is no longer in" in client.get(f"/jobs/{gone.id}").text


PATHS = [
    "/jobs/ID/files/nothing",
    "/jobs/ID/files/latest",
    "/jobs/ID/files/../../../nst.db",
    "/jobs/ID/files/..%2f..%2f..%2fnst.db",
    "/jobs/ID/files/%2e%2e",
    "/jobs/ID/files/%2e%2e%2fnst.db",
    "/jobs/ID/files/%2Fetc%2Fpasswd",
    "/jobs/ID/files/result.png",
    "/jobs/ID/files/result%00",
    "/jobs/ID/files/",
    "/jobs/ID/thumbnail/nothing",
    "/jobs/ID/thumbnail/%2e%2e%2f%2e%2e",
    "/jobs/ID/huge/result",
    "/jobs/%00",
    "/jobs/..%2f..",
    "/jobs/nothere",
    "/jobs/nothere/files/result",
    "/jobs/nothere/losses.csv",
    "/static/..%2fapp.py",
    "/static/../app.py",
    "/static/%2e%2e/app.py",
    "/static/gallery.css%00.png",
    "/static/",
    "/nights/nothere/contact-sheet",
    "/nights/%00/contact-sheet",
    "/collections/nowhere",
    "/collections/..",
    "/collections/%2e%2e%2finbox",
    "/?state=nonsense",
    "/nst.db",
    "/etc/passwd",
    "//etc/passwd",
]


@pytest.mark.parametrize("path", PATHS)
def test_what_the_database_does_not_name_is_a_page_that_says_so(
    client: httpx.Client, home: GalleryHome, path: str
) -> None:
    # As it stands: httpx would tidy the dots away.
    connection = http.client.HTTPConnection("127.0.0.1", client.base_url.port, timeout=30)
    connection.request("GET", path.replace("ID", home.store.find("lake_01").id))
    answer = connection.getresponse()
    page = answer.read().decode()
    connection.close()
    assert answer.status == 404
    assert answer.headers["content-type"].startswith("text/html")
    assert "<h1>" in page


@pytest.mark.parametrize(
    ("files", "place"),
    [
        ({"extra": "../secret.png"}, None),
        ({"extra": "/etc/passwd"}, None),
        ({"extra": "link.png"}, "link.png"),
        ({"extra": "folder"}, None),
        ({"extra": ""}, None),
        ({"extra": "x\0y"}, None),
    ],
    ids=["above", "absolute", "a link outside", "a folder", "nothing", "a zero byte"],
)
def test_a_file_outside_its_folder_is_not_served(tmp_path: Path, files: dict[str, str], place: str | None) -> None:
    home = GalleryHome(tmp_path / "home")
    job = home.start("lake")
    folder = home.finish(job, files=files)
    encode_png(np.zeros((48, 48, 3), np.uint8), folder.parent / "secret.png")
    (folder / "folder").mkdir()
    if place:
        (folder / place).symlink_to(folder.parent / "secret.png")
    with client_of(home.workspace.home) as client:
        assert client.get(f"/jobs/{job.id}/files/extra").status_code == 404
        assert client.get(f"/jobs/{job.id}/thumbnail/extra").headers["content-type"] == "image/svg+xml"
        assert client.get(f"/jobs/{job.id}").status_code == 200


@pytest.mark.parametrize("linked", ["lake", "."], ids=["its folder", "the folder above"])
def test_a_folder_that_became_a_link_out_of_the_outbox_is_not_followed(tmp_path: Path, linked: str) -> None:
    home = GalleryHome(tmp_path / "home")
    job = home.start("lake")
    folder = home.finish(job, folder=home.workspace.outbox / "harbour" / "lake")
    home.database.close()
    elsewhere = tmp_path / "elsewhere"
    (folder.parent / linked).rename(elsewhere)
    (folder.parent / linked).symlink_to(elsewhere)
    with client_of(home.workspace.home) as client:
        assert client.get(f"/jobs/{job.id}/files/result").status_code == 404
        assert client.get(f"/jobs/{job.id}/thumbnail/cover").headers["content-type"] == "image/svg+xml"
        assert "The result is no longer in" in client.get(f"/jobs/{job.id}").text


def test_an_outbox_on_another_disk_and_a_folder_the_user_chose_may_be_links(tmp_path: Path) -> None:
    for place in ("disk", "chosen"):
        (tmp_path / place).mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "outbox").symlink_to(tmp_path / "disk")
    (tmp_path / "link").symlink_to(tmp_path / "chosen")
    home = GalleryHome(tmp_path / "home")
    inside, outside = home.done("inside"), home.start("outside")
    home.finish(outside, folder=tmp_path / "link" / "out")
    with client_of(home.workspace.home) as client:
        for job in (inside, outside):
            assert client.get(f"/jobs/{job.id}/files/result").status_code == 200


def test_pictures_that_retention_moved_are_shown_from_there(tmp_path: Path) -> None:
    home = GalleryHome(tmp_path)
    job = home.failed("lake")
    moved = home.workspace.rejected_folder("lake")
    assert RetentionStore(home.database).reject_pictures(job.id, before=home.later(), to=moved)
    home.workspace.job_folder(job.id).rename(moved)
    with client_of(tmp_path) as client:
        assert client.get(f"/jobs/{job.id}/files/style").content == (moved / "style.png").read_bytes()
        assert picture_of(client.get(f"/jobs/{job.id}/thumbnail/cover")).size == (64, 48)
        assert "no longer here" not in client.get(f"/jobs/{job.id}").text


def test_a_file_that_comes_and_goes_breaks_no_page(tmp_path: Path) -> None:
    home = GalleryHome(tmp_path)
    job = home.done("lake")
    come_and_go = "import pathlib, sys\npath = pathlib.Path(sys.argv[1])\nwhile True: path.unlink(); path.touch()"
    record = Path(str(job.result_folder)) / "job.json"
    pages, browser = Pages(home.workspace, ServerLinks(dashboard="")), Browser(home.database)
    with subprocess.Popen([sys.executable, "-c", come_and_go, str(record)]) as goer:
        try:
            shown = [">Record <" in pages.job(browser, browser.job(job.id)) for _ in range(80)]
        finally:
            goer.kill()
    assert set(shown) == {True, False}


def test_many_who_take_long_curves_do_not_keep_others_waiting(tmp_path: Path) -> None:
    home = GalleryHome(tmp_path)
    job = home.start("lake", iteration=1500)
    with client_of(tmp_path) as client, ThreadPoolExecutor(60) as crowd:
        taken = [crowd.submit(client.get, f"/jobs/{job.id}/losses.csv") for _ in range(60)]
        next(as_completed(taken))
        assert client.get("/").status_code == 200
        before = sum(answer.done() for answer in taken)
        assert {answer.result().status_code for answer in taken} == {200}
    assert before < 20


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("path", ["/", "/nothing", "/static/gallery.css"])
def test_nothing_can_be_sent_to_it(client: httpx.Client, method: str, path: str) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
    assert answer.headers["content-security-policy"] == POLICY


def test_head_is_get_without_a_body(client: httpx.Client) -> None:
    got, head = client.get("/static/gallery.css"), client.head("/static/gallery.css")
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(got.content)))
    assert client.head("/").status_code == 200


def test_every_answer_has_the_headers_that_keep_it_safe(client: httpx.Client, home: GalleryHome) -> None:
    job = home.store.find("lake_01")
    for path in (
        "/",
        "/nothing",
        "/static/gallery.js",
        f"/jobs/{job.id}/files/result",
        f"/jobs/{job.id}/thumbnail/cover",
    ):
        headers = client.get(path).headers
        assert headers["content-security-policy"] == POLICY
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"


@pytest.mark.parametrize(
    ("asked", "host", "may"),
    [
        ("127.0.0.1:4300", "127.0.0.1", True),
        ("localhost", "127.0.0.1", True),
        ("LOCALHOST:1", "127.0.0.1", True),
        ("[::1]:4300", "127.0.0.1", True),
        ("[::1]", "127.0.0.1", True),
        ("evil.example:4300", "127.0.0.1", False),
        ("127.0.0.1.evil.example", "127.0.0.1", False),
        ("", "127.0.0.1", False),
        ("192.168.1.5:4300", "127.0.0.1", False),
        ("192.168.1.5:4300", "192.168.1.5", True),
        ("192.168.1.5:4300", "0.0.0.0", True),
        ("evil.example", "0.0.0.0", False),
    ],
)
def test_only_names_of_this_machine_may_ask(asked: str, host: str, may: bool) -> None:
    assert may_ask(asked, host) is may


def test_another_name_is_refused_on_every_address(client: httpx.Client) -> None:
    for path in ("/", "/static/gallery.css"):
        answer = client.get(path, headers={"Host": "evil.example"})
        assert (answer.status_code, "localhost" in answer.text) == (400, True)


def test_without_a_database_it_says_so_and_works_as_soon_as_there_is_one(tmp_path: Path) -> None:
    with client_of(tmp_path) as client:
        for address in ("/", "/collections", "/jobs/x"):
            assert "has no database yet" in client.get(address).text
        assert list(tmp_path.iterdir()) == []
        home = GalleryHome(tmp_path)
        home.done("first")
        assert names_on(client.get("/")) == ["first"]
        # Another file in its place, as after a restore.
        copy = tmp_path / "copy.db"
        with (
            contextlib.closing(sqlite3.connect(home.workspace.database_path)) as source,
            contextlib.closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
            target.execute("UPDATE jobs SET name = 'restored'")
            target.commit()
        home.database.close()
        for path in tmp_path.glob("nst.db*"):
            path.unlink()
        copy.rename(home.workspace.database_path)
        assert names_on(client.get("/")) == ["restored"]


def test_an_empty_file_where_the_database_will_be_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "nst.db").touch()
    with client_of(tmp_path) as client:
        answer = client.get("/")
    assert (answer.status_code, "has no database yet" in answer.text) == (200, True)
    assert [(path.name, path.stat().st_size) for path in tmp_path.iterdir()] == [("nst.db", 0)]


def test_a_file_that_is_no_database_is_a_page_of_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "nst.db").write_text("these are only words, and far too few of them to be a database")
    with client_of(tmp_path) as client:
        answer = client.get("/")
    assert (answer.status_code, "is not an SQLite database" in answer.text) == (503, True)


def point(iteration: int, total: float, **layers: float) -> LossPoint:
    return LossPoint(
        job_id="x",
        iteration=iteration,
        attempt=1,
        total=total,
        content=0.0,
        style=total,
        tv=0.0,
        layers=layers,
        seconds=1,
    )


def test_a_curve_has_a_line_for_every_loss_above_zero() -> None:
    curve = draw([point(0, 100.0, style_a=0.0, style_b=3.0), point(10, 1.0, style_a=0.0, style_b=2.0)])
    assert curve is not None
    assert [(line.label, line.shown) for line in curve.lines] == [("total", True), ("style", True), ("style_b", False)]
    assert curve.lines[0].path == f"M{curve.left}.0 {curve.top}.0L{curve.right}.0 {curve.bottom}.0"
    assert [tick.label for tick in curve.losses] == ["10⁰", "10¹", "10²"]
    assert [tick.label for tick in curve.iterations] == ["0", "2", "4", "6", "8", "10"]
    assert curve.rows == [("0", "100", "0", "100", "0"), ("10", "1", "0", "1", "0")]


@pytest.mark.parametrize(
    ("points", "lines"),
    [
        ([], None),
        ([point(0, 0.0)], None),
        ([point(0, 5.0)], 2),
        ([point(n, 5.0) for n in range(3)], 2),
        ([point(0, -1.0, style_a=3.0)], None),
        ([point(0, math.inf), point(1, 5.0)], 2),
        ([point(0, -5.0), point(1, 5.0)], 2),
    ],
    ids=["no points", "all zero", "one point", "level", "only a layer", "infinite", "negative"],
)
def test_a_curve_of_little(points: list[LossPoint], lines: int | None) -> None:
    curve = draw(points)
    assert (curve and len(curve.lines)) == lines
    assert not re.search("nan|inf", str(curve and curve.lines))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_small_jpeg_is_upright_and_in_srgb(tmp_path: Path, orientation: int) -> None:
    image = Image.new("RGB", (800, 400), (250, 10, 10))
    image.paste((10, 10, 250), (0, 0, 400, 400))
    exif = Image.Exif()
    exif[0x0112] = orientation
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image.save(tmp_path / "a.jpg", exif=exif, icc_profile=profile, quality=95)
    small = small_picture(tmp_path / "a.jpg", side=100, max_pixels=10**6)
    upright = {1: (100, 50), 3: (100, 50), 6: (50, 100), 8: (50, 100)}[orientation]
    blue_at = {1: (10, 25), 3: (90, 25), 6: (25, 10), 8: (25, 90)}[orientation]
    assert small.size == upright
    assert small.getpixel(blue_at)[2] > 200  # type: ignore[index]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "I;16", "1"])
def test_every_kind_of_picture_becomes_small(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new(mode, (640, 320)).save(path)
    small = small_picture(path, side=64, max_pixels=10**6)
    assert (small.mode, small.size) == ("RGB", (64, 32))


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_picture_of_too_many_pixels_is_not_decoded(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (200, 100)).save(path)
    with pytest.raises(ImageError, match="at most 10,000 are allowed"):
        Thumbnails(tmp_path, max_pixels=10_000).make(path, job_id="j", role="r", side=64)


def test_a_cache_that_cannot_be_written_costs_no_picture(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    Image.new("RGB", (200, 100)).save(tmp_path / "a.png")
    made = Thumbnails(tmp_path, max_pixels=10**6).make(tmp_path / "a.png", job_id="j", role="r", side=64)
    assert Image.open(io.BytesIO(made)).size == (64, 32)


def test_a_small_picture_that_a_power_cut_left_empty_is_made_again(tmp_path: Path) -> None:
    Image.new("RGB", (200, 100)).save(tmp_path / "a.png")
    thumbnails = Thumbnails(tmp_path, max_pixels=10**6)
    made = thumbnails.make(tmp_path / "a.png", job_id="j", role="r", side=64)
    (kept,) = (tmp_path / "cache" / "thumbnails" / "j").iterdir()
    assert thumbnails.kept(tmp_path / "a.png", job_id="j", role="r", side=64) == made
    kept.write_bytes(b"")
    assert thumbnails.kept(tmp_path / "a.png", job_id="j", role="r", side=64) is None


def test_the_command_serves_until_it_is_told_to_end(home: GalleryHome) -> None:
    port = free_port()
    with nst_gallery("--home", str(home.workspace.home), "--port", str(port)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"Gallery  http://127.0.0.1:{port}\n"
        with httpx.Client(transport=httpx.HTTPTransport(retries=8), base_url=f"http://localhost:{port}") as client:
            assert "31 pictures" in client.get("/").text
        # A second one finds the port taken.
        with nst_gallery("--home", str(home.workspace.home), "--port", str(port)) as second:
            _, said = second.communicate()
        process.terminate()
        _, left = process.communicate()
    assert (second.returncode, said.count("\n")) == (3, 1)
    assert f"127.0.0.1:{port}: cannot be listened on" in said
    assert (process.returncode, left) == (0, "")


def test_the_command_writes_an_export_and_says_where(home: GalleryHome, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").touch()
    for folder, code in (("out", 0), ("taken", 2)):
        with nst_gallery("--home", str(home.workspace.home), "--export", str(tmp_path / folder)) as process:
            out, err = process.communicate()
        assert (process.returncode, (out + err).count("\n")) == (code, 1)
    assert "is not empty and no export" in err
    assert (tmp_path / "out" / "index.html").is_file()


@pytest.fixture(scope="module")
def export(home: GalleryHome, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "gallery"
    assert write_export(Settings(home=home.workspace.home), folder) == 31
    return folder


def test_every_link_of_an_export_is_a_file_in_it(export: Path) -> None:
    pages = list(export.rglob("*.html"))
    assert {str(page.relative_to(export)) for page in pages} >= {
        "index.html",
        "index-2.html",
        "collections/index.html",
        "collections/Old harbour/index.html",
        "collections/Old harbour/pictures.html",
        "collections/Studio/index.html",
    }
    for page in pages:
        for link in _Page(page.read_text()).links:
            assert "://" not in link
            assert not link.startswith("/")
            if not link.startswith("#"):
                target = (page.parent / unquote(link)).resolve()
                # The results of two jobs were taken away by a test of the server.
                missing = target.parent.parent.name == "jobs" and target.name == "result.png"
                assert missing or (target.is_file() and target.is_relative_to(export)), f"{page}: {link}"


def test_an_export_has_no_form_and_asks_for_nothing(export: Path, home: GalleryHome) -> None:
    for page in export.rglob("*.html"):
        found = _Page(page.read_text())
        assert not {"form", "noscript"} & set(found.tags)
        assert "data-refresh" not in found.attributes
    job = home.store.find("lake_01")
    copied = export / "jobs" / job.id
    assert (copied / "result.png").read_bytes() == (Path(str(job.result_folder)) / "result.png").read_bytes()
    assert Image.open(copied / "cover-thumbnail.webp").size == (64, 48)


def test_an_export_takes_the_place_of_an_earlier_one_and_of_nothing_else(tmp_path: Path) -> None:
    home = GalleryHome(tmp_path / "home")
    kept, settings = home.done("lake"), Settings(home=tmp_path / "home")
    folder = tmp_path / "out"
    (folder / "jobs" / "older").mkdir(parents=True)
    (folder / "jobs" / "older" / "index.html").write_text("mine")
    with pytest.raises(SettingsError, match="is not empty and no export"):
        write_export(settings, folder)
    assert (folder / "jobs" / "older" / "index.html").read_text() == "mine"
    (folder / ".nst-gallery").touch()
    (folder / "notes.txt").write_text("mine")
    (folder / "index-notes.html").write_text("mine")
    (folder / "index-7.html").write_text("of an earlier one")
    assert write_export(settings, folder) == 1
    assert {path.name for path in folder.glob("index*")} == {"index.html", "index-notes.html"}
    assert [path.name for path in (folder / "jobs").iterdir()] == [kept.id]
    assert (folder / "notes.txt").read_text() == "mine"
    with pytest.raises(SettingsError, match="is a file"):
        write_export(settings, folder / "notes.txt")


@pytest.mark.parametrize("place", ["inbox", "inbox/pages", "collections/pages", "work"])
def test_an_export_is_not_written_where_it_would_be_taken_for_work(tmp_path: Path, place: str) -> None:
    home = GalleryHome(tmp_path / "home")
    home.done("lake")
    folder = tmp_path / "home" / place
    for left in home.workspace.work.iterdir():
        left.rmdir()
    with pytest.raises(SettingsError, match="where nst looks for work"):
        write_export(Settings(home=tmp_path / "home"), folder)
    assert not folder.exists() or list(folder.iterdir()) == []


def test_there_is_no_export_without_a_database(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="There is no database"):
        write_export(Settings(home=tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_collections_that_differ_by_little_have_folders_of_their_own(tmp_path: Path) -> None:
    home = GalleryHome(tmp_path / "home")
    for name in ("a/b", "a_b", "A_B", "..", "é", "index.html"):
        home.done("lake", collection=name)
    write_export(Settings(home=tmp_path / "home"), tmp_path / "out")
    folders = sorted(path.name for path in (tmp_path / "out" / "collections").iterdir() if path.is_dir())
    assert len({name.casefold() for name in folders}) == 6
    assert len(Browser(home.database).collection_names()) == 6
