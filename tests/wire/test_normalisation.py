"""Names and versions are brought to their convention before they are checked."""

from collections.abc import Callable

import pytest
from support import Service, lock
from wire import JOB, job_entry, put

pytestmark = pytest.mark.sqlite

SYSTEM = "The specified system name does not match the naming convention: "
SERVICE = "The specified service definition name does not match the naming convention: "
INSTANCE = "The specified service instance identifier does not match the naming convention: "
VERSION = "Version verification failure: "


def owner_of(service: Service, name: str) -> str:
    """The owner that a lock gets when it is created for `name`."""
    owner: str = service.create(lock("A|b|1", name)).entries[0]["owner"]
    return owner


def instance_of(service: Service, text: str) -> str:
    instance: str = service.create(lock(text)).entries[0]["serviceInstanceId"]
    return instance


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("TemperatureManager", "TemperatureManager"),
        ("temperature-manager", "TemperatureManager"),
        ("temperatureManager", "TemperatureManager"),
        ("TEMPERATURE_MANAGER", "TEMPERATUREMANAGER"),
        ("temperature manager", "TemperatureManager"),
        ("temperature \t\n manager", "TemperatureManager"),
        ("temperature_-_-manager", "TemperatureManager"),
        ("temperature - manager", "TemperatureManager"),
        ("temperature\u00a0\u2003\u3000manager", "TemperatureManager"),
        ("temperature\u2028manager\u0085", "TemperatureManager"),
        (" \t\r\n\x00\x1ftemperature-manager\x00 ", "TemperatureManager"),
        ("ab-9c_", "Ab9c"),
        ("ab__", "Ab"),
        ("a-b-c-d", "ABCD"),
        ("a1-2b", "A12b"),
        ("a", "A"),
        ("a\u00a0", "A"),
        ("a" * 63, "A" + "a" * 62),
        ("a-" * 63, "A" * 63),
    ],
)
def test_a_system_name_is_brought_to_pascal_case(service: Service, name: str, owner: str) -> None:
    assert owner_of(service, name) == owner
    assert service.locks(owners=[name]).json["count"] == 1


@pytest.mark.parametrize(
    ("name", "service_name"),
    [
        ("kelvinInfo", "kelvinInfo"),
        ("Kelvin_info", "kelvinInfo"),
        ("KelvinInfo", "kelvinInfo"),
        ("KELVIN-INFO", "kELVININFO"),
        ("kelvin  info", "kelvinInfo"),
        ("kelvin\u2009info", "kelvinInfo"),
        ("Ab-9c_", "ab9c"),
        ("K" * 63, "k" + "K" * 62),
    ],
)
def test_a_service_name_is_brought_to_camel_case(
    service: Service, name: str, service_name: str
) -> None:
    assert instance_of(service, f"A|{name}|1") == f"A|{service_name}|1.0.0"
    put(service, JOB, job_entry(1, serviceDefinition=service_name))
    assert service.jobs(serviceDefinitions=[name]).json["count"] == 1


@pytest.mark.parametrize(
    ("name", "normalised"),
    [
        ("_ab", "_ab"),
        ("-ab-cd", "_abCd"),
        ("\u00a0ab", "_ab"),
        ("_", "_"),
        ("9ab", "9ab"),
        ("9-ab", "9Ab"),
        ("ſharp", "ſharp"),
        ("éa", "éa"),
        ("a-éa", "Aéa"),
        ("a-ßa", "Aßa"),
        ("ı", "ı"),
        ("\u212aelvin", "\u212aelvin"),
        ("a.b", "A.b"),
        ("a\x00b", "A\x00b"),
        ("a\u200bb", "A\u200bb"),
        ("a٣", "A٣"),
        ("a-\U0001f600", "A\U0001f600"),
        ("a" * 64, "A" + "a" * 63),
    ],
)
def test_what_is_no_name_then_is_named_as_it_became(
    service: Service, name: str, normalised: str
) -> None:
    answer = service.create(lock("A|b|1", name))
    assert (answer.status, answer.error) == (400, SYSTEM + normalised)


@pytest.mark.parametrize("name", ["ſharp", "Ñ", "éA", "9", "_a"])
def test_only_ascii_letters_change_their_case_in_a_service_name(
    service: Service, name: str
) -> None:
    answer = service.create(lock(f"A|{name}|1"))
    assert (answer.status, answer.error) == (400, SERVICE + name)


