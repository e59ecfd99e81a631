#!/bin/bash
# Keep the ads of the lanes up to date: `advertise.sh ENDPOINT LANES`. The startd runs this script as a cron job. The
# script never ends.
#
# The script connects to the model server. When the attributes of the lanes change, the server sends them in the format
# that the startd reads. The startd sends the attributes to the collector about a second later. If the connection ends,
# the model server has ended.
# This is a shell script because it runs beside every model server, and a Python program would use 7 MB of memory.

while :; do
    if { read -r port cookie <"$1" && exec 3<>"/dev/tcp/127.0.0.1/$port"; } 2>/dev/null; then
        (printf '%s\nwatch\n' "$cookie" >&3) 2>/dev/null  # SIGPIPE ends only this subshell
        while IFS= read -r line <&3; do printf '%s\n' "$line"; done
        exec 3>&-
    fi
    # Without a server, no model is loaded. Advertise the state Blank, so that START refuses jobs that need a model.
    for ((lane = 1; lane <= $2; lane++)); do
        printf 'GlideState = "Blank"\nGlideStateSince = %(%s)T\nSlotId = %d\n- lane%d update:true\n' -1 $lane $lane
    done
    until [ -e "$1" ]; do sleep 0.2; done
    sleep 0.2
done
