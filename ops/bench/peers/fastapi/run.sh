#!/usr/bin/env bash
# usage: run.sh [SECONDS] [CONNECTIONS] [HEARTBEATS PER REQUEST]: heartbeats that FastAPI, SQLAlchemy and PostgreSQL commit in a second.
# Needs MUSTER_TEST_POSTGRES (see ops/engines) and wrk. It counts rows in the table, not answers.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-15} connections=${2:-32} per_request=${3:-100}
: "${MUSTER_TEST_POSTGRES:?names no server: source <(ops/engines start FOLDER) first}"

wanted=$(sha256sum requirements.txt)
programs=${CARGO_TARGET_DIR:-../../../../target}/fastapi-${wanted:0:12}
if [[ ! -f $programs/whole ]]; then
    rm -rf "$programs"
    python3 -m venv "$programs"
    "$programs/bin/pip" install --quiet --requirement requirements.txt
    touch "$programs/whole"
fi

name=muster_peer_$$
sql() { psql --quiet --no-align --tuples-only --dbname "${2:-$MUSTER_TEST_POSTGRES}" --command "$1"; }
database=${MUSTER_TEST_POSTGRES%/*}/$name
work=$(mktemp -d)
server=
finish() {
    if [[ -n $server ]]; then
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    sql "DROP DATABASE IF EXISTS $name WITH (FORCE)" || true
    rm -rf "$work"
}
trap finish EXIT
sql "CREATE DATABASE $name"
export PEER_DATABASE=postgresql+psycopg2${database#postgres}
"$programs/bin/python" service.py

# It finds no port by itself: what is free now is given.
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$programs/bin/python" -m uvicorn service:service --workers 2 --port "$port" --log-level critical 2>"$work/log" &
server=$!
ready() { python3 -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1])' "http://127.0.0.1:$port/ready" 2>/dev/null; }
for _ in $(seq 100); do
    ready && break
    sleep 0.2
done
ready || { cat "$work/log" >&2; echo "the peer doesn't start" >&2; exit 1; }

before=$(date +%s%N)
wrk --threads 2 --connections "$connections" --duration "${seconds}s" --timeout 15s --script beats.lua "http://127.0.0.1:$port" -- "$per_request" >"$work/wrk"
took_ms=$((($(date +%s%N) - before) / 1000000))
if grep -E 'Non-2xx|Socket errors' "$work/wrk" >&2; then
    echo "some requests were refused or not answered" >&2
fi
rows=$(sql "SELECT count(*) FROM beats" "$database")
echo "peer: FastAPI, SQLAlchemy, PostgreSQL; $connections connections, $per_request heartbeats a request: $((rows * 1000 / took_ms)) heartbeats/s committed ($rows in $took_ms ms)"
