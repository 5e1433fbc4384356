"""Photographs the demo page and a page of explanations of a trained B-cos classifier, for README and docs.

    python examples/run_classification.py --output_dir runs/reviews
    python benchmarks/screenshots.py runs/reviews

Needs the extra `demo`, selenium, and chromium with chromedriver on the path. `--dark`, `--width` and `--output` show how the
pages look elsewhere.
"""

import argparse
import importlib.util
import io
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from bcos_transformers import BcosExplainer, TextExplanation
from bcos_transformers.data import load_reviews
from bcos_transformers.explanations.html import render_html

ROOT = Path(__file__).parents[1]
SWITCHES = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars")
LONGEST = 62  # characters of a review that fits on a line
logger = logging.getLogger("screenshots")


@contextmanager
def browser(width: int, dark: bool) -> Iterator[webdriver.Chrome]:
    """A headless browser with a window of this width."""
    chromium, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not chromium or not driver:
        raise SystemExit("This needs chromium and chromedriver on the path (Debian: chromium, chromium-driver).")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for switch in SWITCHES:
        options.add_argument(switch)
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    try:
        resize(chrome, width, 800)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        yield chrome
    finally:
        chrome.quit()


def resize(chrome: webdriver.Chrome, width: int, height: int) -> None:
    """Gives the window this size in pixels."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def point_at_strongest_word(chrome: webdriver.Chrome) -> None:
    """Lets the word with the largest contribution show its number."""
    chrome.execute_script(
        "const words = [...document.querySelectorAll('.bcos .text .word')];"
        "const strength = word => Number(word.style.getPropertyValue('--s'));"
        "words.reduce((a, b) => strength(a) < strength(b) ? b : a).focus({preventScroll: true})"
    )


def picture(chrome: webdriver.Chrome, last: str) -> Image.Image:
    """The page from its top to a little below the last of the elements `last`."""
    bottom = chrome.execute_script(
        "const found = document.querySelectorAll(arguments[0]);"
        "return found[found.length - 1].getBoundingClientRect().bottom + scrollY + 16",
        last,
    )
    width = chrome.execute_script("return innerWidth")
    resize(chrome, width, int(bottom))
    chrome.execute_script("scrollTo(0, 0)")
    WebDriverWait(chrome, 10).until(lambda c: c.execute_script("return innerHeight") == int(bottom))
    return Image.open(io.BytesIO(chrome.get_screenshot_as_png())).convert("RGB")


def save(image: Image.Image, path: Path) -> None:
    """Saves with a palette, which is enough for a page and takes a third of the space."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    logger.info("%s: %d × %d, %d kB", path, *image.size, path.stat().st_size // 1000)


def demo_app() -> ModuleType:
    """The demo's `app.py` as a module."""
    spec = importlib.util.spec_from_file_location("space_app", ROOT / "examples" / "space" / "app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def demo_picture(model: str, width: int, dark: bool) -> Image.Image:
    """The demo page after a text was typed and explained."""
    app = demo_app()
    demo = app.build_demo(*app.load({"BCOS_MODEL": model}))
    _, address, _ = demo.launch(
        server_name="127.0.0.1", quiet=True, prevent_thread_lock=True, ssr_mode=False, **app.launch_options()
    )
    try:
        with browser(width, dark) as chrome:
            chrome.get(address)
            wait = WebDriverWait(chrome, 60)
            wait.until(lambda c: c.find_elements(By.CSS_SELECTOR, "#text textarea"))
            chrome.find_element(By.CSS_SELECTOR, "#text textarea").send_keys(app.EXAMPLES[1])
            chrome.find_element(By.ID, "explain").click()
            wait.until(lambda c: c.find_elements(By.CSS_SELECTOR, "#explanation .word"))
            wait.until(lambda c: not c.find_elements(By.CSS_SELECTOR, ".generating, .progress-text"))
            point_at_strongest_word(chrome)
            return picture(chrome, "#html-file")
    finally:
        demo.close(verbose=False)


def reviews(model: str, count: int) -> list[TextExplanation]:
    """Explained test reviews, of which the first one has every class, the predicted one first."""
    explainer = BcosExplainer.from_pretrained(model)
    texts = [row["text"] for row in load_reviews("test") if len(row["text"]) <= LONGEST][:count]
    explained = explainer(texts)
    others = [i for i in range(explainer.model.config.num_labels) if i != explained[0].target]
    return [explainer(texts[0], target=[explained[0].target, *others]), *explained[1:]]


def page_picture(explanations: list[TextExplanation], width: int, dark: bool) -> Image.Image:
    """The page that `render_html` makes, opened from a file."""
    with tempfile.TemporaryDirectory() as folder, browser(width, dark) as chrome:
        path = Path(folder) / "page.html"
        path.write_text(render_html(explanations, title="Reviews, explained"), encoding="utf-8")
        chrome.get(path.as_uri())
        return picture(chrome, "article")


def beside(images: list[Image.Image]) -> Image.Image:
    """The pictures from left to right."""
    joined = Image.new("RGB", (sum(i.width for i in images), max(i.height for i in images)), "white")
    for place, image in enumerate(images):
        joined.paste(image, (sum(i.width for i in images[:place]), 0))
    return joined


def main() -> None:
    """Takes both pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="A fine-tuned B-cos classifier: directory or Hub id.")
    parser.add_argument("--output", type=Path, default=ROOT / "docs", help="Where the pictures go.")
    parser.add_argument(
        "--dark", action="store_true", help="Only in dark mode; default: light, and the page also dark."
    )
    parser.add_argument("--width", type=int, help="Of the window in pixels; default: 1120, and 700 for the page.")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    save(demo_picture(args.model, args.width or 1120, args.dark), args.output / "demo.png")
    explanations = reviews(args.model, 6)
    schemes = [True] if args.dark else [False] if args.width else [False, True]
    pages = [page_picture(explanations, args.width or 700, dark) for dark in schemes]
    save(beside(pages), args.output / "explanation-page.png")


if __name__ == "__main__":
    main()
