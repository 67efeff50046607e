"""Opens reports in headless Chromium as people do, at phone and desktop width, light and dark, and works their controls.

    python page.py REPORT.html SCREENSHOTS_DIR [PIPELINE]

Fails on any message on the console, any request but the page itself, and anything wider than the screen. With the program it
also makes a report of made-up results whose page is known: guessing is a level line, names say what differs and are in
numeric order, equal curves are both seen, notices come first, and wide tables say that they go on. Chromium is the system's;
Playwright drives it.
"""

import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

try:
    from playwright.sync_api import sync_playwright
except ImportError:
    sync_playwright = None

CHROMIUM = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
SHOWN = 8  # curves that are drawn before anybody chooses


def open_page(browser, page_path, width, scheme):
    """The page, what it says on the console, and what it asks the network for."""
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    messages, requests = [], []
    page.on("console", lambda m: messages.append(m.text))
    page.on("pageerror", lambda e: messages.append(str(e)))
    page.on("request", lambda r: requests.append(r.url))
    page.goto(page_path.resolve().as_uri())
    return page, messages, requests


def natural(name):
    """The key of an order in which numbers within names count as numbers."""
    pieces = re.findall(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)|(\D+)", name.lower())
    return [(0, float(number), "") if number else (1, 0.0, text) for number, text in pieces]


def without_overflow(page):
    overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert overflow <= 0, f"{overflow} pixels wider than the screen"


def heights(page, chart, model):
    """The y coordinates of a model's curve, as parts of the plot's height."""
    path = page.locator(f'{chart} path.line[data-model="{model}"]').get_attribute("d")
    ys = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", path)]
    box = page.locator(f"{chart} rect.trained").bounding_box()
    return [y / box["height"] for y in ys]


def check(browser, page_path, width, scheme, screenshots):
    page, messages, requests = open_page(browser, page_path, width, scheme)
    data = json.loads(page.locator("#data").text_content())
    assert data["models"] == sorted(data["models"], key=natural), data["models"]
    names = [task["name"] for task in data["tasks"]]
    assert names == sorted(names, key=natural), names

    tasks = page.locator("#task option")
    assert tasks.count() == len(data["tasks"]) > 0
    for index, task in enumerate(data["tasks"]):
        page.locator("#task").select_option(str(index))
        models = {curve["model"] for curve in task["curves"] + task["training"]}
        drawn = page.locator("#lengths path.line").count()
        assert drawn == len(task["curves"]) or drawn == SHOWN < len(models), (task["name"], drawn)
        assert page.locator("#models button[data-model]").count() == len(models)
        if task["training"]:
            kinds = [curve for curve in task["training"] if curve["kind"] == 0]
            assert page.locator("#trained button[data-model]").count() == len(kinds), "training has no legend"
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
    page.screenshot(path=screenshots / f"{page_path.stem}-hover-{width}-{scheme}.png")
    chart.focus()
    page.keyboard.press("End")
    longest = data["tasks"][0]["grids"][0][-1][1]
    assert str(longest) in tip.inner_text(), tip.inner_text()
    page.keyboard.press("Escape")
    assert tip.is_hidden()

    pressed = page.locator('#models button[data-model][aria-pressed="true"]')
    lines = page.locator("#lengths path.line").count()
    pressed.first.click()
    assert page.locator("#lengths path.line").count() == lines - 1, "pressing a name hides no line"
    page.locator('#models button[data-model][aria-pressed="false"]').first.click()
    assert page.locator("#lengths path.line").count() == lines, "pressing a name shows no line"
    for kind in range(len(data["kinds"])):
        page.locator("#kind").select_option(str(kind))
    page.locator("#kind").select_option("0")
    for details in page.locator("details").all():
        if details.get_attribute("open") is None:
            details.locator("summary").first.click()

    without_overflow(page)
    page.mouse.move(0, 0)
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=screenshots / f"{page_path.stem}-{width}-{scheme}.png", full_page=True)
    assert not messages, messages
    assert requests == [page_path.resolve().as_uri()], requests
    page.context.close()


