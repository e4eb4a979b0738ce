#!/usr/bin/env python3
"""Plants faults in the journal and in the cores, one at a time, and expects the tests to catch each.

Usage: tests/mutations.py [NAME…]     only these; default: all
       tests/mutations.py --list      what there is
       tests/mutations.py --anchors   checks that every fault can still be planted, and runs nothing

Each fault is a replacement of a few lines that must be found exactly once. It is planted in a copy of
the tree (target/mutations/tree), which is built there and whose tests must then fail: for a fault in the
journal its own, first with few crash points, and if they pass, with the ordinary number; for one in
the protocol's cores the simulated week (tests/tests/week.rs). A fault that does not compile is an
error of this file and not a catch.

What was caught is kept in target/mutations/caught and not tried again while neither the fault nor the
sources have changed: a run that was interrupted goes on where it stopped. Remove that directory to
start over. Ends with 1 if a fault was missed, with 2 if one could not be planted or built.

Needs Python 3.11 and the Rust toolchain; takes a minute or two for each fault.
"""

import hashlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / "target" / "mutations"
TREE = HOME / "tree"
JOURNAL = "broker/journal/src/"
CORES = "protocol/src/"
TESTS = {
    JOURNAL: ["cargo", "test", "--quiet", "--package", "restante-journal", "--lib"],
    CORES: ["cargo", "test", "--quiet", "--workspace", "--test", "week", "a_week_keeps_every_promise"],
}
# Crash points of the first try, and of the second.
POINTS = ["1500", "10000"]
# A fault may make a test run for ever.
TEST_SECONDS_MAX = 1200


@dataclass(frozen=True)
class Fault:
    name: str
    file: str
    old: str
    new: str
    room: str = JOURNAL


