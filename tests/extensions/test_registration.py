"""The ServiceRegistry knows where this service is, whatever happens to either."""

import json
import logging
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from certificates import CLOUD, Authority, subject
from nginx import Nginx
from prometheus_client.parser import text_string_to_metric_families
from standin import NAME, PASSWORD, REGISTRY, Cloud
from support import Answer, Client, Process, lock, until

from orchmgmt.app import create_app, service_of, store_of
from orchmgmt.extensions.registration import Registration
from orchmgmt.settings import SettingError

pytestmark = pytest.mark.sqlite

LOCKS = "serviceOrchestrationLockManagement"
HISTORY = "serviceOrchestrationHistoryManagement"
INSTANCES = [f"{NAME}|{HISTORY}|1.0.0", f"{NAME}|{LOCKS}|1.0.0"]

LOOK_FOR_SYSTEM = ("POST", f"{REGISTRY}/system-discovery/lookup")
LOOK_FOR_SERVICES = ("POST", f"{REGISTRY}/service-discovery/lookup")
REGISTER_SYSTEM = ("POST", f"{REGISTRY}/system-discovery/register")
REGISTER = ("POST", f"{REGISTRY}/service-discovery/register")
NONSENSE = [
    (201, b"<html>"),
    (201, b"\xff\xfe"),
    (201, b"[" * 60_000),
    (201, b" " * 70_000),
    (204, b""),
    (302, b"{}"),
    (401, b"{}"),
    (403, b"{}"),
    (500, b"{}"),
    (503, b""),
    (0, b""),
    (0, b"HTTP/1.1 201 Created\r\nContent-Length: 100\r\n\r\n{}"),
    (0, b"HTTP/1.1 201 Created\r\nX: " + b"y" * 100_000 + b"\r\n\r\n{}"),
]
NO_LIST = [
    (200, b"1"),
    (200, b"{}"),
    (200, b'{"entries": {}}'),
    (200, b'{"entries": [1]}'),
    (201, b'{"entries": []}'),
    (204, b""),
]
NO_INSTANCE = [(200, b"{}"), (400, b"{}"), (201, b""), (201, b"[]"), (201, b'{"instanceId": 5}')]

#: Metadata with which a system sees its own services.
SEEN = "unrestrictedDiscovery=true"

REVOKE_SYSTEM = ("DELETE", f"{REGISTRY}/system-discovery/revoke")

Serve = Callable[..., Process]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def environ(cloud: Cloud, **settings: object) -> dict[str, str]:
    """The variables of a service that registers with the stand-in."""
    return {f"ORCHMGMT_{key}": str(it) for key, it in {**cloud.registry, **settings}.items()}


def is_registered(cloud: Cloud) -> bool:
    return sorted(cloud.services) == INSTANCES


def log_of(tmp_path: Path, number: int = 0) -> list[str]:
    """The lines of a server's log that tell of the registration."""
    lines = (tmp_path / f"server-{number}.log").read_text().splitlines()
    return [
        line
        for line in lines
        if "regist" in line.lower().partition("orchmgmt: ")[2] and " serves " not in line
    ]


def look_up(cloud: Cloud, service: str, name: str = "Alice") -> list[dict[str, Any]]:
    answer = Client(cloud.url, {"Authorization": f"Bearer SYSTEM//{name}"}).send(
        "POST",
        f"{REGISTRY}/service-discovery/lookup",
        json.dumps({"serviceDefinitionNames": [service]}).encode(),
    )
    return list(answer.json["entries"])


def call(service: dict[str, Any], operation: str, payload: object) -> Answer:
    """Do an operation of a service as its entry in the registry says."""
    properties = service["interfaces"][0]["properties"]
    address, port = properties["accessAddresses"][0], properties["accessPort"]
    told = properties["operations"][operation]
    client = Client(f"{service['interfaces'][0]['protocol']}://{address}:{port}")
    return client.send(
        told["method"],
        properties["basePath"] + told["path"],
        json.dumps(payload).encode(),
        {**client.headers, "Content-Type": "application/json"},
    )


@pytest.fixture
def keep(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[..., Registration]]:
    """Register again and again, with short pauses, an application whose port nobody serves."""
    caplog.set_level(logging.INFO, "orchmgmt")
    with ExitStack() as ending:

        def keep(cloud: Cloud, interval: float = 0.02, **settings: Any) -> Registration:
            settings = {"DATABASE_URL": "sqlite:///:memory:", **cloud.registry, **settings}
            app = create_app(settings)
            ending.enter_context(store_of(app))
            registration = Registration(service_of(app), interval, again=0.02)
            ending.callback(registration.stop)
            registration.start(f"http://127.0.0.1:{free_port()}")
            return registration

        yield keep


def test_a_system_that_looks_the_service_up_can_create_a_lock(serve: Serve, cloud: Cloud) -> None:
    serve(env=environ(cloud, SERVICE_METADATA="unrestrictedDiscovery=true"))
    until(lambda: is_registered(cloud))
    (found,) = look_up(cloud, LOCKS)
    assert call(found, "create", {"locks": [lock("A|b|1.0.0")]}).status == 201
    assert call(found, "query", {}).json["count"] == 1
    (found,) = look_up(cloud, HISTORY)
    assert call(found, "query", {}).json["count"] == 0


