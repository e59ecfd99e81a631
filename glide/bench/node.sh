#!/bin/sh
# Run a glidein in a process namespace of its own, where it sees only its own processes, as on a machine of its own.
# Without this, each glidein's procd reads the process table of the whole machine at every job start. With hundreds of
# glideins that takes all CPU time.
exec unshare --user --map-current-user --pid --fork --kill-child --mount-proc "$@"
