//! The lines of a small log, golden.

use super::*;
use crate::ids::{Generation, LogId, Nonce, Seq};
use crate::record::{ClaimKind, Commit};

#[test]
fn a_log_reads_as_lines() {
    let record = |seq, generation, kind| Record {
        format: 1,
        min_reader: 1,
        log: LogId::from_bytes([7; 16]),
        seq: Seq::new(seq),
        generation: Generation::new(generation),
        nonce: Nonce::from_bytes([1; 16]),
        time: Micros::from_millis(1_767_323_045_678),
        closure_seq: Seq::ZERO,
        kind,
    };
    let claim = Claim {
        kind: ClaimKind::GoBack,
        restore_epoch: Epoch::new(3),
        handover_from: None,
        plan_hash: "0123456789abcdef".into(),
        members: vec![crate::ids::MemberId::ZERO],
        assignment: Default::default(),
        by: Some("ada".into()),
        version: None,
        request: None,
    };
    let commit = Commit {
        epoch: Epoch::new(9),
        parent: Epoch::new(3),
        ..Commit::default()
    };
    let records = [
        record(
            1,
            0,
            Kind::Created(Created {
                name: "risk/fraud".into(),
                key_groups: 64,
                parent: None,
            }),
        ),
        record(2, 1, Kind::Claim(claim)),
        record(
            3,
            1,
            Kind::Epoch(EpochRecord {
                commit: Some(commit),
                plan: None,
                done_through: Epoch::new(8),
            }),
        ),
        record(
            4,
            1,
            Kind::Stopped(Stopped {
                epoch: Epoch::new(9),
                why: crate::record::StopReason::Completed,
            }),
        ),
    ];
    let want = "       1  2026-01-02T03:04:05.678Z  g0   Created      risk/fraud, 64 key groups
       2  2026-01-02T03:04:05.678Z  g1   Claim        GoBack from epoch 3, 1 member, by ada, plan 0123456789ab
       3  2026-01-02T03:04:05.678Z  g1   Epoch        commit 9 on 3: 0 splits, 0 packs of 0 bytes; done through 8
       4  2026-01-02T03:04:05.678Z  g1   Stopped      at epoch 9: Completed
";
    assert_eq!(text(&records), want);
}
