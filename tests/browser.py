"""A real browser, for tests of what people look at."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Page, Request, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def open_page(*, width: int = 1280, height: int = 900, dark: bool = False, offline: bool = False) -> Iterator[Page]:
    """Yield an empty page; afterwards it must have had no error on its console and no failed request."""
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip("no Chromium here; make test installs Debian's")
    complaints: list[str] = []
    with sync_playwright() as playwright:
        # Chromium's sandbox does not work for root, as which tests run in containers.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", offline=offline
        )
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.extend(_failure(request)))
        yield page
        browser.close()
    assert not complaints, complaints


def _failure(request: Request) -> list[str]:
    # Leaving a page ends what it was still fetching.
    return [] if request.failure == "net::ERR_ABORTED" else [f"{request.url}: {request.failure}"]
