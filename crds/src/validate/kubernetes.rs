//! Forms that Kubernetes asks of names, labels, images and quantities. The API server refuses a child that is not of them, which
//! nobody but the controller's log would tell; so they are judged with the manifest. Here too: which objects are somebody else's.

use super::host;
use crate::diagnostic::{Code, Diagnostic};
use crate::workers::{IntOrText, ResourceList, Resources};

/// The name of an object: labels joined by dots.
pub(super) fn object_name(name: &str, path: &str, faults: &mut Vec<Diagnostic>) {
    if !is_subdomain(name) {
        let fault = Diagnostic::error(Code::NAME, path, format!("{name:?} is not a name"));
        faults.push(fault.with_help(
            "use lower-case letters, digits, hyphens and dots, a letter or digit at both ends",
        ));
    }
}

fn is_label(part: &str) -> bool {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    !part.is_empty()
        && part.len() <= 63
        && part.starts_with(fits)
        && part.ends_with(fits)
        && part.chars().all(|c| fits(c) || c == '-')
}

fn is_subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_label)
}

/// A label of DNS, as volumes are named by.
pub(super) fn is_volume_name(name: &str) -> bool {
    is_label(name)
}

/// The name part of a label's key, or a label's value: both have at most 63 characters.
fn is_qualified(text: &str) -> bool {
    let ends = |c: char| c.is_ascii_alphanumeric();
    text.len() <= 63
        && text.starts_with(ends)
        && text.ends_with(ends)
        && text
            .chars()
            .all(|c| ends(c) || matches!(c, '-' | '_' | '.'))
}

/// Whether a text is the key of a label or an annotation.
pub(super) fn is_key(key: &str) -> bool {
    match key.split_once('/') {
        Some((domain, name)) => is_subdomain(domain) && is_qualified(name),
        None => is_qualified(key),
    }
}

/// Whether a text is the value of a label.
pub(super) fn is_label_value(value: &str) -> bool {
    value.is_empty() || is_qualified(value)
}

/// Where an image lies.
pub(super) fn image(image: &str, path: &str, faults: &mut Vec<Diagnostic>) {
    let fits =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | ':' | '@');
    let sound = image.starts_with(|c: char| c.is_ascii_alphanumeric()) && image.chars().all(fits);
    let registry = image.split(['/', '@']).next().unwrap_or_default();
    let named = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    if !sound || host::climbs(image) {
        let fault = Diagnostic::error(Code::PATTERN, path, format!("{image:?} is not an image"));
        faults.push(fault.with_help("write registry/repository:tag or registry/repository@digest"));
    } else if image.contains('/') && host::refusal(named) == Some(host::Refusal::Metadata) {
        faults.push(host::metadata(path));
    }
}

/// A Secret that a manifest names: not one that the controller made for itself or for a job.
pub(super) fn secret(name: &str, path: &str, faults: &mut Vec<Diagnostic>) {
    object_name(name, path, faults);
    if name == AUTHORITY || made_for_a_version(name, "-c-") {
        let message = format!("the secret {name:?} holds a certificate's key of the controller's");
        faults.push(others(path, message));
    }
}

/// The Secret with the controller's authority.
const AUTHORITY: &str = "penstock-authority";

/// `JOB-c-0123456789abcdef`: what the controller makes for a version of a job ends so.
fn made_for_a_version(name: &str, what: &str) -> bool {
    name.rsplit_once(what).is_some_and(|(job, version)| {
        !job.is_empty() && version.len() == 16 && version.chars().all(|c| c.is_ascii_hexdigit())
    })
}

/// A ConfigMap: not the one of a version, which is another job's.
pub(super) fn config_map(name: &str, path: &str, faults: &mut Vec<Diagnostic>) {
    if made_for_a_version(name, "-v-") {
        let message = format!("the ConfigMap {name:?} is a version of a job");
        faults.push(others(path, message));
    }
}

/// A claim: not one that holds the state of a job's worker.
pub(super) fn claim(name: &str, path: &str, faults: &mut Vec<Diagnostic>) {
    let of_a_worker = name
        .strip_prefix("state-")
        .and_then(|rest| rest.rsplit_once("-worker-"))
        .is_some_and(|(job, ordinal)| {
            !job.is_empty() && !ordinal.is_empty() && ordinal.chars().all(|c| c.is_ascii_digit())
        });
    if of_a_worker {
        let message = format!("the claim {name:?} holds the state of a job's worker");
        faults.push(others(path, message));
    }
}

fn others(path: &str, message: String) -> Diagnostic {
    Diagnostic::error(Code::OTHERS, path, message)
        .with_help("name an object that was made for this job's manifest")
}