FAULTS = [
    Fault(
        "sync skipped",
        "writer.rs",
        "written.and_then(|()| self.active.file.sync())",
        "written",
    ),
    Fault(
        "confirm before sync",
        "writer.rs",
        "        let written = self.active.file.write_at(&slices, self.offset);\n",
        "        for ticket in self.commit.iter().filter_map(|pending| pending.ticket) {\n"
        "            self.shared.tell(ticket, End::Durable(Bytes::new()));\n"
        "        }\n"
        "        let written = self.active.file.write_at(&slices, self.offset);\n",
    ),
    Fault(
        "failed sync retried",
        "writer.rs",
        "written.and_then(|()| self.active.file.sync())",
        "written.and_then(|()| self.active.file.sync().or_else(|_| self.active.file.sync()))",
    ),
    Fault(
        "own records without sync",
        "writer.rs",
        "        self.active.file.sync()?;\n        self.offset += record.len() as u64;\n",
        "        self.offset += record.len() as u64;\n",
    ),
    Fault(
        "every record says that all before it is synced",
        "writer.rs",
        "            flags = 0;\n",
        "            flags = FLAG_FIRST;\n",
    ),
    Fault(
        "checkpoint position one too high",
        "writer.rs",
        "Snapshot::of(&state, self.next, straddled, next_segment)",
        "Snapshot::of(&state, self.next + 1, straddled, next_segment)",
    ),
    Fault(
        "record checksum not compared",
        "format.rs",
        "        if crc != be_u32(&bytes[4..]) {\n",
        "        if crc != be_u32(&bytes[4..]) && header.length == u32::MAX {\n",
    ),
    Fault(
        "payload checksum not compared",
        "format.rs",
        "        if crc32c(&bytes[payload_from..end]) != be_u32(&bytes[8..]) {\n",
        "        if payload_from > end {\n",
    ),
    Fault(
        "records of a recycled segment pass",
        "format.rs",
        "Seed(scramble(base ^ (id as u32) ^ scramble((id >> 32) as u32)))",
        "Seed(scramble(base ^ scramble((id >> 63) as u32)))",
    ),
    Fault(
        "log cut one byte too early",
        "recovery/scan.rs",
        "self.file.truncate(self.data_end)?;",
        "self.file.truncate(self.data_end - 1)?;",
    ),
    Fault(
        "torn payload kept",
        "recovery/scan.rs",
        "                        && self.is_synced(&header)? =>\n",
        "                        =>\n",
    ),
    Fault(
        "park lost when replayed",
        "recovery/scan.rs",
        "self.replay.extend(park.map(|park| Replay::Park(park.peer, park.number)));",
        "self.replay.extend(park.filter(|p| p.number == 0).map(|p| Replay::Park(p.peer, 0)));",
    ),
    Fault(
        "ack floor of the log lost",
        "recovery/restore.rs",
        "let floor = peer.floor.max(settle.floor);",
        "let floor = peer.floor;",
    ),
    Fault(
        "ack floor of the checkpoint lost",
        "recovery/restore.rs",
        "        peer.floor = note.floor;\n",
        "",
    ),
    Fault(
        "epoch not raised",
        "recovery/mod.rs",
        "let epoch = owner.epoch.max(tail.epoch) + 1;",
        "let epoch = owner.epoch.max(tail.epoch).max(1);",
    ),
    Fault(
        "index off by one",
        "keeper.rs",
        "                            next,\n                            data_end: segment.data_end,\n",
        "                            next: next - 1,\n                            data_end: segment.data_end,\n",
    ),
    Fault(
        "segment reclaimed too early",
        "checkpoint.rs",
        ".filter(|s| s.live > 0 || is_replayed(s))",
        ".filter(|s| s.live > 1 || is_replayed(s))",
    ),
    Fault(
        "file renamed before its sync",
        "index.rs",
        "        file.sync()?;\n        disk.rename(&temporary, path)\n",
        "        disk.rename(&temporary, path)?;\n        file.sync()\n",
    ),
    Fault(
        "segments reclaimed before the checkpoint is durable",
        "keeper.rs",
        "        self.shared.disk.sync_dir(\"\")?;\n",
        "",
    ),
    Fault(
        "spare rewritten before its old name is gone",
        "keeper.rs",
        "            self.disk.sync_dir(\"segments\")?;\n            self.pool.lock().spares.push(",
        "            self.pool.lock().spares.push(",
    ),
    Fault(
        "name of a new segment not synced",
        "segment.rs",
        "        disk.sync_dir(\"segments\")?;\n        Ok(file)\n",
        "        Ok(file)\n",
    ),
    Fault(
        "header of a new segment not synced",
        "segment.rs",
        "        file.sync()?;\n        disk.rename(name, &path)?;\n",
        "        disk.rename(name, &path)?;\n",
    ),
    Fault(
        "copies not synced",
        "compact/copy.rs",
        "        self.file.sync()?;\n",
        "",
    ),
    Fault(
        "name of a copy not synced",
        "compact/mod.rs",
        "        shared.disk.rename(&temporary, &Shared::segment_path(id))?;\n        shared.disk.sync_dir(\"segments\")?;\n",
        "        shared.disk.rename(&temporary, &Shared::segment_path(id))?;\n",
    ),
    Fault(
        "copied segments removed before a checkpoint names the copy",
        "compact/mod.rs",
        ".find(|r| !kept(r.id))",
        ".find(|r| kept(r.id) || r.id > 0)",
    ),
    Fault(
        "last commit not written again at a restart",
        "recovery/scan.rs",
        "        self.file.write_at(&[IoSlice::new(&last_commit)], self.unsure_from)?;\n",
        "",
    ),
    Fault(
        "what is live is not kept from the reclaimed",
        "keeper.rs",
        "        && is_done(segment)\n        && !kept.contains(&segment.id)\n",
        "        && matches!(segment.index, Place::File)\n",
    ),
    Fault(
        "settle counted twice",
        "held.rs",
        "                settled += u32::from(self.mark_settled(relative));\n",
        "                self.mark_settled(relative);\n                settled += 1;\n",
    ),
    Fault(
        "history lost with a segment whose index is not written",
        "checkpoint.rs",
        "self.segments.insert(place, SegmentNote { id, first, live: 0 });",
        "let _ = (id, first);",
    ),
    Fault(
        "a source that cannot be opened is the journal's end",
        "compact/copy.rs",
        "let file = shared.segment_file(live.id).map_err(|error| unreadable(&error))?;",
        "let file = shared.segment_file(live.id)?;",
    ),
    Fault(
        "no room for a copy on a full disk",
        "compact/copy.rs",
        "shared.with_room(Purpose::Copy, attempt)",
        "attempt()",
    ),
    Fault(
        "reclaiming waits for an index",
        "keeper.rs",
        "        gone.into_iter().try_for_each(|id| self.shared.reclaim(id))?;\n",
        "        self.write_indexes()?;\n"
        "        gone.into_iter().try_for_each(|id| self.shared.reclaim(id))?;\n",
    ),
    Fault(
        "segment that could not be made ready left lying",
        "segment.rs",
        "                drop((disk.unlink(&fresh), disk.unlink(&path)));\n",
        "",
    ),
    Fault(
        "spare segment lost where it could not be made ready",
        "keeper.rs",
        "                self.pool.lock().spares.extend(spare);\n",
        "",
    ),
    Fault(
        "spare segment spare again while a crash may leave it its new name",
        "segment.rs",
        '        Ok(()) => disk.sync_dir("segments").is_ok(),\n',
        "        Ok(()) => true,\n",
    ),
    Fault(
        "no peer is ever forgotten",
        "state.rs",
        "!peer.held.is_empty() || peer.newest >= oldest",
        "!peer.held.is_empty() || peer.newest >= oldest || oldest > 0",
    ),
    Fault(
        "peers forgotten that an index still names",
        "state.rs",
        "!peer.held.is_empty() || peer.newest >= oldest",
        "!peer.held.is_empty() || oldest == 0",
    ),
    Fault(
        "log behind a large checkpoint without a bound",
        "keeper.rs",
        "LOG_PER_CHECKPOINT.saturating_mul(size).min(tail)",
        "LOG_PER_CHECKPOINT.saturating_mul(size).max(tail.min(1))",
    ),
    Fault(
        "settle longer than its checksum covers",
        "intake.rs",
        "let max = self.caps.record_bytes_max.min(usize::from(u16::MAX));",
        "let max = self.caps.record_bytes_max;",
    ),
    Fault(
        "damaged settle replayed",
        "recovery/scan.rs",
        "header.kind == RecordKind::Message as u8",
        "!is_mark(&header)",
    ),
    Fault(
        "record that is not understood skipped",
        "recovery/scan.rs",
        "                tail.refusal = Some(OpenError::NotUnderstood { path, at, number, kind });\n"
        "                return false;\n",
        "                drop((path, at, kind));\n"
        "                self.expected = number + 1;\n"
        "                self.walk.step(header);\n"
        "                self.data_end = self.walk.at;\n"
        "                return true;\n",
    ),
    Fault(
        "ack on its way to the queue taken for lost",
        "intake.rs",
        "        self.lazy_under_way.fetch_add(1, Ordering::AcqRel);\n",
        "        self.lazy_under_way.fetch_and(0, Ordering::AcqRel);\n",
    ),
    Fault(
        "what has come since counted into a late checkpoint",
        "checkpoint.rs",
        "segment.live.saturating_sub(segment.total.saturating_sub(self.total))",
        "segment.live",
    ),
    Fault(
        "parked bytes not in the checkpoint",
        "checkpoint.rs",
        "            parked_bytes: held.parked_bytes(),\n",
        "            parked_bytes: 0,\n",
    ),
    Fault(
        "parked bytes lost where segments become one",
        "compact/merge.rs",
        "            parked_bytes += held.parked_bytes();\n",
        "",
    ),
]


