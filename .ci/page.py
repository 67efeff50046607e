"""Opens a report in headless Chromium as people do, at phone and desktop width, light and dark, and works its controls.

    python page.py REPORT.html SCREENSHOTS_DIR

Fails on any message on the console, any request but the page itself, and anything wider than the screen. Chromium is the
system's; Playwright drives it.
"""

import json
import shutil
import sys
from pathlib import Path

try:
    from playwright.sync_api import sync_playwright
except ImportError:
    sync_playwright = None

CHROMIUM = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)


def check(browser, page_path, width, scheme, screenshots):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    messages, requests = [], []
    page.on("console", lambda m: messages.append(m.text))
    page.on("pageerror", lambda e: messages.append(str(e)))
    page.on("request", lambda r: requests.append(r.url))
    page.goto(page_path.resolve().as_uri())
    data = json.loads(page.locator("#data").text_content())

    tasks = page.locator("#task option")
    assert tasks.count() == len(data["tasks"]) > 0
    for index, task in enumerate(data["tasks"]):
        page.locator("#task").select_option(str(index))
        drawn = page.locator("#lengths path.line").count()
        assert drawn == min(len(task["curves"]), 8) or len(data["models"]) > 8, (task["name"], drawn)
        assert page.locator("#models button").count() > 0
    page.locator("#task").select_option("0")
    before = page.locator("#lengths path.line").first.get_attribute("d")
    page.locator("#log").check()
    assert page.locator("#lengths path.line").first.get_attribute("d") != before, "the logarithmic axis changes nothing"
    page.locator("#log").uncheck()

    chart = page.locator("#lengths svg")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.5)
    tip = page.locator("#lengths .tip")
    assert tip.is_visible() and "length" in tip.inner_text(), "hovering shows no values"
    page.screenshot(path=screenshots / f"hover-{width}-{scheme}.png")
    chart.focus()
    page.keyboard.press("End")
    longest = data["tasks"][0]["grids"][0][-1][1]
    assert str(longest) in tip.inner_text(), tip.inner_text()
    page.keyboard.press("Escape")
    assert tip.is_hidden()

    first = page.locator("#models button").first
    lines = page.locator("#lengths path.line").count()
    first.click()
    assert page.locator("#lengths path.line").count() == lines - 1, "pressing a name hides no line"
    page.locator("#models button").first.click()
    for kind in range(len(data["kinds"])):
        page.locator("#kind").select_option(str(kind))
    page.locator("#kind").select_option("0")
    for details in page.locator("#tables details").all():
        if details.get_attribute("open") is None:
            details.locator("summary").click()

    overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert overflow <= 0, f"{overflow} pixels wider than the screen"
    page.mouse.move(0, 0)
    page.screenshot(path=screenshots / f"page-{width}-{scheme}.png", full_page=True)
    assert not messages, messages
    assert requests == [page_path.resolve().as_uri()], requests
    context.close()


def main():
    page_path, screenshots = map(Path, sys.argv[1:])
    if sync_playwright is None or CHROMIUM is None:
        print("skipped: there is no Chromium or no Playwright to look at the page with")
        return
    screenshots.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for width in (390, 1280):
            for scheme in ("light", "dark"):
                check(browser, page_path, width, scheme, screenshots)
                print(f"{page_path.name} at {width} px, {scheme}: ok")
        browser.close()


main()