# Scores of the made-up models of the first report at length n modulo m; all are RNNs that differ in width alone.
WIDTHS = {
    2: lambda n, m: n <= 20,
    4: lambda n, m: n <= 50 or n % m == 3,
    8: lambda n, m: n % m == 9,  # guesses
    16: lambda n, m: n % m == 1,  # guesses otherwise
    32: lambda n, m: n <= 400 or n % m == 5,
    104: lambda n, m: True,
    256: lambda n, m: n <= 700 or n % m == 5,
    512: lambda n, m: n <= 90 or n % m == 0,
    1024: lambda n, m: True,
}
TASKS = [f"counting_samesymbol_mod{m}" for m in (20, 10, 15, 11)] + ["counting_samesymbol_mod10bos"]


def made_up_run(folder, index, arch, width, task, seed, right, more=""):
    """A run folder with a config, a sweep over 1..1000, scores of a split and a training curve."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    run = folder / f"1128_{index:06}"
    (run / "eval").mkdir(parents=True)
    config = f'[task]\nname = "{task}"\n[model]\narch = "{arch}"\nhidden_size = {width}\nnum_layers = 1\n{more}'
    (run / "config.toml").write_text(f"{config}[train]\nseed = {seed}\n[optimizer]\nlr = 0.001\n")
    modulus = int(re.search(r"mod(\d+)", task)[1])
    lengths = list(range(1, 1001))
    scores = [float(right(n, modulus)) for n in lengths]
    facts = {"task": task, "arch": arch, "positional_embedding": "none", "num_layers": 1, "hidden_size": width, "seed": seed, "precision": "fp32"}
    sweep = {name: [value] * len(lengths) for name, value in facts.items()}
    sweep |= {"split": ["sweep"] * len(lengths), "length": lengths, "n_sequences": [1] * len(lengths), "last_accuracy": scores}
    sweep["in_distribution"] = [n <= 5 * modulus for n in lengths]
    pq.write_table(pa.table(sweep), run / "eval/sweep.parquet", compression="zstd")
    mean = sum(scores[5 * modulus : 10 * modulus]) / (5 * modulus)
    total = {name: [value] for name, value in facts.items()} | {"split": ["ood_test"], "loops": [1]}
    pq.write_table(pa.table(total | {m: [mean] for m in ("last_accuracy", "accuracy", "unseen_accuracy")}), run / "eval/ood_test-total.parquet", compression="zstd")
    steps = list(range(0, 2000, 20))
    curve = {"step": steps, "split": ["train"] * len(steps), "loss": [2.3 * math.exp(-s * math.log2(2 * width) / 6000) for s in steps]}
    pq.write_table(pa.table(curve | {"accuracy": pa.array([None] * len(steps), pa.float64())}), run / "metrics.parquet", compression="zstd")
    return run


def made_up(pipeline, folder):
    """Two reports: of one architecture in many widths, and of several architectures."""
    for index, (width, task, seed) in enumerate((w, t, s) for w in WIDTHS for t in TASKS for s in (1, 2)):
        run = made_up_run(folder / "widths-runs", index, "rnn", width, task, seed, WIDTHS[width])
    (run / "eval/torn.parquet").write_text("no table")
    shutil.copytree(run, run.with_name("1129_000000"))
    transformer = 'positional_embedding = "{}"\naugmentation = "{}"\n'.format
    models = [
        ("lstm", "", lambda n, m: True),
        ("rnn", "", lambda n, m: True),
        ("transformer", transformer("rope", "shift"), lambda n, m: n <= 50 or n % m == 3),
    ]
    for index, (arch, more, right) in enumerate(models):
        made_up_run(folder / "kinds-runs", index, arch, 64, TASKS[-1], 1, right, more)
    for name in ("widths", "kinds"):
        command = [pipeline, "report", "--runs-dir", folder / f"{name}-runs", "-o", folder / f"{name}.html", "--quiet"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder / "widths.html", folder / "kinds.html"


def check_widths(browser, page_path, width, scheme):
    page, _, _ = open_page(browser, page_path, width, scheme)
    data = json.loads(page.locator("#data").text_content())
    assert [task["name"] for task in data["tasks"]] == sorted(TASKS, key=natural), data["tasks"]
    expected = [f"width {w}" for w in WIDTHS]
    shared = page.locator("#shared").inner_text()
    assert "RNN" in shared and "1 layer" in shared and "lr=0.001" in shared, shared
    assert page.locator("#models button[data-model]").all_inner_texts() == expected
    assert page.locator("#trained button[data-model]").all_inner_texts() == expected
    rows = page.locator("#table-longer th[scope=row]").all_inner_texts()
    assert rows == expected, rows

    notices = page.locator("#notices")
    assert "torn.parquet" in notices.inner_text(), notices.inner_text()
    assert notices.bounding_box()["y"] < page.locator("#accuracy").bounding_box()["y"], "notices come after results"

    # The best, the worst and some in between are drawn, and the rest can be.
    assert "8 of 9 models are drawn" in page.locator("#shown").inner_text()
    page.locator("#models button.all").first.click()
    assert page.locator("#lengths path.line").count() == len(WIDTHS)
    for index in range(len(TASKS)):
        page.locator("#task").select_option(str(index))
        for model in (2, 3):
            ys = heights(page, "#lengths", model)
            assert len(ys) > 5 and max(ys) - min(ys) < 0.02, (data["tasks"][index]["name"], expected[model], "guessing is no level line")
    page.locator("#task").select_option(str([task["name"] for task in data["tasks"]].index(TASKS[-1])))
    assert "multiple of the 10" in page.locator("#averaged").inner_text()
    assert heights(page, "#lengths", 2)[0] > 0.8, "guessing is right once in ten lengths"

    # Equal curves are both seen, and reported as equal.
    assert "width 104 = width 1024" in page.locator("#same").inner_text()
    equal = [page.locator(f'#lengths path.line[data-model="{model}"]').get_attribute("style") for model in (5, 8)]
    assert all("stroke-dasharray" in style for style in equal) and equal[0] != equal[1], equal
    colours = {style.split("stroke:")[1].split(";")[0] for style in equal}
    assert len(colours) == 2, colours

    # Many bands would be a grey block: one is seen where one points.
    visible = page.locator("#lengths .band.on")
    assert visible.count() == 0, "bands of many curves are drawn on top of each other"
    box = page.locator("#lengths svg").bounding_box()
    line = page.locator("#lengths rect.trained").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, line["y"] + 5)
    assert visible.count() == 1, "the curve under the pointer has no band"
    page.locator("#models button.all").nth(1).click()
    for name in expected[:2]:
        page.locator("#models").get_by_role("button", name=name, exact=True).click()
    assert visible.count() == 2, "two curves have their bands"

    # A table that is cut says so until its end is seen.
    wide = page.locator("#tables .wide").first
    if width < 500:
        assert wide.locator(".hint").is_visible() and "more" in wide.get_attribute("class"), "a cut table gives no hint"
        wide.locator(".scroll").evaluate("e => { e.scrollLeft = e.scrollWidth }")
        # Playwright's own waiting evaluates text in the page, which the page's policy forbids.
        deadline = time.monotonic() + 30
        while page.evaluate("document.querySelector('#tables .wide').classList.contains('more')"):
            assert time.monotonic() < deadline, "the table says that there is more although its end is shown"
            time.sleep(0.05)
    elif width > 1200:
        assert not wide.locator(".hint").is_visible(), "a table that fits hints at more"
    without_overflow(page)
    page.context.close()


def check_kinds(browser, page_path, width, scheme):
    page, _, _ = open_page(browser, page_path, width, scheme)
    assert page.locator("#models button[data-model]").all_inner_texts() == ["LSTM", "RNN", "Transformer (RoPE, shift)"]
    assert "width 64" in page.locator("#shared").inner_text()
    assert page.locator("#lengths .band.on").count() == 3, "few curves have their bands"
    assert page.locator("#notices").count() == 0
    page.context.close()


def main():
    page_path, screenshots = map(Path, sys.argv[1:3])
    if sync_playwright is None or CHROMIUM is None:
        print("skipped: there is no Chromium or no Playwright to look at the page with")
        return
    screenshots.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        pages = [(page_path, None)]
        if len(sys.argv) > 3:
            made = made_up(Path(sys.argv[3]).resolve(), Path(folder))
            pages += zip(made, (check_widths, check_kinds))
        for page_path, more in pages:
            for width in (390, 1280):
                for scheme in ("light", "dark"):
                    check(browser, page_path, width, scheme, screenshots)
                    if more:
                        more(browser, page_path, width, scheme)
                    print(f"{page_path.name} at {width} px, {scheme}: ok")
        browser.close()


main()
