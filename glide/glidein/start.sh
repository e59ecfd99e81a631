#!/bin/sh
# This script is the first step of a glidein. It starts the Python program that unpacks glide's code and becomes
# condor_master.
# GLIDE_PYTHON is a list of paths or names of Python interpreters, separated by colons. The script uses the first
# interpreter that this node has. The interpreter needs the packages that the engine imports. It needs no part of glide.
set -eu
umask 077
# Create the folder `logs` before anything can fail. If the folder is missing at the job's end, HTCondor holds the job,
# and the reason of the failure is lost.
mkdir -p code logs
IFS=:
python=$(for each in ${GLIDE_PYTHON:-python3}; do command -v "$each" && break; done) || true
unset IFS
if [ -z "$python" ]; then
    echo "glidein: this node has no $GLIDE_PYTHON; set the entry's 'python' to one that it has" >&2
    exit 1
fi
# The model server and its engines write to one log. Copy this log to the job's output, because HTCondor forwards the
# output immediately. Copy the first MOST bytes completely. After that, copy only the lines of the model server, such as
# the report of an engine's end, up to MOST bytes more. This shell becomes condor_master. When condor_master ends, the
# copying ends.
MOST=5000000
: >logs/ModelServerLog
unbuffered=$(command -v stdbuf >/dev/null && echo "stdbuf -o0") || true
tail --pid=$$ -F -n +1 logs/ModelServerLog 2>/dev/null | {
    $unbuffered head -c $MOST
    grep -a --line-buffered 'model server:' | {
        IFS= read -r line || exit 0
        printf '\nglidein: log shortened to its first %s bytes; now only lines of the model server:\n%s\n' $MOST "$line"
        $unbuffered head -c $MOST
    }
} 2>/dev/null &
# $python is a full path. If a job has no PATH, Python can find its own location only by a full path.
PYTHONPATH="$PWD/glide.zip" exec "$python" -m glide.glidein glidein.json
