"""Random sequences of operations, held to a model in plain Python."""

import itertools

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from support import lock
from wire import LOCK_LISTS, LOCK_SORT_FIELDS, expected

from orchmgmt.entries import write_time
from orchmgmt.errors import InvalidParameter, NotFound

INSTANCES = [f"P{n}|s|1.0.0" for n in range(5)]
OWNERS = ["Alice", "Bob"]

instances = st.sampled_from(INSTANCES)
owners = st.sampled_from(OWNERS)
seconds = st.integers(1, 6)
some_instances = st.lists(instances, min_size=1, max_size=4)


class Locks(RuleBasedStateMachine):
    """What the service says after each step is what the model says."""

    service = None  # set by the test

    def __init__(self):
        super().__init__()
        for table in ("orchestration_lock", "orchestration_job"):
            store = self.service.store
            store.database.write(store.database.change, f"DELETE FROM {table}")
        self.locks = {}  # by instance: the entries, expired ones too, until they are replaced
        self.jobs = []
        self.seen_ids = set()

    def after(self, seconds):
        return write_time(self.service.clock.after(seconds))

    def active(self):
        return [it for it in self.locks.values() if it["expiresAt"] > self.after(0)]

    def held(self, wanted):
        active = {it["serviceInstanceId"] for it in self.active()}
        return [it for it in wanted if it in active]

    def keep(self, entry):
        assert entry["id"] > max(self.seen_ids, default=0)
        self.seen_ids.add(entry["id"])
        self.locks[entry["serviceInstanceId"]] = entry

    @rule(wanted=some_instances, owner=owners, seconds=seconds)
    def create(self, wanted, owner, seconds):
        expires = self.after(seconds)
        answer = self.service.create(*[lock(it, owner, expires) for it in wanted])
        repeated = [it for n, it in enumerate(wanted) if it in wanted[:n]]
        held = self.held(wanted)
        if repeated:
            assert answer.error == f"Duplicated service instance id: {repeated[0]}"
        elif held:
            assert answer.error == f"Already locked: {', '.join(held)}"
        else:
            assert [
                {key: value for key, value in entry.items() if key != "id"}
                for entry in answer.entries
            ] == [
                {
                    "orchestrationJobId": "",
                    "serviceInstanceId": instance,
                    "owner": owner,
                    "expiresAt": expires,
                    "temporary": False,
                }
                for instance in wanted
            ]
            for entry in sorted(answer.entries, key=lambda it: it["id"]):
                self.keep(entry)

    @rule(wanted=some_instances, owner=owners, seconds=seconds)
    def renew(self, wanted, owner, seconds):
        end = self.after(seconds)
        payload = {"locks": [lock(it, owner, end) for it in wanted]}
        answer = self.service.post("/lock/renew", payload)
        repeated = [it for n, it in enumerate(wanted) if it in wanted[:n]]
        its = {
            it["serviceInstanceId"]
            for it in self.active()
            if it["owner"] == owner and not it["temporary"]
        }
        missing = [it for it in wanted if it not in its]
        if repeated:
            assert answer.error == f"Duplicated service instance id: {repeated[0]}"
        elif missing:
            assert answer.error == f"Not locked by {owner}: {', '.join(missing)}"
        else:
            for instance in wanted:
                self.locks[instance] = {**self.locks[instance], "expiresAt": end}
            assert answer.entries == [self.locks[it] for it in wanted]

    @rule(wanted=some_instances, owner=owners)
    def remove(self, wanted, owner):
        query = "&".join(f"instanceIds={it.replace('|', '%7C')}" for it in wanted)
        assert self.service.remove(owner, query).status == 200
        for instance in set(wanted) & set(self.locks):
            found = self.locks[instance]
            if found["owner"] == owner and not found["temporary"]:
                del self.locks[instance]

    @rule(instance=instances, owner=owners, seconds=seconds)
    def reserve(self, instance, owner, seconds):
        history, locks = self.service.store.history, self.service.store.locks
        job = history.create("PULL", owner, owner, "kelvinInfo")
        expires = self.after(seconds)
        if self.held([instance]):
            with pytest.raises(InvalidParameter, match="Already locked"):
                locks.reserve(job, instance, owner, expires)
            return
        number = locks.reserve(job, instance, owner, expires).id
        self.jobs.append(job)
        self.keep(
            {
                "id": number,
                "orchestrationJobId": job,
                "serviceInstanceId": instance,
                "owner": owner,
                "expiresAt": expires,
                "temporary": True,
            }
        )

    @rule(data=st.data())
    def release(self, data):
        if self.jobs:
            job = data.draw(st.sampled_from(self.jobs))
            self.service.store.locks.release(job)
            self.locks = {
                instance: it
                for instance, it in self.locks.items()
                if it["orchestrationJobId"] != job
            }

    @rule(instance=instances)
    def reserve_for_nobody(self, instance):
        job = "00000000-0000-4000-8000-000000000000"
        with pytest.raises(NotFound):
            self.service.store.locks.reserve(job, instance, "Alice", self.after(9))

    @rule(seconds=st.integers(1, 4))
    def time_passes(self, seconds):
        self.service.clock.advance(seconds)

    @rule()
    def the_clock_is_set_back(self):
        self.service.clock.advance(-3)

    @rule()
    def clean(self):
        expired = len(self.locks) - len(self.active())
        deleted, _ = self.service.store.clean()
        # Of those that expired, a create may have cleared some already, to no effect for anybody.
        assert deleted <= expired
        self.locks = {it["serviceInstanceId"]: it for it in self.active()}

    @rule(data=st.data())
    def query(self, data):
        ids = [it["id"] for it in self.locks.values()] + [0]
        query = data.draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "ids": st.lists(st.sampled_from(ids), max_size=3),
                    "owners": st.lists(owners, max_size=2),
                    "serviceInstanceIds": st.lists(instances, max_size=3),
                    "orchestrationJobIds": st.lists(
                        st.sampled_from([*self.jobs, "00000000-0000-4000-8000-000000000000"]),
                        max_size=2,
                    ),
                    "expiresBefore": seconds.map(self.after),
                    "expiresAfter": seconds.map(self.after),
                    "pagination": st.fixed_dictionaries(
                        {"page": st.integers(0, 2), "size": st.integers(1, 3)},
                        optional={
                            "sortField": st.sampled_from(LOCK_SORT_FIELDS),
                            "direction": st.sampled_from(["ASC", "DESC"]),
                        },
                    ),
                },
            )
        )
        assert self.service.locks(**query).json == expected(self.active(), query, LOCK_LISTS, "id")

    @invariant()
    def each_instance_has_at_most_one_active_lock_and_all_are_listed(self):
        found = self.service.locks().json
        assert found == expected(self.active(), {}, {}, "id")
        names = sorted(it["serviceInstanceId"] for it in found["entries"])
        assert all(one != other for one, other in itertools.pairwise(names))


def test_any_sequence_of_operations_does_what_the_model_does(start):
    service = start()
    service.clock.freeze()
    service.clock.set("2027-01-15T08:00:00Z")

    class OnThis(Locks):
        pass

    OnThis.service = service
    # The same sequences each time: a test that fails does so for everybody.
    steps = settings(
        derandomize=True,
        database=None,
        deadline=None,
        max_examples=25,
        stateful_step_count=40,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(OnThis, settings=steps)
