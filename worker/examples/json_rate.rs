//! Rows per CPU-second of decoding and encoding JSON on one thread, against arrow-json: `json_rate FILE [repeats]`.

use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{DataType, Field, Fields, Schema, TimeUnit};
use penstock_worker::formats::json::{JsonConfig, JsonDecoder, JsonEncoder, Timestamps};
use penstock_worker::formats::{Decoder, Encoder};

/// CPU time of this thread: the machine may be busy with other things.
fn cpu() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
}

fn main() -> anyhow::Result<()> {
    let path = std::env::args().nth(1).expect("a file of JSON lines");
    let text = std::fs::read(path)?;
    let lines: Vec<&[u8]> = text
        .split(|b| *b == b'\n')
        .filter(|l| !l.is_empty())
        .collect();
    let ts = DataType::Timestamp(TimeUnit::Millisecond, None);
    let f = |n: &str, t: &DataType| Field::new(n, t.clone(), true);
    let bid = |names: &[&str]| {
        let all = [
            f("auction", &DataType::Int64),
            f("bidder", &DataType::Int64),
            f("price", &DataType::Int64),
            f("channel", &DataType::Utf8),
            f("url", &DataType::Utf8),
            f("dateTime", &ts),
            f("extra", &DataType::Utf8),
        ];
        let fields: Fields = all
            .into_iter()
            .filter(|x| names.contains(&x.name().as_str()))
            .collect();
        f("bid", &DataType::Struct(fields))
    };
    let person = f(
        "person",
        &DataType::Struct(Fields::from(vec![
            f("id", &DataType::Int64),
            f("name", &DataType::Utf8),
            f("city", &DataType::Utf8),
            f("dateTime", &ts),
        ])),
    );
    let sets = [
        (
            "q0 auction,bidder,price,dateTime,extra",
            vec![
                f("event_type", &DataType::Int32),
                bid(&["auction", "bidder", "price", "dateTime", "extra"]),
            ],
        ),
        (
            "q2 auction,price",
            vec![
                f("event_type", &DataType::Int32),
                bid(&["auction", "price"]),
            ],
        ),
        (
            "all of bid and person",
            vec![
                f("event_type", &DataType::Int32),
                person,
                bid(&[
                    "auction", "bidder", "price", "channel", "url", "dateTime", "extra",
                ]),
            ],
        ),
    ];
    for (name, fields) in sets {
        let schema = Arc::new(Schema::new(fields));
        let (mut best, mut best_theirs) = (Duration::MAX, Duration::MAX);
        for round in 0..4 {
            let mut d = JsonDecoder::new(Arc::clone(&schema), JsonConfig::default())?;
            let start = cpu();
            let mut rows = 0;
            let mut batches = vec![];
            for chunk in lines.chunks(4096) {
                for line in chunk {
                    d.feed(line);
                }
                let (batch, errors) = d.finish()?;
                assert!(errors.is_empty(), "{:?}", errors[0]);
                rows += batch.num_rows();
                if round == 3 {
                    batches.push(batch)
                }
            }
            if round < 3 {
                best = best.min(cpu() - start);
            }
            let mut a = arrow_json::ReaderBuilder::new(Arc::clone(&schema))
                .with_batch_size(4096)
                .build_decoder()?;
            let start = cpu();
            for chunk in lines.chunks(4096) {
                for line in chunk {
                    a.decode(line)?;
                }
                a.flush()?;
            }
            best_theirs = best_theirs.min(cpu() - start);
            if round == 3 {
                let mut e = JsonEncoder::new(Timestamps::Iso8601);
                let mut out = vec![];
                let start = cpu();
                let mut written = 0;
                for batch in &batches {
                    let flat: arrow::array::RecordBatch =
                        arrow::array::StructArray::from(arrow::array::RecordBatch::clone(batch))
                            .into();
                    e.bind(&flat)?;
                    out.clear();
                    for row in 0..batch.num_rows() {
                        e.encode(row, &mut out)?;
                    }
                    written += out.len();
                }
                let encode = cpu() - start;
                println!(
                    "{name}: {rows} rows; own {:.2} M/s, arrow-json {:.2} M/s, encode {:.2} M/s ({written} bytes)",
                    rows as f64 / best.as_secs_f64() / 1e6,
                    rows as f64 / best_theirs.as_secs_f64() / 1e6,
                    rows as f64 / encode.as_secs_f64() / 1e6
                );
            }
        }
    }
    Ok(())
}
