//! Who may coordinate, by what workers see of each other.

use super::*;

fn id(n: u32) -> MemberId {
    MemberId::new(n)
}

fn peer(n: u32) -> Peer {
    Peer {
        id: id(n),
        process: 7,
    }
}

fn others(answers: &[(u32, Option<u32>)]) -> Others {
    let one = |(n, coordinator): &(u32, Option<u32>)| {
        let seen = Seen {
            who: peer(*n),
            coordinator: coordinator.map(peer),
            leaves: false,
            runs: 0,
        };
        (seen.who, seen)
    };
    answers.iter().map(one).collect()
}

/// Where the log does not move.
fn may_lead(me: Peer, last: &[MemberId], others: &Others, silent: Duration) -> bool {
    super::may_lead(me, last, others, silent, true)
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn who_is_kept_apart_from_those_that_go_on_does_not_take_the_job_from_them() {
    let last = [0, 1].map(id);
    let none = others(&[]);
    let claims = |me, stands_still| super::may_lead(peer(me), &last, &none, LONG, stands_still);
    assert!(!claims(2, false), "the log moves");
    assert!(claims(2, true), "they are gone");
    assert!(claims(1, false), "it was one of them");
}

#[test]
fn with_no_claim_yet_any_worker_may_lead() {
    assert!(may_lead(peer(2), &[], &others(&[]), Duration::ZERO));
    assert!(may_lead(
        peer(2),
        &[],
        &others(&[(0, None)]),
        Duration::ZERO
    ));
}

#[test]
fn nobody_leads_while_another_hears_of_a_coordinator() {
    let last = [0, 1, 2].map(id);
    assert!(!may_lead(peer(1), &last, &others(&[(2, Some(0))]), LONG));
    assert!(!may_lead(peer(1), &[], &others(&[(2, Some(0))]), LONG));
    let of_me = others(&[(2, Some(1)), (0, None)]);
    let before = Peer {
        process: 6,
        ..peer(1)
    };
    assert!(
        may_lead(peer(1), &last, &of_me, Duration::ZERO),
        "it coordinated itself"
    );
    assert!(
        !may_lead(before, &last, &of_me, LONG),
        "a newer process of its does"
    );
}

#[test]
fn a_majority_of_the_last_claims_members_must_miss_the_coordinator() {
    let last = [0, 1, 2].map(id);
    assert!(may_lead(
        peer(1),
        &last,
        &others(&[(2, None)]),
        Duration::ZERO
    ));
    assert!(!may_lead(peer(1), &last, &others(&[]), Duration::ZERO));
    assert!(
        !may_lead(peer(7), &last, &others(&[(2, None)]), Duration::ZERO),
        "one of three"
    );
    let two = others(&[(1, None), (2, None)]);
    assert!(may_lead(peer(7), &last, &two, Duration::ZERO));
}

#[test]
fn a_minority_waits_for_the_others_but_not_for_ever() {
    let last = [0, 1, 2, 3, 4].map(id);
    let seen = others(&[(1, None)]);
    assert!(!may_lead(peer(0), &last, &seen, LEASE * (GONE - 1)));
    assert!(may_lead(peer(0), &last, &seen, LEASE * GONE));
    let heard = others(&[(1, Some(3))]);
    assert!(!may_lead(peer(0), &last, &heard, LONG));
}

#[test]
fn where_no_member_answers_three_leases_are_enough() {
    let last = [0, 1, 2].map(id);
    assert!(may_lead(peer(1), &last, &others(&[]), LEASE * LOST));
    assert!(may_lead(peer(7), &last, &others(&[]), LEASE * LOST));
    assert!(!may_lead(peer(7), &last, &others(&[]), LEASE));
}
