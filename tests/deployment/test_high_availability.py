"""Two PostgreSQL servers under Patroni: what was acknowledged outlives the primary."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from needs import lacking

pytestmark = pytest.mark.postgresql

SCRIPT = Path(__file__).parents[2] / "bench" / "availability.py"


@pytest.mark.parametrize(
    ("through", "event"), [("hosts", "PostgreSQL killed"), ("haproxy", "switch-over")]
)
def test_nothing_acknowledged_is_lost_with_the_primary(through, event):
    spec = importlib.util.spec_from_file_location("availability", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if reason := module.missing():
        lacking(reason)
    command = [sys.executable, SCRIPT, "--through", through, "--only", event]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    name, acknowledged, *bad = [it.strip() for it in shown.stdout.splitlines()[2].split("|")[1:6]]
    assert (name, bad) == (event, ["0", "0", "0"])
    assert int(acknowledged) > 20
