"""The policy `certificate`: a trusted proxy hands on the client certificate that it verified."""

import base64
import http.client
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from certificates import CLOUD, DAY, DOMAIN, NOW, Authority, Issued, subject
from cryptography import x509
from cryptography.x509.oid import NameOID
from support import MANAGEMENT, Answer, Service
from wire import raw

from orchmgmt.app import create_app
from orchmgmt.settings import SettingError

pytestmark = pytest.mark.sqlite

ECHO = "/serviceorchestration/monitor/echo"
HEADER = "X-Client-Certificate"
NONE = "No client certificate has been provided"
INVALID = "Invalid client certificate"
UNTRUSTED = "A client certificate is only taken from a trusted proxy"
EXPIRED = "The client certificate has expired or is not valid yet"
OTHER_CLOUD = "The client certificate is not of this cloud"
NO_PROFILE = "The client certificate is neither a system's nor an operator's"
NO_NAME = "The client certificate does not name a system"

POLICY = {
    "AUTHENTICATION_POLICY": "certificate",
    "CLOUD": CLOUD,
    "DATABASE_URL": "sqlite:///:memory:",
}

Start = Callable[..., Service]


@pytest.fixture
def begin(start: Start) -> Start:
    return lambda **settings: start(**{**POLICY, **settings})


def send(service: Service, value: str | None, path: str = ECHO, **headers: str) -> Answer:
    if value is not None:
        headers[HEADER] = value
    return service.send("GET" if path == ECHO else "POST", path, headers=headers)


def query(service: Service, value: str) -> Answer:
    return send(service, value, f"{MANAGEMENT}/lock/query")


def rfc_9440(issued: Issued) -> str:
    return f":{base64.b64encode(issued.der).decode()}:"


@pytest.mark.parametrize("write", [lambda it: it.escaped, rfc_9440], ids=["nginx", "rfc9440"])
def test_the_certificate_names_the_system_and_op_makes_the_operator(
    begin: Start, authority: Authority, write: Callable[[Issued], str]
) -> None:
    service = begin(MANAGEMENT_POLICY="whitelist", MANAGEMENT_WHITELIST="TemperatureManager")
    assert query(service, write(authority.operator("carol"))).status == 200
    assert query(service, write(authority.system("temperature-manager"))).status == 200
    assert send(service, write(authority.system("bob"))).body == b"Got it!"
    assert query(service, write(authority.system("bob"))).status == 403
    # The name Sysop means nothing here.
    assert query(service, write(authority.system("sysop"))).status == 403


def test_an_authorization_header_is_no_certificate(begin: Start) -> None:
    service = begin()
    for header in ({}, {"Authorization": "Bearer SYSTEM//Sysop"}):
        answer = service.send("GET", ECHO, headers=header)
        assert (answer.status, answer.error) == (401, NONE)


def test_an_authorization_header_beside_a_certificate_changes_nothing(
    begin: Start, authority: Authority
) -> None:
    sysop = {"Authorization": "Bearer SYSTEM//Sysop"}
    value = authority.system().escaped
    assert send(begin(), value, f"{MANAGEMENT}/lock/query", **sysop).status == 403


# Whom the header is believed from.


def from_address(service: Service, address: str, headers: dict[str, str]) -> Answer:
    to = urlsplit(service.url)
    connection = http.client.HTTPConnection(
        str(to.hostname), to.port, timeout=30, source_address=(address, 0)
    )
    try:
        connection.request("GET", ECHO, headers=headers)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read(), f"GET {ECHO}")
    finally:
        connection.close()