# In the cores, against the simulated week: what each of them breaks stands in its name.
CORE_FAULTS = [
    (
        "unacked forgotten when the link goes",
        "delivery/connect.rs",
        "        for slot in self.unacked.drain() {\n            self.take_back(&slot);\n        }\n",
        "        for _ in self.unacked.drain() {}\n",
    ),
    (
        "an outage condemns what was alone in flight",
        "delivery/suspects.rs",
        "} else if retry.losses > 0 && acked > retry.acked_before {",
        "} else if retry.losses > 0 {",
    ),
    (
        "what is sent to a receiver that hangs already is condemned too",
        "delivery/timeouts.rs",
        "if was_alone && is_stalled && !was_stalled {",
        "if was_alone && is_stalled && (!was_stalled || now.0 > 0) {",
    ),
    (
        "expired messages are sent",
        "delivery/expiry.rs",
        "if !expires.is_some_and(|expires| expires.has_passed(now)) {",
        "if !expires.is_some_and(|expires| expires.has_passed(now)) || now.0 > 0 {",
    ),
    (
        "window skipped",
        "delivery/transmit.rs",
        "if self.unacked.live() >= self.allowance || self.unacked.next_tag() > self.tag_max {",
        "if self.allowance == 0 || self.unacked.next_tag() > self.tag_max {",
    ),
    (
        "grant skipped",
        "delivery/mod.rs",
        "self.tag_max = self.link.grant.min(self.leave.tag_max);",
        "self.tag_max = self.leave.tag_max;",
    ),
    (
        "key free while its message waits to be sent again",
        "delivery/mod.rs",
        "Order::Sent => key.is_some() && self.retries.first_waiting(key).is_some(),",
        "Order::Sent => false,",
    ),
    (
        "strict key free with its first delivery",
        "delivery/mod.rs",
        "self.unacked.is_key_busy(key) || self.retries.first_waiting(key).is_some()",
        "self.retries.first_waiting(key).is_some()",
    ),
    (
        "redelivery after a restart not flagged",
        "delivery/transmit.rs",
        "let redelivered = number <= self.maybe_sent;",
        "let redelivered = number == 0;",
    ),
    (
        "late ack of a given up delivery ignored",
        "delivery/answers.rs",
        "                Old::GivenUp(number) => self.settle_retry(number),\n",
        "                Old::GivenUp(_) => {}\n",
    ),
    (
        "refused message due at once",
        "delivery/answers.rs",
        "let next_attempt = now + retry_after.map_or(wait, |after| after.min(RETRY_AFTER_MAX));",
        "let next_attempt = now + retry_after.map_or(wait, |after| after.min(RETRY_AFTER_MAX)) / 2;",
    ),
    (
        "refused once too seldom before parking",
        "delivery/answers.rs",
        "let scheduled = self.terms.retry_schedule.get(usize::from(refusals)).copied();",
        "let scheduled = self.terms.retry_schedule.get(usize::from(refusals) + 1).copied();",
    ),
    (
        "floor above what waits to be sent again",
        "delivery/mod.rs",
        "let open = [straight, retry, queued, self.held.first(), parked, expired];",
        "let open = [straight, retry.filter(|_| false), queued, self.held.first(), parked, expired];",
    ),
    (
        "bodies kept without a link",
        "delivery/connect.rs",
        "        self.held = Held::new();\n        if let",
        "        if let",
    ),
    (
        "no probe after silence",
        "delivery/timeouts.rs",
        "            self.link.ramp = Some(window::Ramp::PROBE);\n",
        "",
    ),
    (
        "page of an earlier link believed",
        "delivery/loading.rs",
        "if loading.is_stale || !self.link.is_up() {",
        "if !self.link.is_up() {",
    ),
    (
        "outcomes of producers forgotten by a restart",
        "producers.rs",
        "        self.set_durable(run.last_number());\n        self.record_run(index, run);\n",
        "        self.set_durable(run.last_number());\n        let _ = index;\n",
    ),
    (
        "next dial at once",
        "delivery/backoff.rs",
        "let at = now + Duration::from_micros(wait);",
        "let at = now + Duration::from_micros(wait / u64::MAX);",
    ),
]