def test_only_operators_find_it_without_the_metadata(serve: Serve, cloud: Cloud) -> None:
    serve(env=environ(cloud))
    until(lambda: is_registered(cloud))
    assert look_up(cloud, LOCKS) == []
    assert len(look_up(cloud, LOCKS, "Sysop")) == 1


def test_what_is_registered_is_what_the_contract_says(serve: Serve, cloud: Cloud) -> None:
    serve(env=environ(cloud, SERVICE_PORT=8441))
    until(lambda: is_registered(cloud))
    assert cloud.systems[NAME]["version"] == "1.0.0"
    assert cloud.systems[NAME]["metadata"] == {}
    assert cloud.systems[NAME]["addresses"] == [{"type": "IPV4", "address": "127.0.0.1"}]
    registered = cloud.services[INSTANCES[1]]
    assert (registered["version"], registered["metadata"]) == ("1.0.0", {})
    assert registered["interfaces"] == [
        {
            "templateName": "generic_http",
            "protocol": "http",
            "policy": "NONE",
            "properties": {
                "accessAddresses": ["127.0.0.1"],
                "accessPort": 8441,
                "basePath": "/serviceorchestration/orchestration/mgmt/lock",
                "operations": {
                    "create": {"method": "POST", "path": "/create"},
                    "query": {"method": "POST", "path": "/query"},
                    "renew": {"method": "POST", "path": "/renew"},  # an extension
                    "remove": {"method": "DELETE", "path": "/remove/{owner}"},
                },
            },
        }
    ]
    properties = cloud.services[INSTANCES[0]]["interfaces"][0]["properties"]
    assert properties["basePath"] == "/serviceorchestration/orchestration/mgmt/history"
    assert properties["operations"] == {"query": {"method": "POST", "path": "/query"}}
    asked = [(it[0], it[1]) for it in cloud.requests]
    assert asked == [LOOK_FOR_SYSTEM, REGISTER_SYSTEM, LOOK_FOR_SERVICES, REGISTER, REGISTER]
    assert {it[2] for it in cloud.requests} == {f"Bearer SYSTEM//{NAME}"}


def test_mqtt_is_a_second_interface(keep: Callable[..., Registration], cloud: Cloud) -> None:
    registration = keep(
        cloud, MQTT_URL="mqtts://user:secret@broker.example", SERVICE_METADATA=SEEN, RECORDER=True
    )
    until(lambda: is_registered(cloud))
    writes = len(cloud.writes)
    for instance, group, operations in (
        (INSTANCES[0], "history", ["query", "record"]),
        (INSTANCES[1], "lock", ["create", "query", "renew", "remove", "reserve", "release"]),
    ):
        http, mqtt = cloud.services[instance]["interfaces"]
        assert (http["templateName"], list(http["properties"]["operations"])) == (
            "generic_http",
            operations,
        )
        assert mqtt == {
            "templateName": "generic_mqtts",
            "protocol": "ssl",
            "policy": "NONE",
            "properties": {
                "accessAddresses": ["broker.example"],
                "accessPort": 8883,
                "baseTopic": f"arrowhead/serviceorchestration/orchestration/management/{group}/",
                "operations": operations,
            },
        }
        cloud.services[instance]["interfaces"].reverse()
    rounds = registration.attempts
    until(lambda: registration.attempts > rounds + 2)
    assert len(cloud.writes) == writes  # it is found to be there, in any order


def test_addresses_port_tls_and_metadata_are_those_of_the_settings(
    serve: Serve, cloud: Cloud
) -> None:
    serve(
        env=environ(
            cloud,
            SERVICE_ADDRESSES="192.0.2.7, locks.example",
            SERVICE_PORT=443,
            SERVICE_TLS="true",
            SERVICE_METADATA="unrestrictedDiscovery=true, spare = false,floor=3, note=a=b,empty=",
        )
    )
    until(lambda: is_registered(cloud))
    assert [it["address"] for it in cloud.systems[NAME]["addresses"]] == [
        "192.0.2.7",
        "locks.example",
    ]
    for registered in cloud.services.values():
        assert registered["metadata"] == {
            "unrestrictedDiscovery": True,
            "spare": False,
            "floor": "3",
            "note": "a=b",
            "empty": "",
        }
        (interface,) = registered["interfaces"]
        assert interface["templateName"] == "generic_https"
        assert interface["protocol"] == "https"
        assert interface["policy"] == "NONE"
        assert interface["properties"]["accessAddresses"] == ["192.0.2.7", "locks.example"]
        assert interface["properties"]["accessPort"] == 443


def test_a_stop_revokes_the_services(serve: Serve, cloud: Cloud, tmp_path: Path) -> None:
    process = serve(env=environ(cloud))
    until(lambda: is_registered(cloud))
    assert process.stop() == 0
    assert cloud.services == {}
    assert list(cloud.systems) == [NAME]
    first, last = log_of(tmp_path)
    assert f"registered as {NAME}, to be reached at {process.url}" in first
    assert "the services are no longer registered" in last


