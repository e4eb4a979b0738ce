//! Records that are sound and say what this program does not understand: a newer one wrote them. Nothing is
//! skipped and nothing changed, and whoever looks at the directory is told.

use super::super::error::OpenError;
use super::super::format::{FLAG_FIRST, RecordHeader, SEGMENT_HEADER_BYTES, Seed, record_bytes};
use super::super::offline::Offline;
use super::super::offline::check;
use super::super::offline::dump::{Filter, Says, dump_on};
use super::super::offline::repair::repair_on;
use super::rig::{Rig, contents, options};
use super::{A, batch_of};
use restante_actors::journal::Settle;
use restante_protocol::record::{RECORD_HEADER_BYTES, RecordKind};
use std::sync::Arc;

/// Changes the record of segment `id` that begins at byte `at`, and makes it sound again.
pub(super) fn change_record(
    bytes: &mut [u8],
    id: u64,
    at: usize,
    change: impl FnOnce(&mut RecordHeader, &mut [u8]),
) {
    let mut header = RecordHeader::peek(&bytes[at..]).expect("a record");
    let record = &mut bytes[at..at + record_bytes(header.length as usize)];
    change(&mut header, &mut record[RECORD_HEADER_BYTES..]);
    header.seal(Seed::new(options().seed, id), record);
}

/// Where the last record of this kind begins.
fn last_of(bytes: &[u8], kind: RecordKind) -> usize {
    let (mut at, mut last) = (SEGMENT_HEADER_BYTES as usize, None);
    while let Some(header) = RecordHeader::peek(&bytes[at..]).filter(|header| header.number > 0) {
        last = if header.kind == kind as u8 { Some(at) } else { last };
        at += record_bytes(header.length as usize);
    }
    last.expect("there is one")
}

type Change = fn(&mut RecordHeader, &mut [u8]);

#[test]
fn a_record_that_is_not_understood_is_refused_by_all_and_nothing_is_changed() {
    let changes: [(RecordKind, Change); 7] = [
        (RecordKind::Message, |header, _| header.kind = 9),
        (RecordKind::Admin, |header, _| header.kind = RecordKind::Reference as u8),
        (RecordKind::Message, |header, _| header.flags = FLAG_FIRST | 2),
        // What stands there is zero as yet.
        (RecordKind::Message, |_, body| body[23] = 1),
        // An outcome that there is not yet.
        (RecordKind::Settle, |_, body| body[12] = 9),
        (RecordKind::Settle, |header, _| header.kind = RecordKind::Park as u8 + 100),
        (RecordKind::Admin, |header, _| header.kind = RecordKind::Epoch as u8),
    ];
    let mut rig = Rig::with_history(false);
    let number = rig.engine.shared.next_number() - 1;
    rig.engine.shared.settle(Settle::acked(A, 5, 0, vec![number]));
    rig.admin(b"at last");
    rig.engine.shared.append(batch_of(1, &[A.0], &[b"\0last"])).expect("room");
    rig.write();
    let path = rig.segments().pop().unwrap();
    let id = rig.engine.shared.state.lock().segments.last().unwrap().id;
    for (case, (kind, change)) in changes.into_iter().enumerate() {
        let disk = rig.crashed();
        let mut header = None;
        disk.damage(&path, |bytes| {
            let at = last_of(bytes, kind);
            change_record(bytes, id, at, change);
            header = RecordHeader::peek(&bytes[at..]);
        });
        let RecordHeader { number, kind, .. } = header.expect("a record");
        let before = contents(&disk);
        let refused = [
            Rig::open(&disk).map(drop),
            repair_on(Arc::new(disk.clone()), true, options()).map(drop),
            repair_on(Arc::new(disk.clone()), false, options()).map(drop),
        ];
        for refused in refused {
            let Err(OpenError::NotUnderstood { path: of, number: n, kind: k, .. }) = refused else {
                panic!("case {case}: {:?}", refused.err());
            };
            assert!(of.contains(&path) && (n, k) == (number, kind), "case {case}: {of} {n} {k}");
        }
        let offline = Offline::on(Arc::new(disk.clone())).unwrap();
        let report = check::run(&offline).unwrap();
        assert!(!report.usable, "case {case}");
        let [problem] = &report.problems[..] else { panic!("case {case}: {:?}", report.problems) };
        assert!(problem.what.contains("not understood"), "case {case}: {problem:?}");
        assert_eq!(problem.numbers, Some((number, number)), "case {case}");
        let mut dumped = Vec::new();
        let all = Filter { peer: None, numbers: 0..=u64::MAX, kind: None };
        dump_on(&offline, &all, |record| {
            if let Says::NotUnderstood { kind } = record.says {
                dumped.push((record.number, kind));
            }
            true
        })
        .unwrap();
        assert_eq!(dumped, [(number, kind)], "case {case}");
        drop(offline);
        assert_eq!(contents(&disk), before, "case {case}: something was changed");
    }
}
