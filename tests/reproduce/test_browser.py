"""The page in a real browser."""

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from chameleon_lora.report.folder import PAGE, try_drawing
from chameleon_lora.reproduce.page import write_report
from tests.reproduce.sample import ROWS, sample_report

pytestmark = [pytest.mark.browser, pytest.mark.slow]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PHONE_WIDTH = 390
# Read by the page around it, which holds the page in a frame of a phone's width.
HOST = """<!DOCTYPE html><title>host</title>
<iframe style="width:{width}px;height:800px;border:0" srcdoc="{page}"></iframe>
<script>
document.querySelector("iframe").onload = (event) => {{
  const inner = event.target.contentDocument;
  inner.querySelectorAll("details").forEach((details) => {{ details.open = true; }});
  document.title = "width " + inner.documentElement.scrollWidth;
}};
</script>"""


@pytest.fixture(scope="module")
def browser() -> str:
    """Chromium's path; skips where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the PATH")
    return found


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """The sample's page, with plots where matplotlib is."""
    write_report(tmp_path, sample_report(), try_drawing())
    return tmp_path / PAGE


def opened(browser: str, page: Path, home: Path) -> tuple[str, str]:
    """The document after loading, and what the browser logged."""
    command = [
        *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        "--hide-scrollbars",
        *("--enable-logging=stderr", "--virtual-time-budget=2000", f"--user-data-dir={home}"),
        *("--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom", page.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


def test_the_page_opens_without_a_complaint(browser: str, page: Path, tmp_path: Path) -> None:
    """Every section is there, and the console is empty: nothing was refused, missing or malformed."""
    document, log = opened(browser, page, tmp_path / "home")
    assert 1 + len(ROWS) == document.count("<section ")
    assert [] == re.findall(r".*CONSOLE.*", log)


def test_a_complaint_would_be_seen(browser: str, page: Path, tmp_path: Path) -> None:
    """The console that the test above finds empty does hold what the page's policy refuses."""
    broken = page.with_name("broken.html")
    broken.write_text(
        page.read_text("utf-8").replace("</main>", "<script>1</script></main>"), "utf-8"
    )
    _, log = opened(browser, broken, tmp_path / "home")
    assert re.findall(r".*CONSOLE.*", log)


def test_a_phone_scrolls_the_page_in_one_direction_only(
    browser: str, page: Path, tmp_path: Path
) -> None:
    """At 390 pixels nothing sticks out to the right; wide tables scroll by themselves."""
    host = page.with_name("host.html")
    inner = html.escape(page.read_text("utf-8"))
    host.write_text(HOST.format(width=PHONE_WIDTH, page=inner), "utf-8")
    document, _ = opened(browser, host, tmp_path / "home")
    assert [str(PHONE_WIDTH)] == re.findall(r"<title>width (\d+)</title>", document)
