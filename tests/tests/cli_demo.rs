//! `demo`: shows that nothing is lost, with processes that are really killed.

use restante_tests::harness::Cli;
use restante_tests::scene;
use std::fs;
use std::process::Command;

fn cli() -> Cli {
    Cli::of(env!("CARGO_BIN_EXE_restante-faulty"))
}

#[test]
fn every_line_of_a_file_reaches_three_receivers_through_two_kills() {
    let scene = scene!("demo");
    let file = scene.path("lines");
    // Also lines that are empty, equal, or no text.
    let mut text: Vec<u8> =
        (0..3_000).flat_map(|n| format!("line {}\n\n", n / 2).into_bytes()).collect();
    text.extend(b"\xff\xfe\r\nthe last has no newline");
    fs::write(&file, &text).expect("a file");
    let shown = cli().run(&["demo", file.to_str().expect("text")]);
    let rows = {
        shown.ok();
        shown.json()
    };
    assert_eq!(rows.len(), 3, "{shown:#?}");
    for row in &rows {
        assert_eq!((&row["lines"], &row["missing"]), (&6_002.into(), &0.into()), "{row}");
        assert_eq!((&row["equal"], &row["repeats_unflagged"]), (&true.into(), &0.into()), "{row}");
    }
    // The very digest that the system's own tool prints.
    let cksum = Command::new("cksum").arg(&file).output().expect("cksum");
    let cksum = String::from_utf8(cksum.stdout).expect("text");
    let sum: u64 = cksum.split(' ').next().and_then(|sum| sum.parse().ok()).expect("a sum");
    assert!(rows.iter().all(|row| row["cksum"] == sum), "{rows:#?}");
    for act in ["kill -9", "the node is back", "billing is back", "every line is confirmed"] {
        assert!(shown.stderr.contains(act), "{act:?} in {shown:#?}");
    }
}

#[test]
fn a_file_that_cannot_be_shown_is_refused_before_anything_starts() {
    let scene = scene!("demo-refused");
    cli().run(&["demo", "no-such-file"]).failed(2, &["no-such-file"]);
    let empty = scene.path("empty");
    fs::write(&empty, b"").expect("a file");
    let empty = empty.to_str().expect("text");
    cli().run(&["demo", empty]).failed(2, &["at least one line"]);
}
