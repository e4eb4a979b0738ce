#!/usr/bin/env bash
# The crash run in full: 200,000 messages and ten kills, once per seed.
# Usage: tests/crash_full.sh [SEEDS]   How many seeds; default 1. A seed that has passed is not run
# again by a later call: delete target/crash-full to start over. RESTANTE_CRASH_SEED=N runs that one.
set -euo pipefail
cd "$(dirname "$0")/.."

record=target/crash-full
limit=1200 # seconds for one seed
mkdir -p "$record"
first=${RESTANTE_CRASH_SEED:-1}
last=$((first + ${1:-1} - 1))
cargo test --quiet -p restante-tests --test crash --no-run
for seed in $(seq "$first" "$last"); do
    if [ -e "$record/$seed.passed" ]; then
        echo "seed $seed: passed before"
        continue
    fi
    echo "seed $seed: running, log in $record/$seed.log"
    if RESTANTE_CRASH_FULL=1 RESTANTE_CRASH_SEED=$seed timeout "$limit" \
        cargo test --quiet -p restante-tests --test crash -- --nocapture >"$record/$seed.log" 2>&1
    then
        touch "$record/$seed.passed"
        grep -E 'confirmed, ' "$record/$seed.log"
    else
        tail -n 40 "$record/$seed.log"
        echo "seed $seed: FAILED; replay with RESTANTE_CRASH_SEED=$seed $0"
        exit 1
    fi
done
