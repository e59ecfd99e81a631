#!/bin/bash
# What an invocation job runs on its lane, as `GlideInvoke INPUT.jsonl OUTPUT.jsonl`: a ticket for the model server.
#
# The server reads the job's records and writes and streams their results; this only waits, and ends as it is told.
# A shell, because a job's start is what an access point's throughput hangs on, and Python's would double its cost.
# Input and output are described in glide/server/ticket.py.

trap '' PIPE  # a server that dies while it is written to is one that went away
output=$2
# A job may name any file and any folder of the node; those of its own are what it gets.
case $1$2 in */*) own="" ;; *) own=yes ;; esac
if [ -z "$own" ] || ! [ . -ef "${_CONDOR_SCRATCH_DIR:-.}" ]; then
    echo "input and output are files of the job's own folder, and given by name" >&2
    exit 2
fi

# End, to be run again. The output file is going to replace what has been streamed, which therefore has to be in it.
lost() {
    printf '%s\n' "$1" >&2
    {
        echo
        if read -r host port cookie <"$_CONDOR_CHIRP_CONFIG" && exec 4<>"/dev/tcp/$host/$port"; then
            printf 'cookie %s\ngetfile %s\n' "$cookie" "$output" >&4
            read -r _ <&4 && read -r size <&4 && [ "$size" -gt 0 ] && head -c "$size" <&4
        fi
    } >>"$output" 2>/dev/null
    exit 75
}

if ! { read -r port cookie <"$GLIDE_SOCKET" && exec 3<>"/dev/tcp/127.0.0.1/$port"; } 2>/dev/null; then
    lost "no model server on this lane"
fi
printf '%s\n' "$cookie" "$PWD" "$1" "$output" "${_CONDOR_JOB_AD-}" "${_CONDOR_CHIRP_CONFIG-}" "${GLIDE_ID-}" >&3 2>/dev/null
while IFS= read -r line <&3; do
    case $line in
    "exit 75") lost "another lane may serve this job" ;;
    "exit "*) exit "${line#exit }" ;;
    *) printf '%s\n' "$line" >&2 ;;
    esac
done
lost "the model server went away"
