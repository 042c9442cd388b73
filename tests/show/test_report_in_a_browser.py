"""The report in Chromium: nothing is fetched, nothing goes wrong, and people can use it with pointer, keys and ears.

Skipped where there is no Chromium; under CI=true its absence is a failure, unless .ci/run could not install one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fabricated
import layerhess as lh
import plans_by_hand
from curves_of_a_training import history
from layerhess.show import comparison, history_page
from layerhess.show.plan import page as plan_page
from layerhess.show.report import as_html

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
SIZES = [(1600, 900), (900, 1100), (400, 800)]
OTHERS = ("bad", "plain", "curves", "comparison", "planned")
PLANS = ("plan", "undone", "large")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM and (os.environ.get("CI") != "true" or os.environ.get("WITHOUT_BROWSER")):
        pytest.skip("there is no Chromium on this machine")
    assert CHROMIUM, "CI needs a Chromium"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        made = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


class Opened:
    """A page, and all that it asked for or complained about."""

    def __init__(self, browser: Any, path: Path, width: int = 1600, height: int = 900, scheme: str = "light") -> None:
        self.page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.asked: list[str] = []
        self.page.goto(path.as_uri())


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    made = {
        "good": fabricated.estimated(fabricated.analysis()),
        "bad": fabricated.estimated(fabricated.analysis(bad=True)),
        "plain": fabricated.analysis(),
    }
    texts = {name: as_html(found) for name, found in made.items()}
    texts["curves"] = history_page.as_html(history())
    texts["planned"] = as_html(made["good"], plans_by_hand.plan())
    texts["plan"] = plan_page.as_html(plans_by_hand.plan())
    texts["undone"] = plan_page.as_html(plans_by_hand.undone())
    layers = {f"encoder.layers.{i // 4}.{'qkvo'[i % 4]}.weight": (64, 64) for i in range(200)}
    texts["large"] = plan_page.as_html(plans_by_hand.plan(layers, (2, 3, 4, 8) * 50))
    texts["comparison"] = comparison.page.as_html(lh.compare([made["good"], made["bad"]]).pairs)
    paths = {name: folder / f"{name}.html" for name in texts}
    for name, path in paths.items():
        path.write_text(texts[name], encoding="utf-8")
    return paths


@pytest.fixture
def opened(browser: Any, pages: dict[str, Path]) -> Iterator[Opened]:
    made = Opened(browser, pages["good"])
    yield made
    assert not made.complaints
    made.page.close()


@pytest.mark.parametrize(
    ("name", "width", "height", "scheme"),
    [
        *(("good", *size, scheme) for size in SIZES for scheme in ("light", "dark")),
        *((name, *SIZES[0], "light") for name in OTHERS),
        *((name, *SIZES[2], "dark") for name in OTHERS),
        *(("plan", *size, scheme) for size in SIZES for scheme in ("light", "dark")),
        *((name, *SIZES[i], "light") for name in PLANS[1:] for i in (0, 2)),
    ],
)
def test_nothing_is_fetched_nothing_overflows_and_axe_finds_no_violation(
    browser: Any, pages: dict[str, Path], name: str, width: int, height: int, scheme: str
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    opened = Opened(browser, pages[name], width, height, scheme)
    assert opened.asked == [pages[name].as_uri()]
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    end = opened.page.evaluate("document.querySelector('.answers, .answer').getBoundingClientRect().bottom")
    assert name == "bad" or end <= height, "the answers are above the fold"
    found = Axe().run(opened.page)
    assert not [(v["id"], v["nodes"][0]["html"]) for v in found.response["violations"]]
    assert not opened.complaints
    opened.page.close()


def lit(page: Any) -> set[str]:
    return set(page.evaluate("[...document.querySelectorAll('.on')].map(e => e.dataset.block)"))


def test_a_layer_under_the_pointer_is_marked_everywhere(opened: Opened) -> None:
    page = opened.page
    page.hover('tr[data-block="block1.conv1.weight"] th')
    assert lit(page) == {"block1.conv1.weight"}
    parts = page.evaluate("""[...document.querySelectorAll('.on')].map(e => e.tagName.toLowerCase())""")
    assert sorted(parts) == ["li", "path", "path", "svg", "tr"], "row, marks, name beside the pairs, cross, line"
    page.hover("h1")
    assert not lit(page)


def test_the_focus_marks_a_layer_too(opened: Opened) -> None:
    opened.page.focus('tr[data-block="head.bias"] button')
    assert lit(opened.page) == {"head.bias"}


def test_a_cell_of_the_pairs_marks_both_layers_and_tells_their_coefficient(opened: Opened) -> None:
    page, made = opened.page, fabricated.estimated(fabricated.analysis())
    coupling = made.coupling
    assert coupling is not None
    box = page.locator("#pairs svg").bounding_box()
    side = len(coupling.blocks)
    row, column = 3, 1
    page.locator("#pairs svg").scroll_into_view_if_needed()
    page.locator("#pairs svg").hover(
        position={"x": (column + 0.5) * box["width"] / side, "y": (row + 0.5) * box["height"] / side}
    )
    assert lit(page) == {coupling.blocks[row], coupling.blocks[column]}
    value = coupling.value[row, column] / (coupling.value[row, row] * coupling.value[column, column]) ** 0.5
    told = page.text_content("#pair")
    assert told == f"{coupling.blocks[row]} with {coupling.blocks[column]}: {value:.2f}"


def order(page: Any) -> list[str]:
    return list(page.evaluate("[...document.querySelectorAll('#layers .row')].map(r => r.dataset.block)"))


def test_sorting_keeps_the_whole_model_first_and_details_with_their_rows(opened: Opened) -> None:
    page, made = opened.page, fabricated.analysis()
    before = order(page)
    page.click('tr[data-block="head.weight"] button')
    page.click('#layers thead button[data-key="top"]')
    tops = {name: s.eigenvalues[0] for name, s in made.blocks.items()}
    assert order(page) == ["(full)", *sorted(tops, key=lambda name: -tops[name])]
    assert page.get_attribute('th:has(> button[data-key="top"])', "aria-sort") == "descending"
    after = page.evaluate("""[...document.querySelectorAll('#layers .row')].every(r =>
        r.nextElementSibling.id === r.querySelector('button').getAttribute('aria-controls'))""")
    assert after, "each row's details follow it"
    assert page.is_visible('tr[data-block="head.weight"] + .detail')
    page.click('#layers thead button[data-key="top"]')
    assert order(page) == ["(full)", *sorted(tops, key=lambda name: tops[name])]
    page.click('#layers thead button[data-key="order"]')
    assert order(page) == before


def test_a_row_opens_with_the_keyboard_and_shows_all_digits(opened: Opened) -> None:
    page, made = opened.page, fabricated.analysis()
    button = page.locator('tr[data-block="stem.weight"] button')
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-expanded") == "true"
    assert repr(float(made.blocks["stem.weight"].eigenvalues[0])) in page.inner_text(
        'tr[data-block="stem.weight"] + .detail'
    )
    page.keyboard.press("Enter")
    assert not page.is_visible('tr[data-block="stem.weight"] + .detail')


def test_the_filter_shows_the_layers_whose_names_have_all_words(opened: Opened) -> None:
    page = opened.page
    page.fill("#find", "block1 CONV2")
    visible = page.evaluate("[...document.querySelectorAll('#layers .row:not([hidden])')].map(r => r.dataset.block)")
    assert visible == ["(full)", "block1.conv2.weight"]
    assert page.text_content("#shown") == "1 of 7 layers"
    page.fill("#find", "")
    assert len(page.query_selector_all("#layers .row:not([hidden])")) == 8


def test_without_scripts_all_details_are_there(browser: Any, pages: dict[str, Path]) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(pages["plain"].as_uri())
    assert page.locator(".detail:visible").count() == 8
    context.close()


def test_a_layer_of_a_plan_is_marked_in_strip_table_and_pairs_and_sorts(browser: Any, pages: dict[str, Path]) -> None:
    opened, made = Opened(browser, pages["plan"]), plans_by_hand.plan()
    page = opened.page
    page.hover('tr[data-block="mixer.weight"] th')
    assert lit(page) == {"mixer.weight"}
    parts = page.evaluate("[...document.querySelectorAll('.on')].map(e => e.tagName.toLowerCase())")
    assert {"g", "li", "path", "svg", "tr"} <= set(parts), "bars, name and cross of the pairs, marks, row"
    alone = {r.layer: r.measured for r in made.rows if made.choice[r.layer] == r.option}
    page.click('#layers thead button[data-key="top"]')
    assert order(page) == sorted(alone, key=lambda name: -alone[name])
    page.fill("#find", "block2 conv1")
    visible = page.evaluate("[...document.querySelectorAll('#layers .row:not([hidden])')].map(r => r.dataset.block)")
    assert visible == ["block2.conv1.weight"]
    page.click('tr[data-block="block2.conv1.weight"] button')
    assert "w4, chosen" in page.inner_text('tr[data-block="block2.conv1.weight"] + .detail')
    assert page.evaluate("document.documentElement.scrollWidth") <= 1600
    assert not opened.complaints
    page.close()
