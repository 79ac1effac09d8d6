#!/usr/bin/env bash
# Build the cpu image without any hub, start it with nothing but its own folder to write to, ask it a question, stop it
# in the middle of a stream, and say how long each took and how large it is (docs/containers.md). Three to ten minutes.
#
#   deploy/try-image.sh                     needs buildah, podman and, unless BASE_IMAGE is set, debootstrap and root
#   BASE_IMAGE=python:3.12-slim-bookworm    another base
#   PIP_CONF=FILE CA_FILE=FILE              how pip reaches the index while it builds; CA_FILE alone is enough for a certificate
#   CACHE=~/.cache/expert-router            where the tiny profile's weights are (expert-router --config tiny weights)
set -euo pipefail
cd "$(dirname "$0")/.."

IMAGE=localhost/expert-router:try
NAME=expert-router-try
PORT=${PORT:-8091}
URL=http://127.0.0.1:$PORT
CACHE=${CACHE:-$HOME/.cache/expert-router}
MODELS="smollm2-135m-instruct all-minilm-l6-v2"

skip() { echo "skipped: $1"; exit 77; }
fail() { echo "failed: $1" >&2; podman logs "$NAME" 2>&1 | tail -20 >&2 || true; exit 1; }
now() { date +%s.%N; }
since() { awk -v from="$1" -v to="$(now)" 'BEGIN { printf "%.1f s", to - from }'; }

for tool in buildah podman curl; do
    command -v "$tool" > /dev/null || skip "$tool is not installed (Debian: apt-get install buildah podman runc debootstrap curl)"
done
for model in $MODELS; do
    [ -d "$CACHE/weights/$model" ] || skip "no weights in $CACHE (expert-router --config tiny weights)"
done
work=$(mktemp -d)
cleanup() {
    podman rm -f "$NAME" > /dev/null 2>&1 || true
    podman volume rm -f "$NAME" > /dev/null 2>&1 || true
    rm -rf "$work"
}
trap cleanup EXIT

