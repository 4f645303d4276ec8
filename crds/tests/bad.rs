//! Bad manifests and what is said of each: `bad/NAME.yaml` beside `bad/NAME.txt`. `UPDATE=1` writes the texts anew.

use std::fs;
use std::path::Path;

use penstock_crds::manifest::load_for;
use penstock_crds::validate::{Place, unsupported};

#[test]
fn every_bad_manifest_is_refused_with_its_exact_messages() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bad");
    let mut names = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter_map(|name| name.strip_suffix(".yaml").map(str::to_owned))
        .collect::<Vec<_>>();
    names.sort();
    assert!(names.len() >= 40, "{} bad manifests", names.len());
    let mut wrong = Vec::new();
    for name in names {
        let text = fs::read_to_string(folder.join(format!("{name}.yaml"))).unwrap();
        let place = if name.starts_with("cluster-") {
            Place::Cluster
        } else {
            Place::Local
        };
        let found = match load_for(&text, "job.yaml", place) {
            Err(faults) => faults,
            Ok(resources) => {
                let mut faults = resources
                    .iter()
                    .flat_map(|resource| resource.warnings.clone())
                    .collect::<Vec<_>>();
                for resource in &resources {
                    for mut fault in resource
                        .job()
                        .map(|job| unsupported(&job.spec))
                        .into_iter()
                        .flatten()
                    {
                        resource.positions.place(&mut fault);
                        faults.push(fault);
                    }
                }
                faults
            }
        };
        let found = found
            .iter()
            .map(|fault| format!("{fault}\n"))
            .collect::<String>();
        let expected = folder.join(format!("{name}.txt"));
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&expected, &found).unwrap();
        }
        if found.is_empty() || fs::read_to_string(&expected).unwrap_or_default() != found {
            wrong.push(format!("{name}:\n{found}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
