"""The page at /ui/: each thing that a person can do on it, done and seen in a real browser."""

import csv
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import pages
import pytest
from axe_core_python.selenium import Axe
from browser import Browser
from certificates import CLOUD, Authority
from needs import program
from nginx import Nginx
from pages import blocks
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.keys import Keys
from standin import PASSWORD, Cloud
from support import UUID, Client, Service, after, job, lock, served

from orchmgmt.extensions.ui import FOLDER, login_address

pytestmark = pytest.mark.sqlite

HOSTILE = '<img src=x onerror="document.title=\'taken\'"><b>bold</b> & "quoted" =1+1'


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    browser = Browser()
    yield browser
    browser.close()


@pytest.fixture
def show(chromium: Browser) -> Iterator[Callable[[Client], Browser]]:
    """Point the browser at a service: `browser = show(service)`."""

    def show(service: Client) -> Browser:
        chromium.reset(service.url)
        return chromium

    yield show
    assert chromium.faults() == []


@pytest.fixture
def service(start: Callable[..., Service]) -> Service:
    return start(UI=True)


@pytest.fixture
def page(service: Service, show: Callable[[Client], Browser]) -> Browser:
    """The browser, on a service with an empty database."""
    return show(service)


def put(service: Service, *jobs: dict[str, str]) -> None:
    service.store.database.write(service.store.job_table.put, jobs)


def reserved(service: Service, instance: str, owner: str = "Alice", seconds: int = 300) -> str:
    """A new job that holds an instance."""
    job_id: str = service.store.history.create("PULL", owner, owner, "kelvinInfo")
    service.store.history.start(job_id)
    service.store.locks.reserve(job_id, instance, owner, after(seconds))
    return job_id


def columns(page: Browser, label: str) -> list[str]:
    return page.texts(f'main td[data-label="{label}"]')


# What is served


