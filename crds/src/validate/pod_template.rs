//! The allow-list of the pod template: nothing in it gives the pods more than a job needs, or takes what the engine stands on.

use k8s_openapi::api::core::v1::{EnvVar, Toleration, VolumeMount};

use super::host;
use super::kubernetes::{
    claim, config_map, is_key, is_label_value, is_volume_name, object_name, secret,
};
use super::one_of;
use crate::diagnostic::{Code, Diagnostic};
use crate::workers::{PodMetadata, PodTemplate, PodVolume, Workers};

/// Prefixes of variables that load code, are the engine's own, lead elsewhere, or carry credentials past secretRef.
const REFUSED_VARIABLES: [&str; 20] = [
    "LD_",
    "PENSTOCK_",
    "AWS_",
    "GOOGLE_",
    "AZURE_",
    "GCP_",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "PATH",
    "OPENSSL_",
    "GCONV_PATH",
    "GLIBC_",
    "LOCPATH",
    "NLSPATH",
    "HOSTALIASES",
    "RESOLV_",
    "KRB5",
    "SASL_",
];

/// Where the engine's own files are, and where the system looks for programs, libraries and their settings.
const REFUSED_PLACES: [&str; 14] = [
    "/etc",
    "/var/lib/penstock",
    "/tmp",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/usr",
    "/proc",
    "/sys",
    "/dev",
    "/run",
    "/var/run",
];

/// Trust anchors of a private authority may be added.
const ALLOWED_PLACES: [&str; 2] = ["/etc/ssl/certs", "/usr/local/share/ca-certificates"];

/// Volumes that the controller adds.
const OWN_VOLUMES: [&str; 4] = ["job", "state", "scratch", "certificate"];

pub(super) fn pod_template(
    template: &PodTemplate,
    workers: &Workers,
    faults: &mut Vec<Diagnostic>,
) {
    let path = "workers.podTemplate";
    metadata(&template.metadata, &format!("{path}.metadata"), faults);
    let path = format!("{path}.spec");
    let spec = &template.spec;
    for (i, variable) in spec.env.iter().enumerate() {
        env(variable, &format!("{path}.env[{i}]"), faults);
    }
    for (i, volume) in spec.volumes.iter().enumerate() {
        let at = format!("{path}.volumes[{i}]");
        if spec.volumes[..i].iter().any(|v| v.name == volume.name) {
            let message = format!("{:?} is given twice", volume.name);
            faults.push(Diagnostic::error(
                Code::DUPLICATE_NAME,
                format!("{at}.name"),
                message,
            ));
        }
        self::volume(volume, workers, &at, faults);
    }
    for (i, mount) in spec.volume_mounts.iter().enumerate() {
        let at = format!("{path}.volumeMounts[{i}]");
        if !spec.volumes.iter().any(|volume| volume.name == mount.name) {
            let message = format!("no volume is named {:?}", mount.name);
            faults.push(refused(format!("{at}.name"), message));
        }
        self::mount(mount, &at, faults);
    }
    for (i, toleration) in spec.tolerations.iter().enumerate() {
        tolerate(toleration, &format!("{path}.tolerations[{i}]"), faults);
    }
    for (i, pull) in spec.image_pull_secrets.iter().enumerate() {
        let at = format!("{path}.imagePullSecrets[{i}].name");
        secret(&pull.name, &at, faults);
    }
    for (key, value) in &spec.node_selector {
        if !is_key(key) || !is_label_value(value) {
            let message = format!("{key:?}: {value:?} is not a label");
            faults.push(Diagnostic::error(
                Code::PATTERN,
                format!("{path}.nodeSelector"),
                message,
            ));
        }
    }
    let class = &spec.priority_class_name;
    if !class.is_empty() {
        let at = format!("{path}.priorityClassName");
        object_name(class, &at, faults);
        if class.starts_with("system-") {
            faults.push(refused(
                at,
                format!("{class:?} is for the cluster's own pods"),
            ));
        }
    }
}

fn refused(path: impl Into<String>, message: impl Into<String>) -> Diagnostic {
    Diagnostic::error(Code::POD_TEMPLATE, path.into(), message.into())
}

