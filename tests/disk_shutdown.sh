#!/usr/bin/env bash
# A file system that stops abruptly under load: what was confirmed must be there afterwards.
#
# An ext4 on a loop device holds the data directory. In each round a producer publishes, then the file
# system is shut down without flushing anything, not even its journal (FS_IOC_SHUTDOWN, NOLOGFLUSH),
# the node is killed, the file system is mounted again, a new node starts on it and a receiver takes
# what waits. Every id that was confirmed must be among those it got. It shows a sync that is missing,
# not a disk that lies about flushing.
#
# Then the same with a node whose syncs do nothing (a hook that only the tests' program has): that one
# must lose messages, or this script would show nothing.
#
# ext4 itself can say that a sync is done which was under way while it was shut down. First of all a bare
# program that does nothing but write 16 KiB and fdatasync, again and again, shows how it is here: with
# one sync a write it may lose what it was told last (13 of 100 stops, Linux 6.18), with two it may not,
# as the second one fails on a file system that is down. So the node syncs twice in these rounds, by
# another hook; where the power goes and not the file system's driver, one is enough.
#
# Usage: tests/disk_shutdown.sh [ROUNDS]   How many rounds; default 20, as many for the bare program
# each way, and a quarter of them, at most five, for the control. Needs root, loop devices, mkfs.ext4 and python3. Exit code 0: shown;
# 1: something was lost, or the control lost nothing; 77: it cannot be run here, and why.
# RESTANTE_PROGRAM names a program built before; otherwise it is built. RESTANTE_SEED=N repeats a run's
# moments, as far as time can be repeated.
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=${1:-20}
control_rounds=$(((rounds + 3) / 4 < 5 ? (rounds + 3) / 4 : 5))
seed=${RESTANTE_SEED:-$RANDOM}
RANDOM=$seed
image_mib=320

cannot() {
    echo "cannot be run here: $1" >&2
    exit 77
}
[ "$(uname -s)" = Linux ] || cannot "it needs Linux, this is $(uname -s)"
[ "$(id -u)" = 0 ] || cannot "mounting needs root"
for tool in losetup mkfs.ext4 mount umount python3; do
    command -v "$tool" >/dev/null || cannot "there is no $tool"
done

program=${RESTANTE_PROGRAM:-}
if [ -z "$program" ]; then
    cargo build --quiet --locked -p restante-tests --bin restante-faulty
    program=${CARGO_TARGET_DIR:-target}/debug/restante-faulty
fi
program=$(realpath "$program")
unset "${!RESTANTE_@}"

place=$(mktemp -d)
device='' node='' producer=''
mounted() { grep -q " $place/disk " /proc/mounts; }
clean_up() {
    for pid in $producer $node; do kill -9 "$pid" 2>/dev/null && wait "$pid" 2>/dev/null; done
    mounted && umount "$place/disk"
    [ -z "$device" ] || losetup -d "$device"
    rm -rf "$place"
} 2>/dev/null
trap 'clean_up || true' EXIT

truncate -s ${image_mib}M "$place/image"
mkdir "$place/disk"
mkfs.ext4 -q -F "$place/image" || cannot "mkfs.ext4 failed"
device=$(losetup --find --show "$place/image") || cannot "no loop device can be had"
mount -t ext4 "$device" "$place/disk" || cannot "an ext4 on $device cannot be mounted"

# Shuts a file system down: nothing that is not on the disk already will be.
shut_down() {
    python3 - "$1" <<'PYTHON'
import fcntl, os, struct, sys
FS_IOC_SHUTDOWN, NOLOGFLUSH = 0x8004587D, 2
directory = os.open(sys.argv[1], os.O_RDONLY)
fcntl.ioctl(directory, FS_IOC_SHUTDOWN, struct.pack("I", NOLOGFLUSH))
PYTHON
}

