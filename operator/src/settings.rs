//! What an administrator sets for all jobs: the values of the chart, as the controller reads them.

use std::path::PathBuf;

use penstock_crds::job::Storage;
use penstock_crds::workers::Resources;
use serde::Deserialize;

/// Read from one YAML file.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Settings {
    /// Image of workers that name none: the controller's own.
    pub image: String,
    /// Where logs go when a job does not say.
    pub storage: Option<Storage>,
    /// Of workers that ask for none.
    pub resources: Resources,
    /// Namespaces to look after; empty: all.
    pub namespaces: Vec<String>,
    /// The host name under which the API server finds the webhook; empty: there is none.
    pub webhook_host: String,
    /// Folder with the webhook's certificate, where the authority does not make it: `tls.crt`, `tls.key`.
    pub webhook_certificate: Option<PathBuf>,
    /// How many workers a job may have: one, until several of them share a job. The crash tests, whose pods are none, set more.
    pub max_replicas: u32,
    /// The name of the webhook's configuration, which is told the authority; empty: somebody else tells it whom to believe.
    pub webhook_configuration: String,
    /// The program that plans SQL.
    pub planner: PathBuf,
    /// The namespace of the controller, which alone may speak to workers.
    pub own_namespace: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            image: String::new(),
            storage: None,
            resources: Resources::default(),
            namespaces: Vec::new(),
            webhook_host: String::new(),
            webhook_certificate: None,
            max_replicas: 1,
            webhook_configuration: String::new(),
            planner: PathBuf::from("penstock"),
            own_namespace: String::new(),
        }
    }
}
