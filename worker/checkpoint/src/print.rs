//! The log for people: a line per record. Pure; `penstock log` prints it.

use crate::ids::{Epoch, Micros};
use crate::record::{
    Accepted, Claim, ClosureRecord, Created, Drop, EpochRecord, Kind, LossAccepted, Pin, Position,
    Record, SinkBorn, Stopped, Unpin,
};

#[cfg(test)]
mod tests;

/// One line: seq, time, generation, kind, and what the kind says.
pub fn line(record: &Record) -> String {
    let Record {
        seq,
        generation,
        time,
        kind,
        ..
    } = record;
    format!(
        "{:>8}  {}  g{generation:<3} {:<12} {}",
        seq.get(),
        utc(*time),
        kind.name(),
        says(kind)
    )
}

/// The records as lines, in the order given.
pub fn text<'a>(records: impl IntoIterator<Item = &'a Record>) -> String {
    records.into_iter().map(|r| line(r) + "\n").collect()
}

/// The records as JSON, a line each.
pub fn json<'a>(
    records: impl IntoIterator<Item = &'a Record>,
) -> Result<String, serde_json::Error> {
    records
        .into_iter()
        .map(|r| Ok(serde_json::to_string(r)? + "\n"))
        .collect()
}

fn says(kind: &Kind) -> String {
    match kind {
        Kind::Created(Created {
            name,
            key_groups,
            parent,
        }) => {
            let from = parent
                .as_ref()
                .map(|p| format!(", from epoch {} of log {}", p.epoch, p.log))
                .unwrap_or_default();
            format!("{name}, {key_groups} key groups{from}")
        }
        Kind::Claim(Claim {
            kind,
            restore_epoch,
            handover_from,
            plan_hash,
            members,
            assignment: _,
            by,
            version,
            request,
        }) => {
            let mut s = format!(
                "{kind:?} from epoch {restore_epoch}, {}",
                count(members.len(), "member")
            );
            if let Some(g) = handover_from {
                s += &format!(", handed over by g{g}");
            }
            if let Some(by) = by {
                s += &format!(", by {by}");
            }
            if let Some(version) = version {
                s += &format!(", version {version}");
            }
            if let Some(request) = request {
                s += &format!(", asked for as {request}");
            }
            s + &format!(", plan {}", plan_hash.chars().take(12).collect::<String>())
        }
        Kind::Epoch(EpochRecord {
            commit,
            plan,
            done_through,
        }) => {
            let mut parts = Vec::new();
            if let Some(c) = commit {
                let usual = c.epoch.prev() == Some(c.parent);
                let parent = if usual {
                    String::new()
                } else {
                    format!(" on {}", c.parent)
                };
                let splits = c.offsets.values().map(|s| s.len()).sum();
                let bytes: u64 = c
                    .packs
                    .iter()
                    .map(|p| p.length + p.outs.iter().sum::<u64>())
                    .sum();
                let mut s = format!("commit {}{parent}: {}", c.epoch, count(splits, "split"));
                s += &format!(", {} of {bytes} bytes", count(c.packs.len(), "pack"));
                if c.forgets_state {
                    s += ", operators begin empty";
                }
                if !c.bases.is_empty() {
                    s += &format!(", {}", count(c.bases.len(), "base"));
                }
                if let Some(least) = c.watermarks.values().min() {
                    s += &format!(", watermark {}", utc(*least));
                }
                for (name, n) in &c.counts {
                    s += &format!(", {name} {n}");
                }
                parts.push(s);
            }
            if let Some(p) = plan {
                let splits = p.ranges.values().map(|s| s.len()).sum();
                let end = if p.end.is_some() { ", end fixed" } else { "" };
                parts.push(format!("plan {}: {}{end}", p.epoch, count(splits, "range")));
            }
            if *done_through > Epoch::ZERO {
                parts.push(format!("done through {done_through}"));
            }
            parts.join("; ")
        }
        Kind::Closure(ClosureRecord {
            epoch,
            path,
            length,
            crc: _,
            through,
        }) => {
            format!("of epoch {epoch} through record {through}, {length} bytes, {path}")
        }
        Kind::Accepted(Accepted {
            generation: _,
            epoch,
        }) => format!("at epoch {epoch}"),
        Kind::SinkBorn(SinkBorn {
            sink,
            shard,
            partition,
            epoch,
            nonce: _,
        }) => {
            format!("{sink} shard {shard}, marker partition {partition}, at epoch {epoch}")
        }
        Kind::Pin(Pin { epoch, name }) => format!("epoch {epoch} as {name}"),
        Kind::Unpin(Unpin { name }) => name.clone(),
        Kind::Stopped(Stopped { epoch, why }) => format!("at epoch {epoch}: {why:?}"),
        Kind::LossAccepted(LossAccepted {
            source,
            split,
            from,
            to,
            by,
        }) => {
            format!(
                "{source} {split} from {} to {}, by {by}",
                position(from),
                position(to)
            )
        }
        Kind::Drop(Drop { uids, files }) => {
            let mut s = count(files.len(), "file");
            if !uids.is_empty() {
                let names: Vec<&str> = uids.iter().map(|u| u.as_str()).collect();
                s += &format!(", state of {}", names.join(", "));
            }
            s
        }
    }
}

fn count(n: usize, what: &str) -> String {
    if n == 1 {
        format!("1 {what}")
    } else {
        format!("{n} {what}s")
    }
}

fn position(p: &Position) -> String {
    match p {
        Position::Offset(n) => n.to_string(),
        Position::Token(t) => t.clone(),
    }
}

/// RFC 3339 to the millisecond, by Howard Hinnant's `civil_from_days`.
fn utc(t: Micros) -> String {
    let (day, rest) = (
        t.get().div_euclid(86_400_000_000),
        t.get().rem_euclid(86_400_000_000),
    );
    let z = day + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let d = doy - (153 * mp + 2) / 5 + 1;
    let m = if mp < 10 { mp + 3 } else { mp - 9 };
    let y = yoe + era * 400 + i64::from(m <= 2);
    let ms = rest / 1000;
    let (h, min, s) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    format!(
        "{y:04}-{m:02}-{d:02}T{h:02}:{min:02}:{s:02}.{:03}Z",
        ms % 1000
    )
}
