//! A wrong command line, told in clean and short lines that begin with a stable word.
//!
//! What was typed is quoted in these errors. It may hold anything: it is escaped and cut before it
//! gets near a terminal or a log.

use super::Exit;
use super::output::printable;
use clap::error::{ContextKind, ContextValue, Error};
use restante_protocol::admin::PeerUrlError;
use restante_protocol::name::NameError;
use restante_protocol::refusal::Code;
use std::error::Error as _;
use std::io::{self, Write};

/// The word of every wrong command line and configuration that has no word of its own.
pub(super) const WORD: &str = "usage";
/// Most characters of a value that are quoted.
const QUOTED_CHARS_MAX: usize = 64;
/// Most characters of a line, whatever it holds.
const LINE_CHARS_MAX: usize = 400;

/// Prints what clap has to say: help and version to standard output, an error to standard error.
pub(super) fn tell(error: Error) -> Exit {
    if !error.use_stderr() || error.source().is_none() && error.context().next().is_none() {
        // Nothing in it comes from the command line.
        let exit = if error.use_stderr() { Exit::Usage } else { Exit::Done };
        return match error.print() {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::BrokenPipe,
            _ => exit,
        };
    }
    // Nobody is told when standard error is gone.
    let _ = io::stderr().write_all(text(error).as_bytes());
    Exit::Usage
}

/// The error as `restante: WORD: what`, and below it what clap suggests.
fn text(mut error: Error) -> String {
    let word = word(&error);
    let quoted: Vec<(ContextKind, ContextValue)> =
        error.context().filter_map(|(kind, value)| Some((kind, clean(value)?))).collect();
    for (kind, value) in quoted {
        error.insert(kind, value);
    }
    let rendered = error.render().to_string();
    let said = rendered.strip_prefix("error: ").unwrap_or(&rendered);
    let mut text = format!("restante: {word}: ");
    for line in said.lines() {
        text.push_str(&short(&printable(line), LINE_CHARS_MAX));
        text.push('\n');
    }
    text
}

/// The reason's own word if it has one, as the node would say it.
fn word(error: &Error) -> &'static str {
    match error.source() {
        Some(source) if source.is::<NameError>() => Code::BadName.word(),
        Some(source) if source.is::<PeerUrlError>() => Code::BadUrl.word(),
        _ => WORD,
    }
}

fn clean(value: &ContextValue) -> Option<ContextValue> {
    let quoted = |text: &str| short(&printable(text), QUOTED_CHARS_MAX);
    match value {
        ContextValue::String(text) => Some(ContextValue::String(quoted(text))),
        ContextValue::Strings(texts) => {
            Some(ContextValue::Strings(texts.iter().map(|text| quoted(text)).collect()))
        }
        ContextValue::StyledStrs(texts) => {
            let line = |text: &str| short(&printable(text), LINE_CHARS_MAX);
            let lines = texts.iter().map(|text| line(&text.to_string()).into());
            Some(ContextValue::StyledStrs(lines.collect()))
        }
        _ => None,
    }
}

/// The beginning of a text, and how much there was if that is not all.
fn short(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        None => text.to_owned(),
        Some((at, _)) => format!("{}… ({} bytes)", &text[..at], text.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Cli;
    use super::*;
    use clap::Parser;

    fn said(args: &[&str]) -> String {
        let args = [&["restante"], args].concat();
        text(Cli::try_parse_from(args).map(drop).unwrap_err())
    }

    #[test]
    fn what_was_typed_is_escaped_and_cut() {
        let long = "n".repeat(300);
        let evil = "a\n\u{1b}[31mb\u{7}";
        for bad in [long.as_str(), evil] {
            for args in [
                &["peer", "add", bad, "attach:"][..],
                &["peer", "add", "a", bad],
                &["pub", "--to", bad, "x"],
                &["peer", "ls", "--timeout", bad],
                &["peer", "add", "a", "attach:", "--window", bad],
                &["pub", "--to", "a", "-H", bad, "x"],
                &["peer", "set", "a", "--order", bad],
                &["peer", bad],
                &[bad],
                &["peer", "ls", &format!("--{bad}")],
                &["peer", "ls", bad],
                &["completions", bad],
            ] {
                let text = said(args);
                assert!(text.starts_with("restante: "), "{text:?}");
                assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
                assert!(!text.contains(&"n".repeat(LINE_CHARS_MAX + 1)), "{text:?}");
                let first = text.lines().next().unwrap();
                assert!(first.len() < 500, "{first:?}");
                assert!(bad == long || first.contains("\\n"), "{first:?}");
            }
        }
        assert!(said(&["peer", "add", &long, "attach:"]).contains("(300 bytes)"));
    }

    #[test]
    fn each_begins_with_a_stable_word() {
        for (args, start) in [
            (&["peer", "add", "a/b", "attach:"][..], "restante: bad_name: "),
            (&["peer", "add", "a", "http://x"], "restante: bad_url: "),
            (&["peer", "add"], "restante: usage: "),
            (&["sub", "a", "-C", "-1"], "restante: usage: invalid value '-1' for '--count <N>'"),
            (&["sub", "a", "-W", "-1"], "restante: usage: invalid value '-1' for '--within"),
            (&["nothing"], "restante: usage: "),
        ] {
            let text = said(args);
            assert!(text.starts_with(start), "{args:?}: {text}");
        }
    }
}
