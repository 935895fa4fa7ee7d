"""The page in a real browser: it fits a phone, its policy blocks nothing of it, and nothing in it runs."""

import html
import json
import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from svd2onnx.reporting.page import render
from svd2onnx.reporting.report import read_report
from tests.svd2onnx.reporting.test_page import poisoned
from tests.svd2onnx.reports import LAYERS, a_report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PHONE, DESK = 390, 1280

Pages = list[tuple[str, int]]
Browse = Callable[..., subprocess.CompletedProcess[str]]

# Pages in frames of given widths, which this page may look into because they are its own.
MEASURE = """<!DOCTYPE html><title>waiting</title><body>{frames}<script>
addEventListener("load", () => {{
  const found = [...document.querySelectorAll("iframe")].map(frame => {{
    const page = frame.contentDocument, root = page.documentElement;
    const shown = name => getComputedStyle(page.querySelector(name)).display !== "none";
    return {{
      width: root.clientWidth, scroll: root.scrollWidth, height: root.scrollHeight, title: page.title,
      scripts: page.scripts.length, images: page.images.length,
      wide: shown(".chart.wide"), narrow: shown(".chart.narrow"),
      ground: getComputedStyle(page.body).backgroundColor,
    }};
  }});
  document.body.textContent = JSON.stringify(found);
}});
</script></body>"""


@pytest.fixture(scope="module")
def browse(tmp_path_factory: pytest.TempPathFactory) -> Browse:
    """Runs the browser headless on a file; its console is on stderr."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no Chromium here ({', '.join(NAMES)}): apt-get install chromium")
    profile = tmp_path_factory.mktemp("profile")

    def run(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
        flags = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars".split()
        command = [program, *flags, "--enable-logging=stderr", f"--user-data-dir={profile}", *options]
        return subprocess.run(
            [*command, path.as_uri()], capture_output=True, text=True, timeout=180, check=False
        )

    empty = profile / "empty.html"
    empty.write_text("<p>here")
    started = run(empty, "--dump-dom")
    if "here" not in started.stdout:
        pytest.skip(f"{program} does not start here: {started.stderr[-200:]}")
    return run


def measured(
    browse: Browse, folder: Path, pages: list[tuple[str, int]], *options: str
) -> list[dict[str, Any]]:
    """What a browser makes of each page at a width."""
    frames = "".join(
        f'<iframe width="{width}" height="800" frameborder="0" srcdoc="{html.escape(page)}"></iframe>'
        for page, width in pages
    )
    path = folder / "frames.html"
    path.write_text(MEASURE.format(frames=frames))
    text = browse(path, "--dump-dom", *options).stdout
    found = re.search(r"<body>(\[.*\])</body>", text, re.DOTALL)
    assert found, text[-500:]
    records: list[dict[str, Any]] = json.loads(html.unescape(found[1]))
    assert len(records) == len(pages)
    return records


def test_no_page_scrolls_sideways(browse: Browse, tmp_path: Path) -> None:
    """Neither one with names that no line holds."""
    long = "encoder" * 40
    layers = tuple(replace(layer, name=long, note=long, form=f"rank 1 {long}") for layer in LAYERS)
    deployed = replace(a_report().deployed, metric={long: 1e9}, reference_metric={long: 1e-9})
    worst = a_report(
        layers=layers,
        source=long,
        output=long,
        deployed=deployed,
        warnings=(long,),
        command=long,
        created=long,
    )
    pages = [
        (render(report).replace("<details>", "<details open>"), width)
        for report in (a_report(), worst, a_report(layers=LAYERS * 10))
        for width in (PHONE, DESK)
    ]
    for (_, width), page in zip(pages, measured(browse, tmp_path, pages), strict=True):
        assert page["width"] == width
        assert page["scroll"] <= width
        assert (page["wide"], page["narrow"]) == (width == DESK, width == PHONE)


def test_colours_follow_the_reader(browse: Browse, tmp_path: Path) -> None:
    page = [(render(a_report()), DESK)]
    (light,) = measured(browse, tmp_path, page, "--blink-settings=preferredColorScheme=1")
    (dark,) = measured(browse, tmp_path, page, "--blink-settings=preferredColorScheme=0")
    assert light["ground"] == "rgb(245, 246, 248)"
    assert dark["ground"] == "rgb(15, 19, 24)"


def test_nothing_of_a_tampered_report_becomes_part_of_the_page(browse: Browse, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(poisoned(json.loads(a_report().to_json()))))
    (page,) = measured(browse, tmp_path, [(render(read_report(path)), PHONE)])
    assert (page["scripts"], page["images"]) == (0, 0)
    assert "<script>alert(1)</script>" in page["title"], "as text"
    assert page["scroll"] <= PHONE


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_the_policy_blocks_nothing_and_the_page_is_drawn(browse: Browse, tmp_path: Path, width: int) -> None:
    path, picture = tmp_path / "page.html", tmp_path / "page.png"
    path.write_text(render(a_report()))
    done = browse(path, f"--screenshot={picture}", f"--window-size={width},2000")
    assert "CONSOLE" not in done.stderr, done.stderr
    content = picture.read_bytes()
    assert struct.unpack(">II", content[16:24]) == (width, 2000)
    assert len(content) > 50_000, "a blank page is smaller"


def test_what_the_policy_blocks_is_told_on_the_console(browse: Browse, tmp_path: Path) -> None:
    """Else the test above could not fail."""
    path = tmp_path / "page.html"
    path.write_text(render(a_report()).replace("<main>", '<main style="color: red"><script>1</script>'))
    told = [line for line in browse(path, "--dump-dom").stderr.splitlines() if "CONSOLE" in line]
    assert len(told) == 2
    assert all("Content Security Policy" in line for line in told)
