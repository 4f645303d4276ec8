//! What becomes of the state of a running job under a new plan. Pure: the old plan's JSON and the new plan in, a verdict for
//! each operator with state out.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

use crate::finish::Plan;
use crate::graph::Uid;

/// What becomes of one operator's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Fate {
    /// Same uid, same fingerprint.
    Restores,
    /// New: no state of this uid.
    StartsEmpty,
    /// Named in `dropState`: the old state goes, and the operator, if it is still there, starts empty.
    Dropped,
    /// The new version may not start; why.
    Refused(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StateVerdict {
    pub uid: Uid,
    pub fate: Fate,
}

/// Compares an old plan ([`crate::plan_json`]) with a new one. Uids in `drop_state` may lose their state. Ordered by uid.
pub fn verdict(old: &Value, new: &Plan, drop_state: &[String]) -> Vec<StateVerdict> {
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
    uids.into_iter()
        .map(|uid| {
            let dropped = drop_state.contains(uid);
            let fate = match (before.get(uid), after.get(uid)) {
                (Some(_), _) if dropped => Fate::Dropped,
                (Some(a), Some(b)) if a == b => Fate::Restores,
                (Some(_), Some(_)) => Fate::Refused(format!("the state of {uid} has another shape now; name it in upgrade.dropState to start it empty")),
                (Some(_), None) => Fate::Refused(format!("{uid} is gone and its state would be lost; name it in upgrade.dropState")),
                (None, _) => Fate::StartsEmpty,
            };
            StateVerdict { uid: Uid(uid.clone()), fate }
        })
        .collect()
}
