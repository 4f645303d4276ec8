//! What becomes of the state of a running job under a new plan. Pure: the old plan's JSON, the new plan and what the new version says
//! of the state in, a verdict for each operator with state out. The engine asks it before a new version starts, `penstock lint
//! --against` and the admission webhook before an edit is stored, so they cannot disagree. No state is migrated: what does not
//! restore as it is starts empty by a person's word, or the new version is refused.

use std::collections::{BTreeMap, BTreeSet};

use penstock_crds::diagnostic::{Code, Diagnostic};
use penstock_crds::job::{Upgrade, UpgradeStrategy};
use serde::Serialize;
use serde_json::Value;

use crate::finish::Plan;
use crate::graph::Uid;

/// What becomes of one operator's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Fate {
    /// Same uid, same fingerprint.
    Restores,
    /// New: no state of this uid. With [`Terms::stateless`] every operator of the new plan.
    StartsEmpty,
    /// The operator is gone, and a person said that its state may go too.
    Dropped,
    /// The new version may not start; why.
    Refused(&'static str),
}

/// What becomes of one operator's state, by its uid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StateVerdict {
    pub uid: Uid,
    pub fate: Fate,
}

/// What a new version says of the state of the one before.
#[derive(Debug, Clone, Copy, Default)]
pub struct Terms<'a> {
    /// Uids of operators that are gone and whose state may go. Of one that stays the state stays.
    pub drop_state: &'a [String],
    /// All of it goes.
    pub stateless: bool,
}

impl<'a> Terms<'a> {
    /// Of a job in a cluster. `startFresh` is not among them: it is read only while a job has no log of its own.
    pub fn of(upgrade: &'a Upgrade) -> Self {
        Self {
            drop_state: &upgrade.drop_state,
            stateless: upgrade.strategy == UpgradeStrategy::Stateless,
        }
    }
}

/// What becomes of the state of a job as a whole: the worst of its operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// All of it is there.
    Restores,
    /// Some operator starts empty, or some state goes.
    StartsEmpty,
    /// The new version may not start.
    Refused,
}

/// The verdict on an edit. Ordered by uid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub operators: Vec<StateVerdict>,
}

const OTHER_SHAPE: &str = "has another shape now";
const GONE: &str = "is gone, and its state would be lost";

/// Compares an old plan ([`crate::plan_json`]) with a new one.
pub fn verdict(old: &Value, new: &Plan, terms: Terms<'_>) -> Verdict {
    let before: BTreeMap<String, String> = old["nodes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|n| {
            Some((
                n["uid"].as_str()?.to_owned(),
                n["fingerprint"].as_str()?.to_owned(),
            ))
        })
        .collect();
    let after: BTreeMap<String, String> = new
        .graph
        .nodes
        .iter()
        .filter_map(|n| Some((n.uid.0.clone(), format!("{:016x}", n.fingerprint?.0))))
        .collect();
    let uids: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let operators = uids.into_iter().map(|uid| {
        let may_go = terms.drop_state.contains(uid);
        let fate = match (before.get(uid), after.get(uid)) {
            (_, Some(_)) if terms.stateless => Fate::StartsEmpty,
            (Some(_), None) if terms.stateless || may_go => Fate::Dropped,
            (Some(a), Some(b)) if a == b => Fate::Restores,
            // Its tables are found by its uid: what lies there would be read as what it is not.
            (Some(_), Some(_)) => Fate::Refused(OTHER_SHAPE),
            (Some(_), None) => Fate::Refused(GONE),
            (None, _) => Fate::StartsEmpty,
        };
        StateVerdict {
            uid: Uid(uid.clone()),
            fate,
        }
    });
    Verdict {
        operators: operators.collect(),
    }
}

impl Verdict {
    /// As a whole.
    pub fn outcome(&self) -> Outcome {
        let of = |v: &StateVerdict| match v.fate {
            Fate::Restores => Outcome::Restores,
            Fate::StartsEmpty | Fate::Dropped => Outcome::StartsEmpty,
            Fate::Refused(_) => Outcome::Refused,
        };
        let all: Vec<Outcome> = self.operators.iter().map(of).collect();
        [Outcome::Refused, Outcome::StartsEmpty]
            .into_iter()
            .find(|worst| all.contains(worst))
            .unwrap_or(Outcome::Restores)
    }

    /// Why the new version may not start; `None` where it may.
    pub fn refusal(&self) -> Option<String> {
        let refused = self.operators.iter().filter_map(|v| match v.fate {
            Fate::Refused(why) => Some(format!("{} {why}", v.uid.0)),
            Fate::Restores | Fate::StartsEmpty | Fate::Dropped => None,
        });
        let refused: Vec<String> = refused.collect();
        (!refused.is_empty()).then(|| {
            format!(
                "the job's state does not fit the edit: {}",
                refused.join("; ")
            )
        })
    }

    /// What a person should know of an edit: why it is refused (PR0410) and the ways out, or which operators begin with nothing
    /// (PS0081). Nothing where all state restores.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        if let Some(why) = self.refusal() {
            return vec![
                Diagnostic::error(Code::RUN_STATE_CHANGED, "spec.sql", why).with_help(WAYS_OUT),
            ];
        }
        let with = |fate: &Fate| {
            let mine = self.operators.iter().filter(|v| v.fate == *fate);
            let uids: Vec<&str> = mine.map(|v| v.uid.0.as_str()).collect();
            (!uids.is_empty()).then(|| uids.join(", "))
        };
        let empty = with(&Fate::StartsEmpty).map(|uids| {
            format!("starts empty: {uids}; what was read before the edit is not in its results")
        });
        let gone = with(&Fate::Dropped).map(|uids| format!("its state is dropped: {uids}"));
        let told = empty.into_iter().chain(gone);
        told.map(|text| Diagnostic::warning(Code::STARTS_EMPTY, "spec.sql", text))
            .collect()
    }
}

/// What a person can do about a refusal, in a cluster.
pub const WAYS_OUT: &str = "start every operator empty by upgrade.strategy: Stateless, or run the edit as a job of another name; \
    an operator that is gone may also be named in upgrade.dropState";
