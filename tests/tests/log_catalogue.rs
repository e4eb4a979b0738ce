//! The log catalogue that operators read says what the code does.

/// Run with `BLESS=1` to write the file anew after a change to the events.
#[test]
fn the_catalogue_is_drawn_from_the_events() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/LOGS.md");
    let drawn = restante_actors::events::catalogue();
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(path, &drawn).expect("the catalogue can be written");
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    let differs = written.lines().zip(drawn.lines()).position(|(file, code)| file != code);
    assert!(
        written == drawn,
        "deploy/LOGS.md differs from actors/src/events at line {:?}; \
         BLESS=1 cargo test -p restante-tests --test log_catalogue writes it anew",
        differs.map(|line| line + 1)
    );
}
