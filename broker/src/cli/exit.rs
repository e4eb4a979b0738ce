//! How the program ends: the exit codes that scripts rely on, and the failures that lead to them.

use super::usage;
use restante_protocol::refusal::{Code, Refusal};
use std::fmt;
use std::process::ExitCode;

/// The documented exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed in a way no other code names.
    Failed = 1,
    /// The command line or the configuration is wrong; nothing was tried.
    Usage = 2,
    /// No connection to the node, or it was lost for good.
    CannotConnect = 3,
    /// The node does not allow this.
    NotAllowed = 4,
    /// The node refused, wholly or for some receivers; the reason is on standard error.
    Refused = 5,
    /// No such peer or message.
    NotFound = 6,
    /// It took longer than `--timeout`.
    TimedOut = 7,
    /// The data directory is locked, unwritable, or of a newer version.
    DataDirectory = 8,
    /// Whoever read standard output has gone: what a program ended by SIGPIPE reports. Nothing is
    /// printed about it.
    BrokenPipe = 141,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// Why a command failed, for the person who typed it.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// One line for standard error: what, expected, remedy. Empty when there is nothing to say.
    pub message: String,
}

impl Failure {
    /// A failure with its line.
    pub fn new(exit: Exit, message: impl fmt::Display) -> Failure {
        Failure { exit, message: message.to_string() }
    }
}

impl Failure {
    /// What is said of it: a wrong command line begins with a stable word, whoever found it wrong.
    pub(super) fn line(&self) -> String {
        let has_word = self.message.split_once(": ").is_some_and(|(word, _)| {
            word == usage::WORD || Code::ALL.iter().any(|code| code.word() == word)
        });
        match self.exit {
            Exit::Usage if !has_word => format!("{}: {}", usage::WORD, self.message),
            _ => self.message.clone(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Standard output is the only stream whose errors end a command.
impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Failure::new(Exit::BrokenPipe, ""),
            _ => Failure::new(Exit::Failed, format_args!("cannot write the output: {error}")),
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        Failure::new(exit_of(refusal.code), &refusal)
    }
}

/// The exit code for what a node says no with.
pub(crate) fn exit_of(code: Code) -> Exit {
    match code {
        Code::NotFound | Code::AgedOut => Exit::NotFound,
        Code::NotAllowed => Exit::NotAllowed,
        Code::TimedOut => Exit::TimedOut,
        Code::VersionMismatch => Exit::CannotConnect,
        _ => Exit::Refused,
    }
}
