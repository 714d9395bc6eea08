"""A program that takes a lock again and again, and tells what it believes meanwhile.

Usage: holder.py URL OWNER LEASE RESOURCE DIARY
"""

import fcntl
import os
import random
import sys
import time

from orchmgmt.client import Client, LockLost, Refused, Unavailable
from orchmgmt.client.holding import present

INSTANCE = "Boiler|heat|1.0.0"


def write(resource, fence):
    """Write the fence to what the lock protects, which refuses one smaller than the last."""
    with open(resource, "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        last = int(file.read() or 0)
        if fence >= last:
            file.seek(0)
            file.write(str(fence))
            return True
    return False


def work(held, lease, resource, tell):
    """Use the lock for a while, as long as it is held for sure."""
    end = present() + random.uniform(0, 2 * lease)
    tell("held", held.fence, present())
    try:
        while (now := present()) < end:
            held.check()
            tell("believes", held.fence, now)
            if not write(resource, held.fence):
                tell("late", held.fence, now)
            time.sleep(0.01)
    except LockLost as loss:
        tell("lost", held.fence, present(), str(loss))


def main(url, owner, lease, resource, diary):
    number = os.open(diary, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def tell(*words):
        os.write(number, ("\t".join(map(str, words)) + "\n").encode())  # one write is never torn

    with Client(url, name="Sysop", timeout=2) as client:
        while True:
            try:
                with client.hold(INSTANCE, owner=owner, lease=lease, wait=None) as held:
                    work(held, lease, resource, tell)
            except (Refused, Unavailable) as failure:
                tell("failure", 0, present(), repr(failure))
            time.sleep(random.uniform(0, 0.2))


if __name__ == "__main__":
    url, owner, lease, resource, diary = sys.argv[1:]
    main(url, owner, int(lease), resource, diary)
