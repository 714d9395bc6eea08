"""Nine programs hold one instance in turn at three servers, while all of them are shot at.

FIRE_SECONDS=600 makes it last longer; with `-s` it prints its figures.
"""

import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from support import FAKETIME, until

SECONDS = float(os.environ.get("FIRE_SECONDS", "10"))
LEASE = 2  # s
HOLDERS = 9
LOST_ANSWERS = 0.05  # of all connections' answers
APART = (0, 45, -3600)  # s
HOLDER = Path(__file__).with_name("holder.py")


class Balancer:
    """Leads each connection to one of the servers that listen, and loses some of their answers."""

    def __init__(self, ports):
        self.ports = ports
        self.lost = 0
        self.losing = True
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self):
        with suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                threading.Thread(target=self._lead, args=(client,), daemon=True).start()

    def _lead(self, client):
        with client:
            for port in random.sample(self.ports, len(self.ports)):
                with suppress(OSError), socket.create_connection(("127.0.0.1", port)) as server:
                    back = threading.Thread(target=self._answer, args=(server, client), daemon=True)
                    back.start()
                    self._pump(client, server)
                    back.join()
                    return

    def _pump(self, source, target):
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def _answer(self, server, client):
        with suppress(OSError):
            while data := server.recv(65536):
                if self.losing and random.random() < LOST_ANSWERS:
                    self.lost += 1
                    break
                client.sendall(data)
        for it in (client, server):
            with suppress(OSError):
                it.shutdown(socket.SHUT_RDWR)

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()


class Battle:
    """The servers and the holders, and what is done to them."""

    def __init__(self, serve, new_clock, database_url, folder):
        self._serve, self._folder, self._url = serve, folder, database_url
        # With SQLite all servers are on one machine, whose clock is the one that decides.
        apart = FAKETIME and database_url.startswith("postgresql")
        self._clocks = [new_clock(it).env if apart else {} for it in APART]
        self.ports = [free_port() for _ in APART]
        self.servers = [self.start_server(it) for it in range(len(APART))]
        self.balancer = Balancer(self.ports)
        self.resource = folder / "resource"
        self.resource.write_text("0")
        self.diaries = [folder / f"diary-{it}" for it in range(HOLDERS)]
        self.errors = (folder / "errors").open("w")
        self.holders = [self.start_holder(it) for it in range(HOLDERS)]
        self.done = Counter()

    def start_server(self, number):
        options = ("--port", str(self.ports[number]), "--database-url", self._url)
        return self._serve(*options, env=self._clocks[number]).process

    def start_holder(self, number):
        own = (self.balancer.url, f"Holder{number}", str(LEASE), self.resource)
        return subprocess.Popen(
            [sys.executable, HOLDER, *own, self.diaries[number]], stderr=self.errors
        )

    def freeze(self, process):
        process.send_signal(signal.SIGSTOP)
        time.sleep(random.choice([0.3, LEASE + 1.5, LEASE + 1.5]))
        process.send_signal(signal.SIGCONT)

    def shoot(self):
        """Do one thing to one of them; to the holders mostly when they hold."""
        what = random.choice(["freeze server", "kill server", "freeze holder", "kill holder"])
        self.done[what] += 1
        number = random.randrange(len(APART))
        if what == "freeze server":
            self.freeze(self.servers[number])
        if what == "kill server":
            self.servers[number].kill()
            self.servers[number].wait(60)
            self.servers[number] = self.start_server(number)
        number = max(range(HOLDERS), key=lambda it: changed(self.diaries[it]))
        if what == "freeze holder":
            self.freeze(self.holders[number])
        if what == "kill holder":
            self.holders[number].kill()
            self.holders[number].wait(60)
            self.holders[number] = self.start_holder(number)

    def end(self):
        for process in self.holders:
            process.kill()
            process.wait(60)
        self.balancer.close()
        self.errors.close()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def changed(path):
    return path.stat().st_mtime_ns if path.exists() else 0


def read(diaries):
    """What the holders have told: `(holder, what, fence, moment, reason)`, in order of time."""
    told = []
    for number, diary in enumerate(diaries):
        for line in diary.read_text().splitlines() if diary.exists() else []:
            what, fence, moment, *reason = line.split("\t")
            told.append((number, what, int(fence), float(moment), "".join(reason)))
    return sorted(told, key=lambda it: it[3])


def beliefs(told):
    """For each hold: when its holder believed first and last that it holds; its fence."""
    found = {}
    for number, what, fence, moment, _ in told:
        if what in ("held", "believes"):
            first, _ = found.get((number, fence), (moment, moment))
            found[number, fence] = (first, moment)
    return sorted((first, last, fence) for (_, fence), (first, last) in found.items())


def test_never_two_hold_and_no_fence_goes_down(serve, new_clock, database_url, tmp_path):
    battle = Battle(serve, new_clock, database_url, tmp_path)
    try:
        until(lambda: len(beliefs(read(battle.diaries))) > 2)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            battle.shoot()
            time.sleep(random.uniform(0, 0.5))
        battle.balancer.losing = False
        before = len(beliefs(read(battle.diaries)))
        until(lambda: len(beliefs(read(battle.diaries))) > before + 1)  # they go on afterwards
    finally:
        battle.end()
    told = read(battle.diaries)
    holds = beliefs(told)
    said = Counter(what for _, what, *_ in told)
    lost = Counter(why.partition(":")[0] for _, what, _, _, why in told if what == "lost")
    print(
        f"\n{SECONDS:g} s at {database_url.partition(':')[0]}: {len(holds)} holds by "
        f"{len({it[0] for it in told})} holders, {said['believes']} writes, {said['late']} of them "
        f"refused as late; {dict(battle.done)}, {battle.balancer.lost} answers lost; "
        f"lost locks: {dict(lost)}; {said['failure']} failures"
    )
    for (_, last, fence), (first, _, next_fence) in itertools.pairwise(holds):
        assert last < first, "two believed to hold at one moment"
        assert fence < next_fence, "an id went down"
    # The service says so only if somebody has freed or taken the lock, or it has ended too early.
    assert not [why for *_, why in told if "refuses" in why]
    assert int(battle.resource.read_text()) <= holds[-1][2]
    assert (tmp_path / "errors").read_text() == ""
    assert not said["failure"], [why for _, what, _, _, why in told if what == "failure"]
