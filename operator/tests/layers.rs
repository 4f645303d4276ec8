//! The layers that `lib.rs` draws: a module imports from its own layer and from layers below, never upward.

use std::path::{Path, PathBuf};

/// Modules by layer, lowest first.
const LAYERS: &[&[&str]] = &[
    &[
        "settings",
        "names",
        "kind",
        "same",
        "guarded",
        "metrics",
        "clock",
        "address",
        "autoscale",
    ],
    &["facts", "version", "issue"],
    &["build", "status", "upgrade"],
    &["decide"],
    &[
        "observe",
        "coordinator",
        "apply",
        "certificates",
        "lint",
        "unreadable",
    ],
    &["controller", "poll", "admission", "election"],
];

fn layer(module: &str) -> usize {
    let at = LAYERS.iter().position(|l| l.contains(&module));
    at.unwrap_or_else(|| {
        panic!("module {module} stands in no layer: add it to lib.rs's drawing and here")
    })
}

fn files(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.file_name().and_then(|n| n.to_str()) {
            Some("bin" | "tests.rs" | "lib.rs" | "main.rs") => {}
            Some(_) if path.is_dir() => files(&path, into),
            _ => into.push(path),
        }
    }
}

#[test]
fn no_module_imports_upward() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    files(&root, &mut all);
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for file in all {
        let relative = file.strip_prefix(&root).unwrap();
        let first = relative.iter().next().unwrap().to_str().unwrap();
        let own = first.trim_end_matches(".rs");
        let text = std::fs::read_to_string(&file).unwrap();
        // What tests use is theirs.
        let text = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (at, _) in text.match_indices("crate::") {
            let name: String = text[at + "crate::".len()..]
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            seen += 1;
            if layer(&name) > layer(own) {
                wrong.push(format!("{}: {own} imports {name}", relative.display()));
            }
        }
    }
    assert!(seen > 40, "the imports were found: {seen}");
    assert_eq!(wrong, Vec::<String>::new());
}