@pytest.mark.parametrize("name", [HEADER, HEADER.lower(), HEADER.upper()])
def test_a_header_from_elsewhere_is_refused(begin: Start, authority: Authority, name: str) -> None:
    service = begin(TRUSTED_PROXIES="127.0.0.1,10.0.0.0/8")
    value = authority.operator().escaped
    assert from_address(service, "127.0.0.1", {name: value}).status == 200
    for spoof in (value, "", "x"):
        answer = from_address(service, "127.0.0.2", {name: spoof})
        assert (answer.status, answer.error) == (401, UNTRUSTED)
    # What the peer says of itself is no address.
    for spoof_name in ("X-Forwarded-For", "X-Real-IP", "Forwarded"):
        spoofed = {name: value, spoof_name: "127.0.0.1"}
        assert from_address(service, "127.0.0.2", spoofed).error == UNTRUSTED
    assert from_address(service, "127.0.0.2", {}).error == NONE


def test_nobody_is_a_trusted_proxy_where_none_is_set(begin: Start, authority: Authority) -> None:
    assert send(begin(TRUSTED_PROXIES=""), authority.operator().escaped).error == UNTRUSTED


def test_the_headers_name_is_a_setting(begin: Start, authority: Authority) -> None:
    service = begin(CLIENT_CERTIFICATE_HEADER="Client-Cert")
    value = rfc_9440(authority.operator())
    assert service.send("GET", ECHO, headers={"Client-Cert": value}).status == 200
    assert send(service, value).error == NONE


@pytest.mark.parametrize(
    "name", ["X_Client_Certificate", "X-Client_Certificate", "X-Client-Certificate\t"]
)
def test_a_header_that_only_looks_like_it_counts_for_nothing(
    start_server: Start, authority: Authority, name: str
) -> None:
    request = f"GET {ECHO} HTTP/1.1\r\n{name}: {authority.operator().escaped}\r\n\r\n"
    answer = raw(start_server(**POLICY), request.encode())
    assert (answer.status, answer.body[:1]) in ((401, b"{"), (400, b"{"))


def test_a_header_that_is_there_twice_is_refused(start_server: Start, authority: Authority) -> None:
    service = start_server(**POLICY)
    system, operator = authority.system().escaped, authority.operator().escaped
    for first, second in [
        (system, operator),
        (operator, operator),
        (operator, ""),
        ("", operator),
        (rfc_9440(authority.operator()), operator),
    ]:
        lines = f"{HEADER}: {first}\r\n{HEADER.lower()}: {second}\r\n"
        answer = raw(service, f"GET {ECHO} HTTP/1.1\r\n{lines}\r\n".encode())
        assert (answer.status, answer.error) == (401, INVALID)


# What is in the header.


def bad_values(authority: Authority) -> dict[str, str]:
    good = authority.operator()
    other = authority.system()
    encoded = base64.b64encode(good.der).decode()
    return {
        "words": "CN=carol",
        "dn": f"CN=carol.{DOMAIN},dnQualifier=op",
        "empty base64": "::",
        "one colon": f":{encoded}",
        "bare base64": encoded,
        "base64 with a space": f":{encoded[:20]} {encoded[20:]}:",
        "base64 with parameters": f":{encoded}:;a=b",
        "base64 of something else": f":{base64.b64encode(b'certificate').decode()}:",
        "cut off": f":{base64.b64encode(good.der[:-1]).decode()}:",
        "something after it": f":{base64.b64encode(good.der + b'x').decode()}:",
        "two in one": f":{base64.b64encode(good.der + other.der).decode()}:",
        "two in a chain": quote(good.pem + other.pem, safe=""),
        "two as a list": f"{rfc_9440(good)}, {rfc_9440(other)}",
        "text before it": quote("x\n" + good.pem, safe=""),
        "text after it": quote(good.pem + "x", safe=""),
        "not escaped": good.pem.replace("\n", " "),
        "tabs as nginx once sent them": good.pem.strip().replace("\n", "\t"),
        "escaped twice": quote(good.escaped, safe=""),
        "a NUL": good.escaped + "%00",
        "a key": quote("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", safe=""),
        "base64 that is none": good.escaped.replace("MII", "M=I", 1),
        "not UTF-8": "%ff%fe",
        "(null)": "(null)",
    }


def test_anything_but_exactly_one_certificate_is_refused(
    begin: Start, authority: Authority
) -> None:
    service = begin()
    for case, value in bad_values(authority).items():
        answer = send(service, value)
        assert (answer.status, answer.error) == (401, INVALID), case


