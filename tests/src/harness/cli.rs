//! The command line as scripts use it: real processes, judged by what they print and how they end.

use super::Node;
use std::io::Write;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// How long a command may take. Far above what any takes that ends at all.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// The program, steered by nothing but its arguments.
#[derive(Clone, Debug)]
pub struct Cli {
    program: &'static str,
    server: Option<String>,
}

impl Node {
    /// The command line, talking to this node.
    #[must_use]
    pub fn cli(&self) -> Cli {
        Cli { program: self.setup().program(), server: Some(self.addr().to_string()) }
    }
}

impl Cli {
    /// The command line of a program, talking to no node in particular.
    #[must_use]
    pub fn of(program: &'static str) -> Cli {
        Cli { program, server: None }
    }

    /// Runs a command to its end.
    pub fn run(&self, args: &[&str]) -> Finished {
        self.run_with(args, b"")
    }

    /// Runs a command with something on its standard input.
    ///
    /// # Panics
    /// When the command does not end.
    pub fn run_with(&self, args: &[&str], stdin: &[u8]) -> Finished {
        let mut child = self.command(args).stdin(Stdio::piped()).spawn().expect("the program runs");
        let mut input = child.stdin.take().expect("a pipe");
        let stdin = stdin.to_vec();
        let feeder = std::thread::spawn(move || {
            // A command that fails early does not read its input.
            let _ = input.write_all(&stdin);
        });
        let finished = finish(child, args);
        feeder.join().expect("the input is written");
        finished
    }

    /// Runs a command that must succeed, and returns what it printed.
    ///
    /// # Panics
    /// When it fails.
    pub fn ok(&self, args: &[&str]) -> String {
        self.run(args).ok()
    }

    /// Starts a command that goes on.
    ///
    /// # Panics
    /// When the program cannot be run.
    #[must_use]
    pub fn spawn(&self, args: &[&str]) -> Running {
        let child = self.command(args).stdin(Stdio::null()).spawn().expect("the program runs");
        Running { child: Some(child), args: args.iter().map(|arg| (*arg).to_owned()).collect() }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("RESTANTE_") {
                command.env_remove(name);
            }
        }
        if let Some(server) = &self.server {
            command.env("RESTANTE_SERVER", server);
        }
        command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

/// A command that has been started. Killed when it is dropped.
pub struct Running {
    child: Option<Child>,
    args: Vec<String>,
}

impl Running {
    /// Its process.
    ///
    /// # Panics
    /// Never: it is there until it is waited for.
    pub fn child(&mut self) -> &mut Child {
        self.child.as_mut().expect("it has not been waited for")
    }

    /// Waits for its end.
    pub fn finish(mut self) -> Finished {
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        finish(self.child.take().expect("it has not been waited for"), &args)
    }

    /// Asks it to stop and waits until it has.
    pub fn stop(mut self) -> Finished {
        signal(self.child().id(), rustix::process::Signal::TERM);
        self.finish()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// How a command ended.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
    /// What it printed.
    pub stdout: Vec<u8>,
    /// What it said.
    pub stderr: String,
    /// What was run.
    pub args: String,
}

impl Finished {
    /// What it printed, as text.
    ///
    /// # Panics
    /// When it failed.
    pub fn ok(&self) -> String {
        assert_eq!(self.code, 0, "{self:#?}");
        self.text()
    }

    /// What it printed, as text, however it ended.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8(self.stdout.clone()).expect("text")
    }

    /// What it printed, one JSON value a line.
    #[must_use]
    pub fn json(&self) -> Vec<serde_json::Value> {
        let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|_| panic!("{self:#?}"));
        self.text().lines().map(parse).collect()
    }

    /// Asserts that it failed with this code and said so in one line that holds all of these.
    pub fn failed(&self, code: i32, said: &[&str]) {
        assert_eq!(self.code, code, "{self:#?}");
        for words in said {
            assert!(self.stderr.contains(words), "{words:?} in {self:#?}");
        }
    }
}

fn finish(child: Child, args: &[&str]) -> Finished {
    let pid = child.id();
    let (ended, end) = mpsc::channel();
    std::thread::spawn(move || ended.send(child.wait_with_output()));
    let Output { status, stdout, stderr } = match end.recv_timeout(COMMAND_LIMIT) {
        Ok(output) => output.expect("its output can be read"),
        Err(_) => {
            signal(pid, rustix::process::Signal::KILL);
            let output = end.recv().expect("it was killed").expect("its output can be read");
            panic!("{args:?} did not end: {:?}", output);
        }
    };
    let code = status.code().unwrap_or(-1);
    let stderr = String::from_utf8_lossy(&stderr).into_owned();
    Finished { code, stdout, stderr, args: args.join(" ") }
}

/// Sends a signal to a process this test started.
fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
    rustix::process::kill_process(pid, signal).expect("the process is ours");
}
