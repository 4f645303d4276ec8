//! Imports run downward only, as `lib.rs` draws the layers.

use std::path::Path;

fn layer(module: &str) -> Option<u8> {
    Some(match module {
        "graph" | "source_plan" | "input" | "fault" | "codes" => 0,
        "parse" | "dialect" | "refuse" | "rewrite" | "functions" | "expression" => 1,
        "catalog" | "window" | "ir" => 2,
        "lower" | "prune" | "fingerprint" => 3,
        "finish" | "verdict" | "explain" | "emission" => 4,
        "planner" => 5,
        _ => return None,
    })
}

fn check(path: &Path, module: &str, upward: &mut Vec<String>) {
    let text = std::fs::read_to_string(path).expect("a source file can be read");
    let own = layer(module).unwrap_or_else(|| panic!("module {module} has no layer"));
    for used in text.split("crate::").skip(1) {
        let name: String = used
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect();
        if layer(&name).is_some_and(|l| l > own) {
            upward.push(format!("{module} imports {name}"));
        }
    }
}

#[test]
fn imports_run_downward() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut upward = vec![];
    for entry in std::fs::read_dir(&src).expect("src is a folder") {
        let path = entry.expect("an entry can be read").path();
        let stem = path
            .file_stem()
            .and_then(|s| s.to_str())
            .unwrap_or_default()
            .to_owned();
        if path.is_dir() {
            for inner in std::fs::read_dir(&path).expect("a module's folder") {
                check(
                    &inner.expect("an entry can be read").path(),
                    &stem,
                    &mut upward,
                );
            }
        } else if stem != "lib" {
            check(&path, &stem, &mut upward);
        }
    }
    upward.sort();
    upward.dedup();
    assert!(upward.is_empty(), "{}", upward.join("\n"));
}