def test_bytes_that_are_almost_a_certificate_are_refused_and_crash_nothing(
    begin: Start, authority: Authority
) -> None:
    service = begin()
    der = authority.operator().der
    for position in range(0, len(der), 7):
        for bit in (0x01, 0x80):
            broken = bytearray(der)
            broken[position] ^= bit
            value = f":{base64.b64encode(broken).decode()}:"
            # The signature is the proxy's to verify; what is left is a certificate or is none.
            assert send(service, value).status in (200, 401, 403)


def test_lines_may_end_as_windows_writes_them(begin: Start, authority: Authority) -> None:
    value = quote(authority.operator().pem.replace("\n", "\r\n"), safe="")
    assert send(begin(), value).status == 200


HOUR = timedelta(hours=1)


@pytest.mark.parametrize(("starts", "ends"), [(NOW - 2 * DAY, NOW - HOUR), (NOW + HOUR, NOW + DAY)])
def test_a_certificate_that_is_not_valid_now_is_refused(
    begin: Start, authority: Authority, starts: Any, ends: Any
) -> None:
    name = subject(f"carol.{DOMAIN}", qualifiers=("op",))
    issued = authority.issue(name, starts=starts, ends=ends)
    answer = send(begin(), issued.escaped)
    assert (answer.status, answer.error) == (401, EXPIRED)


@pytest.mark.parametrize(
    ("configured", "certified"),
    [
        ("Testcloud.Company", "testcloud.company"),
        ("test-cloud.my-company", "TestCloud.MyCompany"),
        ("TestCloud.MyCompany", "test_cloud.my--company"),
        ("testcloud.company", "Testcloud.company"),
    ],
)
def test_cloud_and_organisation_are_compared_as_names_are(
    begin: Start, authority: Authority, configured: str, certified: str
) -> None:
    name = subject(f"carol.{certified}.arrowhead.eu", qualifiers=("op",))
    service = begin(CLOUD=configured)
    assert send(service, authority.issue(name).escaped).status == 200
    other = subject("carol.testCloud2.company.arrowhead.eu", qualifiers=("op",))
    assert send(service, authority.issue(other).escaped).error == OTHER_CLOUD


PROFILES = {
    "other cloud": (subject("a.other.company.arrowhead.eu", qualifiers=("op",)), OTHER_CLOUD),
    "other company": (subject("a.testcloud.other.arrowhead.eu", qualifiers=("op",)), OTHER_CLOUD),
    "other domain": (subject(f"a.{CLOUD}.arrowhead.com", qualifiers=("op",)), OTHER_CLOUD),
    "domain in capitals": (subject(f"a.{DOMAIN.upper()}", qualifiers=("op",)), OTHER_CLOUD),
    "two labels more": (subject(f"a.b.{DOMAIN}", qualifiers=("op",)), OTHER_CLOUD),
    "four labels": (subject(DOMAIN, qualifiers=("op",)), OTHER_CLOUD),
    "three labels": (subject("company.arrowhead.eu", qualifiers=("op",)), OTHER_CLOUD),
    "one label": (subject("Sysop", qualifiers=("op",)), OTHER_CLOUD),
    "dot at the end": (subject(f"a.{DOMAIN}.", qualifiers=("op",)), OTHER_CLOUD),
    "NUL at the end": (subject(f"a.{DOMAIN}\0", qualifiers=("op",)), OTHER_CLOUD),
    "cloud in the name": (subject(f"{DOMAIN}.x", qualifiers=("op",)), OTHER_CLOUD),
    "no common name": (subject(qualifiers=("op",)), OTHER_CLOUD),
    "two common names": (subject(f"a.{DOMAIN}", f"b.{DOMAIN}", qualifiers=("op",)), OTHER_CLOUD),
    "halves of a name": (subject("a.", DOMAIN, qualifiers=("op",)), OTHER_CLOUD),
    "empty label": (subject(f".{DOMAIN}", qualifiers=("op",)), NO_NAME),
    "digit first": (subject(f"9a.{DOMAIN}", qualifiers=("op",)), NO_NAME),
    "wildcard": (subject(f"*.{DOMAIN}", qualifiers=("op",)), NO_NAME),
    "long s": (subject(f"ſysop.{DOMAIN}", qualifiers=("op",)), NO_NAME),
    "no qualifier": (subject(f"a.{DOMAIN}"), NO_PROFILE),
    "qualifier of a cloud": (subject(f"a.{DOMAIN}", qualifiers=("lo",)), NO_PROFILE),
    "qualifier in capitals": (subject(f"a.{DOMAIN}", qualifiers=("OP",)), NO_PROFILE),
    "qualifier with a space": (subject(f"a.{DOMAIN}", qualifiers=("op ",)), NO_PROFILE),
    "two qualifiers": (subject(f"a.{DOMAIN}", qualifiers=("sy", "op")), NO_PROFILE),
    "the same twice": (subject(f"a.{DOMAIN}", qualifiers=("op", "op")), NO_PROFILE),
}