# Writes to a file, says on standard output how many writes are synced, and goes on until that fails.
bare_program() { # SYNCS
    exec python3 - "$place/disk/bare" "$1" <<'PYTHON'
import os, sys
path, syncs, block = sys.argv[1], int(sys.argv[2]), 16384
file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
os.posix_fallocate(file, 0, 128 << 20)
os.fsync(file)
for number in range((128 << 20) // block):
    try:
        os.pwrite(file, number.to_bytes(8, "big") * (block // 8), number * block)
        for _ in range(syncs):
            os.fdatasync(file)
    except OSError:
        break
    os.write(1, b"%d\n" % (number + 1))
PYTHON
}

# Stops the file system under the bare program; sets `bare_lost` to the number of synced blocks that are
# not there afterwards.
bare_round() { # SYNCS
    local told="$place/told"
    : >"$told"
    bare_program "$1" >"$told" &
    producer=$!
    for _ in $(seq 600); do
        [ -s "$told" ] && break
        sleep 0.05
    done
    sleep "0.$((RANDOM % 400 + 100))"
    shut_down "$place/disk"
    wait "$producer" 2>/dev/null || true
    producer=''
    umount "$place/disk"
    mount -t ext4 "$device" "$place/disk"
    bare_lost=$(python3 - "$place/disk/bare" "$told" <<'PYTHON'
import sys
block, told = 16384, open(sys.argv[2]).read().split()
with open(sys.argv[1], "rb") as file:
    right = lambda number: file.read(block) == number.to_bytes(8, "big") * (block // 8)
    print(sum(not right(number) for number in range(int(told[-1]))))
PYTHON
)
}

start_node() { # LOG
    rm -f "$place/addr"
    RESTANTE_FAULT_DISK="$place/fault" "$program" serve --data-dir "$place/disk/data" \
        --tcp 127.0.0.1:0 --addr-file "$place/addr" --log-format json \
        --set journal_segment_bytes=2097152 --set disk_free_bytes_min=0 \
        --set disk_free_bytes_resume=0 2>>"$1" &
    node=$!
    for _ in $(seq 2400); do
        [ -s "$place/addr" ] && break
        kill -0 "$node" 2>/dev/null || { tail -n 5 "$1" >&2; wait "$node" || true; node=''; return 1; }
        sleep 0.05
    done
    [ -s "$place/addr" ] || { echo "the node is not ready in two minutes" >&2; return 1; }
    server=$(python3 -c 'import json,sys; print(json.load(open(sys.argv[1]))["tcp"])' "$place/addr")
}

stop_node() { # SIGNAL
    kill "-$1" "$node" 2>/dev/null || true
    wait "$node" 2>/dev/null || true
    node=''
}

confirmed_total=0 lost_total=0
one_round() { # NAME
    local log="$place/$1.log" confirmed="$place/confirmed" delivered="$place/delivered"
    start_node "$log" || { echo "FAILED: the node did not start" >&2; exit 1; }
    "$program" --server "$server" peer ls 2>/dev/null | grep -q '"away"' ||
        "$program" --server "$server" peer add away attach: 2>/dev/null
    (while printf 'message %s of %s\n' $RANDOM "$1"; do :; done) 2>/dev/null |
        exec "$program" --server "$server" pub --to away -l >"$confirmed" 2>/dev/null &
    producer=$!
    for _ in $(seq 600); do
        [ -s "$confirmed" ] && break
        sleep 0.05
    done
    sleep "0.$((RANDOM % 900 + 100))"
    shut_down "$place/disk"
    kill -9 "$producer" 2>/dev/null || true
    wait "$producer" 2>/dev/null || true
    producer=''
    stop_node KILL
    umount "$place/disk"
    mount -t ext4 "$device" "$place/disk"

    echo >"$place/fault"
    local waiting=0
    : >"$delivered"
    if ! start_node "$log"; then
        echo "$1: the node does not start on what is left"
    else
        waiting=$("$program" --server "$server" peer info away --json 2>/dev/null |
            python3 -c 'import json,sys; print(json.load(sys.stdin)["status"]["waiting"])' 2>/dev/null || echo 0)
        if [ "$waiting" -gt 0 ]; then
            "$program" --server "$server" sub away --json -C "$waiting" -W 60 >"$delivered"
        fi
        stop_node TERM
    fi
    # A last line that was cut off by the kill is no id.
    read -r n lost < <(python3 - "$confirmed" "$delivered" <<'PYTHON'
import json, sys
text = open(sys.argv[1]).read()
confirmed = text[: text.rfind("\n") + 1].split()
delivered = {json.loads(line)["id"] for line in open(sys.argv[2])}
lost = [place for place, id in enumerate(confirmed) if id not in delivered]
if lost:
    print(f"lost: {len(lost)}, from the {lost[0]}th to the {lost[-1]}th of {len(confirmed)}", file=sys.stderr)
print(len(confirmed), len(lost))
PYTHON
)
    echo "$1: $n confirmed, $waiting there afterwards, $lost lost"
    confirmed_total=$((confirmed_total + n)) lost_total=$((lost_total + lost))
}

echo "seed $seed, $rounds rounds"
for syncs in 1 2; do
    losing=0
    for round in $(seq "$rounds"); do
        bare_round $syncs
        [ "$bare_lost" = 0 ] || losing=$((losing + 1))
    done
    echo "a bare program, $syncs fdatasync a write: $losing of $rounds stops lost something of what was synced"
done
[ "$losing" = 0 ] || { echo "FAILED: this ext4 loses what is synced twice; nothing can be shown on it" >&2; exit 1; }
rm -f "$place/disk/bare"
for round in $(seq "$rounds"); do
    echo twice >"$place/fault"
    one_round "round $round"
    [ "$lost_total" = 0 ] || { echo "FAILED: confirmed messages were lost" >&2; exit 1; }
done
[ "$confirmed_total" -gt $((rounds * 10)) ] || { echo "FAILED: hardly anything was confirmed" >&2; exit 1; }
real=$confirmed_total
for round in $(seq "$control_rounds"); do
    rm -rf "$place/disk/data"
    sync -f "$place/disk"
    echo no-sync >"$place/fault"
    one_round "without syncs $round"
done
[ "$lost_total" -gt 0 ] || { echo "FAILED: without syncs nothing was lost either" >&2; exit 1; }
echo "$rounds stops of the file system, $real messages confirmed, none lost; without syncs $lost_total were"
