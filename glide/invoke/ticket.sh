#!/bin/bash
# This script is the ticket, which an invocation job runs on its lane as `GlideInvoke INPUT.jsonl OUTPUT.jsonl`.
#
# The ticket sends a request to the model server, waits, and ends with the exit code that the server sends. The server
# reads the job's records, writes their results, and streams these results to the access point.
# The ticket is a shell script, because the cost of starting a job limits the throughput of an access point. Python
# would double this cost.
# glide/server/ticket.py describes the request, the input and the output.

trap '' PIPE  # if the server has died, a write must fail, and must not kill this script
output=$2
# Accept only names of files in the job's own folder. Otherwise a job could name any file of the node.
case $1$2 in */*) own="" ;; *) own=yes ;; esac
if [ -z "$own" ] || ! [ . -ef "${_CONDOR_SCRATCH_DIR:-.}" ]; then
    echo "input or output refused: name two files in the job's own folder, without a path" >&2
    exit 2
fi

# End the job with an exit code that makes HTCondor run the job again. If the job is spooled, the output file will replace
# the streamed file on the access point. So first fetch the streamed results, and append them to the output file.
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
