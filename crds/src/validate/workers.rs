//! Rules of the pods: autoscaling and the allow-list of the pod template.

use super::{DAY, SECOND, one_of, within};
use crate::diagnostic::{Code, Diagnostic};
use crate::job::StreamingJobSpec;
use crate::workers::{Autoscaling, AutoscalingMode, PodTemplate};

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

/// Variables that load code, are the engine's own, or carry credentials past secretRef.
const REFUSED_VARIABLES: [&str; 8] = [
    "LD_",
    "PENSTOCK_",
    "AWS_",
    "GOOGLE_",
    "AZURE_",
    "GCP_",
    "HTTP_PROXY",
    "HTTPS_PROXY",
];

pub(super) fn pod_template(template: &PodTemplate, faults: &mut Vec<Diagnostic>) {
    let path = "workers.podTemplate";
    let PodTemplate { metadata, spec } = template;
    for (what, names) in [
        ("labels", &metadata.labels),
        ("annotations", &metadata.annotations),
    ] {
        for name in names.keys().filter(|name| {
            name.split('/')
                .next()
                .is_some_and(|domain| domain.ends_with("penstock.dev"))
        }) {
            let at = format!("{path}.metadata.{what}");
            faults.push(Diagnostic::error(
                Code::POD_TEMPLATE,
                at,
                format!("{name:?} is the controller's to set"),
            ));
        }
    }
    for (i, variable) in spec.env.iter().enumerate() {
        let upper = variable.name.to_uppercase();
        if let Some(refused) = REFUSED_VARIABLES
            .iter()
            .find(|refused| upper.starts_with(**refused))
        {
            let message = format!(
                "the variable {:?} is refused: {refused}* loads code, carries credentials or is the engine's own",
                variable.name
            );
            faults.push(Diagnostic::error(
                Code::POD_TEMPLATE,
                format!("{path}.spec.env[{i}].name"),
                message,
            ));
        }
    }
    for (i, volume) in spec.volumes.iter().enumerate() {
        let members = [
            ("configMap", volume.config_map.is_some()),
            ("secret", volume.secret.is_some()),
            ("emptyDir", volume.empty_dir.is_some()),
            ("projected", volume.projected.is_some()),
            (
                "persistentVolumeClaim",
                volume.persistent_volume_claim.is_some(),
            ),
        ];
        one_of(&format!("{path}.spec.volumes[{i}]"), &members, true, faults);
    }
    for (i, mount) in spec.volume_mounts.iter().enumerate() {
        if !spec.volumes.iter().any(|volume| volume.name == mount.name) {
            let message = format!("no volume is named {:?}", mount.name);
            faults.push(Diagnostic::error(
                Code::POD_TEMPLATE,
                format!("{path}.spec.volumeMounts[{i}].name"),
                message,
            ));
        }
    }
}
