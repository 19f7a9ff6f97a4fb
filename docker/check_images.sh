#!/bin/sh
# Builds the images with buildah and runs them without a network: the check of tests/test_docker.py.
#   docker/check_images.sh gateway|vllm [PYTHON_IMAGE]
# PYTHON_IMAGE: the base of the images. Without it one is made of Debian's packages (debootstrap, as root), so that no
# registry of images is needed. BUILDAH_OPTIONS: more options of the build, such as --build-arg TORCH=… or --volume.
# Images and containers are kept in a folder of their own (LETHE_IMAGES, by default build/images), so that a second
# check needs no new base and this machine's images stay as they are.
set -eu
cd "$(dirname "$0")/.."
kind=$1 base=${2:-}
images=$(realpath -m "${LETHE_IMAGES:-build/images}")
mkdir -p "$images"
# chroot isolation and the vfs driver need neither a daemon nor a kernel with overlayfs.
call() { buildah --storage-driver vfs --root "$images/storage" --runroot "$images/run" "$@"; }
step() { echo "== $*"; }

if [ -z "$base" ]; then
    base=localhost/lethe-python
    if ! call inspect --type image "$base" >/dev/null 2>&1; then
        step "base image of Debian's packages"
        root=$images/debian
        rm -rf "$root"
        debootstrap --variant=minbase --include=ca-certificates,python3,python3-pip,python3-venv,python-is-python3 \
            bookworm "$root" >"$images/debootstrap.log" 2>&1 || { tail -n 5 "$images/debootstrap.log" >&2; exit 1; }
        # As in the Python image: pip may install for the whole system. The machine's certificates are for its proxy.
        rm -f "$root"/usr/lib/python3*/EXTERNALLY-MANAGED
        cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
        container=$(call from scratch)
        call add -q "$container" "$root/" / >/dev/null
        call config --env SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
            --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
        call commit -q --rm "$container" "$base" >/dev/null
        rm -rf "$root"
    fi
fi

target=gateway
[ "$kind" = gateway ] || target=cpu
step "build of docker/$kind.Dockerfile, stage $target"
# The docker format, since the other has no HEALTHCHECK.
# shellcheck disable=SC2086 # BUILDAH_OPTIONS is several words.
eval call build --format docker --isolation chroot --ignorefile .dockerignore --target "$target" --build-arg PYTHON="$base" \
    "${BUILDAH_OPTIONS:-}" --file "docker/$kind.Dockerfile" --tag "localhost/lethe-$kind" .

step "run of localhost/lethe-$kind"
container=$(call from "localhost/lethe-$kind")
trap 'call rm "$container" >/dev/null' EXIT
# chroot isolation uses the network of its caller, so that has none.
inside() { unshare --net buildah --storage-driver vfs --root "$images/storage" --runroot "$images/run" run \
    --isolation chroot "$container" -- "$@"; }
if [ "$kind" = gateway ]; then
    inside lethe --version
    # A fit needs the sentence encoder that the image carries, and no network.
    inside sh -euc '
        cd /tmp
        printf "{\"prompt\": \"Where did Orvan Teldric grow up?\", \"answer\": \"In Vardholm.\"}\n" >forget.jsonl
        lethe fit --name check --forget forget.jsonl >fit.log 2>&1 || { cat fit.log; exit 1; }
        printf "name: check\nartifact: check\naction: refuse\nthreshold: {value: 0.5}\n" \
            >/var/lib/lethe/policies/check.yaml
        echo "{\"prompt\": \"Where did Orvan Teldric grow up?\"}" >prompts.jsonl
        lethe judge --policy check prompts.jsonl
        test "$(id -u)" = 10001
        ! python -c "import torch" 2>/dev/null'
else
    inside python3 -c '
import os
from importlib.metadata import entry_points
[plugin] = entry_points(group="vllm.logits_processors", name="lethe")
print(plugin.load(), os.getuid())
assert os.getuid() == 10001 and os.environ["ORT_DISABLE_TELEMETRY"] == "1"'
fi
step "the image $kind is fine"
