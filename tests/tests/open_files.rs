//! A node that is started with the usual low limit of open files.

use restante_tests::scene;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The limits of open files of a process, in force and at most.
fn limits(pid: u32) -> (String, String) {
    let all = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("a process");
    let line = all.lines().find(|line| line.starts_with("Max open files")).expect("a limit");
    let words: Vec<&str> = line.split_whitespace().collect();
    (words[3].to_owned(), words[4].to_owned())
}

#[tokio::test]
async fn the_limit_of_open_files_is_raised_to_what_the_system_allows() {
    let was = getrlimit(Resource::Nofile);
    let low = Rlimit { current: Some(256), ..was };
    setrlimit(Resource::Nofile, low).expect("a lower limit");
    let node = scene!("open-files").node().start().await;
    let (in_force, at_most) = limits(node.pid());
    assert_eq!(in_force, at_most);
    assert_ne!(in_force, "256");
}