def test_without_the_setting_there_is_no_page(
    start: Callable[..., Service], tmp_path: Path
) -> None:
    plain = start()
    assert [plain.send("GET", it).status for it in ("/", "/ui/", "/ui/main.js")] == [404] * 3
    code = (
        "import sys; from orchmgmt.app import create_app; import orchmgmt.cli\n"
        "create_app({'DATABASE_URL': 'sqlite:///:memory:'})\n"
        "unused = 'orchmgmt.extensions.ui', 'orchmgmt.commands.factory'\n"
        "print([it for it in sys.modules if it in unused])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ended.stdout, ended.stderr) == ("[]\n", "")


def test_the_root_leads_to_the_page(page: Browser) -> None:
    page.driver.get(page.url)
    page.see("h1", "Locks")
    assert urlsplit(page.driver.current_url).path == "/ui/"


def test_it_works_behind_nginx(
    service: Service, show: Callable[[Client], Browser], tmp_path: Path
) -> None:
    backend = {"127.0.0.1:8441": urlsplit(service.url).netloc}
    nginx = Nginx(tmp_path / "nginx", "generic_http.conf", backend)
    try:
        service.create(lock("A|s|1.0.0", "Alice"))
        page = show(Client(f"http://127.0.0.1:{nginx.port}"))
        page.driver.get(page.url)
        page.see("td", "Alice")
        assert urlsplit(page.driver.current_url).path == "/ui/"
    finally:
        nginx.stop()


@pytest.fixture
def below(start: Callable[..., Service], tmp_path: Path) -> Iterator[tuple[Service, Client]]:
    """A service, and the same behind nginx at the sub-path that docs/nginx.md shows."""
    service = start(UI=True, OPENAPI=True)
    (location,) = blocks("nginx", pages.page("nginx.md"))
    certificate = 'set $orchmgmt_certificate "";'
    replace = {
        "127.0.0.1:8441": urlsplit(service.url).netloc,
        certificate: f"{certificate}\n{location}",
    }
    nginx = Nginx(tmp_path / "nginx", "generic_http.conf", replace)
    yield service, Client(f"http://127.0.0.1:{nginx.port}/arrowhead")
    nginx.stop()


def test_at_a_sub_path_every_address_stays_below_it(
    below: tuple[Service, Client], show: Callable[[Client], Browser]
) -> None:
    service, proxied = below
    service.create(lock("A|s|1.0.0", "Alice"))
    page = show(proxied)
    for start, end in (
        ("", "ui/"),
        ("ui", "ui/"),
        ("ui?view=history", "ui/?view=history"),
        ("docs", "docs/"),
    ):
        page.driver.get(f"{proxied.url}/{start}")
        assert page.driver.current_url == f"{proxied.url}/{end}"
    page.open()
    page.see("td", "Alice")
    page.fill("[name=instance]", "B|s|1.0.0")
    page.fill("[name=owner]", "Bob")
    page.click("button", "Lock it")
    page.see("td", "Bob")
    page.click(".tools button", "Show as curl")
    page.see("dialog pre", f"{proxied.url}/serviceorchestration/orchestration/mgmt/lock/query")
    page.driver.get(f"{proxied.url}/docs/")
    page.click("#operations-monitor-health button", "GET")
    page.click("#operations-monitor-health button", "Try it out")
    page.click("#operations-monitor-health button", "Execute")
    page.see("#operations-monitor-health .request-url", f"{proxied.url}/health")
    page.see("#operations-monitor-health .live-responses-table .response", "200")
    asked = page.run("return performance.getEntriesByType('resource').map((it) => it.name)")
    assert len(asked) > 4
    assert [it for it in asked if not it.startswith((f"{proxied.url}/", "data:"))] == []
    refused = proxied.send("GET", "/serviceorchestration/nothing")
    assert (refused.status, refused.json["origin"]) == (404, "GET /serviceorchestration/nothing")


def test_ui_leads_to_the_page_by_whatever_way_it_is_reached(
    service: Service, tmp_path: Path
) -> None:
    nginx = Nginx(
        tmp_path / "nginx",
        "generic_http.conf",
        {"127.0.0.1:8441": urlsplit(service.url).netloc},
    )
    try:
        for client in (service, Client(f"http://127.0.0.1:{nginx.port}")):
            answer = client.send("GET", "/ui?view=history&owners=A%0D%0AB")
            assert answer.status == 302  # a 308 is kept for ever
            assert answer.headers["Location"] == "ui/?view=history&owners=A%0D%0AB"
            assert client.send("GET", "/uix").status == 404
    finally:
        nginx.stop()


def test_what_is_served_is_small_and_asks_nobody_else(service: Service) -> None:
    files = sorted(FOLDER.iterdir())
    # Renewing a lock took the files past the earlier limit of 100,000.
    assert sum(it.stat().st_size for it in files) < 105_000
    for file in files:
        text = file.read_text()
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert word not in text, (file, word)
        addresses = set(re.findall(r"\bhttps?://[^\s\"'`]+", text))
        assert addresses <= {"http://www.w3.org/2000/svg"}, file
        answer = service.send("GET", f"/ui/{file.name}")
        assert (answer.status, answer.body) == (200, file.read_bytes())
        again = service.send(
            "GET", f"/ui/{file.name}", headers={"If-None-Match": answer.headers["ETag"]}
        )
        assert (again.status, again.body) == (304, b"")
    assert service.send("GET", "/ui/").body == (FOLDER / "index.html").read_bytes()
    for path in (
        "/ui/__init__.py",
        "/ui/..%2f__init__.py",
        "/ui/%2e%2e/app.py",
        "/ui/static",
        "/ui//",
    ):
        assert service.send("GET", path).error == "There is no such path"


def test_the_security_policy_is_strict(start: Callable[..., Service], cloud: Cloud) -> None:
    service = start(UI=True, AUTHENTICATION_POLICY="outsourced", **cloud.settings)
    for path in ("/ui/", "/ui/main.js", "/ui/service.json", "/ui/nothing"):
        headers = service.send("GET", path).headers
        directives = dict(it.split(" ", 1) for it in headers["Content-Security-Policy"].split("; "))
        assert directives.pop("connect-src") == f"'self' {cloud.url}"
        assert directives.pop("require-trusted-types-for") == "'script'"
        assert set(directives.values()) == {"'self'", "'none'"}
        assert directives["default-src"] == "'none'"
        assert headers["X-Content-Type-Options"] == "nosniff"
    assert not re.search(r"<script>|<style|\son\w+=|\sstyle=", (FOLDER / "index.html").read_text())


def test_what_the_page_is_told_holds_no_secret(start: Callable[..., Service], cloud: Cloud) -> None:
    service = start(UI=True, AUTHENTICATION_POLICY="outsourced", MAX_PAGE_SIZE=70, **cloud.settings)
    told = service.send("GET", "/ui/service.json").json
    moment = told.pop("time")
    assert abs(moment - time.time()) < 3600
    assert told == {
        "authenticationPolicy": "outsourced",
        "identityUrl": cloud.settings["IDENTITY_URL"],
        "maxPageSize": 70,
        "version": version("orchmgmt"),
        "health": "ok",
    }


@pytest.mark.parametrize(
    ("url", "offered"),
    [
        ("https://identity.example:8444/authentication/identity/", "https://identity.example:8444/authentication/identity"),
        ("http://127.0.0.1:8444/authentication/identity", "http://127.0.0.1:8444/authentication/identity"),
        ("http://[::1]:8444/i", "http://[::1]:8444/i"),
        ("http://localhost/i", "http://localhost/i"),
        ("http://identity.example/i", ""),
        ("https://evil.example;script-src/i", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_a_login_is_offered_where_nobody_else_reads_the_password(url: str, offered: str) -> None:
    assert login_address(url) == offered


def test_who_is_told_only_to_whom_the_policy_knows(service: Service) -> None:
    assert service.send("GET", "/ui/who.json").json == {"name": "Sysop", "operator": True}
    other = {"Authorization": "Bearer SYSTEM//room-climate"}
    assert service.send("GET", "/ui/who.json", headers=other).json == {
        "name": "RoomClimate",
        "operator": False,
    }
    assert service.send("GET", "/ui/who.json", headers={}).status == 401


# Locks


def test_locks_are_shown_with_all_that_is_known_of_them(page: Browser, service: Service) -> None:
    job_id = reserved(service, "Thermometer|kelvinInfo|2.1.0", "Alice")
    service.create(lock("Lift|liftCall|1.0.0", "Bob", "2099-01-01T00:00:00Z"))
    page.open()
    page.see("td", "Thermometer")
    assert columns(page, "Instance") == [
        "Lift\nliftCall · 1.0.0",
        "Thermometer\nkelvinInfo · 2.1.0",
    ]
    assert columns(page, "Owner") == ["Bob", "Alice"]
    assert columns(page, "Kind") == ["managed", "temporary"]
    assert columns(page, "Job") == ["–", job_id[:8]]
    assert columns(page, "Expires")[0] == "2099-01-01 00:00:00"
    assert "local time" in page.one("td time").get_attribute("title")
    assert "years" in columns(page, "Time left")[0]
    assert re.match("[45] min", columns(page, "Time left")[1])
    page.see(".count", "2 locks")
    page.click("td a", job_id[:8])
    page.see("h1", "History")
    page.see(".steps", "It holds:")


def test_a_bar_runs_down_and_its_lock_leaves_by_itself(page: Browser, service: Service) -> None:
    service.create(lock("Long|s|1.0.0", expires_at=after(3600)))
    page.open()
    service.create(lock("Short|s|1.0.0", expires_at=after(8)))
    page.refresh()
    page.see(".soon", "Short")
    page.run("""
        window.gone = null;
        new MutationObserver(() => {
          if (!window.gone && !document.querySelector('main').innerText.includes('Short'))
            window.gone = Date.now();
        }).observe(document.querySelector('tbody'), {childList: true});
    """)
    width = (
        "const bar = document.querySelector('.soon .bar > span');"
        "return new DOMMatrix(getComputedStyle(bar).transform).a"
    )
    first = page.run(width)
    page.until(lambda: page.run(width) < first)
    page.offline(True)
    page.unseen("td", "Short")
    assert service.locks().json["count"] == 1  # not before the service's own end of it
    assert page.run("return window.gone") is not None
    page.see("td", "Long")
    page.see(".count", "1 lock")
    page.offline(False)
    page.refresh()
    page.see("#live-words", "Live")


def test_the_services_clock_counts_and_not_the_browsers(
    chromium: Browser, tmp_path: Path, show: Callable[[Client], Browser]
) -> None:
    ahead = 7200
    with served(DATABASE_URL=f"sqlite:///{tmp_path}/a.db", UI=True) as service:
        service.clock.advance(ahead)
        service.create(lock("A|s|1.0.0", expires_at=after(ahead + 600)))
        page = show(service)
        page.open()
        page.see("td", "9 min ")
        page.fill("[name=instance]", "B|s|1.0.0")
        page.fill("[name=owner]", "Bob")
        page.click("button", "Lock it")
        page.see("tr", "B\ns · 1.0.0")
        left = columns(page, "Time left")[0]
        assert re.match(r"1 min$|5\d s", left.split("\n")[0]), left


def test_each_filter_of_locks_works_and_is_in_the_address(page: Browser, service: Service) -> None:
    service.create(lock("A|s|1.0.0", "Alice", "2097-01-01T00:00:00Z"))
    service.create(lock("B|s|1.0.0", "Bob", "2099-01-01T00:00:00Z"))
    job_id = reserved(service, "C|s|1.0.0", "Carol")
    page.open()
    for name, value, shown in (
        ("serviceInstanceIds", "A|s|1.0.0, C|s|1", ["C", "A"]),
        ("owners", "bob", ["B"]),
        ("orchestrationJobIds", job_id, ["C"]),
        ("ids", "1,2", ["B", "A"]),
        ("expiresAfter", "2098-01-01T00:00", ["B"]),
        ("expiresBefore", "2098-01-01T00:00:00", ["C", "A"]),
    ):
        page.filter(name, value)
        page.see(".count", f"{len(shown)} lock")
        assert [it.split()[0] for it in columns(page, "Instance")] == shown
        assert name in parse_qs(page.address)
        page.click(".clear")
        page.see(".count", "3 locks")
        assert name not in parse_qs(page.address)
    page.driver.back()
    page.see(".count", "2 locks")
    page.driver.refresh()
    page.see(".count", "2 locks")
    page.see("[name=expiresBefore]")  # the form shows what is asked for


@pytest.mark.parametrize("view", ["locks", "timeline"])
def test_a_part_of_a_value_finds_the_locks_that_hold_it(
    page: Browser, service: Service, view: str
) -> None:
    service.create(lock("BoilerTwo|heating|1.0.0", "RoomClimate"), lock("Lift|liftCall|1.0.0"))
    service.create(*[lock(f"P{n:02}|s|1.0.0", "Other") for n in range(60)])
    job_id = reserved(service, "BoilerOne|heating|2.0.0", "BoilerControl")
    page.open(f"view={view}&serviceInstanceIds=boiler")  # of which one is not on the first page
    page.see(".count", "2 locks")
    page.see("main", "BoilerTwo")
    page.filter("owners", "Boiler")
    page.see(".count", "1 lock")
    page.click(".tools button", "Show as curl")
    page.see("dialog pre", '"owners":["BoilerControl","Boiler"]')
    page.click("dialog button", "Close")
    page.click(".clear")
    page.filter("serviceInstanceIds", "lift|,heating|2")
    page.see(".count", "2 locks")
    page.filter("serviceInstanceIds", "Nowhere")
    page.see(".count", "0 locks")
    page.unseen("#problem")
    service.create(lock("NowhereElse|s|1.0.0"))
    page.see(".count", "1 lock")  # what is new is found too
    page.click(".clear")
    page.filter("orchestrationJobIds", job_id[:8])
    page.see(".count", "1 lock")
    offered = "return [...document.querySelectorAll('#seen-owners option')].map((it) => it.value)"
    page.run("document.querySelector('.filters [name=owners]').focus()")
    assert "RoomClimate" in page.run(offered)
    owner = page.all(".filters [name=owners]")[0]
    owner.send_keys("Other,Ro")
    page.until(lambda: "Other,RoomClimate" in page.run(offered))


def test_a_part_of_a_value_finds_the_jobs_that_hold_it(page: Browser, service: Service) -> None:
    put(service, recent(1, 90), recent(2, 80, requester_system="RoomClimate", status="ERROR"))
    page.open("view=history&requesterSystems=climate")
    page.see(".count", "1 job")
    page.see("td", "RoomClimate")
    page.until(
        lambda: " 1 jobs, 0 done, 1 error" in page.one(".columns").get_attribute("ariaLabel")
    )
    page.click(".clear")
    page.filter("ids", job(1)["id"][-4:])
    page.see(".count", "1 job")
    page.filter("ids", "ffffffff")
    page.see(".empty", "No job matches these filters")
    page.unseen("#problem")


def test_a_line_says_how_the_service_is(page: Browser, service: Service) -> None:
    service.create(lock("A|s|1.0.0"), lock("B|s|1.0.0"))
    put(service, recent(1, 90), recent(2, 80, status="ERROR"), recent(3, 70))
    page.open("view=locks&owners=Nobody")
    page.see("#overview", f"orchmgmt {version('orchmgmt')} · healthy · 2 active locks · "
             "jobs: 2 done, 1 error, 0 in progress, 0 pending")  # fmt: skip
    page.click("#who")
    page.fill("dialog [name=name]", "RoomClimate")
    page.click("dialog button", "Use this name")
    page.see("#problem", "may not manage")
    page.until(lambda: page.one("#overview").text.endswith("healthy"))


def test_headings_sort_and_pages_turn_by_the_services_means(
    page: Browser, service: Service
) -> None:
    service.create(*[lock(f"P{n:02}|s|1.0.0", f"Owner{n % 7}") for n in range(30)])
    page.open("view=locks&size=25")
    page.see(".range", "1–25 of 30")
    page.click("th button", "Instance")
    page.see("th[aria-sort=ascending]", "Instance")
    page.until(lambda: columns(page, "Instance")[0].startswith("P00"))
    page.click("button", "Next")
    page.see(".range", "26–30 of 30")
    page.until(lambda: columns(page, "Instance")[0].startswith("P25"))
    assert parse_qs(page.address)["page"] == ["2"]
    page.click("button", "Next")  # there is none: nothing happens
    page.see(".range", "26–30 of 30")
    page.click("th button", "Instance")
    page.see("th[aria-sort=descending]", "Instance")
    page.until(lambda: columns(page, "Instance")[0].startswith("P29"))
    page.see(".range", "1–25 of 30")
    page.open("view=locks&page=9&size=25")
    page.see(".range", "Page 9 is beyond the last of 30")


def test_an_instance_is_locked_for_a_while(page: Browser, service: Service) -> None:
    page.open()
    page.see(".empty", "Nothing is locked")
    for number, (ends, left) in enumerate(
        (("+1 min", r"1 min$|5\d s"), ("+5 min", "[45] min"), ("+1 h", "1 h$|59 min"))
    ):
        page.fill("[name=instance]", f"Boiler{number}|heating|1")
        page.fill("[name=owner]", "night-setback")
        page.click(".segments label", ends)
        page.click("button", "Lock it")
        page.see("#announcement", f"Boiler{number}|heating|1.0.0 is locked for NightSetback")
        page.see(".count", f"{number + 1} lock")
        assert re.match(left, columns(page, "Time left")[0].strip())
    assert {(it["owner"], it["temporary"]) for it in service.locks().entries} == {
        ("NightSetback", False)
    }


def test_an_instance_is_locked_until_a_time(page: Browser, service: Service) -> None:
    page.send("Emulation.setTimezoneOverride", timezoneId="Europe/Vienna")
    try:
        page.open()
        page.fill("[name=instance]", "Boiler|heating|1.0.0")
        page.fill("[name=owner]", "Alice")
        page.click(".segments label", "until")
        page.run("document.querySelector('[name=until]').value = '2098-07-01T12:30'")
        page.click("button", "Lock it")
        page.see("td", "2098-07-01 10:30:00")
        assert "12:30" in page.one("td time").get_attribute("title")
        assert service.locks().entries[0]["expiresAt"] == "2098-07-01T10:30:00Z"
    finally:
        page.send("Emulation.setTimezoneOverride", timezoneId="")


def test_a_refused_lock_shows_who_holds_it_and_points_at_the_row(
    page: Browser, service: Service
) -> None:
    service.create(*[lock(f"Other{n}|s|1.0.0") for n in range(30)])
    service.create(lock("Boiler|heating|1.0.0", "RoomClimate", after(600)))
    page.open("view=locks&size=50&sort=id&direction=ASC")
    page.fill("[name=instance]", "boiler|heating|1")
    page.fill("[name=owner]", "Alice")
    page.click("button", "Lock it")
    words = page.see(".create .refused", "RoomClimate holds Boiler|heating|1.0.0 for 9 min ").text
    assert "more (lock #31)" in words
    row = page.see("tr.pointed", "holds it")
    assert "Boiler" in row.text
    page.until(lambda: page.run(
        "const box = arguments[0].getBoundingClientRect();"
        "return box.top >= 0 && box.bottom <= innerHeight", row))  # fmt: skip
    assert service.locks().json["count"] == 31
    page.click("button", "Show only this lock")
    page.see(".count", "1 lock")
    page.see("tr.pointed", "Boiler")
    service.remove("RoomClimate", "instanceIds=" + quote("Boiler|heating|1.0.0"))
    page.click("button", "Lock it")
    page.see("td", "Alice")
    page.unseen(".pointed")
    page.unseen(".create .refused")


def test_the_page_reads_which_instances_are_locked_from_the_services_message(
    page: Browser, service: Service
) -> None:
    read = (
        "return import('./service.js')"
        ".then(({Refusal}) => new Refusal(400, arguments[0]).lockedInstances)"
    )
    page.open()
    service.create(lock("A|s|1.0.0"), lock("B|s|1.0.0"))
    refused = service.create(lock("B|s|1.0.0"), lock("C|s|1.0.0"), lock("A|s|1.0.0"))
    assert page.run(read, refused.error) == ["B|s|1.0.0", "A|s|1.0.0"]
    assert page.run(read, service.create(lock("no instance")).error) == []


def test_a_refusal_ends_with_the_lock_that_stood_in_the_way(
    page: Browser, service: Service
) -> None:
    page.open()
    page.fill("[name=instance]", "Boiler|heating|1.0.0")
    page.fill("[name=owner]", "Alice")
    service.create(lock("Boiler|heating|1.0.0", "RoomClimate", after(6)))
    page.click("button", "Lock it")
    page.see(".create .refused", "RoomClimate holds")
    page.see(".create .refused", "is free now")


def test_what_the_service_does_not_take_is_said_in_its_words(page: Browser) -> None:
    page.open()
    page.fill("[name=instance]", "no instance")
    page.fill("[name=owner]", "Alice")
    page.click("button", "Lock it")
    page.see(".create .refused", "does not match the naming convention: NoInstance")
    page.see("#wrong-instance", "System|service|version: letters and digits")
    assert page.one("[name=instance]").get_attribute("aria-describedby") == "wrong-instance"
    page.fill("[name=instance]", "A|s|1.0.0")
    page.fill("[name=owner]", "1")
    page.click("button", "Lock it")
    page.see("#wrong-owner", "A system's name: letters and digits, starting with a capital letter")
    page.unseen("#wrong-instance")
    page.filter("serviceInstanceIds", "a|1|1.0.0")
    page.see("#problem", "the service with a small letter")
    page.click(".clear")
    page.filter("ids", "many")
    page.see("#problem", "does not accept these filters (400")
    page.click(".clear")
    page.unseen("#problem")


def test_a_lock_is_removed_after_a_confirmation(page: Browser, service: Service) -> None:
    service.create(lock("A|s|1.0.0", "Alice"), lock("B|s|1.0.0", "Bob"))
    page.open()
    page.one('[aria-label="Remove the lock on A|s|1.0.0"]').click()
    page.see("dialog li", "A|s|1.0.0 held by Alice")
    focused = page.driver.switch_to.active_element
    assert (focused.text, focused.value_of_css_property("outline-style")) == ("Keep", "solid")
    page.click("dialog button", "Keep")
    page.unseen("dialog")
    assert service.locks().json["count"] == 2
    page.one('[aria-label="Remove the lock on A|s|1.0.0"]').click()
    page.click("dialog button", "Remove 1 lock")
    page.unseen("dialog")
    page.see(".count", "1 lock")
    page.see("#announcement", "Removed 1 lock.")
    assert [it["owner"] for it in service.locks().entries] == ["Bob"]


def test_several_locks_are_removed_at_once(page: Browser, service: Service) -> None:
    service.create(*[lock(f"{name}|s|1.0.0", owner) for name, owner in
                     (("A", "Alice"), ("B", "Bob"), ("C", "Alice"), ("D", "Bob"))])  # fmt: skip
    page.open()
    for name in "ABC":
        page.one(f'[aria-label="Select {name}|s|1.0.0"]').click()
    page.see(".selection", "3 locks selected")
    page.click("button", "Remove them")
    page.click("dialog button", "Remove 3 locks")
    page.see(".count", "1 lock")
    page.unseen(".selection")
    assert [it["serviceInstanceId"] for it in service.locks().entries] == ["D|s|1.0.0"]


def test_many_long_names_are_removed_behind_nginx(
    service: Service, show: Callable[[Client], Browser], tmp_path: Path
) -> None:
    names = [f"{'System' * 9}{n:02}|{'service' * 8}|1.0.0" for n in range(60)]
    service.create(*[lock(name, "Owner" * 12) for name in names])
    backend = {"127.0.0.1:8441": urlsplit(service.url).netloc}
    nginx = Nginx(tmp_path / "nginx", "generic_http.conf", backend)
    try:
        page = show(Client(f"http://127.0.0.1:{nginx.port}"))
        page.open("view=locks&size=100")
        page.see(".count", "60 locks")
        page.run("document.querySelectorAll('tbody input').forEach((it) => it.click())")
        page.click("button", "Remove them")
        page.click("dialog button", "Show as curl")
        commands = page.see("dialog pre", "curl").text.split("curl -s -X DELETE ")[1:]
        assert [it.count("instanceIds=") for it in commands] == [29, 29, 2]
        page.click("dialog:last-of-type button", "Close")
        page.click("dialog button", "Remove 60 locks")
        page.see(".empty", "Nothing is locked")
    finally:
        nginx.stop()
    assert service.locks().json["count"] == 0


def test_a_lock_is_extended_from_its_present_end(page: Browser, service: Service) -> None:
    first = service.create(lock("A|s|1.0.0", "Alice"), lock("B|s|1.0.0", "Bob")).entries
    page.open()
    end = datetime.fromisoformat(first[0]["expiresAt"])
    for words, seconds in (("+1 min", 60), ("+5 min", 300), ("+1 h", 3600)):
        page.one('[aria-label="Extend the lock on A|s|1.0.0"]').click()
        page.see("dialog", "A|s|1.0.0 held by Alice")
        page.click("dialog label", words)
        page.click("dialog .main", "Extend")
        page.unseen("dialog")
        end += timedelta(seconds=seconds)
        clock = f"{end:%H:%M:%S}"
        page.see("#announcement", f"A|s|1.0.0 is locked for Alice until 2099-01-01 {clock} UTC.")
        assert page.one("td time", clock).get_attribute("datetime") == f"{end:%FT%TZ}"
    first[0]["expiresAt"] = f"{end:%FT%TZ}"
    assert sorted(service.locks().entries, key=lambda it: it["id"]) == first


def test_an_extended_lock_stays_selected(page: Browser, service: Service) -> None:
    service.create(lock("A|s|1.0.0", "Alice", after(8)))
    page.open()
    page.one('[aria-label="Select A|s|1.0.0"]').click()
    page.click(".extend")
    page.click("dialog .main", "Extend")
    page.unseen("dialog")
    after_first_end = time.time() + 10
    page.until(lambda: time.time() > after_first_end)
    page.see(".selection", "1 lock selected")


def test_only_the_lock_that_was_shown_is_extended(page: Browser, service: Service) -> None:
    service.create(lock("A|s|1.0.0", "Alice"))
    page.open()
    page.click(".extend")
    service.remove("Alice", "instanceIds=A%7Cs%7C1.0.0")
    later = service.create(lock("A|s|1.0.0", "Alice")).entries
    page.click("dialog .main", "Extend")
    page.see("dialog .refused", "has not been extended: Not locked by Alice: A|s|1.0.0")
    page.click("dialog button", "Close")
    page.unseen("dialog")
    assert service.locks().entries == later


def test_a_temporary_lock_says_why_it_cannot_be_removed(page: Browser, service: Service) -> None:
    reserved(service, "A|s|1.0.0")
    page.open()
    button = page.one(".remove")
    assert button.get_attribute("aria-disabled") == "true"
    assert "a job holds it" in button.get_attribute("title")
    button.click()
    page.see("#announcement", "Temporary: a job holds it")
    assert not page.all("dialog, .extend")
    assert not page.one('[aria-label^="Select A"]').is_enabled()
    assert service.locks().json["count"] == 1


# Timeline


def test_the_timeline_shows_one_lock_after_the_other(page: Browser, service: Service) -> None:
    service.create(lock("Boiler|heating|1.0.0", "Alice", after(40)), lock("Lift|liftCall|1.0.0"))
    page.open("view=timeline")
    page.see(".rows li", "Boiler")
    assert page.texts(".rows .owner") == ["Alice", "Owner"]
    assert len(page.all(".rows li:nth-child(2) .beyond")) == 1
    place = "return parseFloat(document.querySelector('.now').style.left)"
    before = page.run(place)
    page.until(lambda: page.run(place) > before)
    service.remove("Alice", "instanceIds=" + quote("Boiler|heating|1.0.0"))
    page.refresh()
    page.see(".lock.ended", "Alice")
    assert "removed at" in page.one(".lock.ended").get_attribute("title")
    service.create(lock("Boiler|heating|1.0.0", "Bob", after(30)))
    page.refresh()
    page.see(".lock:not(.ended)", "Bob")
    first, second = page.run(
        "return [...document.querySelectorAll('.rows li:first-child .lock')]"
        ".map((it) => [it.offsetLeft, it.offsetLeft + it.offsetWidth, it.innerText])"
    )
    assert "Alice" in first[2]
    assert "Bob" in second[2]
    assert first[1] <= second[0] + 2  # their borders round to whole pixels
    page.see(".count", "2 locks")
    page.filter("owners", "Bob")
    page.see(".count", "1 lock")
    page.unseen(".rows li", "Lift")


def test_the_timeline_shows_since_when_a_job_holds(page: Browser, service: Service) -> None:
    service.create(lock("A|s|1.0.0", expires_at=after(600)))
    reserved(service, "B|s|1.0.0")
    page.open("view=timeline&span=600")
    page.see(".rows li", "B")
    assert len(page.all(".rows li:nth-child(1) .lock.before")) == 1  # since when is not known
    assert len(page.all(".rows li:nth-child(2) .lock:not(.before)")) == 1
    ticks = len(page.all(".tick"))
    assert ticks >= 10
    page.one('[aria-label="Time shown"]').send_keys("1 hour")
    page.until(lambda: parse_qs(page.address)["span"] == ["3600"])
    page.until(lambda: len(page.all(".tick")) < ticks)


# History


def recent(number: int, seconds: int, **more: str) -> dict[str, str]:
    """A job that was created so many seconds ago."""
    return job(number, created_at=after(-seconds), started_at=after(2 - seconds),
               finished_at=after(12 - seconds), **more)  # fmt: skip


def test_jobs_are_shown_with_their_steps_and_their_locks(page: Browser, service: Service) -> None:
    put(service, recent(1, 100, target_system="Bob", type="PUSH"),
        recent(2, 90, status="ERROR", message="No provider is available"))  # fmt: skip
    held = reserved(service, "Thermometer|kelvinInfo|1.0.0", "Carol")
    waiting = service.store.history.create("PULL", "Dave", "Dave", "kelvinInfo")
    page.open("view=history")
    page.see(".count", "4 jobs")
    rows = {row.split("\t")[0].strip(): row for row in page.texts("tbody tr")}
    marks = page.texts(".mark")
    assert len(set(marks)) == 4  # a shape for each, not only a colour
    by_status = dict(zip(columns(page, "Status"), page.texts("tbody tr"), strict=True))
    assert len(by_status) == len(rows) == 4
    text = "\n".join(page.texts("tbody"))
    assert "Alice → Bob" in text
    assert "No provider is available" in text
    assert columns(page, "Waited")[-1] == "2 s"
    assert columns(page, "Ran")[-1] == "10 s"
    assert any("so far" in it for it in columns(page, "Waited"))
    page.click("tr.is-IN_PROGRESS .open")
    steps = page.see(".steps", "It holds:").text
    assert held in steps
    assert "was created by a request of Carol" in steps
    assert "now it runs" in steps
    page.see(".held", "Thermometer|kelvinInfo|1.0.0 for Carol")
    assert parse_qs(page.address)["open"] == [held]
    page.click("tr.is-PENDING .open")
    page.see(".steps", waiting)
    page.click("tr.is-IN_PROGRESS .open")
    page.unseen(".steps", held)
    page.open(f"view=history&open={job(2)['id']}")
    page.see(".steps", "it failed after 10 s")
    page.open(f"view=history&open={job(1)['id']}")
    page.see(".steps", "by subscription")


def test_each_filter_of_jobs_works_for_the_plots_too(page: Browser, service: Service) -> None:
    other = {"service_definition": "liftCall", "subscription_id": UUID.replace("0", "1")}
    put(
        service,
        recent(1, 300),
        recent(2, 200, requester_system="Bob", target_system="Bob", type="PUSH", **other),
        recent(3, 100, requester_system="Carol", target_system="Tom", status="ERROR"),
    )
    page.open("view=history")
    page.see(".count", "3 jobs")

    def plotted(words: str) -> None:
        page.until(lambda: words in str(page.one(".columns").get_attribute("aria-label")))

    plotted(" 3 jobs, 2 done, 1 error")
    for name, value, shown in (
        ("type", "PUSH", ["Bob"]),
        ("requesterSystems", "alice, carol", ["Carol → Tom", "Alice"]),
        ("targetSystems", "Tom", ["Carol → Tom"]),
        ("serviceDefinitions", "liftCall", ["Bob"]),
        ("ids", job(1)["id"], ["Alice"]),
        ("subscriptionIds", other["subscription_id"], ["Bob"]),
    ):
        page.filter(name, value)
        page.see(".count", f"{len(shown)} job")
        assert columns(page, "Requester → target") == shown
        plotted(f" {len(shown)} jobs, ")
        assert name in parse_qs(page.address)
        page.click(".clear")
        page.see(".count", "3 jobs")
    page.driver.back()
    page.see(".count", "1 job")


def test_the_plots_count_minutes_and_durations_by_status(page: Browser, service: Service) -> None:
    put(
        service,
        *[recent(n, 100 + 60 * (n % 3), status=("DONE", "ERROR")[n % 2]) for n in range(12)],
    )
    page.open("view=history")
    minutes, lengths = page.all(".columns")
    page.until(lambda: "12 jobs, 6 done, 6 error" in str(minutes.get_attribute("aria-label")))
    assert "at most 4 in a minute" in str(minutes.get_attribute("aria-label"))
    assert "8–15: 12" in str(lengths.get_attribute("aria-label"))
    page.see("figcaption", "half within 10 s, 95 % within 10 s")
    page.one(".checks label", "Error").click()
    page.until(lambda: "6 jobs, 0 done, 6 error" in str(minutes.get_attribute("aria-label")))
    assert parse_qs(page.address)["statuses"] == ["ERROR"]
    heights = page.run(
        "return [...document.querySelectorAll('.columns:first-of-type .fill-ERROR')]"
        ".filter((it) => it.offsetHeight > 0).length"
    )
    assert heights >= 3


def test_jobs_are_sorted_and_turned_over_by_the_service(page: Browser, service: Service) -> None:
    put(service, *[recent(n, 1000 - n, requester_system=f"R{n:02}") for n in range(30)])
    page.open("view=history")
    page.see(".range", "1–25 of 30")
    page.until(lambda: columns(page, "Requester → target")[0].startswith("R29"))
    page.click("th button", "Created")
    page.until(lambda: columns(page, "Requester → target")[0].startswith("R00"))
    for heading in ("by start", "by end"):
        page.click("th button", heading)
        page.see("th[aria-sort]", heading)
    page.click("button", "Next")
    page.see(".range", "26–30 of 30")


# Who am I


def test_who_is_declared_can_be_changed_for_the_tab(page: Browser, service: Service) -> None:
    service.create(lock("A|s|1.0.0"))
    page.open()
    page.see("#unverified", "Nothing is verified here")
    page.see("td", "Owner")
    page.click("#who", "Sysop")
    page.fill("dialog [name=name]", "RoomClimate")
    page.click("dialog button", "Use this name")
    page.see("#problem", "RoomClimate may not manage locks and history (403: "
             "Requester has no management permission)")  # fmt: skip
    assert columns(page, "Instance") == []
    page.driver.refresh()
    page.see("#who", "RoomClimate")
    page.driver.switch_to.new_window("tab")
    page.open()
    page.see("#who", "Sysop")
    page.see("td", "Owner")


def test_where_the_browser_keeps_nothing_the_page_works(service: Service) -> None:
    service.create(lock("A|s|1.0.0"))
    page = Browser(site_data=False)
    try:
        page.url = service.url
        page.open()
        with pytest.raises(WebDriverException, match="denied"):
            page.run("sessionStorage")
        page.see("td", "Owner")
        page.click("#who", "Sysop")
        page.fill("dialog [name=name]", "RoomClimate")
        page.click("dialog button", "Use this name")
        page.see("#problem", "RoomClimate may not manage")
        page.click("#views a", "History")
        page.see("#who", "RoomClimate")
        assert page.faults() == []
    finally:
        page.close()


def test_a_token_or_a_login_says_who_is_asking(
    start: Callable[..., Service], cloud: Cloud, show: Callable[[Client], Browser]
) -> None:
    service = start(UI=True, AUTHENTICATION_POLICY="outsourced", **cloud.settings)
    service.headers = {"Authorization": f"Bearer IDENTITY-TOKEN//{cloud.token('Alice', True)}"}
    assert service.create(lock("A|s|1.0.0")).status == 201
    page = show(service)
    page.open(state="Refused")
    page.see("#problem", "does not know who is asking (401: No authorization header")
    page.unseen("#unverified")
    page.click("#problem button", "Say who you are")
    page.fill("dialog [name=token]", cloud.token("Eve"))
    page.click("dialog button", "Use this token")
    page.see("#problem", "may not manage locks and history (403")
    page.see("#who", "Eve")
    cloud.operators["Carol"] = "open sesame"
    page.click("#who")
    page.fill("dialog [name=system]", "Carol")
    page.fill("dialog [name=password]", "open sesame")
    page.click("dialog button", "Log in")
    page.see("dialog", "does not allow requests from this page")
    page.driver.get_log("browser")  # of which the browser complains
    cloud.page = service.url
    page.fill("dialog [name=password]", "wrong")
    page.click("dialog button", "Log in")
    page.see("dialog", "The identity service refuses: Invalid name and/or credentials")
    page.fill("dialog [name=password]", "open sesame")
    page.click("dialog button", "Log in")
    page.see("td", "Owner")
    page.see("#who", "Carol, operator")
    page.click(".tools button", "Show as curl")
    command = page.see("dialog pre", "curl").text
    assert "IDENTITY-TOKEN//$TOKEN" in command
    (kept,) = page.run("return Object.values(sessionStorage)")
    assert kept not in command
    assert page.run("return document.cookie + Object.keys(localStorage)") == ""
    assert PASSWORD not in page.driver.page_source


def test_the_page_says_what_the_certificate_says(
    start: Callable[..., Service], authority: Authority, show: Callable[[Client], Browser]
) -> None:
    service = start(UI=True, AUTHENTICATION_POLICY="certificate", CLOUD=CLOUD)
    page = show(service)
    page.open(state="Refused")
    page.see("#problem", "401: No client certificate has been provided")
    page.click("#who")
    page.see("dialog", "The service says: No client certificate has been provided.")
    page.click("dialog button", "Close")
    header = {"X-Client-Certificate": authority.operator().escaped}
    page.send("Network.setExtraHTTPHeaders", headers=header)
    page.open()
    page.see("#who", "Carol, operator")
    page.click("#who")
    page.see("dialog", "Your certificate names Carol, an operator of this cloud.")


# Curl, JSON, CSV


def test_the_shown_commands_do_what_the_page_does(page: Browser, service: Service) -> None:
    program("curl")

    def run() -> str:
        command = page.see("dialog pre", "curl").text
        page.click("dialog:last-of-type button", "Close")
        ended = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=30)
        assert ended.returncode == 0
        return ended.stdout

    page.open("view=locks&owners=O%27Brien", state="Refused")
    page.click(".tools button", "Show as curl")
    assert "naming convention: O'Brien" in json.loads(run())["errorMessage"]
    page.open()
    page.fill("[name=instance]", "A|s|1.0.0")
    page.fill("[name=owner]", "Alice")
    page.click(".create button", "Show as curl")
    assert json.loads(run())["entries"][0]["owner"] == "Alice"
    page.refresh()
    page.see("td", "Alice")
    page.click(".tools button", "Show as curl")
    assert json.loads(run())["entries"] == service.locks().entries
    page.click(".extend")
    page.click("dialog button", "Show as curl")
    assert json.loads(run())["entries"] == service.locks().entries
    page.click("dialog button", "Close")
    page.click(".remove")
    page.click("dialog button", "Show as curl")
    assert run() == ""
    page.click("dialog button", "Keep")
    page.refresh()
    page.see(".empty", "Nothing is locked")
    put(service, recent(1, 10))
    page.open("view=history&statuses=DONE")
    page.click(".tools button", "Show as curl")
    assert json.loads(run())["entries"] == service.jobs().entries


def downloaded(page: Browser, name: str) -> str:
    path = page.downloads / name
    page.until(lambda: path.is_file() and path.stat().st_size > 0)
    return path.read_text("utf-8-sig")


def test_what_is_shown_is_given_as_json_and_csv(page: Browser, service: Service) -> None:
    service.create(lock("A|s|1.0.0", "Alice"), lock("B|s|1.0.0", "Bob"))
    page.open("view=locks&owners=Bob")
    page.see(".count", "1 lock")
    page.click(".tools button", "JSON")
    entries = service.locks(owners=["Bob"]).entries
    assert json.loads(downloaded(page, "locks.json")) == entries
    page.click(".tools button", "CSV")
    (row,) = csv.DictReader(downloaded(page, "locks.csv").splitlines())
    assert row == {key: str(value).replace("False", "false") for key, value in entries[0].items()}
    put(service, recent(1, 10, message='=cmd|"calc"!A0, and "more"\nlines'))
    page.open("view=history")
    page.see(".count", "1 job")
    page.click(".tools button", "CSV")
    text = downloaded(page, "jobs.csv")
    (row,) = csv.DictReader(text.splitlines(keepends=True))
    assert row["message"] == '\'=cmd|"calc"!A0, and "more" lines'  # no formula
    assert row["id"] == job(1)["id"]


FORMULAS = (
    "=1+1", "x;=1+1;y", "x\t=1+1\ty", "x\n=1+1\ny", '";=1+1;"', '"\r\n=1+1,"', " =1+1", "+1", "-1",
    "@SUM(1)", "＝1+1", "＋1", "－1", "＠SUM(1)", "x,=1+1", "\x0b=1+1", "\u00a0=1+1", "Grüße",
)  # fmt: skip


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_no_value_of_a_csv_becomes_a_formula_or_another_cell(
    page: Browser, service: Service, separator: str
) -> None:
    put(service, *[recent(n, 100, message=it) for n, it in enumerate(FORMULAS)])
    page.open("view=history")
    page.see(".count", f"{len(FORMULAS)} jobs")
    page.click(".tools button", "CSV")
    text = downloaded(page, "jobs.csv")
    assert (page.downloads / "jobs.csv").read_bytes().startswith(b"\xef\xbb\xbf")
    rows = list(csv.reader(io.StringIO(text), delimiter=separator))
    assert len(rows) == 1 + len(FORMULAS)
    assert {len(row) for row in rows} == {11 if separator == "," else 1}
    assert not [it for row in rows for it in row if it.lstrip().startswith(tuple("=+-@＝＋－＠"))]
    assert "Grüße" in text


# Live


def test_a_refresh_keeps_place_focus_selection_and_what_is_open(
    page: Browser, service: Service
) -> None:
    service.create(*[lock(f"P{n:02}|s|1.0.0") for n in range(40)])
    page.open()
    page.see("td", "P05")
    page.one('[aria-label="Select P05|s|1.0.0"]').click()
    page.run("document.querySelector('[aria-label=\"Remove the lock on P05|s|1.0.0\"]').focus()")
    row = page.run("return document.activeElement.closest('tr').getBoundingClientRect().top")
    page.run("window.kept = document.activeElement")
    service.create(*[lock(f"N{n:02}|s|1.0.0") for n in range(5)])
    service.remove("Owner", "instanceIds=" + quote("P30|s|1.0.0"))
    page.refresh()
    page.see(".count", "44 locks")
    assert page.run("return document.activeElement === window.kept")
    assert page.one('[aria-label="Select P05|s|1.0.0"]').is_selected()
    page.see(".selection", "1 lock selected")
    moved = page.run("return document.activeElement.closest('tr').getBoundingClientRect().top")
    assert abs(moved - row) < 2
    service.remove("Owner", "instanceIds=" + quote("P05|s|1.0.0"))
    page.refresh()
    page.see(".count", "43 locks")
    assert page.run("return document.activeElement.closest('tr') !== null")  # the next row's button
    put(service, *[recent(n, 100 - n) for n in range(30)])
    page.open("view=history")
    page.see("td", "Done")
    page.click(".open")
    page.see(".steps", job(29)["id"])
    put(service, *[recent(n, 100 - n) for n in range(30, 60)])
    page.refresh()
    page.see(".count", "60 jobs")
    page.see(".steps", job(29)["id"])  # although newer ones fill the page


def test_it_says_when_the_service_is_away_and_recovers(
    tmp_path: Path, show: Callable[[Client], Browser], chromium: Browser
) -> None:
    settings = {"DATABASE_URL": f"sqlite:///{tmp_path}/a.db", "UI": True}
    with served(**settings) as service:
        service.create(lock("A|s|1.0.0"))
        page = show(service)
        page.open()
        page.see("td", "Owner")
        port = urlsplit(service.url).port
    page.see("#problem", "The service has been unavailable since ")
    page.see("#live-words", "Unavailable")
    page.see("td", "Owner")
    with served(PORT=port, **settings) as service:
        service.create(lock("B|s|1.0.0"))
        page.see(".count", "2 locks")
        page.unseen("#problem")
        page.see("#live-words", "Live")


def test_it_pauses(page: Browser, service: Service) -> None:
    page.open()
    service.create(lock("A|s|1.0.0", expires_at=after(6)))
    page.refresh()
    page.see("td", "Owner")
    page.click("#pause")
    page.see("#live-words", "Paused")
    service.create(lock("B|s|1.0.0"))
    page.until(lambda: service.locks(serviceInstanceIds=["A|s|1.0.0"]).json["count"] == 0)
    page.see("td", "A\ns · 1.0.0")  # for as long as somebody explains it
    assert page.texts(".count") == ["1 lock"]
    page.click("#pause")
    page.see("#live-words", "Live")
    page.until(lambda: columns(page, "Instance") == ["B\ns · 1.0.0"])


def test_it_is_large_for_a_projector(page: Browser) -> None:
    page.open()
    size = "return parseFloat(getComputedStyle(document.querySelector('h1')).fontSize)"
    before = page.run(size)
    page.click("#large")
    assert page.run(size) > 1.3 * before
    page.click("#views a", "History")
    page.see("h1", "History")
    assert page.run(size) > 1.3 * before
    assert "large" in parse_qs(page.address)


def test_small_pages_and_keys_left_out_are_no_trouble(
    start: Callable[..., Service], show: Callable[[Client], Browser]
) -> None:
    service = start(UI=True, MAX_PAGE_SIZE=10, OMIT_EMPTY=True)
    service.create(*[lock(f"P{n:02}|s|1.0.0") for n in range(15)])
    for _ in range(15):
        service.store.history.create("PULL", "Alice", "Alice", "kelvinInfo")
    page = show(service)
    for view in ("locks", "timeline", "history"):
        page.open(f"view={view}")
        page.see(".range", "1–10 of 15")
        page.click("button", "Next")
        page.see(".range", "11–15 of 15")
        if view == "history":
            page.click(".open")
            page.see(".steps", "now it waits")
        assert not re.search("undefined|NaN|null", page.one("main").text)
    gone = ",".join(f"P{n:02}|s|1.0.0" for n in range(12))
    service.remove("Owner", f"instanceIds={quote(gone)}")
    page.open("view=timeline")
    page.see(".range", "1–3 of 3")
    assert len(page.texts(".rows li")) == 3


def test_nothing_of_the_database_is_read_as_html(page: Browser, service: Service) -> None:
    put(service, recent(1, 20, message=HOSTILE, requester_system=HOSTILE, target_system=HOSTILE,
                        service_definition=HOSTILE))  # fmt: skip
    service.store.database.write(
        service.store.database.change,
        "INSERT INTO orchestration_lock (orchestration_job_id, service_instance_id, owner,"
        " expires_at, temporary) VALUES (?, ?, ?, ?, 0)",
        (job(1)["id"], f"{HOSTILE}|{HOSTILE}|1.0.0", HOSTILE, "2099-01-01T00:00:00Z"),
    )  # fmt: skip
    for query, selector in (
        ("view=locks", "td"),
        ("view=timeline", ".rows li"),
        ("view=history", ".message"),
        (f"view=history&open={job(1)['id']}", ".steps q"),
    ):
        page.open(query)
        page.see(selector, HOSTILE)
        assert not page.all("main img, main b")
        assert "orchmgmt" in page.driver.title
    page.open("view=locks")
    page.click(".remove")
    page.see("dialog li", HOSTILE)
    assert not page.all("dialog img, dialog b")


# For everybody


def test_locking_and_removing_need_no_mouse(page: Browser, service: Service) -> None:
    page.open()

    def press(*keys: str) -> None:
        page.driver.switch_to.active_element.send_keys(*keys)

    def tab_to(what: str, limit: int = 40) -> None:
        for _ in range(limit):
            press(Keys.TAB)
            focused = page.run(
                "const it = document.activeElement;"
                "return it.getAttribute('aria-label') ?? it.name + it.innerText"
            )
            if what in focused:
                outline = page.run("return getComputedStyle(document.activeElement).outlineStyle")
                assert outline != "none" or "ends" in what
                return
        raise AssertionError(f"no way to {what}")

    page.run("document.body.focus()")
    tab_to("Skip to the content", 1)
    press(Keys.ENTER)
    assert page.run("return document.activeElement.id") == "main"
    tab_to("instance", 1)
    press("Boiler|heating|1.0.0")
    tab_to("owner", 1)
    press("Alice")
    tab_to("ends", 1)
    press(Keys.ARROW_RIGHT)
    tab_to("Lock it", 1)
    press(Keys.ENTER)
    page.see("td", "Alice")
    tab_to("Remove the lock on Boiler")
    press(Keys.ENTER)
    page.see("dialog", "Remove for good?")
    assert page.driver.switch_to.active_element.text == "Keep"
    press(Keys.ESCAPE)
    page.unseen("dialog")
    assert "Remove the lock on Boiler" in page.run("return document.activeElement.ariaLabel")
    press(Keys.ENTER)
    page.see("dialog")
    tab_to("Remove 1 lock", 1)
    press(Keys.ENTER)
    page.see(".empty", "Nothing is locked")


def test_axe_finds_nothing(page: Browser, service: Service) -> None:
    """axe-core's rules, WCAG 2.1 A and AA among them, on each view and dialog."""
    service.create(lock("A|s|1.0.0", "Alice"), lock("B|s|1.0.0", "Bob"))
    reserved(service, "C|s|1.0.0")
    put(service, *[recent(n, 10 + n, status=("DONE", "ERROR", "PENDING")[n % 3]) for n in range(9)])

    alone = {"resultTypes": ["violations"]}  # the rest of the result would take longer

    def check(where: str) -> None:
        for theme, width in (("light", 390), ("dark", 1380)):
            page.size(width, 900, mobile=width < 500)
            page.theme(theme)
            page.run("document.getAnimations().forEach((it) => it.finish())")
            for fault in Axe().run(page.driver, options=alone)["violations"]:
                nodes = [it["html"] for it in fault["nodes"]]
                pytest.fail(f"{where}, {theme}, {width}: {fault['help']}: {nodes}")

    page.open("view=locks&size=25&owners=Alice,Bob,Eve")
    page.fill("[name=instance]", "A|s|1.0.0")
    page.fill("[name=owner]", "Carol")
    page.click("button", "Lock it")
    page.see(".pointed")
    page.one('[aria-label^="Select A"]').click()
    page.run("document.querySelector('tbody tr').classList.add('soon')")
    check("locks")
    page.click("#who")
    check("who")
    page.click("dialog button", "Close")
    page.click(".extend")
    check("extend")
    page.click("dialog button", "Close")
    page.click(".extend + .remove")
    check("remove")
    page.click("dialog button", "Keep")
    page.click(".tools button", "Show as curl")
    check("curl")
    page.open("view=timeline")
    page.see(".lock", "Bob")
    check("timeline")
    page.open("view=history")
    page.click(".open")
    page.see(".steps")
    check("history")
    page.filter("serviceDefinitions", "1")
    page.see("#problem", "400")
    check("problem")


def test_on_a_narrow_screen_nothing_runs_out_of_it(page: Browser, service: Service) -> None:
    service.create(lock("A|s|1.0.0"), lock("B|s|1.0.0"))
    page.size(390, 844, mobile=True)
    page.open("view=locks&owners=Owner")
    top = "return document.querySelector('tbody tr').getBoundingClientRect().top"
    assert page.run(top) < 844 * 0.6
    page.unseen("[name=instance]")
    page.click(".fold", "Lock an instance")
    page.see("[name=instance]")
    page.unseen(".filters [name=owners]")
    page.click(".fold", "Filters (1)")
    page.see(".filters [name=owners]")
    service.remove("Owner", "instanceIds=A%7Cs%7C1,B%7Cs%7C1")
    service.create(lock(f"{'Long' * 15}|{'long' * 15}|1.0.0", "Owner" * 12))
    put(service, recent(1, 10, message="word" * 100, requester_system="Requester" * 7))
    for width in (390, 800):
        page.size(width, 844, mobile=width < 500)
        for view in ("locks", "timeline", "history"):
            page.open(f"view={view}")
            page.see(".count", "1 ")
            assert page.run("return document.documentElement.scrollWidth") <= width, view
    page.size(390, 844, mobile=True)
    page.open()
    left = "return document.querySelector(arguments[0]).getBoundingClientRect().left"
    assert page.run(left, ".extend") > page.run(left, "td .left")
