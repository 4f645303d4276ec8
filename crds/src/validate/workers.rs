//! Rules of the pods: their number, image, account and resources. What may be added to them is `pod_template`'s.

use super::kubernetes::{image, object_name, resources};
use super::pod_template::pod_template;
use super::{DAY, SECOND, within};
use crate::diagnostic::{Code, Diagnostic};
use crate::job::StreamingJobSpec;
use crate::workers::{Autoscaling, AutoscalingMode, Workers};

pub(super) fn autoscale(
    autoscaling: &Autoscaling,
    spec: &StreamingJobSpec,
    faults: &mut Vec<Diagnostic>,
) {
    let Autoscaling {
        mode,
        min_replicas,
        max_replicas,
        target_lag,
    } = autoscaling;
    within(*target_lag, SECOND, DAY, "autoscaling.targetLag", faults);
    let Some(most) = max_replicas else {
        if *mode != AutoscalingMode::Disabled {
            faults.push(Diagnostic::error(
                Code::AUTOSCALING,
                "autoscaling",
                format!("mode {mode:?} needs maxReplicas"),
            ));
        }
        return;
    };
    if most < min_replicas {
        let message = format!("{most} is below minReplicas ({min_replicas})");
        faults.push(Diagnostic::error(
            Code::AUTOSCALING,
            "autoscaling.maxReplicas",
            message,
        ));
        return;
    }
    if let Some(replicas) = spec
        .workers
        .replicas
        .filter(|replicas| !(min_replicas..=most).contains(&replicas))
        && *mode == AutoscalingMode::Active
    {
        let message = format!(
            "{replicas} does not lie between minReplicas ({min_replicas}) and maxReplicas ({most})"
        );
        faults.push(Diagnostic::error(
            Code::AUTOSCALING,
            "workers.replicas",
            message,
        ));
    }
    if u64::from(spec.workers.slots) * u64::from(*most) > u64::from(spec.key_groups) {
        let message = format!(
            "{most} workers of {} slots are more than the {} key groups",
            spec.workers.slots, spec.key_groups
        );
        faults.push(Diagnostic::error(
            Code::PARALLELISM,
            "autoscaling.maxReplicas",
            message,
        ));
    }
}

/// Their image, account, resources and template.
pub(super) fn workers(workers: &Workers, faults: &mut Vec<Diagnostic>) {
    if !workers.image.is_empty() {
        image(&workers.image, "workers.image", faults);
    }
    let account = &workers.service_account_name;
    if !account.is_empty() {
        object_name(account, "workers.serviceAccountName", faults);
    }
    if let Some(of) = &workers.resources {
        resources(of, "workers.resources", faults);
    }
    if let Some(template) = &workers.pod_template {
        pod_template(template, workers, faults);
    }
}
