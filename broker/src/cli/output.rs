//! What a command prints: data on standard output, a table for people and NDJSON for programs.

use super::{Exit, Failure};
use serde::Serialize;
use std::io::{self, IsTerminal, Write};

/// Whether colours are welcome where there is a terminal (no-color.org).
pub(crate) fn color_wanted() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// How a command prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Output {
    /// One JSON object a line instead of text.
    pub(crate) json: bool,
    /// Whether that was asked for, for verbs whose plain output is for programs already.
    pub(crate) json_asked: bool,
    /// Whether a person reads standard output.
    pub(crate) terminal: bool,
    /// Whether text is coloured.
    pub(crate) color: bool,
}

impl Output {
    /// As asked for, or as standard output is: text on a terminal, NDJSON elsewhere.
    pub(crate) fn choose(json_asked: bool) -> Output {
        let terminal = io::stdout().is_terminal();
        let (json, color) = (json_asked || !terminal, terminal && color_wanted());
        Output { json, json_asked, terminal, color }
    }

    /// Text without colours.
    #[cfg(test)]
    pub(crate) const PLAIN: Output =
        Output { json: false, json_asked: false, terminal: true, color: false };

    /// One value as one line.
    pub(crate) fn json_line(value: &impl Serialize) -> Result<String, Failure> {
        let mut line = serde_json::to_string(value).map_err(io::Error::from)?;
        line.push('\n');
        Ok(line)
    }

    /// The same text, emphasised on a colour terminal.
    pub(crate) fn paint(self, style: Paint, text: &str) -> String {
        if self.color { format!("\u{1b}[{}m{text}\u{1b}[0m", style as u8) } else { text.to_owned() }
    }
}

/// Emphasis, by its terminal code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Paint {
    Bold = 1,
    Dim = 2,
    Red = 31,
    Green = 32,
    Yellow = 33,
}

/// Writes to standard output and lets nothing linger in a buffer.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    print_bytes(text.as_bytes())
}

/// As [`print()`], for what need not be text.
pub(crate) fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()?;
    Ok(())
}

/// As [`print_bytes`], off this thread: whatever the reader of the output does, the rest goes on.
pub(super) async fn print_aside(page: Vec<u8>) -> Result<(), Failure> {
    let printed = tokio::task::spawn_blocking(move || print_bytes(&page)).await;
    printed.map_err(|error| Failure::new(Exit::Failed, error))?
}

/// A line to the person at the terminal. Nobody is told when standard error is gone.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "restante: {}", printable(text));
}

/// A line of a longer story to the person at the terminal.
pub(super) fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{}", printable(text));
}

/// The text with everything escaped that a terminal would act on.
pub(crate) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

/// Columns as wide as their widest cell.
pub(crate) struct Table {
    output: Output,
    head: &'static [&'static str],
    rows: Vec<Vec<(Option<Paint>, String)>>,
}

impl Table {
    pub(crate) fn new(output: Output, head: &'static [&'static str]) -> Table {
        Table { output, head, rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: Vec<(Option<Paint>, String)>) {
        self.rows.push(cells.into_iter().map(|(paint, text)| (paint, printable(&text))).collect());
    }

    pub(crate) fn render(&self) -> String {
        let widths: Vec<usize> = self
            .head
            .iter()
            .enumerate()
            .map(|(column, head)| {
                let cells = self.rows.iter().filter_map(|row| row.get(column));
                cells.map(|(_, text)| text.chars().count()).chain([head.len()]).max().unwrap_or(0)
            })
            .collect();
        let head: Vec<_> =
            self.head.iter().map(|head| (Some(Paint::Bold), (*head).to_owned())).collect();
        let mut page = String::new();
        for row in std::iter::once(&head).chain(&self.rows) {
            let last = row.len().saturating_sub(1);
            for (column, (paint, text)) in row.iter().enumerate() {
                let padding = if column == last { 0 } else { widths[column] + 2 };
                let blanks = padding.saturating_sub(text.chars().count());
                page.push_str(&paint.map_or(text.clone(), |paint| self.output.paint(paint, text)));
                page.extend(std::iter::repeat_n(' ', blanks));
            }
            page.push('\n');
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_and_cannot_be_broken_by_a_cell() {
        let mut table = Table::new(Output::PLAIN, &["NAME", "WHY"]);
        table.row(vec![(None, "a".to_owned()), (None, "line\nbreak".to_owned())]);
        table.row(vec![(Some(Paint::Red), "longer".to_owned()), (None, String::new())]);
        assert_eq!(table.render(), "NAME    WHY\na       line\\nbreak\nlonger  \n");
    }
}
