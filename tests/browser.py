"""Debian's Chromium, driven by selenium: the page as a person has it."""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from needs import program
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, WebDriverException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

PATIENCE = 20  # s

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

SHOWN = """
return [...document.querySelectorAll(arguments[0])].find((it) =>
  it.checkVisibility({visibilityProperty: true}) && it.innerText.includes(arguments[1])) ?? null;
"""

T = TypeVar("T")


class Browser:
    """One Chromium, on the page of one service after the other.

    Args:
        site_data: whether pages may keep anything.

    Attributes:
        downloads: where files go that the page hands out.
    """

    def __init__(self, site_data: bool = True) -> None:
        self._profile = tempfile.mkdtemp(prefix="chromium-")
        self.downloads = Path(self._profile, "downloads")
        options = webdriver.ChromeOptions()
        options.binary_location = program("chromium")
        for flag in (*FLAGS, f"--user-data-dir={self._profile}"):
            options.add_argument(flag)
        if not site_data:  # a choice of Chromium's settings
            blocked = {"profile.default_content_setting_values.cookies": 2}
            options.add_experimental_option("prefs", blocked)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options, Service(program("chromedriver")))
        self.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=self.downloads)
        self._home = self.driver.current_window_handle
        self.url = ""

    def close(self) -> None:
        self.driver.quit()
        shutil.rmtree(self._profile, ignore_errors=True)

    def reset(self, url: str) -> None:
        """Begin anew, for a service at `url`: one tab, nothing kept, usual size and theme."""
        for handle in self.driver.window_handles:
            if handle != self._home:
                self.driver.switch_to.window(handle)
                self.driver.close()
        self.driver.switch_to.window(self._home)
        self.driver.get("about:blank")
        self.send("Storage.clearDataForOrigin", origin=url, storageTypes="all")
        self.send("Network.enable")
        self.send("Network.setExtraHTTPHeaders", headers={})
        self.size(1380, 860)
        self.theme("light")
        shutil.rmtree(self.downloads, ignore_errors=True)
        self.url = url
        self.driver.get_log("browser")
        # What a tab keeps outlasts `get`, and there is no storage without a page.
        self.driver.get(f"{url}/ui/icon.svg")
        self.driver.execute_script("sessionStorage.clear()")

    def send(self, command: str, **parameters: Any) -> Any:
        parameters = json.loads(json.dumps(parameters, default=str))
        return self.driver.execute_cdp_cmd(command, parameters)

    def size(self, width: int, height: int, mobile: bool = False) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=mobile)  # fmt: skip

    def theme(self, name: str) -> None:
        feature = {"name": "prefers-color-scheme", "value": name}
        self.send("Emulation.setEmulatedMedia", features=[feature])

    def open(self, query: str = "view=locks", state: str = "Live") -> None:
        """Open a view and wait until it is up to date."""
        self.driver.get(f"{self.url}/ui/?{query}")
        self.see("#live-words", state)

    def offline(self, away: bool) -> None:
        """Cut the browser off, or let it back."""
        rate = 0 if away else -1
        self.send("Network.emulateNetworkConditions", offline=away, latency=0,
                  downloadThroughput=rate, uploadThroughput=rate)  # fmt: skip

    def refresh(self) -> None:
        """Come back to the tab: the page does not wait for its next turn then."""
        self.run("document.dispatchEvent(new Event('visibilitychange'))")

    def faults(self) -> list[str]:
        """What the browser has to complain of, but for answers of 400 and above."""
        found = [it["message"] for it in self.driver.get_log("browser") if it["level"] != "INFO"]
        return [it for it in found if "Failed to load resource" not in it]

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def until(self, look: Callable[[], T]) -> T:
        """Wait until `look` finds something; what is being redrawn is looked at again."""
        ignored = (StaleElementReferenceException, WebDriverException, AssertionError, IndexError)
        wait = WebDriverWait(self.driver, PATIENCE, 0.05, ignored)
        return wait.until(lambda _: look())

    def _shown(self, selector: str, text: str) -> WebElement | None:
        """The first such element that can be seen, by one request: each costs milliseconds."""
        found: WebElement | None = self.run(SHOWN, selector, text)
        return found

    def one(self, selector: str, text: str = "") -> WebElement:
        """The first element that shows this text, once it is there."""
        try:
            found = self.until(lambda: self._shown(selector, text))
        except WebDriverException:
            seen = self.texts(selector)
            raise AssertionError(f"no {selector} shows {text!r}, only {seen}") from None
        assert found is not None
        return found

    see = one

    def unseen(self, selector: str, text: str = "") -> None:
        """Wait until no such element is shown."""
        self.until(lambda: self._shown(selector, text) is None)

    def click(self, selector: str, text: str = "") -> None:
        """Click what shows this text, even if it is replaced in the meantime."""

        def click() -> bool:
            self.one(selector, text).click()
            return True

        self.until(click)

    def fill(self, selector: str, value: str) -> None:
        element = self.one(selector)
        element.clear()
        element.send_keys(value)

    def filter(self, name: str, value: str) -> None:
        """Give a filter a value, as a person who then goes on to the next field."""
        selector = f".filters [name={name}]"
        (element,) = self.all(selector)
        if not element.is_displayed():
            self.click("summary", "More filters")
        if element.tag_name == "select":
            Select(element).select_by_value(value)
            return
        change = "arguments[0].dispatchEvent(new Event('change', {bubbles: true}))"
        self.run(f"arguments[0].value = arguments[1]; {change}", element, value)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def texts(self, selector: str) -> list[str]:
        """What is written in each of these elements, all at one moment."""
        script = "return [...document.querySelectorAll(arguments[0])].map((it) => it.innerText)"
        found: list[str] = self.run(script, selector)
        return found

    @property
    def address(self) -> str:
        return self.driver.current_url.partition("?")[2]
