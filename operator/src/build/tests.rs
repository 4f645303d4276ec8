//! What the children look like, and that they are objects of Kubernetes and nothing else.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use penstock_crds::manifest;
use penstock_crds::validate::Place;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::*;
use crate::facts::Memory;
use crate::issue::Issue;

pub fn job() -> StreamingJob {
    let text = r#"
apiVersion: penstock.dev/v1alpha1
kind: StreamingJob
metadata: {name: payments, namespace: risk}
spec:
  sources:
    - name: payments
      kafka: {bootstrapServers: "kafka:9092", topics: [payments], secretRef: {name: kafka-client}}
      format: {json: {}}
      columns: [{name: amount, type: BIGINT}]
  sql: INSERT INTO large SELECT amount FROM payments WHERE amount > 10
  sinks:
    - name: large
      kafka: {bootstrapServers: "kafka:9092", topic: large, secretRef: {name: kafka-client}}
      format: {json: {}}
  checkpoint: {storage: {s3: {bucket: streams}, secretRef: {name: s3}}}
"#;
    let mut resources = manifest::load_for(text, "job.yaml", Place::Cluster).unwrap();
    let manifest::ResourceKind::StreamingJob(job) = resources.remove(0).kind else {
        panic!("a job");
    };
    let mut job = *job;
    job.metadata.uid = Some("0f3c0000-1111-2222-3333-444455556666".to_owned());
    job.metadata.generation = Some(1);
    job
}

pub fn settings() -> Settings {
    Settings {
        image: "penstock:0.1.0".to_owned(),
        own_namespace: "penstock".to_owned(),
        ..Settings::default()
    }
}

fn issue(job: &StreamingJob, version: &Version) -> Issue {
    let now = chrono::DateTime::from_timestamp(1_800_000_000, 0).unwrap();
    crate::issue::of(job, &version.name, "an authority", now)
}

/// Read as a type of Kubernetes and written again nothing is missing: no member has a name that the type does not know.
fn round_trip<K: DeserializeOwned + Serialize>(child: &Child) {
    let typed: K = serde_json::from_value(child.body.clone()).unwrap();
    let again = serde_json::to_value(typed).unwrap();
    assert!(
        crate::same::covers(&again, &child.body),
        "{} {}: {}\n{again}",
        child.kind.api().2,
        child.name,
        child.body
    );
}

#[test]
fn children_are_objects_of_kubernetes() {
    let (job, settings) = (job(), settings());
    let version = make_version(&job, &settings, None);
    let mut children = surroundings(&job, &version, &settings);
    children.push(stateful_set(
        &job,
        &version,
        Size(1),
        &Memory::default(),
        &job.spec.state,
        &issue(&job, &version),
    ));
    assert_eq!(children.len(), Kind::ALL.len());
    for child in &children {
        match child.kind {
            Kind::ServiceAccount => round_trip::<ServiceAccount>(child),
            Kind::ConfigMap => round_trip::<ConfigMap>(child),
            Kind::Service => round_trip::<Service>(child),
            Kind::NetworkPolicy => round_trip::<NetworkPolicy>(child),
            Kind::PodDisruptionBudget => round_trip::<PodDisruptionBudget>(child),
            Kind::StatefulSet => round_trip::<StatefulSet>(child),
        }
    }
}

#[test]
fn a_job_as_it_is_written() {
    let (job, settings) = (job(), settings());
    let version = make_version(&job, &settings, None);
    let issue = issue(&job, &version);
    let memory = Memory::default();
    let set = stateful_set(&job, &version, Size(1), &memory, &job.spec.state, &issue);
    insta::assert_snapshot!(serde_yaml::to_string(&set.body).unwrap());
}

#[test]
fn what_only_the_controller_acts_on_makes_no_version() {
    let job = job();
    let name = crate::version::name_of(&job);
    let mut other = job.clone();
    other.spec.suspend = true;
    other.spec.workers.replicas = Some(1);
    assert_eq!(crate::version::name_of(&other), name);
    other.spec.sql.push(' ');
    assert_ne!(crate::version::name_of(&other), name);
}

#[test]
fn a_node_that_does_not_answer_loses_its_pods_after_node_loss_timeout() {
    let mut job = job();
    job.spec.workers.node_loss_timeout = penstock_crds::units::Duration::from_secs(90);
    let version = make_version(&job, &settings(), None);
    let tolerations = version.template["spec"]["tolerations"].as_array().unwrap();
    assert_eq!(tolerations.len(), 2);
    assert!(tolerations.iter().all(|t| t["tolerationSeconds"] == 90));
}

#[test]
fn every_secret_is_mounted_once() {
    let (job, settings) = (job(), settings());
    let version = make_version(&job, &settings, None);
    let volumes = version.template["spec"]["volumes"].as_array().unwrap();
    let secrets: Vec<&str> = volumes
        .iter()
        .filter_map(|v| v["secret"]["secretName"].as_str())
        .collect();
    assert_eq!(secrets, ["kafka-client", "s3"]);
}

#[test]
fn a_secret_of_any_name_has_a_volume() {
    let mut job = job();
    let long = format!("{}.prod", "k".repeat(60));
    let kafka = job.spec.sources[0].kafka.as_mut().unwrap();
    kafka.secret_ref.as_mut().unwrap().name = long.clone();
    let version = make_version(&job, &settings(), None);
    let pod = &version.template["spec"];
    let volumes = pod["volumes"].as_array().unwrap();
    let volume = volumes.iter().find(|v| v["secret"]["secretName"] == long);
    let name = volume.unwrap()["name"].as_str().unwrap();
    assert!(name.len() <= 63 && !name.contains('.'), "{name}");
    let mounts = pod["containers"][0]["volumeMounts"].as_array().unwrap();
    let mount = mounts.iter().find(|m| m["name"] == name).unwrap();
    assert_eq!(mount["mountPath"], format!("/etc/penstock/secrets/{long}"));
}
