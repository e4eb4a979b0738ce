#!/usr/bin/env python3
"""Plants faults in the journal, one at a time, and expects its tests to catch each of them.

Usage: tests/mutations.py [NAME…]     only these; default: all
       tests/mutations.py --list      what there is
       tests/mutations.py --anchors   checks that every fault can still be planted, and runs nothing

Each fault is a replacement of a few lines that must be found exactly once. It is planted in a copy of
the tree (target/mutations/tree), which is built there and whose journal tests must then fail: first
with few crash points, and if they pass, with the ordinary number. A fault that does not compile is an
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
TESTS = ["cargo", "test", "--quiet", "--package", "restante-journal", "--lib"]
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
    count = (ROOT / JOURNAL / fault.file).read_text().count(fault.old)
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
    path = TREE / JOURNAL / fault.file
    intact = path.read_text()
    log = HOME / f"{fault.name.replace(' ', '-')}.log"
    try:
        path.write_text(intact.replace(fault.old, fault.new))
        with log.open("w") as out:
            if run([*TESTS, "--no-run"], out, POINTS[0]) != 0:
                return "BROKEN"
            if all(run(TESTS, out, points) == 0 for points in POINTS):
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
