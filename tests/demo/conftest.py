import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from bifusion_hf import assets


REPOSITORY = Path(__file__).parents[2]
# Another trained checkpoint to look at; the one that comes with the package by default.
CHECKPOINT = Path(os.environ.get("BIFUSION_DEMO_CHECKPOINT", assets.SAMPLE_CHECKPOINT))


@pytest.fixture(scope="session")
def page_url(tmp_path_factory):
    """Address of the page, served by the command line in a process of its own that has no network settings."""
    pytest.importorskip("gradio")
    if not (CHECKPOINT / "config.json").is_file():
        pytest.skip(f"no checkpoint in {CHECKPOINT}")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("server")
    log = folder / "log.txt"
    command = [sys.executable, "-m", "bifusion_hf.cli.demo_app", "--checkpoint", str(CHECKPOINT), "--port", str(port)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "GRADIO_TEMP_DIR": str(folder), "TMPDIR": str(folder)}
    with log.open("w") as output:
        server = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=output, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1200):
            if server.poll() is not None:
                pytest.fail(f"the server ended:\n{log.read_text()}")
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail(f"no answer from {url}:\n{log.read_text()}")
        yield url
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Headless Chromium with Debian's driver."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium and chromedriver are absent (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    folder = tmp_path_factory.mktemp("browser")
    for option in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "enable-unsafe-swiftshader",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "hide-scrollbars",
        "window-size=1500,1000",
        f"user-data-dir={folder / 'profile'}",
    ):
        options.add_argument(f"--{option}")
    options.add_experimental_option("prefs", {"download.default_directory": str(folder / "downloads")})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    driver.downloads = folder / "downloads"
    # Headless windows are smaller inside than asked for.
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 1480, "height": 830, "deviceScaleFactor": 1, "mobile": False},
    )
    yield driver
    driver.quit()