fn metadata(metadata: &PodMetadata, path: &str, faults: &mut Vec<Diagnostic>) {
    let PodMetadata {
        labels,
        annotations,
    } = metadata;
    for (what, members) in [("labels", labels), ("annotations", annotations)] {
        let at = format!("{path}.{what}");
        for (name, value) in members {
            if !is_key(name) || (what == "labels" && !is_label_value(value)) {
                let message = format!("{name:?}: {value:?} is not one of the {what}");
                let fault = Diagnostic::error(Code::PATTERN, at.clone(), message);
                faults.push(fault.with_help(
                    "use letters, digits, hyphens, underscores and dots, at most 63 of them",
                ));
            } else if let Some(why) = not_for_manifests(name) {
                faults.push(refused(at.clone(), format!("{name:?} {why}")));
            }
        }
    }
}

/// Why a label or an annotation is none that a manifest may set.
fn not_for_manifests(name: &str) -> Option<&'static str> {
    const ALLOWED: [&str; 4] = [
        "cluster-autoscaler.kubernetes.io/safe-to-evict",
        "descheduler.alpha.kubernetes.io/evict",
        "kubectl.kubernetes.io/default-container",
        "sidecar.istio.io/inject",
    ];
    let (domain, _) = name.split_once('/')?;
    let of = |whole: &str| {
        domain == whole || domain.strip_suffix(whole).is_some_and(|d| d.ends_with('.'))
    };
    if of("penstock.dev") {
        Some("is the controller's to set")
    } else if ALLOWED.contains(&name) || domain == "app.kubernetes.io" {
        None
    } else if of("kubernetes.io") || of("k8s.io") {
        Some("is the cluster's to set: it changes what the pod may do")
    } else if of("sidecar.istio.io") || of("inject.istio.io") {
        Some("adds containers and volumes to the pod past this list")
    } else if of("cni.cncf.io") || of("multus-cni.io") {
        Some("joins the pod to other networks")
    } else if of("iam.amazonaws.com") || of("iam.cloud.google.com") {
        Some("gives the pod another identity: use serviceAccountName")
    } else {
        None
    }
}

fn env(variable: &EnvVar, path: &str, faults: &mut Vec<Diagnostic>) {
    let name = &variable.name;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(fits)
    {
        let message = format!("{name:?} is not a variable");
        faults.push(Diagnostic::error(
            Code::PATTERN,
            format!("{path}.name"),
            message,
        ));
    }
    let upper = name.to_uppercase();
    if let Some(refused) = REFUSED_VARIABLES
        .iter()
        .find(|refused| upper.starts_with(**refused))
    {
        let message = format!(
            "the variable {name:?} is refused: {refused}* loads code, carries credentials or is the engine's own"
        );
        faults.push(self::refused(format!("{path}.name"), message));
    }
    let from = variable.value_from.as_ref();
    if upper.starts_with("OTEL_") && upper.ends_with("_ENDPOINT") {
        // Where spans go is judged like every other host.
        match (&variable.value, from) {
            (Some(url), _) if !url.is_empty() => {
                host::endpoint(url, &format!("{path}.value"), faults)
            }
            (_, Some(_)) => faults.push(self::refused(
                format!("{path}.valueFrom"),
                format!("where {name} leads is to be seen: give its value"),
            )),
            _ => {}
        }
    }
    if let Some(key) = from.and_then(|from| from.secret_key_ref.as_ref()) {
        secret(
            &key.name,
            &format!("{path}.valueFrom.secretKeyRef.name"),
            faults,
        );
    }
    if let Some(key) = from.and_then(|from| from.config_map_key_ref.as_ref()) {
        config_map(
            &key.name,
            &format!("{path}.valueFrom.configMapKeyRef.name"),
            faults,
        );
    }
}

