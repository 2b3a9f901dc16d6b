#!/bin/bash
# A Ray cluster of several nodes on this machine, for as long as a command runs:
#
#   deploy/local/cluster.sh NODES [CPUS_A_NODE] -- rsft run run.yaml
#
# Every node has a folder and ports of its own. They find one another on loopback, but Ray's ports are open on every
# interface: what keeps others out is the token, which is made anew each time. The exit code is the command's. Without
# a command it stays until it is stopped.
set -uo pipefail
umask 077

fail() { echo "cluster.sh: $1" >&2; exit "$2"; }

[[ ${1:-} =~ ^[1-9][0-9]*$ ]] || fail "expected: cluster.sh NODES [CPUS_A_NODE] -- COMMAND" 2
nodes=$1 cpus=2
shift
[[ ${1:-} =~ ^[1-9][0-9]*$ ]] && { cpus=$1; shift; }
[[ ${1:-} == -- ]] && shift
python=${RSFT_PYTHON:-python3}
"$python" -c 'import ray' 2>/dev/null || fail "RSFT_PYTHON: $python has no ray; activate the virtual environment" 2

folder=$(mktemp -d "${TMPDIR:-/tmp}/rsft-XXXXXX") || fail "no folder can be made below ${TMPDIR:-/tmp}" 74
pids=()
# shellcheck disable=SC2317  # called by the trap
down() {
    trap - EXIT INT TERM
    local pid
    for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null; done
    wait "${pids[@]}" 2>/dev/null
    rm -rf "$folder"
}
trap down EXIT
trap 'exit 143' INT TERM

"$python" -c 'import secrets; print(secrets.token_hex(32), end="")' >"$folder/token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$folder/token RAY_USAGE_STATS_ENABLED=0
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0
unset RAY_ADDRESS RAY_AUTH_TOKEN

read -r port dashboard < <("$python" - <<'PYTHON'
import socket
taken = [socket.socket() for _ in range(2)]
for s in taken:
    s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in taken))
PYTHON
)
address=127.0.0.1:$port

start() {
    local name=$1
    shift
    # Ray opens its own folder to everybody, not the one above it. Ports of 0 are free ones.
    "$python" -m ray.scripts.scripts start "$@" --block --disable-usage-stats --node-ip-address=127.0.0.1 \
        --num-cpus="$cpus" --min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=0 \
        --temp-dir="$folder/$name" >"$folder/$name.log" 2>&1 &
    pids+=($!)
}

up() {
    "$python" - "$nodes" "$address" <<'PYTHON'
import logging, sys, time
import ray
ray.init(address=sys.argv[2], log_to_driver=False, logging_level=logging.ERROR)
deadline = time.monotonic() + 120
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[1]):
    if time.monotonic() > deadline:
        sys.exit("not all nodes joined within 120 s")
    time.sleep(0.5)
PYTHON
}

start head --head --port="$port" --dashboard-host=127.0.0.1 --dashboard-port="$dashboard"
until (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
    kill -0 "${pids[0]}" 2>/dev/null || { tail -n 20 "$folder/head.log" >&2; fail "the head died" 1; }
    sleep 0.5
done
for ((i = 1; i < nodes; i++)); do start "node-$i" --address="$address"; done
up || fail "the cluster did not come up" 1
export RAY_ADDRESS=$address RAY_API_SERVER_ADDRESS=http://127.0.0.1:$dashboard
echo "cluster.sh: $nodes nodes at $address, dashboard $RAY_API_SERVER_ADDRESS, token in $RAY_AUTH_TOKEN_PATH" >&2

if (($#)); then
    "$@" &
    command=$!
    trap 'kill -TERM "$command" 2>/dev/null' INT TERM
    wait "$command"
    code=$?
    # A signal ends the first wait, the command the second.
    wait "$command" 2>/dev/null
    last=$?
    ((last == 127)) || code=$last
    exit "$code"
fi
wait "${pids[0]}"
