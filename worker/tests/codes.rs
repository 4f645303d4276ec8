//! Every code that the engine's sources mention is one that `penstock explain` knows.

use std::fs;
use std::path::Path;

fn sources(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).expect("a source");
            found.push((path.display().to_string(), text));
        }
    }
}

#[test]
fn every_code_can_be_explained() {
    let mut found = Vec::new();
    sources(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut found,
    );
    let mut seen = 0;
    for (path, text) in &found {
        for (at, _) in text.match_indices("\"PR") {
            let code = &text[at + 1..at + 7];
            if !code[2..].bytes().all(|b| b.is_ascii_digit()) || text.as_bytes()[at + 7] != b'"' {
                continue;
            }
            seen += 1;
            assert!(
                penstock_crds::codes::explain(code).is_some(),
                "{path} uses {code}, which has no entry in crds/src/codes.rs"
            );
        }
    }
    assert!(
        seen > 50,
        "only {seen} codes found: is this test looking in the right place?"
    );
}
