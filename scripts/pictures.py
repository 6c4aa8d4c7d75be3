"""Pictures of every page of a store, taken in a real browser: `make pictures` makes the README's.

The server runs on a free port of 127.0.0.1 and ends with the script. Exits with 1 where a page shows an exception.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"home": "", "baseline": "Baseline", "prune": "Prune", "retrain": "Retrain", "compare": "Compare", "lineage": "Lineage"}
FLAGS = "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-dev-shm-usage".split()


@contextmanager
def served() -> Iterator[str]:
    """The address of a workbench over the store that the environment names."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", "Home.py", "--server.port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures")
    parser.add_argument("--theme", choices=["light", "dark"], default="light")
    parser.add_argument("--width", type=int, default=1400)
    parser.add_argument("--height", type=int, default=1000)
    parser.add_argument("--pages", nargs="*", default=list(PAGES), help="names, or name=path?query")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    wrong = 0
    with served() as address, sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=os.environ.get("OFFSHOOT_CHROMIUM") or shutil.which("chromium"), args=FLAGS
        )
        page = browser.new_page(
            viewport={"width": chosen.width, "height": chosen.height}, color_scheme=chosen.theme, device_scale_factor=1
        )
        for name in chosen.pages:
            name, _, path = name.partition("=")
            page.goto(f"{address}/{path or PAGES[name]}")
            page.wait_for_selector("h1", timeout=120_000)
            page.wait_for_timeout(4000)  # charts are drawn after the page stands
            page.screenshot(path=chosen.out / f"{name}.png")
            for text in page.locator('[data-testid="stException"]').all_inner_texts():
                wrong = 1
                print(f"{name}: {text}", file=sys.stderr)  # noqa: T201
        browser.close()
    return wrong


if __name__ == "__main__":
    sys.exit(main())
