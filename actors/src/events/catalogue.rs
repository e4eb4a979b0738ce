//! The catalogue of the log as a document for operators.

use super::EVENTS;
use super::fields::MEANINGS;
use std::fmt::Write;

/// `deploy/LOGS.md`, whole. A test compares the file with this.
#[must_use]
pub fn catalogue() -> String {
    let mut page = String::from(PREFACE);
    for event in EVENTS {
        let fields: Vec<String> = event.fields.iter().map(|name| format!("`{name}`")).collect();
        // Writing into a String cannot fail.
        let _ = write!(
            page,
            "\n### `{}` ({})\n\n{}\n\n- Fields: {}\n- Do: {}\n",
            event.name,
            event.level.as_str().to_lowercase(),
            event.meaning,
            fields.join(", "),
            event.action,
        );
    }
    page.push_str("\n## Fields\n\n| Field | Meaning |\n|---|---|\n");
    for (name, meaning) in MEANINGS {
        let _ = writeln!(page, "| `{name}` | {meaning} |");
    }
    page
}

const PREFACE: &str = "\
# What the node writes into its log

The log goes to standard error: one line an event, JSON or text (`log_format`). The vocabulary is
closed: every line at level info or above is one of the events below, and their names and fields do
not change their meaning. As JSON an event looks like this; as text it has the same fields as
`name=value`:

```json
{\"time\":\"2026-11-23T23:14:05.123Z\",\"level\":\"warn\",\"event\":\"peer_down\",\"peer\":\"billing\",\"since\":\"2026-11-23T23:14:05.120Z\",\"reason\":\"connection refused\",\"waiting\":1204,\"next_attempt\":\"2026-11-23T23:14:05.370Z\"}
```

Times are UTC. Control characters in names, reasons and whatever else comes from outside are escaped:
an event is always one line. A field whose value is absent is left out. Events that others can cause
at will are limited to 5 in 10 seconds for each peer or connection; `suppressed` says how many were
left out. Levels: **error** look now, **warn** look today, **info** the node's life, **debug** for a
closer look (`--log-filter debug`, or live with `restante log-level debug`).

The questions the log answers alone: who is down, since when, how much waits and when is the next try
(`peer_down`, `peer_failed`, `summary_peer`); what was refused, parked, expired, purged (`message_refused`,
`message_parked`, `messages_expired`, `messages_purged`); who changed what (`peer_added` to `admin_refused`).

## Events
";

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_field_has_a_meaning_and_every_meaning_a_field() {
        let used: BTreeSet<_> = EVENTS.iter().flat_map(|event| event.fields).copied().collect();
        let explained: BTreeSet<_> = MEANINGS.iter().map(|(name, _)| *name).collect();
        assert_eq!(used, explained);
    }

    #[test]
    fn every_event_says_what_it_means_and_what_to_do() {
        let names: BTreeSet<_> = EVENTS.iter().map(|event| event.name).collect();
        assert_eq!(names.len(), EVENTS.len(), "a name is used twice");
        for event in EVENTS {
            assert!(event.meaning.ends_with('.') && event.action.ends_with('.'), "{}", event.name);
        }
    }
}