fn volume(volume: &PodVolume, workers: &Workers, path: &str, faults: &mut Vec<Diagnostic>) {
    let PodVolume {
        name,
        config_map: map,
        secret: of_secret,
        empty_dir,
        projected,
        persistent_volume_claim,
    } = volume;
    let members = [
        ("configMap", map.is_some()),
        ("secret", of_secret.is_some()),
        ("emptyDir", empty_dir.is_some()),
        ("projected", projected.is_some()),
        ("persistentVolumeClaim", persistent_volume_claim.is_some()),
    ];
    one_of(path, &members, true, faults);
    let at = format!("{path}.name");
    if !is_volume_name(name) {
        faults.push(Diagnostic::error(
            Code::NAME,
            at,
            format!("{name:?} is not a name"),
        ));
    } else if OWN_VOLUMES.contains(&name.as_str()) || name.starts_with("secret-") {
        faults.push(refused(
            at,
            format!("the volume {name:?} is the controller's own"),
        ));
    }
    if let Some(map) = map {
        config_map(&map.name, &format!("{path}.configMap.name"), faults);
    }
    if let Some(name) = of_secret.as_ref().and_then(|s| s.secret_name.as_ref()) {
        secret(name, &format!("{path}.secret.secretName"), faults);
    }
    if let Some(volume) = persistent_volume_claim {
        let at = format!("{path}.persistentVolumeClaim.claimName");
        claim(&volume.claim_name, &at, faults);
    }
    let sources = projected.iter().flat_map(|p| p.sources.iter().flatten());
    for (i, source) in sources.enumerate() {
        let at = format!("{path}.projected.sources[{i}]");
        if let Some(of_secret) = &source.secret {
            secret(&of_secret.name, &format!("{at}.secret.name"), faults);
        }
        if let Some(map) = &source.config_map {
            config_map(&map.name, &format!("{at}.configMap.name"), faults);
        }
        let identity = [
            (
                "serviceAccountToken",
                source.service_account_token.is_some(),
            ),
            ("podCertificate", source.pod_certificate.is_some()),
        ];
        for (what, _) in identity.iter().filter(|(_, given)| *given) {
            if workers.service_account_name.is_empty() {
                let message = "the job's own service account has no token";
                faults.push(
                    refused(format!("{at}.{what}"), message).with_help(
                        "name an account that is for jobs in workers.serviceAccountName",
                    ),
                );
            }
        }
    }
}

fn mount(mount: &VolumeMount, path: &str, faults: &mut Vec<Diagnostic>) {
    let place = &mount.mount_path;
    let parts: Vec<&str> = place.split('/').filter(|part| !part.is_empty()).collect();
    let at = format!("{path}.mountPath");
    let strange = |c: char| c.is_control() || c == ':';
    if !place.starts_with('/') || super::host::climbs(place) || place.contains(strange) {
        let message = format!("{place:?} is not a path from the root");
        faults.push(Diagnostic::error(Code::PATTERN, at, message));
    } else {
        let whole = format!("/{}", parts.join("/"));
        let within = |outer: &str, inner: &str| {
            outer == "/"
                || inner == outer
                || inner
                    .strip_prefix(outer)
                    .is_some_and(|i| i.starts_with('/'))
        };
        let allowed = ALLOWED_PLACES.iter().any(|place| within(place, &whole));
        let taken = REFUSED_PLACES
            .iter()
            .find(|taken| within(taken, &whole) || within(&whole, taken));
        if let Some(taken) = taken.filter(|_| !allowed) {
            let message = format!("{place:?} would hide what the engine has under {taken}");
            let help = "mount it below /mnt or /opt";
            faults.push(refused(at, message).with_help(help));
        }
    }
    for (name, text) in [
        ("subPath", &mount.sub_path),
        ("subPathExpr", &mount.sub_path_expr),
    ] {
        let Some(text) = text else { continue };
        if text.starts_with('/') || super::host::climbs(text) || text.contains('\\') {
            let message = format!("{text:?} leads out of the volume");
            faults.push(refused(format!("{path}.{name}"), message));
        }
    }
    if mount
        .mount_propagation
        .as_deref()
        .is_some_and(|p| p != "None")
    {
        let message = "mounts are not shared with the node";
        faults.push(refused(format!("{path}.mountPropagation"), message));
    }
}

fn tolerate(toleration: &Toleration, path: &str, faults: &mut Vec<Diagnostic>) {
    let key = toleration.key.as_deref().unwrap_or_default();
    if key.is_empty() {
        let message = "every taint would be borne, those of the control plane too";
        faults.push(refused(path, message).with_help("name the key"));
    } else if matches!(
        key,
        "node-role.kubernetes.io/control-plane" | "node-role.kubernetes.io/master"
    ) {
        faults.push(refused(path, "nodes of the control plane are not for jobs"));
    }
}
