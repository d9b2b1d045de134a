"""The demo page in a real browser. Set BIFUSION_DEMO_SCREENSHOT to a .png path to keep a picture of it."""

import io
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ply_files import read_ply

from bifusion_hf.cli.demo_app import read_samples


ActionChains = pytest.importorskip("selenium.webdriver").ActionChains


pytestmark = pytest.mark.slow
# Seconds; seldom more than ten are needed, but machines can be busy.
WAIT = 400
# Whether an element is what is met at its middle and near its edges.
SEEN = """
const element = arguments[0], box = element.getBoundingClientRect();
return [0.2, 0.5, 0.8].every(x => [0.2, 0.5, 0.8].every(y =>
  element.contains(document.elementFromPoint(box.left + x * box.width, box.top + y * box.height))));
"""


def until(condition, what: str):
    """The first true value of `condition()`, or a failure after `WAIT` seconds."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.2)
    pytest.fail(f"waited {WAIT} s for {what}")


class Page:
    """The page through its element ids."""

    def __init__(self, browser, url: str):
        self.browser = browser
        browser.get(url)
        until(lambda: self.all("#samples button img"), "the sample frames")

    def all(self, selector: str) -> list:
        return self.browser.find_elements("css selector", selector)

    def one(self, selector: str):
        return until(lambda: self.all(selector), selector)[0]

    @property
    def status(self) -> str:
        # Gradio replaces elements while it updates them.
        return self.browser.execute_script("return document.querySelector('#status').innerText")

    @property
    def picture(self) -> str:
        """What is painted over the image."""
        return self.browser.execute_script("return document.querySelector('#result .picture').toDataURL()")

    @property
    def view(self) -> dict:
        """From where the points are seen."""
        return json.loads(self.one("#result .cloud").get_attribute("data-view"))

    @property
    def legend(self) -> list[str]:
        script = "return Array.from(document.querySelectorAll('#result .legend-item')).map(item => item.innerText)"
        return [text.strip() for text in self.browser.execute_script(script)]

    def pick_sample(self, index: int) -> None:
        before = self.status
        images = self.all("#samples button img")
        images[index].click()
        until(lambda: self.status not in ("", before) and "instances" in self.status, "a prediction")
        until(lambda: self.legend, "instances")
        until(lambda: self.one("#result .cloud").get_attribute("data-view"), "points")

    def set_score(self, value: float) -> None:
        before = self.status
        field = self.one("#score input[type=number]")
        # As typing does: select all, write, leave the field.
        field.send_keys("\ue009a\ue000", str(value), "\ue004")
        until(lambda: self.status != before, "the filter")

    def message(self) -> str:
        return until(
            lambda: self.browser.execute_script(
                "return Array.from(document.querySelectorAll('.toast-body')).map(toast => toast.innerText).join(' ')"
            ),
            "a message",
        )

    def close_messages(self) -> None:
        for button in self.all(".toast-close"):
            button.click()
        until(lambda: not self.all(".toast-body"), "messages to go")

    def model_pixels(self) -> np.ndarray:
        """What is drawn in the middle of the view of the points, uint8 [h, w, 3]."""
        pixels = np.asarray(Image.open(io.BytesIO(self.one("#result .cloud").screenshot_as_png)).convert("RGB"))
        height, width = pixels.shape[:2]
        return pixels[height // 4 : -height // 4, width // 4 : -width // 4]

    def download(self, selector: str, name: str) -> Path:
        self.one(selector).click()
        path = self.browser.downloads / name
        until(path.is_file, name)
        return path


@pytest.fixture
def page(browser, page_url):
    return Page(browser, page_url)


def test_run_a_sample_and_filter_it(page, browser):
    page.pick_sample(2)
    all_legend, all_painted = page.legend, page.picture
    # One count for all.
    assert f"{len(all_legend)} instances above 0.50" in page.status and len(all_legend) > 1
    # Points of many colours are drawn, not only the background.
    until(lambda: len(np.unique(page.model_pixels().reshape(-1, 3), axis=0)) > 300, "points")
    if os.environ.get("BIFUSION_DEMO_SCREENSHOT"):
        picture = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
        picture.quantize(192).save(os.environ["BIFUSION_DEMO_SCREENSHOT"], optimize=True)

    # The view stays as the visitor turned it.
    cloud = page.one("#result .cloud")
    before = page.view
    ActionChains(browser).drag_and_drop_by_offset(cloud, 60, 20).perform()
    until(lambda: page.view["yaw"] == pytest.approx(0.36, abs=0.02), "a turned view")
    turned = page.view
    assert turned["pivot"] == before["pivot"]
    scores = sorted(float(text.split()[-1]) for text in all_legend)
    page.set_score(scores[-1] - 0.01)
    until(lambda: 0 < len(page.legend) < len(all_legend), "fewer instances")
    assert set(page.legend) < set(all_legend) and page.picture != all_painted
    page.set_score(0.05)
    until(lambda: len(page.legend) > len(all_legend), "more instances")
    assert page.view == turned
    # Another frame is seen from its own camera.
    page.pick_sample(3)
    until(lambda: page.view["yaw"] == 0, "the view of another frame")


def test_labels_on_hover(page, browser):
    page.pick_sample(2)
    shown = "const tip = document.querySelector('#result .tip'); return tip.style.display === 'block' && tip.innerText"
    for selector in ("#result .picture", "#result .cloud"):
        surface = page.one(selector)
        found = set()
        for x in range(-120, 121, 40):
            ActionChains(browser).move_to_element_with_offset(surface, x, 40).perform()
            found.add(browser.execute_script(shown))
        texts = {text.rpartition(", ")[0] for text in found if text}
        assert texts and texts <= set(page.legend), selector
        assert all(text.endswith(" m") for text in found if text)


@pytest.mark.parametrize(("width", "height"), [(2560, 1300), (1500, 860), (390, 844)])
def test_button_and_result_are_seen_without_scrolling(page, browser, width, height):
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    place = "const box = document.querySelector(arguments[0]).getBoundingClientRect(); return [box.top, box.bottom]"
    right = "return document.querySelector('#result').getBoundingClientRect().right"
    try:
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        until(lambda: page.all("button[role=tab]"), "tabs")[1].click()
        until(lambda: page.one("#run").is_displayed(), "the button")
        assert browser.execute_script(place, "#run")[1] <= height
        # Nothing cuts them off or lies over them.
        for element in (page.one("#run"), page.all("button[role=tab]")[1]):
            until(lambda element=element: browser.execute_script(SEEN, element), element.text)
        page.all("button[role=tab]")[0].click()
        page.pick_sample(2)
        for selector in ("#result .picture", "#result .cloud"):
            until(lambda selector=selector: browser.execute_script(place, selector)[0] >= 0, selector)
            until(lambda selector=selector: browser.execute_script(place, selector)[1] <= height, selector)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        # Nor is room given away.
        assert width - browser.execute_script(right) <= 0.04 * width
    finally:
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**size, "width": 1480, "height": 830})


def test_the_depth_units_keep_their_name(page):
    until(lambda: page.all("button[role=tab]"), "tabs")[1].click()
    field = page.one("#depth-scale input")
    field.click()
    # "metres" alone is in "millimetres" too.
    field.send_keys("\ue009a\ue000", "floating", "\ue007")
    until(lambda: field.get_attribute("value") == "metres, floating point", "the name of the choice")


def test_filter_by_class(page):
    page.pick_sample(2)
    everything = page.legend
    chosen = " ".join(everything[0].split()[:-1])
    expected = [text for text in everything if " ".join(text.split()[:-1]) == chosen]
    field = page.one("#classes input")
    field.send_keys(chosen, "\ue007")
    until(lambda: page.legend == expected, "one class")
    assert f"{chosen} ({len(expected)})" in page.one("#classes").text
    assert f"{len(expected)} of {len(everything)} instances" in page.status


def test_downloads(page):
    page.pick_sample(1)
    frame = read_samples("sample", "val")[1]
    content = json.loads(page.download("#json", "segments.json").read_text())
    assert content["frame_id"] == frame.frame_id and content["threshold"] == 0.5
    assert f"{len(content['segments'])} instances" in page.status
    cloud = read_ply(page.download("#ply", "points.ply"))
    assert len(cloud["x"]) == np.count_nonzero(frame.depth)
    assert set(np.unique(cloud["instance"])) <= {-1, *(segment["id"] for segment in content["segments"])}


def test_a_frame_of_ones_own(page, tmp_path):
    """Files, a camera by its name, and messages for what is missing or wrong."""
    frame = read_samples("sample", "val")[2]
    Image.fromarray(frame.image).save(tmp_path / "color.png")
    depth = frame.depth.copy()
    depth[:12] = 25
    Image.fromarray(np.rint(depth * 1000).astype(np.uint16)).save(tmp_path / "depth.png")
    Image.fromarray(frame.image).save(tmp_path / "wrong.png")

    until(lambda: page.all("button[role=tab]"), "tabs")[1].click()
    run = page.one("#run")
    run.click()
    assert "Missing: the colour image, the depth image, its intrinsics" in page.message()
    page.close_messages()

    page.one("#color input[type=file]").send_keys(str(tmp_path / "color.png"))
    page.one("#depth input[type=file]").send_keys(str(tmp_path / "wrong.png"))
    until(lambda: "wrong" in page.one("#depth").text, "the upload")
    camera = page.one("#camera input")
    camera.click()
    camera.send_keys("\ue009a\ue000", "Kinect v1", "\ue007")
    assert "wrong.png: has mode RGB; expected one channel" in page.message()
    page.close_messages()

    page.one("#depth button[aria-label='Clear']").click()
    page.one("#depth input[type=file]").send_keys(str(tmp_path / "depth.png"))
    field = page.one("#intrinsics textarea, #intrinsics input")
    until(lambda: field.get_attribute("value") == "262.50 262.50 159.50 119.50", "intrinsics of half the size")
    until(lambda: page.all("#color img"), "the colour image")
    run.click()
    until(lambda: page.status.startswith("depth:"), "a prediction")
    # The middle of the points is that of most: some were put far away.
    until(lambda: page.view["pivot"][2] == pytest.approx(-np.median(depth[depth > 0]), abs=0.05), "the points")
    assert page.legend


def test_nothing_is_fetched_from_elsewhere(page, browser, page_url):
    browser.get_log("performance")
    page = Page(browser, page_url)
    page.pick_sample(0)
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    elsewhere = [url for url in urls if not url.startswith((page_url, "data:", "blob:", "chrome:"))]
    assert len(urls) > 10 and not elsewhere