FAULTS += [Fault(*fault, room=CORES) for fault in CORE_FAULTS]


def main() -> int:
    arguments = sys.argv[1:]
    if "--list" in arguments:
        print("\n".join(fault.name for fault in FAULTS))
        return 0
    anchors_only = arguments == ["--anchors"]
    wanted = [] if anchors_only else arguments
    unknown = set(wanted) - {fault.name for fault in FAULTS}
    if unknown:
        print(f"no such fault: {', '.join(sorted(unknown))}; --list has them", file=sys.stderr)
        return 2
    faults = [fault for fault in FAULTS if not wanted or fault.name in wanted]
    misplaced = [fault for fault in faults if not can_be_planted(fault)]
    if misplaced or anchors_only:
        return 2 if misplaced else 0
    sources = copy_tree()
    (HOME / "caught").mkdir(parents=True, exist_ok=True)
    outcomes = []
    for fault in faults:
        began = time.monotonic()
        outcome = try_fault(fault, sources)
        outcomes.append(outcome)
        print(f"{outcome:8} {time.monotonic() - began:6.0f} s  {fault.name}", flush=True)
    missed, broken = outcomes.count("MISSED"), outcomes.count("BROKEN")
    print(f"{len(outcomes)} faults: {len(outcomes) - missed - broken} caught, {missed} missed")
    return 2 if broken else 1 if missed else 0


