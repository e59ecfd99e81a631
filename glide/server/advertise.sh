#!/bin/bash
# `advertise.sh DOOR LANES`, the startd cron job that keeps a lane's ad true; it never ends.
#
# The model server writes its attributes into this connection whenever they change, as the startd wants to read them,
# which sends them to the collector about a second later. The connection's end is how the server's death is noticed,
# whatever killed it. A shell, because it stands beside every model and Python would take 7 MB for it.

while :; do
    if { read -r port cookie <"$1" && exec 3<>"/dev/tcp/127.0.0.1/$port"; } 2>/dev/null; then
        (printf '%s\nwatch\n' "$cookie" >&3) 2>/dev/null  # in a shell of its own, which SIGPIPE may end
        while IFS= read -r line <&3; do printf '%s\n' "$line"; done
        exec 3>&-
    fi
    # No server, so no model: START refuses jobs until one is back.
    for ((lane = 1; lane <= $2; lane++)); do
        printf 'GlideState = "Blank"\nGlideStateSince = %(%s)T\nSlotId = %d\n- lane%d update:true\n' -1 $lane $lane
    done
    until [ -e "$1" ]; do sleep 0.2; done
    sleep 0.2
done