@pytest.mark.parametrize(
    ("text", "instance"),
    [
        ("TemperatureProvider2|kelvinInfo|1.0.0", "TemperatureProvider2|kelvinInfo|1.0.0"),
        ("temperature-provider2|Kelvin_info|1", "TemperatureProvider2|kelvinInfo|1.0.0"),
        (" a | B | 2.1 ", "A|b|2.1.0"),
        ("\ta\n|\r\nb \t|\x00", "A|b|1.0.0"),
    ],
)
def test_each_part_of_an_instance_id_is_normalised(
    service: Service, text: str, instance: str
) -> None:
    assert instance_of(service, text) == instance
    assert service.locks(serviceInstanceIds=[text]).json["count"] == 1


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("a-b", "AB"),
        ("a|B", "A|b"),
        ("|b|1", "|b|1.0.0"),
        (" |b|1", "|b|1.0.0"),
        ("a||1", "A||1.0.0"),
        ("a|\t|1", "A||1.0.0"),
        ("||", "||1.0.0"),
        ("A|b|1.0.0|", "A|b|1.0.0|"),
        ("A|b|1.0.0|x", "A|b|1.0.0|x"),
        ("A/b/1", "A/b/1"),
    ],
)
def test_what_has_not_three_parts_is_no_instance_id(
    service: Service, text: str, normalised: str
) -> None:
    answer = service.create(lock(text))
    assert (answer.status, answer.error) == (400, INSTANCE + normalised)


@pytest.mark.parametrize(
    ("version", "completed"),
    [
        ("", "1.0.0"),
        (" ", "1.0.0"),
        ("2", "2.0.0"),
        ("2.", "2.0.0"),
        ("2.1", "2.1.0"),
        ("2.1.", "2.1.0"),
        ("2.1.3", "2.1.3"),
        (" 2.1.3\t", "2.1.3"),
        ("0", "0.0.0"),
        ("007", "007.0.0"),
        ("12345678.12.34", "12345678.12.34"),
        ("1234567890", "1234567890.0.0"),
    ],
)
@pytest.mark.parametrize("mode", ["extended", "simple"])
def test_a_short_version_is_completed(
    start: Callable[..., Service], mode: str, version: str, completed: str
) -> None:
    service = start(NORMALIZATION_MODE=mode)
    assert instance_of(service, f"A|b|{version}") == f"A|b|{completed}"


TOO_LONG = "version is too long"
SEPARATORS = "version must contain exactly 2 separator . characters"
NUMBERS = "version must contain exactly 3 numbers"
DIGITS = "the version should only contain numbers and separator . characters"


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("123456789.12.34", TOO_LONG),
        ("12345678901", TOO_LONG),
        ("123456789.123", TOO_LONG),
        ("1.2.3.4.5.6.7.8", TOO_LONG),
        ("...............", TOO_LONG),
        ("abcdefghijklmno", TOO_LONG),
        ("1.2.3.4", SEPARATORS),
        ("1.2.3.", SEPARATORS),
        ("a.b.c.d", SEPARATORS),
        (".", SEPARATORS),
        ("...", SEPARATORS),
        ("..", NUMBERS),
        ("a", DIGITS),
        ("1.a", DIGITS),
        ("1.2.x", DIGITS),
        ("..1", DIGITS),
        (".1.", DIGITS),
        ("1..2", DIGITS),
        ("-1.0.0", DIGITS),
        ("1.0.0b1", DIGITS),
        ("1. 0.0", DIGITS),
        ("1.0.٣", DIGITS),
        ("1.0.²", DIGITS),
        ("1,0", DIGITS),
    ],
)
def test_a_bad_version_is_refused(service: Service, version: str, message: str) -> None:
    for answer in (
        service.create(lock(f"A|b|{version}")),
        service.locks(serviceInstanceIds=[f"A|b|{version}"]),
    ):
        assert (answer.status, answer.error) == (400, VERSION + message)


@pytest.mark.parametrize(
    ("name", "taken"),
    [("Owner", True), (" \tOwner\n", True), ("owner", False), ("Own_er", False), ("O r", False)],
)
def test_in_simple_mode_a_name_is_only_stripped(
    start: Callable[..., Service], name: str, taken: bool
) -> None:
    service = start(NORMALIZATION_MODE="simple")
    if taken:
        assert owner_of(service, name) == "Owner"
        assert service.locks(owners=[name]).json["count"] == 1
    else:
        assert service.create(lock("A|b|1", name)).error == SYSTEM + name
        assert service.locks(owners=[name]).error == SYSTEM + name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a|b|1", SYSTEM + "a"),
        ("A|B|1", SERVICE + "B"),
        ("A|b_c|1", SERVICE + "b_c"),
        ("a-b|C", INSTANCE + "a-b|C"),
        (" a ||", INSTANCE + "a||1.0.0"),
    ],
)
def test_in_simple_mode_an_instance_id_keeps_its_names(
    start: Callable[..., Service], text: str, message: str
) -> None:
    answer = start(NORMALIZATION_MODE="simple").create(lock(text))
    assert (answer.status, answer.error) == (400, message)
