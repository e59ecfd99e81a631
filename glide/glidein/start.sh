#!/bin/sh
# A glidein's first step: let Python unpack glide's own code and become condor_master.
# GLIDE_PYTHON is the entry's interpreter, or several of which the first is taken that is here; it needs what the engine
# imports, and nothing of glide.
set -eu
umask 077
mkdir -p code logs  # first of all: a job that cannot bring its logs home is held, and does not say why it died
IFS=:
python=$(for each in ${GLIDE_PYTHON:-python3}; do command -v "$each" && break; done) || true
unset IFS
if [ -z "$python" ]; then
    echo "glidein: no $GLIDE_PYTHON on this node; set the entry's 'python' to one that is there" >&2
    exit 1
fi
# What the server and its engines write goes to the access point at once, but no more than MOST bytes of it; after these
# what the server itself reports, an engine's last words for example. All this ends with the process that this one becomes.
MOST=5000000
: >logs/ModelServerLog
unbuffered=$(command -v stdbuf >/dev/null && echo "stdbuf -o0") || true
tail --pid=$$ -F -n +1 logs/ModelServerLog 2>/dev/null | {
    $unbuffered head -c $MOST
    grep -a --line-buffered 'model server:' | {
        IFS= read -r line || exit 0
        printf '\nglidein: no more than the first %s bytes, and what the server reports:\n%s\n' $MOST "$line"
        $unbuffered head -c $MOST
    }
} 2>/dev/null &
# By its whole path: a job may have no PATH, and then Python does not know where it is itself.
PYTHONPATH="$PWD/glide.zip" exec "$python" -m glide.glidein glidein.json