/// CPU and memory of the container.
pub(super) fn resources(resources: &Resources, path: &str, faults: &mut Vec<Diagnostic>) {
    let Resources { requests, limits } = resources;
    let (asked, most) = (named(requests), named(limits));
    for (of, list) in [("requests", &asked), ("limits", &most)] {
        for (name, value) in list {
            if value.is_some_and(|value| quantity(value).is_none()) {
                let text = value.map(shown).unwrap_or_default();
                let message = format!("{text:?} is not a quantity above zero");
                let at = format!("{path}.{of}.{name}");
                faults.push(
                    Diagnostic::error(Code::SIZE, at, message)
                        .with_help("write cores as 2 or 500m, bytes as 2Gi"),
                );
            }
        }
    }
    for ((name, asked), (_, most)) in asked.iter().zip(&most) {
        let (asked, most) = (asked.and_then(quantity), most.and_then(quantity));
        if let (Some(asked), Some(most)) = (asked, most)
            && asked > most
        {
            let message = "more is asked for than the limit gives";
            let at = format!("{path}.requests.{name}");
            faults.push(Diagnostic::error(Code::RANGE, at, message));
        }
    }
}

fn named(list: &ResourceList) -> [(&'static str, Option<&IntOrText>); 3] {
    let ResourceList {
        cpu,
        memory,
        ephemeral_storage,
    } = list;
    [
        ("cpu", cpu.as_ref()),
        ("memory", memory.as_ref()),
        ("ephemeral-storage", ephemeral_storage.as_ref()),
    ]
}

/// As it was written.
pub(super) fn shown(of: &IntOrText) -> String {
    match of {
        IntOrText::Int(number) => number.to_string(),
        IntOrText::Text(text) => text.clone(),
    }
}

/// A quantity of Kubernetes above zero, in units: `2`, `500m`, `1.5Gi`, `1e9`. `None` if it is none.
pub fn quantity(of: &IntOrText) -> Option<f64> {
    let value = match of {
        IntOrText::Int(number) => *number as f64,
        IntOrText::Text(text) => {
            let end = text
                .find(|c: char| !c.is_ascii_digit() && c != '.')
                .unwrap_or(text.len());
            let (digits, suffix) = text.split_at(end);
            let number: f64 = digits.parse().ok()?;
            number * factor(suffix)?
        }
    };
    // Above it the API server's own arithmetic ends.
    (value > 0.0 && value < 9e18).then_some(value)
}

fn factor(suffix: &str) -> Option<f64> {
    const POWERS: [&str; 6] = ["k", "M", "G", "T", "P", "E"];
    if let Some(exponent) = suffix.strip_prefix(['e', 'E']).filter(|e| !e.is_empty()) {
        let exponent: i32 = exponent.parse().ok()?;
        return (exponent.abs() <= 18).then(|| 10f64.powi(exponent));
    }
    match suffix {
        "" => return Some(1.0),
        "m" => return Some(1e-3),
        "u" => return Some(1e-6),
        "n" => return Some(1e-9),
        "Ki" => return Some(1024.0),
        _ => {}
    }
    let (letter, base) = match suffix.strip_suffix('i') {
        Some("k") => return None,
        Some(letter) => (letter, 1024f64),
        None => (suffix, 1000f64),
    };
    let power = POWERS.iter().position(|p| *p == letter)?;
    Some(base.powi(power as i32 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_the_api_server_reads_them() {
        let read = |text: &str| quantity(&IntOrText::Text(text.to_owned()));
        for (text, value) in [
            ("2", 2.0),
            ("500m", 0.5),
            ("1.5Gi", 1.5 * 1024.0 * 1024.0 * 1024.0),
            ("1Ki", 1024.0),
            ("1k", 1000.0),
            ("1e3", 1000.0),
            ("1E", 1e18),
        ] {
            assert_eq!(read(text), Some(value), "{text}");
        }
        for text in [
            "", "-1", "0", "1 Gi", "1GiB", "1ki", "Gi", "1e999", "99E", "NaN", "inf", "1.2.3",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(quantity(&IntOrText::Int(-1)), None);
    }

    #[test]
    fn objects_of_the_controller_are_known_by_their_names() {
        let told = |judge: fn(&str, &str, &mut Vec<Diagnostic>), name: &str| {
            let mut faults = Vec::new();
            judge(name, "x", &mut faults);
            faults.iter().any(|fault| fault.code == Code::OTHERS)
        };
        assert!(told(secret, "payments-c-0123456789abcdef"));
        assert!(told(secret, "penstock-authority"));
        assert!(!told(secret, "kafka-c-client"));
        assert!(told(config_map, "payments-v-0123456789abcdef"));
        assert!(!told(config_map, "ca-v-2"));
        assert!(told(claim, "state-payments-worker-0"));
        assert!(!told(claim, "state-of-the-art"));
    }
}
