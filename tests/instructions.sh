#!/usr/bin/env bash
# Counts the instructions that a message costs the shipped node, under callgrind, and holds them
# against tests/instructions.txt: more than 3 % above it fails. The figure does not depend on how busy
# the machine is. A commit that raises the figure says why it is worth it.
# Usage: tests/instructions.sh [--table]   --table: by function, with allocations and system calls
set -euo pipefail
cd "$(dirname "$0")/.."

target=${CARGO_TARGET_DIR:-target}
cargo build --quiet --release --locked
cargo build --quiet --locked -p restante-tests --bin versus
exec "$target/debug/versus" cost --restante "$target/release/restante" \
    --check tests/instructions.txt "$@"