def can_be_planted(fault: Fault) -> bool:
    count = (ROOT / fault.room / fault.file).read_text().count(fault.old)
    if count != 1:
        print(f"{fault.name}: {fault.file} has its place {count} times, not once", file=sys.stderr)
    return count == 1


def copy_tree() -> str:
    """Brings the copy up to date, touching only what differs; returns a name for its contents."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout
    files = sorted(file for file in listed.split("\0") if file and (ROOT / file).is_file())
    summed = hashlib.sha256()
    for file in files:
        there, bytes_here = TREE / file, (ROOT / file).read_bytes()
        if not there.is_file() or there.read_bytes() != bytes_here:
            there.parent.mkdir(parents=True, exist_ok=True)
            there.write_bytes(bytes_here)
        if file.endswith((".rs", ".toml", "Cargo.lock")):
            summed.update(file.encode() + b"\0" + hashlib.sha256(bytes_here).digest())
    for there in TREE.rglob("*.rs"):
        if str(there.relative_to(TREE)) not in files:
            there.unlink()
    return summed.hexdigest()


def try_fault(fault: Fault, sources: str) -> str:
    key = hashlib.sha256(f"{sources}\0{fault}".encode()).hexdigest()[:24]
    note = HOME / "caught" / key
    if note.exists():
        return "caught"
    path = TREE / fault.room / fault.file
    intact = path.read_text()
    log = HOME / f"{fault.name.replace(' ', '-')}.log"
    try:
        path.write_text(intact.replace(fault.old, fault.new))
        with log.open("w") as out:
            tests = TESTS[fault.room]
            if run([*tests, "--no-run"], out, POINTS[0]) != 0:
                return "BROKEN"
            tries = POINTS if fault.room == JOURNAL else POINTS[-1:]
            if all(run(tests, out, points) == 0 for points in tries):
                return "MISSED"
    finally:
        path.write_text(intact)
    note.write_text(fault.name + "\n")
    return "caught"


def run(command: list[str], out, points: str) -> int:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RESTANTE_")}
    environment = {
        **kept,
        "CARGO_TARGET_DIR": str(HOME / "build"),
        "RESTANTE_CRASH_POINTS": points,
    }
    try:
        return subprocess.run(
            command, cwd=TREE, env=environment, stdout=out, stderr=out, timeout=TEST_SECONDS_MAX
        ).returncode
    except subprocess.TimeoutExpired:
        return -1


if __name__ == "__main__":
    sys.exit(main())
