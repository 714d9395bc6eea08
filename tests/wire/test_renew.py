"""Renewing locks, and removing only those that one knows."""

from urllib.parse import quote

import pytest
from support import FUTURE, UUID, lock
from wire import LOCK, PAST, put

NAME = "Boiler|heat|1.0.0"
OTHER = "Tank|level|1.0.0"
LATER = "2099-06-01T00:00:00Z"
EARLIER = "2098-06-01T00:00:00Z"


def renewal(instance=NAME, owner="Alice", **end):
    end = end if {"expiresAt", "expiresIn"} & end.keys() else {"expiresAt": LATER, **end}
    return {"serviceInstanceId": instance, "owner": owner, **end}


def renew(service, *locks):
    return service.post("/lock/renew", {"locks": list(locks)})


@pytest.fixture
def held(service):
    """Two locks of Alice's, as they were made."""
    return service.create(lock(NAME, "Alice"), lock(OTHER, "Alice")).entries


@pytest.mark.parametrize("end", [LATER, EARLIER], ids=["later", "earlier"])
def test_a_renewed_lock_has_its_new_end_and_all_else_as_before(service, held, end):
    answer = renew(service, renewal(expiresAt=end))
    assert answer.status == 200
    assert answer.json == {"entries": [{**held[0], "expiresAt": end}], "count": 1}
    assert service.locks(owners=["Alice"]).entries == [held[1], *answer.entries]


def test_entries_come_in_the_order_of_the_request_each_with_its_own_end(service, held):
    answer = renew(service, renewal(OTHER, expiresAt=EARLIER), renewal(" boiler|heat|1 "))
    assert answer.entries == [
        {**held[1], "expiresAt": EARLIER},
        {**held[0], "expiresAt": LATER},
    ]


def test_with_an_id_only_that_very_lock_is_meant(service, held):
    assert renew(service, renewal(id=held[0]["id"])).status == 200
    assert renew(service, renewal(id=str(held[0]["id"]))).status == 200
    refused = renew(service, renewal(id=held[1]["id"]))
    assert (refused.status, refused.error) == (400, f"Not locked by Alice: {NAME}")
    service.remove("Alice", f"instanceIds={quote(NAME)}")
    (again,) = service.create(lock(NAME, "Alice")).entries
    assert renew(service, renewal(id=held[0]["id"])).error == f"Not locked by Alice: {NAME}"
    assert renew(service, renewal(id=again["id"])).entries[0]["id"] == again["id"]


def test_every_instance_that_its_owner_does_not_hold_is_named_owner_by_owner(service, held):
    put(
        service,
        LOCK,
        {
            **lock("Gone|s|1.0.0", "Alice", PAST),
            "id": 8,
            "orchestrationJobId": "",
            "temporary": False,
        },
        {
            **lock("Job|s|1.0.0", "Alice", FUTURE),
            "id": 9,
            "orchestrationJobId": UUID,
            "temporary": True,
        },
    )
    answer = renew(
        service,
        renewal("None|s|1.0.0"),
        renewal(NAME, "Bob"),
        renewal(OTHER),
        renewal("Gone|s|1.0.0"),
        renewal("Nobody|s|1.0.0", "Bob"),
        renewal("Job|s|1.0.0"),
    )
    assert answer.status == 400
    assert answer.error == (
        "Not locked by Alice: None|s|1.0.0, Gone|s|1.0.0, Job|s|1.0.0; "
        f"Not locked by Bob: {NAME}, Nobody|s|1.0.0"
    )
    assert service.locks(ids=[it["id"] for it in held]).entries == held[::-1]


