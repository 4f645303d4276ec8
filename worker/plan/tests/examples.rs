//! Every manifest of `examples/` is valid and can be planned, and every example has a test file. Likewise the manifests in the
//! fenced blocks of the docs.

use std::fs;
use std::path::{Path, PathBuf};

use penstock_crds::manifest::load;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Loads and plans each job of a text; answers what is wrong, with the name before it.
fn faults(name: &str, text: &str) -> Vec<String> {
    let resources = match load(text, name) {
        Ok(resources) => resources,
        Err(faults) => return faults.iter().map(|f| format!("{name}: {f}")).collect(),
    };
    let jobs = resources.iter().filter_map(|r| r.job());
    let plans = jobs.map(penstock_plan::plan);
    plans
        .filter_map(Result::err)
        .flatten()
        .map(|f| format!("{name}: {f}"))
        .collect()
}

#[test]
fn every_example_is_planned_and_has_a_test() {
    let mut wrong = vec![];
    let mut count = 0;
    for entry in fs::read_dir(root().join("examples")).expect("the examples") {
        let folder = entry.expect("an entry").path();
        if !folder.is_dir() {
            continue;
        }
        count += 1;
        let manifest = folder.join("job.yaml");
        let text = fs::read_to_string(&manifest).expect("a manifest");
        wrong.extend(faults(&manifest.display().to_string(), &text));
        if !folder.join("test.yaml").is_file() {
            wrong.push(format!("{}: no test.yaml", folder.display()));
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    assert!(count >= 7, "{count} examples");
}

/// Markdown files below a folder.
fn pages(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            pages(&path, out);
        } else if path.extension().is_some_and(|e| e == "md") {
            out.push(path);
        }
    }
}

#[test]
fn every_manifest_of_the_docs_is_planned() {
    let mut files = vec![root().join("README.md")];
    pages(&root().join("docs"), &mut files);
    let mut wrong = vec![];
    for file in files {
        let text = fs::read_to_string(&file).expect("a page");
        for (n, block) in text.split("\n```yaml\n").skip(1).enumerate() {
            let block = block.split("\n```").next().unwrap_or_default();
            if block.lines().any(|l| l == "kind: StreamingJob") {
                wrong.extend(faults(
                    &format!("{} block {}", file.display(), n + 1),
                    block,
                ));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}