@pytest.mark.parametrize("case", PROFILES)
def test_other_profiles_names_and_clouds_are_forbidden(
    begin: Start, authority: Authority, case: str
) -> None:
    name, message = PROFILES[case]
    answer = send(begin(), authority.issue(name).escaped)
    assert (answer.status, answer.error) == (403, message)


def test_two_qualifiers_in_one_part_of_the_name_are_two(begin: Start, authority: Authority) -> None:
    parts = [
        x509.RelativeDistinguishedName([x509.NameAttribute(NameOID.COMMON_NAME, f"a.{DOMAIN}")]),
        x509.RelativeDistinguishedName(
            [x509.NameAttribute(NameOID.DN_QUALIFIER, it) for it in ("sy", "op")]
        ),
    ]
    assert send(begin(), authority.issue(x509.Name(parts)).escaped).error == NO_PROFILE


def test_the_name_is_normalised_as_everywhere(begin: Start, authority: Authority) -> None:
    settings = {"MANAGEMENT_POLICY": "whitelist", "MANAGEMENT_WHITELIST": "TemperatureManager"}
    names = {"temperature-manager": 200, "Temperature_manager": 200, "temperaturemanager": 403}
    service = begin(**settings)
    for name, status in names.items():
        assert query(service, authority.system(name).escaped).status == status
    simple = begin(**settings, NORMALIZATION_MODE="simple")
    assert send(simple, authority.system("temperature-manager").escaped).error == NO_NAME
    assert query(simple, authority.system("TemperatureManager").escaped).status == 200


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"CLOUD": ""}, "the policy `certificate` needs ORCHMGMT_CLOUD"),
        ({"CLOUD": "testcloud"}, "ORCHMGMT_CLOUD must be <cloud>.<organisation>"),
        ({"CLOUD": DOMAIN}, "ORCHMGMT_CLOUD must be <cloud>.<organisation>"),
        ({"CLOUD": ".company"}, "ORCHMGMT_CLOUD must be <cloud>.<organisation>"),
        ({"CLIENT_CERTIFICATE_HEADER": "X Cert"}, "ORCHMGMT_CLIENT_CERTIFICATE_HEADER must be"),
        ({"CLIENT_CERTIFICATE_HEADER": "X_Cert"}, "ORCHMGMT_CLIENT_CERTIFICATE_HEADER must be"),
        ({"TRUSTED_PROXIES": "localhost"}, "ORCHMGMT_TRUSTED_PROXIES: 'localhost' does not"),
        (
            {"MANAGEMENT_POLICY": "authorization", "AUTHORIZATION_URL": "https://host/"},
            "the policy `authorization` needs ORCHMGMT_CERTIFICATE_FILE",
        ),
    ],
)
def test_a_setting_that_is_missing_or_wrong_stops_the_start(
    settings: dict[str, str], says: str
) -> None:
    with pytest.raises(SettingError, match=says.replace("<", "[<]")):
        create_app({**POLICY, **settings})
