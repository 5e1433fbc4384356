"""The demo page and the page of explanations in a real browser, without a network."""

import json
import shutil
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytest.importorskip("gradio", reason="the demo page needs the extra 'demo'")
pytest.importorskip("selenium", reason="needs selenium, of the extra 'dev'")
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from test_space import HOSTILE, app

from bcos_transformers import BcosExplainer, TextExplanation
from bcos_transformers.explanations.html import render_html
from conftest import bcos_model, make_tokenizer

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = next(filter(None, map(shutil.which, ("chromedriver", "chromium-driver"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM or not DRIVER, reason="needs chromium and chromedriver on the path"),
]
TEXT = "The film was not bad, the soup was very dull!"
SHORT_WORDS = "a film is it, the soup is a film, it was a bad . and " * 3  # some end at the window's edge
SWITCHES = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,1000")
# What a text could do: open a dialog. It is counted instead, so that nothing waits for a click.
COUNT_ALERTS = "window.alerts = []; for (const f of ['alert', 'confirm', 'prompt']) window[f] = m => alerts.push(m);"
# Contrast of a text with what it stands on (WCAG 2), the background being laid over the page's.
CONTRAST = """
const parse = c => (c.match(/[\\d.]+/g) || []).map(Number);
const page = parse(arguments[1]);
const light = c => c.map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
const style = getComputedStyle(arguments[0]), over = parse(style.backgroundColor), alpha = over[3] ?? 1;
const ground = light(over.slice(0, 3).map((v, i) => alpha * v + (1 - alpha) * page[i]));
const text = light(parse(style.color).slice(0, 3));
return (Math.max(ground, text) + .05) / (Math.min(ground, text) + .05);
"""


@pytest.fixture(scope="module")
def downloads(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def driver(downloads):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in (*SWITCHES, "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": COUNT_ALERTS})
    yield driver
    driver.quit()


@pytest.fixture
def browser(driver):
    """The browser as it is at first: light, wide, on a screen, nothing logged."""
    media(driver, scheme="light")
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    driver.get("about:blank")
    driver.get_log("browser")
    driver.get_log("performance")
    return driver


@pytest.fixture(scope="module")
def explainer() -> BcosExplainer:
    return app.make_explainer(bcos_model(), make_tokenizer())


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where the demo page runs."""
    patch = pytest.MonkeyPatch()
    patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    demo = app.build_demo(bcos_model(), make_tokenizer())
    options = {"server_name": "127.0.0.1", "server_port": port, "ssr_mode": False, "prevent_thread_lock": True}
    _, url, _ = demo.launch(quiet=True, **options, **app.launch_options())
    yield url
    demo.close(verbose=False)
    patch.undo()


@pytest.fixture
def demo(browser, address):
    browser.get(address)
    until(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "#text textarea"))
    return browser


@pytest.fixture(scope="module")
def page(explainer, tmp_path_factory) -> str:
    """Address of a page with several texts, hostile ones too; the first one has several classes."""
    others = explainer([SHORT_WORDS, "x" * 200, *list(HOSTILE.values())[:6]])
    explanations = [explainer(TEXT, target="all"), explainer("good film"), *others]
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(render_html(explanations, title="Reviews <script>alert(1)</script>"), encoding="utf-8")
    return path.as_uri()


def until(driver, found, seconds: float = 30):
    return WebDriverWait(driver, seconds, poll_frequency=0.05).until(lambda _: found())


def media(driver, scheme: str = "light", kind: str = "screen") -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": kind, "features": features})


def narrow(driver) -> None:
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def overflow(driver) -> int:
    """How far the page reaches beyond its window, whichever word shows its number; pixels."""
    return driver.execute_script(
        "let widest = document.documentElement.scrollWidth;"
        "for (const word of document.querySelectorAll('.bcos .word')) {"
        " word.focus(); widest = Math.max(widest, document.documentElement.scrollWidth); }"
        "return widest - document.documentElement.clientWidth"
    )


def number(driver, word) -> str:
    """What a word shows behind or under it; empty if nothing."""
    shown = driver.execute_script("return getComputedStyle(arguments[0], '::after').content", word)
    return "" if shown == "none" else shown.strip('"')


def hosts(driver) -> set[str]:
    """Where requests went since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return {urlsplit(url).hostname or urlsplit(url).scheme for url in urls}


def unharmed(driver) -> None:
    """No text ran, and nothing went wrong in the console."""
    assert driver.execute_script("return alerts") == []
    assert driver.find_elements(By.CSS_SELECTOR, ".bcos script, .bcos img, .bcos a") == []
    assert [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []


def enter(driver, text: str) -> None:
    """Puts a text into the field at once, also characters that no keyboard has."""
    driver.execute_script(
        "const field = document.querySelector('#text textarea');"
        "Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, 'value').set.call(field, JSON.parse(arguments[0]));"
        "field.dispatchEvent(new Event('input', {bubbles: true}))",
        json.dumps(text),
    )


def content(driver, selector: str) -> str:
    """The text of the first such element, as it is in the document; empty if there is none."""
    return driver.execute_script("return document.querySelector(arguments[0])?.textContent ?? ''", selector)


def ask(driver, text: str) -> None:
    enter(driver, text)
    driver.find_element(By.ID, "explain").click()


def choose(driver, label: str, option: str) -> None:
    driver.find_element(By.CSS_SELECTOR, f"input[aria-label='{label}']").click()
    options = until(driver, lambda: driver.find_elements(By.CSS_SELECTOR, "[role=option]"))
    next(o for o in options if o.text.strip().removeprefix("✓").strip() == option).click()


def downloaded(driver, downloads: Path, button: str, name: str) -> str:
    for old in downloads.iterdir():
        old.unlink()
    driver.find_element(By.ID, button).click()
    until(driver, lambda: (downloads / name).is_file() and not list(downloads.glob("*.crdownload")))
    return (downloads / name).read_text(encoding="utf-8")


def test_demo_explains_compares_and_downloads(demo, explainer, downloads):
    demo.find_element(By.CSS_SELECTOR, "#text textarea").send_keys(TEXT)
    demo.find_element(By.ID, "explain").click()
    expected = explainer(TEXT)
    until(demo, lambda: content(demo, "#explanation .text") == TEXT)
    words = demo.find_elements(By.CSS_SELECTOR, "#explanation .text .word")
    assert [word.text for word in words] == expected.words
    assert [word.get_attribute("data-score") for word in words] == [f"{score:+.4f}" for score in expected.scores]
    assert content(demo, "#prediction").strip() == (f"Prediction: {expected.label} {100 * expected.probability:.1f} %")
    terms = f"words {sum(expected.scores):+.4f} + special tokens {expected.special_tokens_score:+.4f}"
    total = f"sum {expected.total:+.4f} = logit {expected.logit:+.4f}"
    assert f"{terms} = {total}" in content(demo, "#explanation .sum")
    ActionChains(demo).move_to_element(words[1]).perform()
    assert number(demo, words[1]) == f"{expected.scores[1]:+.4f}"

    foil = next(i for i in (0, 1, 2) if i != expected.target)
    choose(demo, "Compare with", f"LABEL_{foil}")
    heading = f"{expected.label} rather than LABEL_{foil}"
    until(demo, lambda: content(demo, "#explanation .heading").startswith(heading))
    contrast = explainer(TEXT, contrast=foil)
    assert f"logit {contrast.logit:+.4f}" in content(demo, "#explanation .sum")

    read = TextExplanation.from_json(downloaded(demo, downloads, "json-file", "explanation.json"))
    assert (read.text, read.words, read.contrast) == (TEXT, contrast.words, f"LABEL_{foil}")
    assert read.scores == pytest.approx(contrast.scores)
    saved = downloaded(demo, downloads, "html-file", "explanation.html")
    assert saved.startswith("<!doctype html>")
    assert f"Why {heading}?" in saved
    assert hosts(demo) <= {"127.0.0.1", "about", "data", "blob"}
    unharmed(demo)


def test_demo_examples_and_granularity(demo):
    demo.find_element(By.XPATH, f"//*[text()={json.dumps(app.EXAMPLES[0])}]").click()
    until(demo, lambda: content(demo, "#explanation .text") == app.EXAMPLES[0])
    demo.find_element(By.CSS_SELECTOR, "input[type=radio][value=sentence]").click()
    until(demo, lambda: content(demo, "#explanation .word") == app.EXAMPLES[0])
    assert content(demo, "#explanation .sum").startswith("sentences ")
    unharmed(demo)


@pytest.mark.parametrize("kind", HOSTILE)
def test_demo_is_not_harmed(demo, kind):
    ask(demo, HOSTILE[kind])
    typed = json.loads(demo.execute_script("return JSON.stringify(document.querySelector('#text textarea').value)"))
    # What HTML itself does not keep: the null character.
    expected = typed.replace("\ud83d", "\ufffd").replace("\x00", "")
    until(demo, lambda: content(demo, "#explanation .text").replace("\ufffd", "") == expected.replace("\ufffd", ""))
    assert "film" in expected
    unharmed(demo)
    ask(demo, "soup")  # and the next one is served
    until(demo, lambda: content(demo, "#explanation .text") == "soup")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("", "nothing to read"), (" \n", "nothing to read"), ("film " * 20_000, "100,000 characters")],
)
def test_demo_says_what_it_cannot_explain(demo, text, sentence):
    ask(demo, "soup")
    until(demo, lambda: content(demo, "#explanation .text") == "soup")
    ask(demo, text)
    until(demo, lambda: sentence in content(demo, "[data-testid=toast-body]"))
    until(demo, lambda: content(demo, "#explanation .text") == "")
    assert demo.find_element(By.ID, "json-file").get_attribute("disabled") or "disabled" in (
        demo.find_element(By.ID, "json-file").get_attribute("class")
    )
    unharmed(demo)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_demo_is_readable_in_light_and_dark(browser, address, scheme):
    media(browser, scheme)
    browser.get(address)
    until(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "#text textarea"))
    ask(browser, TEXT)
    until(browser, lambda: content(browser, "#explanation .text") == TEXT)
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground.strip("rgba()").split(",")[:3])) < 200) == (scheme == "dark")
    for word in browser.find_elements(By.CSS_SELECTOR, "#explanation .word"):
        assert browser.execute_script(CONTRAST, word, ground) > 4.5


