#!/bin/sh
# Lock the boiler for BoilerControl, at the service whose URL is $1, until the time $2.
# A 503 is tried again; an answer of 400 or above is printed, and the exit code is then 1.
set -eu
answer=$(
    curl -s --fail-with-body --retry 3 --retry-delay 0 -X POST \
        "$1/serviceorchestration/orchestration/mgmt/lock/create" \
        -H 'Authorization: Bearer SYSTEM//Sysop' -H 'Content-Type: application/json' \
        -d '{"locks": [{
              "serviceInstanceId": "Boiler|heat|1.0.0",
              "owner": "BoilerControl",
              "expiresAt": "'"$2"'"
            }]}'
) || { echo "$answer" >&2; exit 1; }