# The base: named, or Debian's smallest.
if [ -z "${BASE_IMAGE:-}" ]; then
    BASE_IMAGE=localhost/expert-router-base
    if ! podman image exists "$BASE_IMAGE"; then
        command -v debootstrap > /dev/null || skip "debootstrap is not installed and BASE_IMAGE is not set"
        [ "$(id -u)" = 0 ] || skip "debootstrap needs root; set BASE_IMAGE"
        started=$(now)
        debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$work/base" > "$work/debootstrap.log" \
            || { tail -5 "$work/debootstrap.log"; exit 1; }
        rm -rf "$work"/base/{var/cache/apt,var/lib/apt/lists,usr/share/doc,usr/share/man,usr/share/locale}/*
        tar -C "$work/base" -c . | podman import -q - "$BASE_IMAGE" > /dev/null
        echo "base              $(since "$started")"
    fi
fi

# The image.
secrets=()
if [ -n "${CA_FILE:-}" ]; then
    secrets+=(--secret "id=ca.pem,src=$CA_FILE")
    [ -n "${PIP_CONF:-}" ] || printf '[global]\ncert = /run/secrets/ca.pem\n' > "${PIP_CONF:=$work/pip.conf}"
fi
[ -z "${PIP_CONF:-}" ] || secrets+=(--secret "id=pip.conf,src=$PIP_CONF")
started=$(now)
buildah bud --isolation chroot --network host --format docker --target cpu --build-arg BASE_IMAGE="$BASE_IMAGE" \
    --build-arg REVISION="$(git rev-parse HEAD 2> /dev/null || echo unknown)" ${secrets[@]+"${secrets[@]}"} -t "$IMAGE" . > "$work/build.log" 2>&1 \
    || { tail -20 "$work/build.log"; fail "the build"; }
echo "build             $(since "$started")"
echo "size              $(podman image inspect -f '{{.Size}}' "$IMAGE" | awk '{ printf "%.0f MB", $1 / 1e6 }'), base $(podman image inspect -f '{{.Size}}' "$BASE_IMAGE" | awk '{ printf "%.0f MB", $1 / 1e6 }')"

# No capability, no new privileges, a file system that cannot be written, half of a small machine. runc also runs where
# crun refuses a mixture of both versions of cgroups; the limits are low ones,
# which need no right to be raised.
runtime=()
command -v runc > /dev/null && runtime=(--runtime runc)
limits=(--ulimit nofile=4096:4096 --ulimit nproc=4096:4096)
bare=(podman "${runtime[@]}" run "${limits[@]}" --no-healthcheck --cap-drop all --security-opt no-new-privileges
    --read-only --read-only-tmpfs=false -v "$NAME:/var/lib/expert-router")
cleanup_container() { podman rm -f "$NAME" > /dev/null 2>&1 || true; }
start() {
    cleanup_container
    started=$(now)
    "${bare[@]}" -d --name "$NAME" --network host --memory 4g --cpus 2 --pids-limit 512 -e EXPERT_ROUTER_SERVER__HOST=127.0.0.1 \
        -e EXPERT_ROUTER_SERVER__PORT="$PORT" -e EXPERT_ROUTER_SERVER__SHUTDOWN_GRACE_S=25 "$IMAGE" --config tiny serve > /dev/null
}
until_ready() {
    until curl -sf -o /dev/null "$URL/health/ready"; do
        [ "$(podman inspect -f '{{.State.Running}}' "$NAME")" = true ] || fail "it ended before it was ready"
        sleep 0.2
    done
}
stop() { # its exit status must be $1
    started=$(now)
    podman stop -t 30 "$NAME" > /dev/null
    took=$(since "$started")
    status=$(podman inspect -f '{{.State.ExitCode}}' "$NAME")
    [ "$status" = "$1" ] || fail "it ended with $status instead of $1"
}

cleanup_container
podman volume rm -f "$NAME" > /dev/null 2>&1 || true
podman volume create "$NAME" > /dev/null
seed=(); for model in $MODELS; do seed+=("/seed/$model"); done
"${bare[@]}" --rm -v "$CACHE/weights:/seed:ro" --entrypoint sh "$IMAGE" \
    -c 'mkdir -p "$EXPERT_ROUTER_PATHS__CACHE/weights" && cp -r "$@" "$EXPERT_ROUTER_PATHS__CACHE/weights"' - "${seed[@]}"

start; sleep 6
stop 143
echo "stop while loading $took"
start; until_ready
echo "first start       $(since "$started") (weights are there, the model is prepared)"
podman exec "$NAME" expert-router health > /dev/null || fail "its own health check"
stop 0
start; until_ready
echo "next start        $(since "$started")"

body='{"model": "auto", "max_tokens": 40, "messages": [{"role": "user", "content": "What is REM sleep?"}]}'
curl -sS -D "$work/headers" "$URL/v1/chat/completions" -H 'content-type: application/json' -d "$body" > "$work/answer.json"
grep -qi '^x-expert-router-experts: sleep' "$work/headers" || fail "no expert in the headers"
grep -i '^x-expert-router-\(experts\|adapters\)' "$work/headers"
grep -o '"content":"[^"]*"' "$work/answer.json"
podman exec "$NAME" sh -c 'id -u; grep -E "^(CapEff|NoNewPrivs)" /proc/1/status; touch /app/x /tmp/x "$HOME/x" 2>&1' | tr '\n' ' ' || true
echo

body='{"model": "auto", "stream": true, "max_tokens": 100, "ignore_eos": true, "messages": [{"role": "user", "content": "Who built the first car?"}]}'
curl -sSN "$URL/v1/chat/completions" -H 'content-type: application/json' -d "$body" > "$work/stream" &
asking=$!
until [ "$(grep -c '^data: ' "$work/stream")" -ge 10 ]; do sleep 0.1; done
! grep -q '^data: \[DONE\]' "$work/stream" || fail "the stream was over before the stop"
stop 0
wait "$asking" || fail "the stream was broken off after $took"
grep -q '^data: \[DONE\]' "$work/stream" || fail "the stream was broken off"
echo "stop in a stream  $took, which was finished"
echo "Written below /var/lib/expert-router: $("${bare[@]}" --rm --entrypoint sh "$IMAGE" -c 'cd /var/lib/expert-router; du -sh . | cut -f1; ls -A' | tr '\n' ' ')"