def test_demo_fits_a_narrow_screen(demo):
    narrow(demo)
    ask(demo, f"{TEXT} {SHORT_WORDS} {'x' * 200}")
    until(demo, lambda: content(demo, "#explanation .text").startswith(TEXT))
    assert overflow(demo) == 0


def test_page_needs_no_network_and_runs_nothing(browser, page):
    browser.get(page)
    assert browser.title == "Reviews <script>alert(1)</script>"
    time.sleep(0.2)
    assert hosts(browser) == {"file"}
    assert browser.find_elements(By.TAG_NAME, "script") == []
    unharmed(browser)


def test_page_classes_are_chosen_with_the_keyboard(browser, page, explainer):
    browser.get(page)
    every = explainer(TEXT, target="all")
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    assert browser.switch_to.active_element.get_attribute("type") == "radio"
    for target in every.target:
        if target:
            browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
        (shown,) = (
            v for v in browser.find_elements(By.CSS_SELECTOR, "article:first-of-type .view") if v.is_displayed()
        )
        assert f"logit {every.logit[target]:+.4f}" in shown.text
        label = browser.find_elements(By.CSS_SELECTOR, "article:first-of-type label")[target]
        outline = "return getComputedStyle(arguments[0]).outlineStyle"
        assert not target or browser.execute_script(outline, label) == "solid"
    browser.find_elements(By.CSS_SELECTOR, "article:first-of-type label")[0].click()
    (shown,) = (v for v in browser.find_elements(By.CSS_SELECTOR, "article:first-of-type .view") if v.is_displayed())
    assert f"logit {every.logit[0]:+.4f}" in shown.text


