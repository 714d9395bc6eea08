"""Make the example database: the locks and the history of a small building.

Usage: make_example.py FILE

The same every time, so that the README and docs/ can show what the service answers on it.
"""

import random
import sqlite3
import sys
from contextlib import closing
from datetime import datetime, timedelta
from itertools import product
from pathlib import Path
from urllib.parse import quote
from uuid import UUID

from orchmgmt.models import DONE, ERROR, IN_PROGRESS, PENDING, PULL, PUSH, NewLock
from orchmgmt.settings import Settings
from orchmgmt.store import Store
from orchmgmt.values import write_instant

CONSUMERS = (
    "BoilerControl", "ChillerControl", "CorridorDisplay", "EnergyDashboard", "FireWarden",
    "LiftDispatcher", "NightSetback", "RoomClimate", "SolarScheduler", "VentilationPlanner",
)  # fmt: skip
PROVIDERS = {
    "temperatureReading": ("AtriumThermometer", "BasementThermometer", "RoofThermometer"),
    "humidityReading": ("AtriumHygrometer", "ArchiveHygrometer"),
    "airQualityReading": ("CanteenAirSensor", "MeetingRoomAirSensor"),
    "valveControl": ("HeatingValve1", "HeatingValve2", "CoolingValve1"),
    "blindControl": ("SouthFacadeBlinds", "WestFacadeBlinds"),
    "liftCall": ("GoodsLift", "PassengerLift1", "PassengerLift2"),
    "powerMetering": ("MainMeter", "SolarMeter"),
    "alarmNotification": ("SmokeDetectorBus", "DoorContactBus"),
}
FAILURES = (
    "No provider is available",
    "Every matching provider is locked",
    "The provider has no interface that the requester accepts",
    "The authorization system did not answer",
)
FIRST_DAY = datetime(2026, 11, 1, 6)
FAR_FUTURE = datetime(2099, 1, 1)
JOBS = 400
LOCKS = 42
TEMPORARY_LOCKS = 8


def make(path: Path) -> None:
    chance = random.Random("a small building")
    jobs = [job(chance, number) for number in range(JOBS)]
    with Store(Settings(database_url=f"sqlite:///{quote(str(path.absolute()))}")) as store:
        store.database.write(store.job_table.put, jobs)
        store.database.write(store.lock_table.put, locks(chance, jobs))
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        # One file without a write-ahead log beside it, as small as it can be.
        database.execute("PRAGMA journal_mode = DELETE")
        database.execute("VACUUM")


def job(chance: random.Random, number: int) -> dict[str, str]:
    """One job; the last ones are still under way."""
    created = FIRST_DAY + timedelta(minutes=47 * number, seconds=chance.randrange(600))
    left = JOBS - number
    status = PENDING if left <= 6 else IN_PROGRESS if left <= 16 else DONE
    if status == DONE and chance.random() < 0.12:
        status = ERROR
    started = created + timedelta(seconds=chance.randrange(1, 20))
    finished = started + timedelta(seconds=chance.randrange(1, 40))
    requester = chance.choice(CONSUMERS)
    service = chance.choice(list(PROVIDERS))
    push = chance.random() < 0.35
    message = {DONE: "", ERROR: chance.choice(FAILURES)}.get(status, "")
    if status == DONE and chance.random() < 0.3:
        message = f"{chance.choice(PROVIDERS[service])} was chosen"
    return {
        "id": identifier(chance),
        "status": status,
        "type": PUSH if push else PULL,
        "requester_system": requester,
        "target_system": chance.choice(CONSUMERS) if push else requester,
        "service_definition": service,
        "subscription_id": identifier(chance) if push else "",
        "message": message,
        "created_at": write_instant(created),
        "started_at": "" if status == PENDING else write_instant(started),
        "finished_at": write_instant(finished) if status in (DONE, ERROR) else "",
    }


def locks(chance: random.Random, jobs: list[dict[str, str]]) -> list[NewLock]:
    """Locks of operators, and the temporary ones of jobs that are under way."""
    instances = [
        f"{provider}|{service}|{version}"
        for (service, providers), version in product(PROVIDERS.items(), ("1.0.0", "1.1.0", "2.0.0"))
        for provider in providers
    ]
    held = chance.sample(instances, LOCKS)
    under_way = [it for it in jobs if it["status"] == IN_PROGRESS]
    return [
        NewLock(under_way[number]["id"], instance, under_way[number]["requester_system"],
                write_instant(FAR_FUTURE), True)
        if number < TEMPORARY_LOCKS
        else NewLock("", instance, chance.choice(CONSUMERS),
                     write_instant(FAR_FUTURE + timedelta(days=number)))
        for number, instance in enumerate(held)
    ]  # fmt: skip


def identifier(chance: random.Random) -> str:
    return str(UUID(int=chance.getrandbits(128), version=4))


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.unlink(missing_ok=True)
    make(target)
