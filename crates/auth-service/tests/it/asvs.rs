//! `docs/security.md` names a test for each row.

use std::{fs, path::Path};

const CRATES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// What stands between backticks and looks like `crate/path.rs::name`.
fn named(page: &str) -> Vec<(&str, &str)> {
    let code = page.split('`').skip(1).step_by(2);
    code.filter_map(|text| text.split_once(".rs::")).collect()
}

#[test]
fn every_test_that_the_page_names_exists() {
    let page = format!("{CRATES}/../docs/security.md");
    let page = fs::read_to_string(page).unwrap();
    let named = named(&page);
    assert!(named.len() > 40, "{}", named.len());
    for (file, name) in named {
        let path = Path::new(CRATES).join(format!("{file}.rs"));
        let source = fs::read_to_string(&path);
        let source = source.unwrap_or_else(|error| panic!("{file}.rs: {error}"));
        assert!(
            source.contains(&format!("fn {name}(")),
            "{file}.rs has no {name}"
        );
    }
}

#[test]
fn every_row_names_one() {
    let page = fs::read_to_string(format!("{CRATES}/../docs/security.md")).unwrap();
    let rows = page.lines().filter(|line| {
        let item = line.trim_start_matches("| ");
        line.starts_with("| ") && item.starts_with(|c: char| c.is_ascii_digit())
    });
    let mut count = 0;
    for row in rows {
        assert!(!named(row).is_empty(), "{row}");
        count += 1;
    }
    assert!(count > 30, "{count}");
}
