//! The sample configuration, drawn from the same rows as everything else.

use super::{Config, VALUES};

const PREFACE: &str = "\
# Every setting of a Restante node with its default. Remove the # in front of a key to set it.
#
# Later sources win: defaults, this file (serve --config FILE), the environment, flags.
# A key is set in the environment as RESTANTE_ and its name in capitals, with _ for a dot:
# RESTANTE_LOG_FILTER=debug, RESTANTE_PEER_DEFAULTS_ORDER=strict. `restante config show` prints
# what takes effect and where it was set; `restante config check` only says what is wrong.
";

/// `deploy/restante.toml`, whole. A test compares the file with this.
#[must_use]
pub fn sample() -> String {
    let defaults = Config::default();
    let mut page = String::from(PREFACE);
    for value in VALUES {
        page.push('\n');
        let range = value.range();
        for (at, line) in value.doc.iter().enumerate() {
            let range = if at + 1 == value.doc.len() && !range.is_empty() {
                format!(" ({range})")
            } else {
                String::new()
            };
            page.push_str(&format!("#{line}{range}\n"));
        }
        page.push_str(&format!("#{} = {}\n", value.key, value.of(&defaults)));
    }
    page
}
