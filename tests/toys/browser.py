"""Chromium without a window and without a network: what a page becomes in it, and what it looks like."""

import re
import shutil
import subprocess

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip
DARK = ("--blink-settings=preferredColorScheme=0",)
SECONDS = 120


class Browser:
    """Runs with a new profile each time."""

    def __init__(self, program, folder):
        self.program, self.folder, self.runs = program, folder, 0

    def run(self, page, *flags):
        """What it prints about the page."""
        self.runs += 1
        profile = self.folder / f"profile-{self.runs}"
        command = [self.program, *QUIET, f"--user-data-dir={profile}", *flags, page.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True).stdout

    def elements(self, page):
        """The page as the browser has it."""
        return self.run(page, "--dump-dom")

    def screenshot(self, page, width, height, *flags):
        """The picture's file."""
        path = self.folder / f"shot-{self.runs}.png"
        self.run(page, f"--screenshot={path}", f"--window-size={width},{height}", *flags)
        return path


@pytest.fixture
def browser(tmp_path):
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    return Browser(program, tmp_path)


def measured(elements, name):
    """A number that a probe wrote into the page's title, as `name=12`."""
    return float(re.search(rf"\b{name}=(-?[\d.]+)", elements)[1])
