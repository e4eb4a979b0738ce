//! A node inside a program leaves no thread behind. Alone in its process: every thread counts.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use restante::config::Config;
use restante::node::Node;
use std::fs;
use std::time::{Duration, Instant};

/// Longer than a thread that has been joined takes to leave the process; reached only by a failure.
const PATIENCE: Duration = Duration::from_secs(20);

/// The names of all threads of this process.
fn threads() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    // One that ends between the two looks is not there.
    let names = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok());
    let mut names: Vec<String> = names.map(|name| name.trim_end().to_owned()).collect();
    names.sort();
    names
}

#[test]
fn stopping_leaves_no_threads_behind() {
    let before = threads();
    for _ in 0..5 {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::start(Config {
            data_dir: dir.path().join("data"),
            tcp: ([127, 0, 0, 1], 0).into(),
            journal_segment_bytes: 4 * 1024 * 1024,
            ..Config::default()
        })
        .unwrap();
        assert!(threads().len() > before.len() + 3, "a node has threads: {:?}", threads());
        node.stop().unwrap();
        let began = Instant::now();
        while threads() != before {
            let left = threads();
            assert!(began.elapsed() < PATIENCE, "{left:?} are left, {before:?} were before");
            std::thread::yield_now();
        }
    }
}
