#!/bin/sh
# The tests of boiler.sh, against `orchmgmt test-server` (docs/testing.md).
set -eu
cd "$(dirname "$0")"

folder=$(mktemp -d)
orchmgmt test-server --ready-file "$folder/ready.json" >"$folder/log" 2>&1 &
server=$!
trap 'kill $server; wait $server || true; rm -r "$folder"' EXIT
until [ -e "$folder/ready.json" ]; do
    kill -0 $server || { cat "$folder/log"; exit 1; }
    sleep 0.05
done
url=$(sed -E 's/.*"url": "([^"]*)".*/\1/' "$folder/ready.json")

control() { curl -s --fail-with-body -X POST "$url/test/$1" -d "${2-}"; }
requests() { curl -s "$url/test/requests"; }
expect() { grep -q "$1" || { echo "not found: $1" >&2; exit 1; }; }

# A lock is made.
./boiler.sh "$url" 2099-01-01T00:00:00Z
requests | expect '"owner": "BoilerControl"'

# Somebody else's lock is in the way until it expires.
control reset
control seed '{"locks": [{"service_instance_id": "Boiler|heat|1.0.0", "expires_in": 60}]}'
if ./boiler.sh "$url" 2099-01-01T00:00:00Z 2>"$folder/error"; then exit 1; fi
expect 'Already locked' <"$folder/error"
control clock '{"advance": 61}'
./boiler.sh "$url" 2099-01-01T00:00:00Z

# A 503 is survived.
control reset
control faults '{"next": {"status": 503, "times": 2, "retry_after": 0}}'
./boiler.sh "$url" 2099-01-01T00:00:00Z
control faults '{}' | expect '"unused": \[\]'

# A server that has gone is missed, and found when it is back. Its control has stayed.
control=$(sed -E 's/.*"control": "([^"]*)".*/\1/' "$folder/ready.json")
control reset
curl -s --fail-with-body -X POST "$control/test/down"
if ./boiler.sh "$url" 2099-01-01T00:00:00Z 2>"$folder/error"; then exit 1; fi
curl -s --fail-with-body -X POST "$control/test/up"
./boiler.sh "$url" 2099-01-01T00:00:00Z

echo passed