def test_a_lock_that_has_expired_is_not_renewed_even_if_nobody_took_the_instance(start):
    service = start()
    service.clock.freeze()
    service.clock.set("2027-01-15T08:00:00Z")
    service.create({**lock(NAME, "Alice"), "expiresAt": None, "expiresIn": 10})
    service.clock.advance(9.9)
    assert renew(service, renewal(expiresIn=10)).status == 200
    service.clock.advance(11)
    assert renew(service, renewal(expiresIn=10)).error == f"Not locked by Alice: {NAME}"


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (None, "Request payload is null"),
        ({}, "Request payload is empty"),
        ({"locks": []}, "Request payload is empty"),
        ({"locks": [None]}, "Request payload contains null element"),
        ({"locks": [{**renewal(), "serviceInstanceId": " "}]}, "Service instance id is missing"),
        ({"locks": [{**renewal(), "owner": ""}]}, "Owner is missing"),
        ({"locks": [{**renewal(), "expiresAt": None}]}, "Expiration time is missing"),
        ({"locks": [renewal(expiresAt="now")]}, "Invalid expires at format: now"),
        ({"locks": [renewal(expiresAt=PAST)]}, f"Expires at is in the past: {PAST}"),
        ({"locks": [renewal("None|s|1", expiresAt=PAST)]}, f"Expires at is in the past: {PAST}"),
        ({"locks": [renewal(), renewal()]}, f"Duplicated service instance id: {NAME}"),
        (
            {"locks": [renewal(), renewal(owner="Bob")]},
            f"Duplicated service instance id: {NAME}",
        ),
        ({"locks": [renewal(id="x")]}, "id must be an integer"),
        (
            {"locks": [renewal(owner="9")]},
            "The specified system name does not match the naming convention: 9",
        ),
    ],
)
def test_what_is_wrong_is_said_as_for_create_and_nothing_changes(service, held, payload, message):
    answer = service.post("/lock/renew", payload)
    assert (answer.status, answer.error) == (400, message)
    assert service.locks().entries == held[::-1]


def test_many_locks_are_renewed_at_once(service):
    names = [f"P{n}|s|1.0.0" for n in range(1000)]
    service.create(*[lock(it, "Alice") for it in names])
    ends = [renewal(it, expiresAt=f"2099-06-01T00:00:{n % 60:02}Z") for n, it in enumerate(names)]
    answer = renew(service, *ends)
    assert [it["expiresAt"] for it in answer.entries] == [it["expiresAt"] for it in ends]
    assert service.locks().entries == answer.entries[::-1]


@pytest.mark.parametrize("form", ["ids={}", "ids[]={}", "ids=%20{},0", "ids=0&ids={}"])
def test_with_ids_only_locks_with_these_ids_are_removed(service, held, form):
    both = f"instanceIds={quote(NAME)},{quote(OTHER)}"
    assert service.remove("Alice", f"{both}&{form.format(held[0]['id'])}").body == b""
    assert service.locks().entries == [held[1]]
    assert service.remove("Bob", f"{both}&{form.format(held[1]['id'])}").status == 200
    assert service.locks().entries == [held[1]]


def test_a_late_remove_does_not_free_a_later_lock_of_the_same_owner(service, held):
    query = f"instanceIds={quote(NAME)}&ids={held[0]['id']}"
    service.remove("Alice", query)
    (again,) = service.create(lock(NAME, "Alice")).entries
    assert service.remove("Alice", query).status == 200
    assert again in service.locks().entries


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("ids=1,", "ID list contains empty element"),
        ("ids=x", "an element of ids must be an integer"),
        ("ids=1.5", "an element of ids must be an integer"),
        (f"ids={2**63}", f"an element of ids must be from {-(2**63)} to {2**63 - 1}"),
    ],
)
def test_bad_ids_are_refused_and_nothing_is_removed(service, held, query, message):
    answer = service.remove("Alice", f"instanceIds={quote(NAME)}&{query}")
    assert (answer.status, answer.error) == (400, message)
    assert service.locks().entries == held[::-1]


def test_ids_without_a_value_do_not_filter_as_anywhere(service, held):
    assert service.remove("Alice", f"instanceIds={quote(NAME)}&ids=").status == 200
    assert service.locks().entries == [held[1]]
    assert service.remove("Alice", "ids=1").error == "Service instance id list empty"


def test_an_attempt_to_renew_is_audited(service, held, caplog):
    caplog.set_level("INFO", "orchmgmt.audit")
    renew(service, renewal())
    renew(service, renewal(owner="Bob"))
    service.remove("Alice", f"instanceIds={quote(NAME)}&ids={held[0]['id']}")
    done, refused, removed = (record.fields for record in caplog.records)
    assert done["operation"] == refused["operation"] == "lock.renew"
    assert (done["result"], done["ids"], done["owners"]) == ("done", [held[0]["id"]], ["Alice"])
    assert (refused["result"], refused["reason"]) == ("refused", f"Not locked by Bob: {NAME}")
    assert (removed["ids"], removed["removed"]) == ([held[0]["id"]], 1)
