//! Volumes of workers: they may grow, and nothing else of them changes.

use k8s_openapi::api::core::v1::PersistentVolumeClaimSpec;
use penstock_crds::checkpoint::Volume;
use penstock_crds::job::StateSpec;
use penstock_crds::units::Quantity;

use crate::facts::Facts;

/// The size that a claim asks for.
fn size(of: Option<&PersistentVolumeClaimSpec>) -> Option<Quantity> {
    let requests = of?.resources.as_ref()?.requests.as_ref()?;
    requests.get("storage")?.0.parse().ok()
}

/// The state as the StatefulSet has it; `None` where there is no StatefulSet.
pub fn template(facts: &Facts) -> Option<StateSpec> {
    let set = facts.stateful_set.as_ref()?.spec.as_ref()?;
    let templates = set.volume_claim_templates.as_deref().unwrap_or_default();
    let mut state = facts.job.spec.state.clone();
    let Some(claim) = templates.first() else {
        state.ephemeral = Some(state.ephemeral.unwrap_or_default());
        return Some(state);
    };
    let class = claim
        .spec
        .as_ref()
        .and_then(|s| s.storage_class_name.clone());
    state.ephemeral = None;
    state.volume = Some(Volume {
        size: size(claim.spec.as_ref())?,
        storage_class_name: class.unwrap_or_default(),
    });
    Some(state)
}

/// The state as the volumes are: the largest of them.
pub fn there(facts: &Facts) -> Option<StateSpec> {
    let mut state = template(facts)?;
    if let Some(volume) = &mut state.volume {
        let sizes = facts.claims.iter().filter_map(|c| size(c.spec.as_ref()));
        volume.size = sizes.fold(volume.size, Ord::max);
    }
    Some(state)
}

/// The state that the StatefulSet is made with: what it has stays, since it cannot change; claims grow one by one.
pub fn of_the_set(facts: &Facts) -> StateSpec {
    template(facts).unwrap_or_else(|| facts.job.spec.state.clone())
}

/// Claims that are smaller than they are to be.
pub fn grow(facts: &Facts) -> Vec<(String, Quantity)> {
    if facts.job.spec.state.ephemeral.is_some() {
        return Vec::new();
    }
    let wanted = facts.job.spec.state.volume.clone().unwrap_or_default().size;
    let smaller = facts.claims.iter().filter_map(|c| {
        let name = c.metadata.name.clone()?;
        (size(c.spec.as_ref())? < wanted).then_some((name, wanted))
    });
    smaller.collect()
}
