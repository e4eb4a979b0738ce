//! The delivery core by examples: each file under `delivery/` holds scenarios, inputs after `>`, and
//! below each input everything that came out. Run with `BLESS=1` to write what comes out now, and read
//! the difference before committing it.
//!
//! A scenario keeps a journal of its own: what was enqueued is there until settled or parked, and
//! `> loaded` answers the read under way from it.

mod script;

use script::Session;
use std::fmt::Write as _;
use std::path::Path;

/// The one place that touches files and the core's test driver.
fn check(file: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/delivery").join(file);
    let expected = std::fs::read_to_string(&path).expect("the script is there");
    let actual = play(&expected);
    if actual == expected {
        return;
    }
    if std::env::var("BLESS").is_ok_and(|value| value == "1") {
        std::fs::write(&path, actual).expect("the script can be written");
        return;
    }
    panic!("{file} differs (BLESS=1 accepts what came out):\n{}", difference(&expected, &actual));
}

/// The script with what came out in place of what stands there.
fn play(script: &str) -> String {
    let mut session = Session::default();
    let mut out = String::new();
    for line in script.lines() {
        if let Some(input) = line.strip_prefix("> ") {
            let _ = writeln!(out, "{line}");
            for output in session.input(input) {
                let _ = writeln!(out, "    {output}");
            }
        } else if !line.starts_with("    ") {
            let _ = writeln!(out, "{line}");
        }
    }
    out
}

/// Where the two part, with some lines around it.
fn difference(expected: &str, actual: &str) -> String {
    let (expected, actual): (Vec<_>, Vec<_>) =
        (expected.lines().collect(), actual.lines().collect());
    let at = (0..).find(|at| expected.get(*at) != actual.get(*at)).unwrap_or(0);
    let from = at.saturating_sub(6);
    let show = |lines: &[&str]| {
        let upto = lines.len().min(at + 4);
        lines.get(from..upto).unwrap_or(&[]).join("\n")
    };
    format!("line {}\nexpected:\n{}\n\nactual:\n{}", at + 1, show(&expected), show(&actual))
}

#[test]
fn what_is_sent_is_acked_and_done() {
    check("acks.txt");
}

#[test]
fn odd_acks_change_nothing() {
    check("odd_acks.txt");
}

#[test]
fn links_come_and_go() {
    check("links.txt");
}

#[test]
fn windows_and_grants_bound_what_is_in_flight() {
    check("windows.txt");
}

#[test]
fn the_window_opens_slowly_after_an_outage() {
    check("ramp.txt");
}

#[test]
fn order_sent() {
    check("order_sent.txt");
}

#[test]
fn order_strict() {
    check("order_strict.txt");
}

#[test]
fn order_none() {
    check("order_none.txt");
}

#[test]
fn refusals_follow_the_schedule() {
    check("refusals.txt");
}

#[test]
fn late_messages_are_sent_again() {
    check("late.txt");
}

#[test]
fn the_queue_detaches_and_reads_on() {
    check("queue.txt");
}

#[test]
fn a_restart_is_an_ordinary_start() {
    check("restart.txt");
}

#[test]
fn operators_pause_and_change_peers() {
    check("operator.txt");
}

#[test]
fn suspects_are_tried_alone() {
    check("suspects.txt");
}

#[test]
fn single_messages_can_be_set_aside() {
    check("exclude.txt");
}

#[test]
fn what_has_lived_long_enough_is_not_sent() {
    check("ttl.txt");
}

#[test]
fn what_is_limited_is_sent_by_leave() {
    check("rate.txt");
}

#[test]
fn a_link_that_comes_and_goes_is_news_once() {
    check("flapping.txt");
}

#[test]
fn late_answers_shrink_a_window_that_may_shrink() {
    check("adaptive.txt");
}

#[test]
fn what_a_message_waits_for_has_one_answer() {
    check("explain.txt");
}

#[test]
fn a_difference_is_found() {
    assert!(difference("a\nb", "a\nc").starts_with("line 2\nexpected:\na\nb\n\nactual:\na\nc"));
    assert_eq!(
        play("> new\n    what is wrong is replaced\n"),
        "> new\n    dial\n    = unreachable\n"
    );
}
