use std::io::Write as _;
use std::time::Duration;

use arrow::array::AsArray;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, TimeUnit};
use penstock_crds::source::TransportField;

use super::*;
use crate::sources::BadRecord;
use crate::formats::json::JsonConfig;

fn config(folder: Folder, pattern: &str) -> FilesConfig {
    let ts = DataType::Timestamp(TimeUnit::Millisecond, None);
    let fields = vec![
        Field::new("n", DataType::Int64, true),
        Field::new("path", DataType::Utf8, false),
        Field::new("line", DataType::Int64, false),
        Field::new("at", ts, false),
    ];
    FilesConfig {
        name: "f".to_owned(),
        folder,
        pattern: pattern.to_owned(),
        plan: DecodePlan {
            schema: Arc::new(Schema::new(fields)),
            from: vec![
                None,
                Some(TransportField::Path),
                Some(TransportField::Offset),
                Some(TransportField::Timestamp),
            ],
            format: BodyFormat::Json(JsonConfig {
                max_record_bytes: 1 << 20,
                ..JsonConfig::default()
            }),
            keep_raw: true,
        },
    }
}

fn local(dir: &std::path::Path) -> Folder {
    Folder::open(&format!("file://{}", dir.display()), &BTreeMap::new()).unwrap()
}

fn whole(split: &str) -> SplitRange {
    SplitRange {
        split: SplitId(split.into()),
        from: Position(0),
        until: Some(Position::END),
    }
}

type Got = (Vec<(i64, String, i64)>, Vec<BadRecord>);

fn read_all(reader: &mut dyn SourceReader) -> Result<Got> {
    let (mut rows, mut bad) = (vec![], vec![]);
    loop {
        match reader.poll(4096)? {
            Polled::Rows(batch) => {
                let n = batch.rows.column(0).as_primitive::<Int64Type>();
                let path = batch.rows.column(1).as_string::<i32>();
                let line = batch.rows.column(2).as_primitive::<Int64Type>();
                let each = (0..batch.rows.num_rows())
                    .map(|i| (n.value(i), path.value(i).to_owned(), line.value(i)));
                rows.extend(each);
                bad.extend(batch.bad);
            }
            Polled::Empty => std::thread::sleep(Duration::from_millis(1)),
            Polled::Done => return Ok((rows, bad)),
        }
    }
}

#[test]
fn compressed_and_plain_files_give_the_same_rows() {
    let dir = tempfile::tempdir().unwrap();
    let text: String = (0..50_000).map(|i| format!("{{\"n\":{i}}}\r\n\n")).collect();
    let text = text.trim_end().to_owned();
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    std::fs::write(dir.path().join("sub/plain.json"), &text).unwrap();
    std::fs::write(dir.path().join("z.json.zst"), zstd::encode_all(text.as_bytes(), 1).unwrap()).unwrap();
    let mut gz = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    gz.write_all(text.as_bytes()).unwrap();
    std::fs::write(dir.path().join("g.json.gz"), gz.finish().unwrap()).unwrap();
    for name in ["sub/plain.json", "z.json.zst", "g.json.gz"] {
        let source = FilesSource::new(config(local(dir.path()), "*")).unwrap();
        let mut reader = source.reader().unwrap();
        reader.assign(vec![whole(name)]).unwrap();
        let (rows, bad) = read_all(reader.as_mut()).unwrap();
        assert!(bad.is_empty());
        let expected: Vec<_> = (0..50_000).map(|i| (i, name.to_owned(), 2 * i)).collect();
        assert!(rows == expected, "{name}");
        assert_eq!(reader.positions()[&SplitId(name.into())], Position::END);
    }
}

#[test]
fn bad_and_overlong_lines_are_reported_with_path_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let long = "x".repeat(3 << 20);
    let text = format!("{{\"n\":0}}\nnot json\n{{\"n\":\"{long}\"}}\n{{\"n\":3}}\n{long}");
    std::fs::write(dir.path().join("a"), text).unwrap();
    let source = FilesSource::new(config(local(dir.path()), "*")).unwrap();
    for from in 0..4 {
        let mut reader = source.reader().unwrap();
        let range = SplitRange { from: Position(from), ..whole("a") };
        reader.assign(vec![range]).unwrap();
        let (rows, bad) = read_all(reader.as_mut()).unwrap();
        let lines: Vec<i64> = rows.iter().map(|r| r.2).collect();
        assert_eq!(lines, [0, 3].into_iter().filter(|l| *l >= from).collect::<Vec<_>>());
        let got: Vec<_> = bad.iter().map(|b| (b.offset, b.code)).collect();
        let expected = [(1, "PR0201"), (2, "PR0204"), (4, "PR0204")];
        assert_eq!(got, expected.into_iter().filter(|b| b.0 >= from).collect::<Vec<_>>());
        if from <= 1 {
            assert_eq!(bad[0].value.as_deref(), Some(b"not json".as_slice()));
        }
    }
}

