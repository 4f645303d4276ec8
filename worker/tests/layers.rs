//! The layers that `lib.rs` draws: a module imports from its own layer's folder and from layers below, never upward, and
//! peers of layer 1 never from each other.

use std::path::{Path, PathBuf};

/// Modules by layer, lowest first.
const LAYERS: &[&[&str]] = &[
    &[
        "message", "keys", "clock", "cpu", "fault", "folder", "kafka", "process", "planted",
        "metrics", "error",
    ],
    &["state", "sources", "sinks", "formats", "network"],
    &["operators"],
    &["task"],
    &["member"],
    &["coordinator"],
    &["job"],
    &["testing"],
    &["cli", "simulation"],
];

/// Peers of layer 1 that one of them may use all the same: sources and sinks decode and encode by formats.
const ALLOWED: &[(&str, &str)] = &[("sources", "formats"), ("sinks", "formats")];

fn layer(module: &str) -> usize {
    LAYERS
        .iter()
        .position(|l| l.contains(&module))
        .unwrap_or_else(|| {
            panic!("module {module} stands in no layer: add it to lib.rs's drawing and here")
        })
}

fn files(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("the source folder is there") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

#[test]
fn no_module_imports_upward() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    files(&root, &mut all);
    let mut wrong = Vec::new();
    let mut seen = 0;
    for file in all {
        let relative = file
            .strip_prefix(&root)
            .expect("below the root")
            .to_path_buf();
        let first = relative
            .components()
            .next()
            .expect("a name")
            .as_os_str()
            .to_string_lossy()
            .into_owned();
        let own = first.trim_end_matches(".rs").to_owned();
        if own == "lib"
            || own == "main"
            || relative
                .components()
                .any(|c| c.as_os_str().to_string_lossy().contains("tests"))
        {
            continue;
        }
        let text = std::fs::read_to_string(&file).expect("readable");
        for (n, line) in text
            .lines()
            .enumerate()
            .filter(|(_, l)| !l.trim_start().starts_with("//"))
        {
            for (at, _) in line.match_indices("crate::") {
                let rest = &line[at + "crate::".len()..];
                let name: String = rest
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect();
                if name.is_empty()
                    || name == own
                    || !LAYERS.iter().any(|l| l.contains(&name.as_str()))
                {
                    continue;
                }
                seen += 1;
                let (mine, other) = (layer(&own), layer(&name));
                let peer =
                    mine == other && mine == 1 && !ALLOWED.contains(&(own.as_str(), name.as_str()));
                if other > mine || peer {
                    wrong.push(format!(
                        "{}:{}: {own} imports {name}",
                        relative.display(),
                        n + 1
                    ));
                }
            }
        }
    }
    assert!(seen > 100, "the imports were found: {seen}");
    assert!(
        wrong.is_empty(),
        "imports that run upward:\n{}",
        wrong.join("\n")
    );
}
