"""The page of a study in a real browser: sorting, filtering, pictures, a clean console."""

import shutil

import numpy as np
import pytest

from rlprune_jax.report.page import Table, render_report, write_report
from rlprune_jax.report.study_figures import effects_figure

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no chromium and chromedriver on this machine (apt: chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*QUIET, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    rates = list(np.logspace(-3, 0, 6))
    rows = [
        [i, rates[i], "ab"[i % 2], [3.0, 1.0, float("nan"), 12.0, 2.5, -1.0][i]] for i in range(6)
    ]
    html = render_report(
        "study",
        {},
        [
            Table("Settings", ("rank", "rate", "kind", "score"), rows, interactive=True),
            Table("Still", ("x",), [[2], [1]]),
        ],
        [("Effect", effects_figure({"rate": rates}, range(6), "score", ("rate",)), "")],
        {},
    )
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(path, html)
    browser.get(path.as_uri())
    return browser


def column(page, index):
    rows = page.find_elements("css selector", "table.interactive tbody tr")
    return [
        row.find_elements("css selector", "td")[index].text for row in rows if row.is_displayed()
    ]


def type_filter(page, text):
    box = page.find_element("css selector", ".filter input")
    box.clear()
    box.send_keys(text or " ")
    return page.find_element("css selector", ".filter output").text


@pytest.mark.slow
def test_columns_sort_by_number_both_ways_and_unknown_goes_last(page):
    type_filter(page, "")
    header = page.find_elements("css selector", "table.interactive th")[3]
    header.click()
    assert column(page, 3) == ["-1", "1", "2.5", "3", "12", "–"]
    assert header.get_attribute("aria-sort") == "ascending"
    header.click()
    assert column(page, 3) == ["12", "3", "2.5", "1", "-1", "–"]
    page.find_elements("css selector", "table.interactive th")[0].click()
    assert column(page, 0) == list("012345")
    assert header.get_attribute("aria-sort") is None


@pytest.mark.slow
def test_the_filter_takes_text_and_comparisons(page):
    assert type_filter(page, "kind=a") == "3 of 6 rows" and set(column(page, 2)) == {"a"}
    assert type_filter(page, "score>2 kind=b") == "1 of 6 rows" and column(page, 3) == ["12"]
    assert type_filter(page, "rate<=0.001") == "1 of 6 rows"
    assert type_filter(page, "nowhere") == "0 of 6 rows"
    assert type_filter(page, "") == "6 of 6 rows"


@pytest.mark.slow
def test_pictures_are_drawn_and_the_console_is_clean(page):
    pictures = page.find_elements("css selector", "figure svg")
    assert len(pictures) == 1
    assert pictures[0].size["width"] > 500 and pictures[0].size["height"] > 100
    assert len(pictures[0].find_elements("css selector", "path")) > 5
    assert page.get_log("browser") == []
    # What is not interactive has no filter.
    assert len(page.find_elements("css selector", ".filter")) == 1
