"""The page of a report in a real browser: Debian's chromium, driven by Selenium."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from simulated_folds import DATASET, Simulation, simulate

from nnunetv2.study.members import Comparison, Member
from nnunetv2.study.report.write import write_report

pytestmark = pytest.mark.integration
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("study")
    labels = {"background": 0, "artery": 1}
    experiments = {"unet": 0.4, "upernet": 0.2, "dpt": 0.6}
    simulation = Simulation(root, experiments, cases=8, sizes=(2, None), probabilities=True, labels=labels)
    variables = dict(os.environ)
    try:
        simulate(simulation)
        members = [
            Member(experiment, str(fold), None, size, simulation.fold_folder(experiment, fold, None, size))
            for experiment in simulation.experiments
            for fold in range(2)
            for size in simulation.sizes
        ]
        missing = ["m2f, fold 0: out of memory; see <its log>."]
        write_report(
            Comparison("decoders", DATASET, "2d", members, "unet", None, [1], 1.0, missing), root / "report", 1
        )
    finally:
        os.environ.clear()
        os.environ.update(variables)
    return root / "report" / "report.html"


def test_all_files_are_written(page: Path) -> None:
    output = page.parent
    html, markdown = page.read_text(), (output / "report.md").read_text()
    figures = {path.stem for path in (output / "figures").glob("*.png")}
    expected = {"boxes_dice", "boxes_cldice", "boxes_nsd", "boxes_hd95", "differences", "ranks", "cost", "data_size"}
    assert figures == expected | {"learning_curves", "reliability", "cases_1"}
    assert figures == {path.stem for path in (output / "figures").glob("*.pdf")}
    assert html.count("data:image/png;base64,") == len(figures)
    summary, cases = pd.read_csv(output / "summary.csv"), pd.read_csv(output / "cases.csv")
    of_all = cases[(cases["experiment"] == "upernet") & cases["num_training_cases"].isna()]
    chosen = summary[(summary["experiment"] == "upernet") & summary["num_training_cases"].isna()].set_index("metric")
    assert chosen.loc["dice", "mean"] == pytest.approx(of_all["dice"].mean())
    assert f"| {of_all['dice'].mean():.3f} [" in markdown or f"| **{of_all['dice'].mean():.3f} [" in markdown
    assert "out of memory; see <its log>." in markdown
    assert r"\toprule" in (output / "table.tex").read_text()
    assert len(pd.read_csv(output / "differences.csv").query("metric == 'dice'")) == 3
    assert [path.name for path in output.parent.glob(".report*")] == []


@pytest.fixture(scope="module")
def browser(page: Path) -> Iterator:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no chromium and chromedriver: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium: pip install .[dev]")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    # nothing answers outside of the page: what it loads is in it
    for argument in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "host-resolver-rules=MAP * ~NOTFOUND",
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        driver.set_window_size(1300, 900)
        driver.get(page.as_uri())
        yield driver
    finally:
        driver.quit()


def test_loads_without_errors(browser) -> None:
    assert browser.title == "decoders"
    assert [entry["message"] for entry in browser.get_log("browser")] == []
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in loaded if not name.startswith("data:")] == []


def test_missing_runs_stand_at_the_top(browser) -> None:
    notice = browser.find_element("id", "missing")
    assert "out of memory; see <its log>." in notice.text
    assert notice.location["y"] < browser.find_element("tag name", "table").location["y"]


def test_all_pictures_are_there(browser, page: Path) -> None:
    pictures = browser.find_elements("tag name", "img")
    names = {path.stem for path in (page.parent / "figures").glob("*.png")}
    assert len(pictures) == len(names)
    for picture in pictures:
        assert picture.get_property("complete") and picture.get_property("naturalWidth") > 200
        assert picture.get_attribute("alt")


def test_links_lead_somewhere(browser, page: Path) -> None:
    for link in browser.find_elements("tag name", "a"):
        target = link.get_dom_attribute("href")
        if target.startswith("#"):
            assert browser.find_elements("id", target[1:])
        else:
            assert (page.parent / target).is_file()


def column(browser, number: int) -> list[str]:
    rows = browser.find_elements("css selector", "#main tbody tr")
    return [row.find_elements("tag name", "td")[number].text for row in rows]


def test_sorting(browser) -> None:
    names, dice = browser.find_elements("css selector", "#main th button")[:2]
    dice.click()
    ascending = column(browser, 1)
    assert [float(text.split()[0]) for text in ascending] == sorted(float(text.split()[0]) for text in ascending)
    assert browser.find_element("css selector", "#main th[aria-sort=ascending]").text.startswith("Dice")
    dice.click()
    assert column(browser, 1) == ascending[::-1]
    names.click()
    assert column(browser, 0) == ["dpt", "unet", "upernet"]


@pytest.mark.parametrize("width", [1300, 500])
def test_nothing_is_wider_than_the_window(browser, width: int) -> None:
    browser.set_window_size(width, 900)
    scroll, client = browser.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert scroll <= client