#[test]
fn a_file_that_is_gone_is_a_loss_of_data() {
    let dir = tempfile::tempdir().unwrap();
    let source = FilesSource::new(config(local(dir.path()), "*")).unwrap();
    let mut reader = source.reader().unwrap();
    reader.assign(vec![whole("gone.json")]).unwrap();
    let error = read_all(reader.as_mut()).unwrap_err();
    assert_eq!((error.code, error.kind), ("PR0207", crate::error::ErrorKind::Fail));
    assert!(error.to_string().contains("gone.json"), "{error}");
}

#[test]
fn a_truncated_archive_is_an_error_and_not_a_short_file() {
    let dir = tempfile::tempdir().unwrap();
    let text: String = (0..100_000).map(|i| format!("{{\"n\":{i}}}\n")).collect();
    let packed = zstd::encode_all(text.as_bytes(), 1).unwrap();
    std::fs::write(dir.path().join("a.zst"), &packed[..packed.len() / 2]).unwrap();
    let source = FilesSource::new(config(local(dir.path()), "*")).unwrap();
    let mut reader = source.reader().unwrap();
    reader.assign(vec![whole("a.zst")]).unwrap();
    let error = read_all(reader.as_mut()).unwrap_err();
    assert_eq!(error.code, "PR0208");
}

#[tokio::test]
async fn a_growing_folder_shows_each_file_once_sorted_and_without_hidden_ones() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "{}\n").unwrap();
    };
    for name in ["b.json", "a.json", "_SUCCESS.json", ".hidden.json", "_tmp/c.json", "x.csv", "d/e.json"] {
        put(name);
    }
    let source = FilesSource::new(config(local(dir.path()), "*.json")).unwrap();
    let mut enumerator = source.enumerator().unwrap();
    let names = |found: &[Discovered]| found.iter().map(|d| d.split.0.to_string()).collect::<Vec<_>>();
    let mut known = BTreeMap::new();
    let found = enumerator.discover(&known, true).await.unwrap();
    assert_eq!(names(&found), ["a.json", "b.json", "d/e.json"]);
    known.extend(found.into_iter().map(|d| (d.split, Position::END)));
    put("aa.json");
    let found = enumerator.discover(&known, false).await.unwrap();
    assert_eq!(names(&found), ["aa.json"]);
    let starts = enumerator.starts(&["a.json", "zz.json"].map(|n| SplitId(n.into()))).await.unwrap();
    assert_eq!(starts.len(), 1);
    let missing = Folder::open(&format!("file://{}/none", dir.path().display()), &BTreeMap::new()).unwrap();
    let mut enumerator = FilesSource::new(config(missing, "*")).unwrap().enumerator().unwrap();
    assert_eq!(enumerator.discover(&BTreeMap::new(), true).await.unwrap_err().code, "PR0208");
}

#[test]
fn globs_match_as_in_a_shell() {
    for (pattern, name, expected) in [
        ("*", "a/b.json", true),
        ("*.json", "a/b.json", true),
        ("*.json", "b.jsonl", false),
        ("a/*.json", "a/b.json", true),
        ("a/*.json", "a/c/b.json", false),
        ("**/b.json", "a/c/b.json", true),
        ("**/b.json", "b.json", true),
        ("a/**", "a/c/b.json", true),
        ("day-[0-9]?.{json,gz}", "day-12.gz", true),
        ("day-[!0-9]*", "day-1", false),
        ("a+b.json", "a+b.json", true),
    ] {
        assert_eq!(glob(pattern).unwrap().is_match(name), expected, "{pattern} {name}");
    }
    assert!(glob("[a").is_none() && glob("{a").is_none());
}
