#!/usr/bin/env bash
# The journal on the simulated disk, crashed at every step, for as long as wanted.
# Usage: tests/crash_points.sh [POINTS]   How many crash points; default 1,000,000, some hours.
# They are tried in lots; where the last lot ended is kept in target/crash-points, so that a later call
# goes on from there with other scenarios: delete that directory to start over. A failure prints the
# seed and the step; RESTANTE_CRASH_AT=SEED:STEP tests/crash_points.sh tries that one again.
set -euo pipefail
cd "$(dirname "$0")/.."

test=nothing_confirmed_is_lost_whatever_survives_a_crash
run() { cargo test --quiet -p restante-journal --lib "$test" -- --nocapture; }
if [ -n "${RESTANTE_CRASH_AT:-}" ]; then
    run
    exit
fi
record=target/crash-points
lot=20000
wanted=${1:-1000000}
mkdir -p "$record"
next=$(cat "$record/next-seed" 2>/dev/null || echo 1)
done=$(cat "$record/done" 2>/dev/null || echo 0)
echo "$done crash points were tried before; going on with seed $next"
while [ "$done" -lt "$wanted" ]; do
    log=$record/from-$next.log
    if ! RESTANTE_CRASH_POINTS=$lot RESTANTE_SEED=$next run >"$log" 2>&1; then
        tail -n 40 "$log"
        echo "FAILED in the lot from seed $next; $log has it all"
        exit 1
    fi
    next=$(sed -n 's/^next seed //p' "$log")
    done=$((done + lot))
    echo "$next" >"$record/next-seed"
    echo "$done" >"$record/done"
    echo "$(date -u +%H:%M:%S) $done crash points hold, next seed $next"
done
