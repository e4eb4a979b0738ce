//! Runs the README's tour as it is written.
//!
//! Between `<!-- tour -->` and `<!-- /tour -->` every `sh` block is run, all in one shell that ends
//! at the first failure. A `text` block after one is what that block prints; `…` stands for whatever
//! differs from run to run. The node's port is chosen by the environment, so that the tour can be
//! run beside another node.

use std::fmt::Write;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

/// One command block and what it prints, if the README says so.
#[derive(Debug, Default, PartialEq, Eq)]
struct Block {
    commands: String,
    prints: Option<String>,
}

fn main() -> ExitCode {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let readme = std::fs::read_to_string(root.join("README.md")).expect("a README");
    let blocks = blocks(&readme);
    assert!(!blocks.is_empty(), "the README has no tour");
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let succeeded = run(root, scratch.path(), &blocks);
    let mut good = succeeded;
    for (number, block) in blocks.iter().enumerate() {
        let Ok(printed) = std::fs::read_to_string(scratch.path().join(number.to_string())) else {
            eprintln!("block {number} was not reached:\n{}", block.commands);
            good = false;
            continue;
        };
        let expected = block.prints.as_deref();
        if expected.is_some_and(|expected| !matches(expected.trim(), printed.trim())) {
            let expected = expected.unwrap_or_default();
            eprintln!(
                "block {number}:\n{}\nshould print:\n{expected}\nand printed:\n{printed}",
                block.commands
            );
            good = false;
        }
    }
    println!(
        "the tour has {} blocks: {}",
        blocks.len(),
        if good { "all as written" } else { "FAILED" }
    );
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn blocks(readme: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let (mut touring, mut fence) = (false, None);
    for line in readme.lines() {
        match (line, fence) {
            ("<!-- tour -->", None) => touring = true,
            ("<!-- /tour -->", None) => touring = false,
            ("```", Some(_)) => fence = None,
            ("```sh", None) if touring => {
                blocks.push(Block::default());
                fence = Some("sh");
            }
            ("```text", None) if touring => {
                let block = blocks.last_mut().expect("output follows commands");
                block.prints = Some(String::new());
                fence = Some("text");
            }
            (line, None) if line.starts_with("```") => fence = Some("other"),
            (line, Some(kind)) => {
                let block = blocks.last_mut();
                match (kind, block) {
                    ("sh", Some(block)) => block.commands.extend([line, "\n"]),
                    ("text", Some(Block { prints: Some(prints), .. })) => {
                        prints.extend([line, "\n"])
                    }
                    _ => {}
                }
            }
            _ => {}
        }
    }
    blocks
}

/// Runs the blocks in one shell, the output of each into a file of its number.
fn run(root: &Path, scratch: &Path, blocks: &[Block]) -> bool {
    let mut script = String::from("set -euo pipefail\n");
    for (number, block) in blocks.iter().enumerate() {
        let out = scratch.join(number.to_string());
        let commands = &block.commands;
        writeln!(script, "{{\n{commands}\n}} >{}", out.display()).expect("a String takes all");
    }
    let address = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
    let address = address.expect("a free port").to_string();
    let mut shell = Command::new("bash")
        .args(["-c", &script])
        .current_dir(root)
        // The README finds what it has built where a build puts it.
        .env_remove("CARGO_TARGET_DIR")
        .env("RESTANTE_TCP", &address)
        .env("RESTANTE_SERVER", &address)
        .stdin(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("bash runs");
    let status = shell.wait().expect("bash ends");
    // Whatever a failed tour left running is in the shell's process group.
    if let Some(group) = i32::try_from(shell.id()).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    status.success()
}

/// Whether a text is as expected, `…` standing for anything within a line.
fn matches(expected: &str, printed: &str) -> bool {
    let line_matches = |expected: &str, printed: &str| {
        let mut parts = expected.split('…');
        let Some(mut rest) = parts.next().and_then(|first| printed.strip_prefix(first)) else {
            return false;
        };
        let parts: Vec<&str> = parts.collect();
        let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
        for part in middle {
            let Some(at) = rest.find(part) else { return false };
            rest = &rest[at + part.len()..];
        }
        rest.ends_with(last)
    };
    let (expected, printed): (Vec<_>, Vec<_>) =
        (expected.lines().collect(), printed.lines().collect());
    expected.len() == printed.len()
        && expected
            .iter()
            .zip(&printed)
            .all(|(expected, printed)| line_matches(expected.trim_end(), printed.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_the_tour_are_found_and_no_others() {
        let readme = "```sh\nno\n```\n<!-- tour -->\n```sh\na\nb\n```\n```toml\nx\n```\n```text\nout\n```\n\
                      ```sh\nc\n```\n<!-- /tour -->\n```sh\nno\n```\n";
        let block = |commands: &str, prints: Option<&str>| Block {
            commands: commands.to_owned(),
            prints: prints.map(str::to_owned),
        };
        assert_eq!(blocks(readme), [block("a\nb\n", Some("out\n")), block("c\n", None)]);
    }

    #[test]
    fn an_ellipsis_stands_for_anything_within_a_line() {
        assert!(matches("a … b …", "a 17 b x"));
        assert!(matches("a…", "a"));
        assert!(!matches("a … b", "a 17 c"));
        assert!(!matches("a", "a b"));
        assert!(!matches("a\n…", "a"));
    }
}
