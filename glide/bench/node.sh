#!/bin/sh
# A node of its own for each glidein: it sees its own processes only, as on a machine that it has to itself. Else each
# one's procd reads the whole machine's process table at every job start, and hundreds of them do nothing else.
exec unshare --user --map-current-user --pid --fork --kill-child --mount-proc "$@"
