//! The implementations that the contract is checked for.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use penstock_crds::source::{Generate, Sequence};

use super::{Subject, check};
use crate::clock::SystemClock;
use crate::folder::Folder;
use crate::formats::json::JsonConfig;
use crate::sources::decode::{BodyFormat, DecodePlan};
use crate::sources::files::{FilesConfig, FilesSource};
use crate::sources::generator::{GeneratorConfig, GeneratorSource};
use crate::sources::memory::{MemoryRecord, MemorySource};
use crate::sources::{Position, Source, SplitId};

const ROWS: i64 = 20;

fn schema() -> Arc<Schema> {
    Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)]))
}

fn plan() -> DecodePlan {
    DecodePlan {
        schema: schema(),
        from: vec![None],
        format: BodyFormat::Json(JsonConfig::default()),
        keep_raw: false,
    }
}

fn body(split: &str, i: i64) -> String {
    format!("{{\"n\":{}}}", i * 100 + split.len() as i64)
}

#[tokio::test]
async fn memory_keeps_the_contract() {
    let source = MemorySource::new(plan());
    let splits = ["a", "b", "c"];
    for split in splits {
        source.push(split, (0..ROWS).map(|i| MemoryRecord {
            value: Some(body(split, i).into()),
            ..MemoryRecord::default()
        }));
    }
    check(Subject {
        source: Arc::new(source),
        splits: splits.map(|s| SplitId(s.into())).to_vec(),
        rows: ROWS,
        end: Position(ROWS),
        cuts: true,
    })
    .await;
}

#[tokio::test]
async fn generator_keeps_the_contract() {
    let generate = Generate {
        sequence: Some(Sequence::default()),
        ..Generate::default()
    };
    let config = GeneratorConfig {
        name: "g".to_owned(),
        schema: schema(),
        generate: vec![generate],
        seed: 7,
        rows_per_second: 0,
        rows: Some(3 * ROWS as u64),
        splits: 3,
        paced: false,
    };
    check(Subject {
        source: Arc::new(GeneratorSource::new(config, Arc::new(SystemClock)).unwrap()),
        splits: ["0", "1", "2"].map(|s| SplitId(s.into())).to_vec(),
        rows: ROWS,
        end: Position(ROWS),
        cuts: true,
    })
    .await;
}

#[tokio::test]
async fn files_keep_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let splits = ["a.json", "b/c.json", "d.json"];
    std::fs::create_dir(dir.path().join("b")).unwrap();
    for split in splits {
        let lines: String = (0..ROWS).map(|i| body(split, i) + "\n").collect();
        std::fs::write(dir.path().join(split), lines).unwrap();
    }
    let folder = Folder::open(&format!("file://{}", dir.path().display()), &Default::default()).unwrap();
    let source: Arc<dyn Source> = Arc::new(
        FilesSource::new(FilesConfig {
            name: "f".to_owned(),
            folder,
            pattern: "*".to_owned(),
            plan: plan(),
        })
        .unwrap(),
    );
    check(Subject {
        source,
        splits: splits.map(|s| SplitId(s.into())).to_vec(),
        rows: ROWS,
        end: Position::END,
        cuts: true,
    })
    .await;
}