def test_the_last_process_to_stop_revokes(serve: Serve, cloud: Cloud, tmp_path: Path) -> None:
    port = free_port()
    shared = environ(cloud, SERVICE_PORT=port)
    first = serve("--port", str(port), env=shared)
    second = serve(env=shared)
    until(lambda: cloud.count("service-discovery/register") >= 4)
    assert second.stop() == 0
    assert is_registered(cloud)
    assert "another process may serve them" in log_of(tmp_path, 1)[-1]
    assert first.stop() == 0
    assert cloud.services == {}


def test_behind_nginx_the_last_process_to_stop_revokes(
    serve: Serve, cloud: Cloud, tmp_path: Path
) -> None:
    paths = [f"{tmp_path}/{number}.sock" for number in range(2)]
    several = "; server ".join(f"unix:{path}" for path in paths)
    nginx = Nginx(tmp_path / "nginx", "generic_http.conf", {"127.0.0.1:8441": several})
    try:
        shared = environ(cloud, SERVICE_PORT=nginx.port, SERVICE_ADDRESSES="127.0.0.1")
        command = ("--database-url", f"sqlite:///{tmp_path}/orchmgmt.db", "--unix-socket")
        processes = [serve(*command, path, env=shared) for path in paths]
        until(lambda: cloud.count("service-discovery/register") >= 4)
        assert call(cloud.services[INSTANCES[1]], "query", {}).status == 200
        assert processes[0].stop() == 0
        assert is_registered(cloud)
        assert processes[1].stop() == 0
        assert cloud.services == {}
    finally:
        nginx.stop()


def test_a_registry_that_is_down_holds_nothing_up_and_is_tried_until_it_is_there(
    serve: Serve, tmp_path: Path
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}{REGISTRY}"
    process = serve(env={"ORCHMGMT_SERVICE_REGISTRY_URL": url})
    assert process.create(lock("A|b|1.0.0")).status == 201
    assert process.send("GET", "/health").status == 200
    until(lambda: log_of(tmp_path))
    cloud = Cloud(port=port)
    try:
        until(lambda: is_registered(cloud))
        process.stop()
    finally:
        cloud.stop()
    assert len(log_of(tmp_path)) == 3, log_of(tmp_path)
    down, registered, revoked = log_of(tmp_path)
    assert "WARNING orchmgmt: not registered: the ServiceRegistry does not answer" in down
    assert "INFO orchmgmt: registered as" in registered
    assert "no longer registered" in revoked


def test_a_registry_that_is_away_at_the_end_does_not_hold_up_the_stop(
    serve: Serve, cloud: Cloud, tmp_path: Path
) -> None:
    process = serve(env=environ(cloud))
    until(lambda: is_registered(cloud))
    cloud.stop()
    assert process.stop() == 0
    assert "the services stay registered" in log_of(tmp_path)[-1]


def test_a_slow_registry_holds_up_neither_requests_nor_the_stop(
    serve: Serve, cloud: Cloud, tmp_path: Path
) -> None:
    cloud.open.clear()
    process = serve(env=environ(cloud, READ_TIMEOUT_SECONDS=60))
    cloud.wait_for(held=1)
    assert process.create(lock("A|b|1.0.0")).status == 201
    assert process.send("GET", "/health").status == 200
    assert process.stop() == 0
    assert cloud.held == 1  # it has not waited for the answer
    assert "the ServiceRegistry is too slow" in log_of(tmp_path)[-1]


