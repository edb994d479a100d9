"""Opens every built page in headless Chromium at desktop and phone width, light and dark, and lists its faults.

Command: make docs-check. Faults are horizontal scrolling, console errors, and requests that leave the disk.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

WIDTHS = {"desktop": 1280, "phone": 375}
SKIPPED = {"genindex.html", "search.html"}


def check(page: Page, file: Path, width: int) -> list[str]:
    """Returns the faults of one page at one width, one line each."""
    problems: list[str] = []
    page.on("console", lambda message: problems.append(f"console: {message.text}") if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(f"error: {error}"))
    page.on(
        "request",
        lambda request: (
            None if request.url.startswith(("file:", "data:", "blob:")) else problems.append(f"asks {request.url}")
        ),
    )
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(file.resolve().as_uri())
    page.wait_for_load_state()
    needed = page.evaluate("document.scrollingElement.scrollWidth")
    if needed > width:
        problems.append(f"scrolls sideways: {needed} px wide")
    bare = page.evaluate("[...document.querySelectorAll('article img')].filter(i => !i.alt).map(i => i.src)")
    problems += [f"picture without alternative text: {source}" for source in bare]
    return problems


def main(arguments: list[str] | None = None) -> int:
    """Checks all pages; returns 1 if any has a problem."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the built site")
    parser.add_argument("--pictures", type=Path, help="folder for a picture of every page at every width")
    parser.add_argument("--only", nargs="*", help="names of pages, without .html")
    options = parser.parse_args(arguments)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        parser.error("no chromium on the PATH; Debian has it as a package of that name")
    files = sorted(file for file in options.folder.rglob("*.html") if file.name not in SKIPPED)
    files = [file for file in files if "_static" not in file.parts and (not options.only or file.stem in options.only)]
    failed = 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            context = browser.new_context(color_scheme=scheme)
            for file in files:
                for name, width in WIDTHS.items():
                    page = context.new_page()
                    problems = check(page, file, width)
                    for problem in dict.fromkeys(problems):
                        print(f"{file.relative_to(options.folder)}, {name}, {scheme}: {problem}")
                    failed += bool(problems)
                    if options.pictures:
                        options.pictures.mkdir(parents=True, exist_ok=True)
                        page.screenshot(path=options.pictures / f"{file.stem}-{name}-{scheme}.png", full_page=True)
                    page.close()
            context.close()
        browser.close()
    print(f"{len(files)} pages, {len(WIDTHS)} widths, light and dark: {failed or 'no'} with a problem")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
