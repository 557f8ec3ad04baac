//! The reference page says what the command line says.

#[test]
fn the_reference_page_is_what_the_grammar_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/cli.md");
    let page = mneme_cli::reference();
    if std::env::var_os("MNEME_BLESS").is_some() {
        fs_err::write(path, &page).unwrap();
    }
    let kept = fs_err::read_to_string(path).unwrap_or_default();
    assert!(kept == page, "docs/reference/cli.md is out of date: MNEME_BLESS=1 cargo test -p mneme-cli");
}