def test_a_slow_revocation_does_not_hold_up_the_stop(
    serve: Serve, cloud: Cloud, tmp_path: Path
) -> None:
    process = serve(env=environ(cloud, READ_TIMEOUT_SECONDS=60))
    until(lambda: is_registered(cloud))
    cloud.open.clear()
    assert process.stop() == 0
    assert cloud.held == 1
    assert "the ServiceRegistry is too slow" in log_of(tmp_path)[-1]


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged of the registration itself."""
    return [it.message for it in caplog.records if it.name == "orchmgmt"]


def test_what_the_registry_forgets_is_registered_anew(
    keep: Callable[..., Registration], cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    registration = keep(cloud, SERVICE_METADATA=SEEN)
    until(lambda: registration.registered)
    cloud.forget()
    until(lambda: is_registered(cloud))
    until(lambda: len(messages(caplog)) == 2)
    assert messages(caplog)[1] == (
        "the ServiceRegistry had forgotten this system: it is registered anew"
    )
    rounds = registration.attempts
    until(lambda: registration.attempts > rounds + 1)  # it has seen them
    del cloud.services[INSTANCES[0]]  # only one of them
    until(lambda: is_registered(cloud))


@pytest.mark.parametrize("part", ["system-discovery", "service-discovery"])
def test_nonsense_is_told_of_once_and_tried_again(
    keep: Callable[..., Registration],
    cloud: Cloud,
    caplog: pytest.LogCaptureFixture,
    part: str,
) -> None:
    registration = keep(cloud)
    until(lambda: len(messages(caplog)) == 1)
    for nonsense in NONSENSE + NO_LIST + (NO_INSTANCE if part == "service-discovery" else []):
        caplog.clear()
        cloud.forget()
        enough = registration.failures + 2
        cloud.answer = lambda path, it=nonsense: it if part in path else None
        until(lambda it=enough: registration.failures >= it)
        assert not registration.registered
        cloud.answer = lambda path: None
        until(lambda: len(messages(caplog)) == 2)
        assert is_registered(cloud)
        refused, registered = messages(caplog)
        assert refused.startswith("not registered: the ServiceRegistry does not answer as it")
        assert "\n" not in refused
        assert registered.startswith(f"registered as {NAME}")


@pytest.mark.parametrize(
    "addresses",
    [
        "1",
        "{}",
        "null",
        "[1]",
        "[{}]",
        "[null]",
        '[{"address": 5}]',
        '[{"address": null}]',
        '"::1"',
    ],
)
def test_nonsense_about_what_the_registry_knows_is_tried_again(
    keep: Callable[..., Registration], cloud: Cloud, addresses: str
) -> None:
    known = f'{{"entries": [{{"name": "{NAME}", "addresses": {addresses}}}]}}'.encode()
    cloud.answer = lambda path: (200, known) if "system-discovery/lookup" in path else None
    registration = keep(cloud)
    until(lambda: registration.failures >= 2)
    assert cloud.services == {}
    assert cloud.writes == []
    cloud.answer = lambda path: None
    until(lambda: registration.registered)


def rounds(registration: Registration, number: int = 3) -> None:
    """Wait until it has gone through so many more rounds."""
    enough = registration.attempts + number
    until(lambda: registration.attempts > enough)


@pytest.mark.parametrize("metadata", ["", SEEN], ids=["not seen", "seen"])
def test_a_round_that_changes_nothing_looks_and_writes_nothing(
    keep: Callable[..., Registration], cloud: Cloud, metadata: str
) -> None:
    registration = keep(cloud, SERVICE_METADATA=metadata)
    until(lambda: registration.registered)
    assert len(cloud.writes) == 3
    rounds(registration, 10)
    assert len(cloud.writes) == 3
    registration.stop()
    asked = [(it[0], it[1]) for it in cloud.requests]
    # At the end it looks once more for the services, and revokes them.
    assert asked.count(LOOK_FOR_SYSTEM) == registration.attempts
    assert asked.count(LOOK_FOR_SERVICES) == registration.attempts + 1
    assert len(asked) == 2 * registration.attempts + 3 + 3
    assert len(cloud.writes) == 3 + 2
    assert registration.failures == 0


def test_what_cannot_be_seen_is_registered_anew_now_and_then(
    keep: Callable[..., Registration], cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    registration = keep(cloud)
    until(lambda: registration.registered)
    cloud.services.clear()
    rounds(registration)
    assert cloud.services == {}
    monkeypatch.setattr("orchmgmt.extensions.registration.UNSEEN", 0.05)
    until(lambda: is_registered(cloud))


@pytest.mark.parametrize("host", ["::1", "0:0::1", "localhost", "LOCALHOST", "127.0.0.1"])
def test_addresses_are_compared_as_addresses(
    keep: Callable[..., Registration], cloud: Cloud, host: str
) -> None:
    port = free_port()
    for _ in range(2):
        registration = keep(cloud, SERVICE_ADDRESSES=host, SERVICE_METADATA=SEEN, SERVICE_PORT=port)
        until(lambda it=registration: it.registered)
        rounds(registration)
        assert registration.failures == 0
    assert cloud.count("revoke") == 0
    assert len(cloud.writes) == 3


@pytest.mark.parametrize("addresses", [["192.0.2.1", "127.0.0.1"], []], ids=["one more", "none"])
def test_addresses_that_an_operator_has_added_or_left_to_a_device_stay(
    keep: Callable[..., Registration], cloud: Cloud, addresses: list[str]
) -> None:
    known = [{"type": "IPV4", "address": it} for it in addresses]
    cloud.systems[NAME] = {"name": NAME, "version": "1.0.0", "metadata": {}, "addresses": known}
    registration = keep(cloud)
    until(lambda: registration.registered)
    assert cloud.systems[NAME]["addresses"] == known
    assert is_registered(cloud)


def test_what_the_registry_knows_is_told_without_control_characters(
    keep: Callable[..., Registration], cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    known = [{"address": "192.0.2.1\n\x1b[2J\u202e" + "x" * 5000}]
    entries = {"entries": [{"name": NAME, "addresses": known}]}
    looked = (200, json.dumps(entries).encode())
    cloud.answer = lambda path: looked if path.endswith("system-discovery/lookup") else None
    cloud.systems[NAME] = {"name": NAME, "addresses": known}
    registration = keep(cloud)
    until(lambda: registration.failures >= 2)
    said = "".join(messages(caplog))
    assert "192.0.2.1[2jxxx" in said
    assert said.isprintable()
    assert len(said) < 1500


def test_a_system_of_another_kind_that_has_the_name_is_left_alone(
    keep: Callable[..., Registration],
    cloud: Cloud,
    caplog: pytest.LogCaptureFixture,
) -> None:
    theirs = {
        "instanceId": f"{NAME}|kelvinInfo|1.0.0",
        "serviceDefinition": {"name": "kelvinInfo"},
        "metadata": {"unrestrictedDiscovery": True},
        "interfaces": [],
    }
    cloud.services[theirs["instanceId"]] = theirs
    known = [{"type": "IPV4", "address": "192.0.2.1"}]
    cloud.systems[NAME] = {"name": NAME, "version": "1.0.0", "metadata": {}, "addresses": known}
    registration = keep(cloud)
    until(lambda: registration.failures >= 2)
    registration.stop()
    assert cloud.writes == []
    assert (
        f"not registered: the ServiceRegistry has another system {NAME}, at 192.0.2.1 with "
        f"{NAME}|kelvinInfo|1.0.0: choose another ORCHMGMT_SYSTEM_NAME"
    ) in messages(caplog)[0]


def test_what_an_operator_has_added_to_the_system_stays(
    keep: Callable[..., Registration], cloud: Cloud
) -> None:
    shared = {"SERVICE_METADATA": SEEN, "SERVICE_PORT": free_port()}
    first = keep(cloud, **shared)
    until(lambda: first.registered)
    cloud.systems[NAME] |= {"metadata": {"floor": 3}, "device": {"name": "CABINET"}}
    rounds(first)
    second = keep(cloud, **shared)
    until(lambda: second.registered)
    rounds(second)
    assert first.failures == second.failures == 0
    assert cloud.systems[NAME]["metadata"] == {"floor": 3}
    assert cloud.systems[NAME]["device"] == {"name": "CABINET"}
    assert len(cloud.writes) == 3


def test_a_service_that_is_other_than_ours_is_registered_as_ours(
    keep: Callable[..., Registration], cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchmgmt.extensions.registration.UNSEEN", 0.001)
    registration = keep(cloud, SERVICE_METADATA=SEEN)
    until(lambda: registration.registered)
    rounds(registration)
    ours = json.dumps(cloud.services[INSTANCES[1]])
    for change in (
        {"metadata": {"unrestrictedDiscovery": True, "spare": True}},
        {"interfaces": []},
        {"interfaces": None},
        {"interfaces": [{}]},
        {"interfaces": [{**json.loads(ours)["interfaces"][0], "properties": {}}]},
        {"version": "2.0.0"},
    ):
        cloud.services[INSTANCES[1]] = {**json.loads(ours), **change}
        until(lambda: json.dumps(cloud.services.get(INSTANCES[1])) == ours)
        rounds(registration)
    assert registration.failures == 0


class Watch:
    """Looks a service up all the time, and counts how often it is away."""

    def __init__(self, cloud: Cloud, port: int) -> None:
        self._cloud, self._port = cloud, port
        self.looks = self.away = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._done.wait(0.001):
            ports = [
                it["interfaces"][0]["properties"]["accessPort"]
                for key, it in list(self._cloud.services.items())
                if key in INSTANCES
            ]
            self.looks += 1
            self.away += ports != [self._port] * 2 or NAME not in self._cloud.systems

    def stop(self) -> None:
        self._done.set()
        self._thread.join()


@pytest.mark.parametrize(
    ("healthy", "metadata"),
    [(1, SEEN), (2, SEEN), (2, "")],
    ids=["two", "three", "three that see nothing"],
)
@pytest.mark.parametrize(
    "wrong",
    [
        {"SERVICE_ADDRESSES": "192.0.2.7"},  # which the registry does not take
        {"SERVICE_ADDRESSES": "127.0.0.1,192.0.2.7"},
        {"SYSTEM_NAME": "Other", "SERVICE_ADDRESSES": "192.0.2.7"},
        {"AUTHENTICATION_POLICY": "outsourced", "SYSTEM_PASSWORD": "wrong"},
    ],
    ids=["refused", "partly refused", "other name", "password"],
)
def test_a_misconfigured_process_takes_no_healthy_ones_services_away(
    keep: Callable[..., Registration],
    cloud: Cloud,
    wrong: dict[str, str],
    metadata: str,
    healthy: int,
) -> None:
    cloud.refused.add("192.0.2.7")
    shared = {"SERVICE_METADATA": metadata, "SERVICE_PORT": free_port()}
    good = [keep(cloud, **shared)]
    until(lambda: good[0].registered)
    rounds(good[0])
    good += [keep(cloud, **shared) for _ in range(healthy - 1)]
    until(lambda: all(it.registered for it in good))
    watch = Watch(cloud, shared["SERVICE_PORT"])
    bad = keep(cloud, **{**shared, "IDENTITY_URL": cloud.settings["IDENTITY_URL"], **wrong})
    until(lambda: bad.failures >= 5 and watch.looks >= 50)
    for it in good:
        rounds(it, 5)
    bad.stop()
    rounds(good[0], 5)
    watch.stop()
    assert cloud.count("system-discovery/revoke") == 0
    assert [it.failures for it in good] == [0] * healthy
    assert watch.away == 0


def test_a_misconfigured_server_comes_and_goes_beside_healthy_ones(
    serve: Serve, cloud: Cloud, tmp_path: Path
) -> None:
    port = free_port()
    shared = environ(cloud, SERVICE_PORT=port, SERVICE_METADATA=SEEN)
    cloud.refused.add("192.0.2.7")
    first = serve("--port", str(port), env=shared)
    until(lambda: is_registered(cloud))
    wrong = serve(env={**shared, "ORCHMGMT_SERVICE_ADDRESSES": "192.0.2.7"})
    until(lambda: cloud.count("system-discovery/register") >= 3)  # it has been refused twice
    second = serve(env=shared)
    until(lambda: log_of(tmp_path, 2))
    assert wrong.stop() == 0
    (refused,) = log_of(tmp_path, 1)
    assert "Address verification failure: 192.0.2.7" in refused
    assert len(cloud.writes) == 3
    assert second.stop() == 0
    assert is_registered(cloud)
    assert first.stop() == 0
    assert cloud.services == {}


def test_two_that_disagree_about_the_addresses_take_the_system_away_once_each(
    keep: Callable[..., Registration], cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    first = keep(cloud, SERVICE_METADATA=SEEN)
    until(lambda: first.registered)
    second = keep(cloud, SERVICE_METADATA=SEEN, SERVICE_ADDRESSES="locks.example")
    until(lambda: first.failures + second.failures >= 3)
    rounds(first)
    rounds(second)
    assert 1 <= cloud.count("system-discovery/revoke") <= 2
    assert first.registered  # it was there first
    assert (
        f"not registered: the ServiceRegistry has {NAME} at 127.0.0.1, and not at locks.example: "
        "give all processes of this name the same ORCHMGMT_SERVICE_ADDRESSES; retrying"
    ) in messages(caplog)


def test_two_that_disagree_about_a_service_do_not_go_on_replacing_it(
    keep: Callable[..., Registration], cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    first = keep(cloud, SERVICE_METADATA=SEEN)
    until(lambda: first.registered)
    rounds(first)
    second = keep(cloud, SERVICE_METADATA=SEEN)  # at another port
    until(lambda: second.failures >= 3)
    rounds(first)
    rounds(second)
    written = len(cloud.writes)
    rounds(first, 10)
    rounds(second, 10)
    # Each replaces each service once; one more may be mended that is away for the moment.
    assert len(cloud.writes) == written <= 3 + 2 + 2 + 2
    assert first.registered  # it was there first
    assert any("as another process registers it" in it for it in messages(caplog))
    second.stop()  # nobody serves at its port: but what is there is not its own
    assert is_registered(cloud)


def test_the_reason_of_a_refusal_is_told_in_one_line(
    keep: Callable[..., Registration], cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    cloud.refused.add("127.0.0.1")
    registration = keep(cloud)
    until(lambda: registration.failures >= 3)
    assert messages(caplog) == [
        "not registered: the ServiceRegistry does not answer as it should: status 400 to "
        "system-discovery/register: Address verification failure: 127.0.0.1 is not allowed; "
        "retrying"
    ]


@pytest.mark.parametrize("status", [400, 401, 403, 500, 503])
def test_a_reason_holds_neither_control_characters_nor_anything_that_proves_who_somebody_is(
    keep: Callable[..., Registration],
    cloud: Cloud,
    caplog: pytest.LogCaptureFixture,
    status: int,
) -> None:
    def answer(path: str) -> tuple[int, bytes] | None:
        if not path.startswith(REGISTRY):
            return None
        own = str(cloud.requests[-1][2])
        token = own.rpartition("//")[2]
        secrets = [own, token.upper(), token[:9] + "\n\x1b" + token[9:], PASSWORD, quote(PASSWORD)]
        text = f"refused {' | '.join(secrets)} \u202e\x00\x1b[2J\r\nline two " + "x" * 900
        return status, json.dumps({"errorMessage": text}).encode()

    cloud.answer = answer
    settings = {"AUTHENTICATION_POLICY": "outsourced", **cloud.settings}
    registration = keep(cloud, **settings)
    until(lambda: registration.failures >= 2)
    said = "".join(messages(caplog))
    assert ": refused " in said
    assert said.isprintable()
    assert "line two x" in said
    assert len(said) < 400
    for secret in (PASSWORD, quote(PASSWORD), *(it[2] for it in cloud.requests if it[2])):
        assert secret.rpartition("//")[2].lower() not in said.lower()


def test_a_registry_whose_identity_service_is_away_is_waited_for(
    keep: Callable[..., Registration], cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"AUTHENTICATION_POLICY": "outsourced", **cloud.settings}
    registration = keep(cloud, SERVICE_METADATA=SEEN, **settings)
    until(lambda: registration.registered)
    written = len(cloud.writes)
    cloud.identity_away = True
    until(lambda: registration.failures >= 2)
    cloud.identity_away = False
    until(lambda: registration.registered)
    assert len(cloud.writes) == written
    away = messages(caplog)[1]
    assert re.search("status 503 to (system|service)-discovery/lookup: No answer: GET", away)
    assert "IDENTITY-TOKEN//***" in away


def test_an_address_that_does_not_answer_leaves_the_services_and_says_why(
    keep: Callable[..., Registration],
    cloud: Cloud,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("orchmgmt.extensions.registry.PROBE", 0.05)
    with socket.socket() as silent:  # takes no connection, as behind a firewall
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        port = silent.getsockname()[1]
        with ExitStack() as full:
            for _ in range(4):
                waiting = full.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(("127.0.0.1", port))
            registration = keep(cloud, SERVICE_PORT=port)
            until(lambda: registration.registered)
            registration.stop()
    assert is_registered(cloud)
    assert messages(caplog)[-1] == (
        "the services stay registered: whether another process serves them at "
        f"http://127.0.0.1:{port} could not be told (timed out)"
    )


def test_an_earlier_registration_with_other_addresses_is_replaced_once(
    keep: Callable[..., Registration], cloud: Cloud
) -> None:
    old = {"name": NAME, "addresses": [{"type": "IPV4", "address": "192.0.2.1"}]}
    cloud.systems[NAME] = old
    registration = keep(cloud)
    until(lambda: registration.registered)
    assert cloud.systems[NAME]["addresses"] == [{"type": "IPV4", "address": "127.0.0.1"}]
    cloud.systems[NAME] = old  # somebody disagrees: no quarrel
    rounds = registration.attempts
    until(lambda: registration.attempts > rounds + 1)
    assert cloud.requests.count((*REVOKE_SYSTEM, f"Bearer SYSTEM//{NAME}")) == 1


def test_a_start_leaves_alone_what_another_process_has_registered(
    serve: Serve, cloud: Cloud
) -> None:
    cloud.systems[NAME] = {"addresses": [{"type": "IPV4", "address": "127.0.0.1"}]}
    serve(env=environ(cloud))
    until(lambda: is_registered(cloud))
    assert cloud.count("revoke") == 0


def test_under_outsourced_it_logs_in_and_again_when_its_login_is_forgotten(
    keep: Callable[..., Registration], cloud: Cloud
) -> None:
    settings = {
        "AUTHENTICATION_POLICY": "outsourced",
        "IDENTITY_URL": cloud.settings["IDENTITY_URL"],
        "SYSTEM_PASSWORD": PASSWORD,
    }
    registration = keep(cloud, **settings)
    until(lambda: registration.registered)
    cloud.end_own_session()
    rounds = registration.attempts
    until(lambda: registration.attempts > rounds + 1)
    assert registration.failures == 0
    assert cloud.count("login") == 2


def test_under_outsourced_it_waits_for_the_identity_service(
    keep: Callable[..., Registration], cloud: Cloud
) -> None:
    cloud.answer = lambda path: (500, b"") if "login" in path else None
    settings = {"AUTHENTICATION_POLICY": "outsourced", **cloud.settings}
    registration = keep(cloud, **settings)
    until(lambda: registration.failures >= 2)
    assert cloud.count(REGISTRY) == 0
    cloud.answer = lambda path: None
    until(lambda: registration.registered)


def test_under_certificate_it_shows_its_own_and_registers_tls(
    serve: Serve, authority: Authority, tmp_path: Path
) -> None:
    context = authority.server_context()
    context.load_verify_locations(authority.ca_file)
    context.verify_mode = ssl.CERT_REQUIRED
    cloud = Cloud(context)
    certificate = authority.system("locks").save(tmp_path / "own.pem")
    try:
        serve(
            env=environ(
                cloud,
                AUTHENTICATION_POLICY="certificate",
                CLOUD=CLOUD,
                CA_FILE=authority.ca_file,
                CERTIFICATE_FILE=certificate,
                SERVICE_PORT=443,
            )
        )
        until(lambda: log_of(tmp_path))
    finally:
        cloud.stop()
    assert list(cloud.systems) == ["Locks"]
    assert "registered as Locks, to be reached at https://127.0.0.1:443" in log_of(tmp_path)[0]
    for registered in cloud.services.values():
        (interface,) = registered["interfaces"]
        assert interface["templateName"] == "generic_https"
        assert interface["protocol"] == "https"
        assert interface["policy"] == "CERT_AUTH"


def test_under_certificate_another_system_name_than_the_certificates_stops_the_start(
    run: Callable[..., "subprocess.CompletedProcess[str]"], authority: Authority, tmp_path: Path
) -> None:
    def says(certificate: str, name: str = "") -> str:
        env = {
            "ORCHMGMT_SERVICE_REGISTRY_URL": "https://127.0.0.1:1/serviceregistry",
            "ORCHMGMT_AUTHENTICATION_POLICY": "certificate",
            "ORCHMGMT_CLOUD": CLOUD,
            "ORCHMGMT_CERTIFICATE_FILE": certificate,
            "ORCHMGMT_SERVICE_PORT": "443",
            "ORCHMGMT_SYSTEM_NAME": name,
        }
        ended = run("serve", "--port", "0", env=env)
        assert (ended.returncode, ended.stdout) == (2, "")
        (line,) = ended.stderr.splitlines()
        return line

    own = authority.system("locks").save(tmp_path / "own.pem")
    assert says(own, "Other") == (
        "Error: ORCHMGMT_SYSTEM_NAME is Other, and ORCHMGMT_CERTIFICATE_FILE names Locks: the "
        "cloud knows this system by its certificate"
    )
    assert "names Sysop, which is the operator" in says(
        authority.system("sysop").save(tmp_path / "sysop.pem")
    )
    for name in ("locks.other.company.arrowhead.eu", "locks", f".{CLOUD}.arrowhead.eu"):
        stranger = authority.issue(subject(name)).save(tmp_path / "stranger.pem")
        assert f"must name a system of the cloud, as CN=<system>.{CLOUD}" in says(stranger)


@pytest.mark.parametrize("name", ["Sysop", "sysop", " sysop "])
def test_no_system_registers_as_the_operator(
    run: Callable[..., "subprocess.CompletedProcess[str]"], name: str
) -> None:
    ended = run("serve", "--port", "0", env={"ORCHMGMT_SYSTEM_NAME": name})
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        "Error: ORCHMGMT_SYSTEM_NAME: Sysop is the operator, and this system must not "
        "have its rights: choose another name\n"
    )


def test_metrics_tell_of_it(serve: Serve, cloud: Cloud) -> None:
    cloud.answer = lambda path: (500, b"") if "service-discovery" in path else None
    process = serve("--metrics", "true", env=environ(cloud))

    def metrics() -> dict[str, float]:
        text = process.send("GET", "/metrics").body.decode()
        return {
            sample.name: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name.startswith("orchmgmt_regist")
        }

    until(lambda: metrics()["orchmgmt_registration_failures_total"] >= 1)
    assert metrics()["orchmgmt_registered"] == 0
    cloud.answer = lambda path: None
    until(lambda: metrics()["orchmgmt_registered"] == 1)
    found = metrics()
    attempts = found["orchmgmt_registration_attempts_total"]
    assert attempts == found["orchmgmt_registration_failures_total"] + 1


WRONG = [
    ({"SERVICE_REGISTRY_URL": "registry:8443"}, "ORCHMGMT_SERVICE_REGISTRY_URL must be http://"),
    ({"HOST": "0.0.0.0"}, "ORCHMGMT_SERVICE_ADDRESSES must say at which .*: 0.0.0.0 is none"),
    ({"HOST": "::"}, "ORCHMGMT_SERVICE_ADDRESSES must say at which addresses .*: :: is none"),
    ({"UNIX_SOCKET": "/x", "SERVICE_PORT": "80"}, "ORCHMGMT_SERVICE_ADDRESSES must .* socket is"),
    ({"UNIX_SOCKET": "/x", "SERVICE_ADDRESSES": "a"}, "ORCHMGMT_SERVICE_PORT must say at which"),
    ({"SERVICE_TLS": "true"}, "ORCHMGMT_SERVICE_PORT must say at which port a proxy speaks TLS"),
    ({"SERVICE_METADATA": "a"}, "ORCHMGMT_SERVICE_METADATA must be key=value,..., not 'a'"),
    ({"SERVICE_METADATA": "=a"}, "ORCHMGMT_SERVICE_METADATA must be key=value"),
    (
        {"AUTHENTICATION_POLICY": "certificate", "CLOUD": CLOUD, "SERVICE_PORT": "443"},
        "ORCHMGMT_SERVICE_REGISTRY_URL needs ORCHMGMT_CERTIFICATE_FILE under the policy",
    ),
    ({"AUTHENTICATION_POLICY": "outsourced"}, "the policy `outsourced` needs ORCHMGMT_IDENTITY"),
]


@pytest.mark.parametrize(("settings", "says"), WRONG)
def test_a_setting_that_is_missing_or_wrong_says_what_it_must_be(
    settings: dict[str, str], says: str
) -> None:
    here = {"DATABASE_URL": "sqlite:///:memory:"}
    registry = {"SERVICE_REGISTRY_URL": "http://127.0.0.1:1/serviceregistry"}
    with pytest.raises(SettingError, match=says):
        create_app({**here, **registry, **settings})


@pytest.mark.parametrize("host", ["localhost", "::1", "192.0.2.7"], ids=["name", "IPv6", "IPv4"])
def test_the_address_listened_on_is_registered_unless_others_are_set(
    keep: Callable[..., Registration], cloud: Cloud, host: str
) -> None:
    keep(cloud, HOST=host)
    until(lambda: is_registered(cloud))
    written = {"::1": "0000:0000:0000:0000:0000:0000:0000:0001"}.get(host, host)
    assert [it["address"] for it in cloud.systems[NAME]["addresses"]] == [written]


def test_the_start_ends_with_one_clear_line(
    run: Callable[..., "subprocess.CompletedProcess[str]"],
) -> None:
    registry = {"ORCHMGMT_SERVICE_REGISTRY_URL": "http://127.0.0.1:1/serviceregistry"}
    ended = run("serve", "--port", "0", env={**registry, "ORCHMGMT_HOST": "0.0.0.0"})
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.splitlines() == [
        "Error: ORCHMGMT_SERVICE_ADDRESSES must say at which addresses other systems reach "
        "this one: 0.0.0.0 is none"
    ]


def test_it_is_not_there_when_it_is_off(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from orchmgmt.cli import main\n"
        "main(['serve', '--port', '0'], standalone_mode=False)\n"
        "print(*sys.modules)\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as started:
        Process(started).stop()
        assert started.stdout is not None
        loaded = started.stdout.read().split()
    assert "orchmgmt.serving.cleaner" in loaded
    others = {"orchmgmt.extensions.registration", "orchmgmt.policies.cloud", "orchmgmt.client"}
    assert not others & {*loaded}
