"""The gallery in a real browser: filters, pages, the slider, a job that runs, lines of the curve, and no violation of
the rules of accessibility that a program can find."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from flows.gallery.export import write_export
from flows.settings import Settings
from storage.models import NightState
from tests.gallery_home import ITERATIONS, NASTY, GalleryHome, full_home, serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GalleryHome]:
    made = full_home(tmp_path_factory.mktemp("home"))
    yield made
    made.database.close()


@pytest.fixture(scope="module")
def address(home: GalleryHome) -> Iterator[str]:
    with serving(home.workspace.home) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """A page whose console has to stay empty: it would tell of what the policy of the page has blocked."""
    context = browser.new_context(base_url=address, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    yield page
    context.close()
    assert said == []


def names_on(page: Page) -> list[str]:
    return page.locator(".wall .name").all_inner_texts()


def test_pictures_are_filtered_and_paged_and_opened(page: Page) -> None:
    page.goto("/")
    page.get_by_role("link", name="Older ›").click()
    expect(page.get_by_role("status")).to_contain_text("page 2 of 2")
    assert len(names_on(page)) == 7
    page.get_by_label("Name").fill("lake_1")
    page.get_by_label("Collection").select_option("Old harbour")
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_role("status")).to_contain_text("5 pictures found")
    assert names_on(page) == ["lake_19", "lake_17", "lake_15", "lake_13", "lake_11"]
    assert page.get_by_label("Collection").input_value() == "Old harbour"
    page.get_by_role("link", name="lake_15").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("lake_15")
    page.go_back()
    page.get_by_role("link", name="Clear").click()
    expect(page.get_by_role("status")).to_contain_text("31 pictures")


def test_a_name_of_markup_is_shown_as_it_is(page: Page) -> None:
    page.goto("/?preset=gatys-2015")
    page.get_by_role("link", name=NASTY).click()
    expect(page.get_by_role("heading", level=1)).to_have_text(NASTY)


def clipped(page: Page) -> str:
    return str(page.locator(".over").evaluate("image => getComputedStyle(image).clipPath"))


def test_the_slider_moves_by_keyboard_and_reveals_the_content(page: Page, home: GalleryHome) -> None:
    page.goto(f"/jobs/{home.store.find('lake_04').id}")
    slider = page.get_by_role("slider")
    slider.focus()
    assert clipped(page) == "inset(0px 0px 0px 0%)"
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert clipped(page) == "inset(0px 0px 0px 3%)"
    page.keyboard.press("End")
    assert clipped(page) == "inset(0px 0px 0px 100%)"
    box = page.locator(".reveal").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    assert clipped(page) == "inset(0px 0px 0px 25%)"
    # Of the red result the left quarter is gone.
    assert box["width"] > 500


def test_lines_of_the_curve_are_switched_one_by_one(page: Page, home: GalleryHome) -> None:
    page.goto(f"/jobs/{home.store.find('lake_04').id}")
    shown = "lines => lines.filter(line => line.checkVisibility()).map(line => line.dataset.line)"
    lines = page.locator("[data-line]")
    assert lines.evaluate_all(shown) == ["total", "content", "style", "total variation"]
    page.get_by_label("style block2_conv1").check()
    page.get_by_label("total", exact=True).uncheck()
    assert lines.evaluate_all(shown) == ["content", "style", "total variation", "style block2_conv1"]
    page.get_by_text("The numbers", exact=True).click()
    assert page.locator("#numbers tbody tr").last.inner_text().split()[0] == str(ITERATIONS)


def test_a_running_job_s_page_goes_on_by_itself_until_it_has_ended(page: Page, home: GalleryHome) -> None:
    job = home.start("being painted", iteration=5)
    page.goto(f"/jobs/{job.id}")
    expect(page.locator("#iteration")).to_have_text("5")
    expect(page.locator("#latest img")).to_have_count(0)
    page.get_by_label("content", exact=True).uncheck()
    page.get_by_label("style block1_conv1").focus()
    home.advance(job, 12)
    home.preview(job, 90)
    expect(page.locator("#iteration")).to_have_text("12")
    expect(page.locator("#said")).to_have_text("running, 60 % done")
    expect(page.locator("#latest img")).to_have_js_property("complete", True)
    assert page.locator('[data-line="content"]').is_hidden()
    assert page.evaluate("document.activeElement.dataset.shows") == "style block1_conv1"
    first = page.locator("#latest img").get_attribute("src")
    home.preview(job, 120)
    expect(page.locator("#latest img")).not_to_have_attribute("src", str(first))
    home.advance(job, ITERATIONS)
    home.finish(job)
    expect(page.locator("#state")).to_have_text("completed")
    expect(page.get_by_role("slider")).to_be_visible()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(2500)
    assert asked == []


def test_a_line_that_comes_later_can_be_switched_too(page: Page, home: GalleryHome) -> None:
    job = home.start("just begun")
    page.goto(f"/jobs/{job.id}")
    # From the content itself, the content's loss begins at zero.
    expect(page.get_by_label("content", exact=True)).to_have_count(0)
    home.advance(job, 3)
    page.get_by_label("content", exact=True).uncheck()
    expect(page.locator('[data-line="content"]')).to_be_hidden()
    swatch = page.locator("label", has_text="style").first.locator(".swatch")
    line = page.locator('[data-line="style"]')
    assert swatch.evaluate("it => getComputedStyle(it).borderTopColor") == line.evaluate(
        "it => getComputedStyle(it).stroke"
    )
    home.store.ask_cancel(job.id)


def test_the_page_of_a_running_night_goes_on_by_itself(page: Page, home: GalleryHome) -> None:
    night = home.night("by the sea", NightState.RUNNING, pairs=3)
    page.clock.install()
    page.goto("/collections/by%20the%20sea")
    expect(page.locator("#nights")).to_contain_text("running")
    with home.database.begin() as session:
        session.merge(night).state = NightState.COMPLETED
    page.clock.run_for(11_000)
    expect(page.locator("#nights")).to_contain_text("completed")


@pytest.mark.parametrize("width", [390, 1280])
def test_a_long_name_of_a_collection_makes_no_page_wider(browser: Browser, tmp_path: Path, width: int) -> None:
    home = GalleryHome(tmp_path)
    home.done("lake", collection="a" * 200)
    with serving(tmp_path) as address:
        context = browser.new_context(base_url=address, viewport={"width": width, "height": 844})
        page = context.new_page()
        for path in ("/", f"/?collection={'a' * 200}", "/collections", f"/collections/{'a' * 200}"):
            page.goto(path)
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        context.close()


def test_a_job_that_waits_shows_when_it_begins(page: Page, home: GalleryHome) -> None:
    job = home.make("soon")
    page.goto(f"/jobs/{job.id}")
    expect(page.locator("#latest")).to_contain_text("waits for its turn")
    home.store.ask_cancel(job.id)
    expect(page.locator("#state")).to_have_text("cancelled")


def test_without_scripts_the_pages_hold_all_there_is(browser: Browser, address: str, home: GalleryHome) -> None:
    context = browser.new_context(base_url=address, java_script_enabled=False)
    page = context.new_page()
    page.goto("/")
    page.get_by_label("Name").fill("lake_04")
    page.get_by_role("button", name="Show").click()
    expect(page.locator(".wall .name")).to_have_text(["lake_04"])
    page.get_by_role("link", name="lake_04").click()
    expect(page.get_by_alt_text("Result of lake_04")).to_be_visible()
    expect(page.get_by_role("slider")).to_be_hidden()
    context.close()


def test_the_keyboard_reaches_the_content_first(page: Page) -> None:
    page.goto("/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("#main$"))


def test_an_export_works_from_the_disk(browser: Browser, home: GalleryHome, tmp_path: Path) -> None:
    write_export(Settings(home=home.workspace.home), tmp_path / "out")
    context = browser.new_context()
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto((tmp_path / "out" / "index.html").as_uri())
    page.get_by_role("link", name="Older ›").click()
    page.get_by_role("link", name="lake_00").click()
    page.get_by_role("slider").focus()
    page.keyboard.press("End")
    assert clipped(page) == "inset(0px 0px 0px 100%)"
    page.get_by_role("link", name="Collections").click()
    page.get_by_role("link", name="Old harbour").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Old harbour")
    broken = "images => images.filter(image => image.complete && !image.naturalWidth).map(image => image.src)"
    assert page.locator("img").evaluate_all(broken) == []
    assert said == []
    context.close()


@pytest.fixture(scope="module", params=["light", "dark"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=[1280, 390])
def looked_at(request: pytest.FixtureRequest, browser: Browser, address: str, scheme: str) -> Iterator[BrowserContext]:
    context = browser.new_context(
        base_url=address,
        viewport={"width": request.param, "height": 844},
        color_scheme=scheme,  # type: ignore[arg-type]
    )
    yield context
    context.close()


@pytest.mark.parametrize("which", ["list", "job", "running", "failed", "collections", "collection", "missing"])
def test_axe_finds_nothing_and_no_page_is_too_wide(looked_at: BrowserContext, home: GalleryHome, which: str) -> None:
    path = {
        "list": "/",
        "job": f"/jobs/{home.store.find('lake_06').id}",
        "running": f"/jobs/{home.store.find('now').id}",
        "failed": f"/jobs/{home.store.find('broken').id}",
        "collections": "/collections",
        "collection": "/collections/Old%20harbour",
        "missing": "/nothing",
    }[which]
    page = looked_at.new_page()
    page.goto(path)
    found = Axe().run(page)
    assert [violation["id"] for violation in found.response["violations"]] == [], found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    page.close()