def test_page_words_show_their_number(browser, page, explainer):
    browser.get(page)
    expected = explainer("good film")
    good, film = browser.find_elements(By.CSS_SELECTOR, "article:nth-of-type(2) .word")
    assert number(browser, good) == number(browser, film) == ""
    ActionChains(browser).move_to_element(good).perform()
    assert number(browser, good) == f"{expected.scores[0]:+.4f}"
    browser.execute_script("arguments[0].focus()", good)
    browser.switch_to.active_element.send_keys(Keys.TAB)
    assert number(browser, film) == f"{expected.scores[1]:+.4f}"


@pytest.mark.parametrize(("scheme", "ground"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(18, 18, 18)")])
def test_page_is_readable_in_light_and_dark(browser, page, scheme, ground):
    media(browser, scheme)
    browser.get(page)
    text = browser.execute_script("return getComputedStyle(document.body).color")
    assert text == {"light": "rgb(0, 0, 0)", "dark": "rgb(255, 255, 255)"}[scheme]
    words = [word for word in browser.find_elements(By.CSS_SELECTOR, ".word") if word.is_displayed()]
    assert len(words) > 20
    assert all(browser.execute_script(CONTRAST, word, ground) > 4.5 for word in words)


def test_page_prints_every_number_and_its_colours(browser, page):
    browser.get(page)
    media(browser, kind="print")
    words = browser.find_elements(By.CSS_SELECTOR, "article .word")
    assert all(number(browser, word) == word.get_attribute("data-score") for word in words)
    adjusted = "return getComputedStyle(arguments[0]).printColorAdjust"
    assert {browser.execute_script(adjusted, word) for word in words} == {"exact"}
    assert len(browser.print_page()) > 10_000


def test_page_fits_a_narrow_screen(browser, page):
    narrow(browser)
    browser.get(page)
    assert overflow(browser) == 0
