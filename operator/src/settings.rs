//! What an administrator sets for all jobs: the values of the chart, as the controller reads them.

use std::path::PathBuf;

use penstock_crds::job::Storage;
use penstock_crds::validate::Bounds;
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
    /// What jobs may ask for, by namespace.
    pub bounds: Bounds,
    /// Namespaces to look after; empty: all.
    pub namespaces: Vec<String>,
    /// The host name under which the API server finds the webhook; empty: there is none.
    pub webhook_host: String,
    /// Folder with the webhook's certificate, where the authority does not make it: `tls.crt`, `tls.key`.
    pub webhook_certificate: Option<PathBuf>,
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
            bounds: Bounds::default(),
            namespaces: Vec::new(),
            webhook_host: String::new(),
            webhook_certificate: None,
            webhook_configuration: String::new(),
            planner: PathBuf::from("penstock"),
            own_namespace: String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::de::Deserialize;
    use serde_yaml::Deserializer;

    use super::*;

    /// The settings in what the chart makes with these values.
    fn of_the_chart(values: &str) -> Settings {
        let file = format!(
            "{}/../e2e/chart/golden/{values}.yaml",
            env!("CARGO_MANIFEST_DIR")
        );
        let text = std::fs::read_to_string(file).unwrap();
        let all = Deserializer::from_str(&text).map(|d| serde_json::Value::deserialize(d).unwrap());
        let mut maps = all.filter(|object| object["kind"] == "ConfigMap");
        let text = maps.find_map(|map| Some(map["data"]["settings.yaml"].as_str()?.to_owned()));
        serde_yaml::from_str(&text.unwrap()).unwrap()
    }

    #[test]
    fn what_the_chart_writes_is_read() {
        let default = of_the_chart("default");
        assert_eq!(default.bounds, Bounds::default());
        assert_eq!(default.webhook_certificate, None);
        assert!(!default.webhook_configuration.is_empty());
        let everything = of_the_chart("everything");
        assert_eq!(everything.bounds.default.replicas, Some(4));
        assert_eq!(everything.bounds.namespaces["risk"].replicas, Some(8));
        let namespaces = of_the_chart("namespaces");
        assert!(namespaces.webhook_host.is_empty());
        // Somebody else tells the API server whom to believe.
        let managed = of_the_chart("cert-manager");
        assert!(managed.webhook_certificate.is_some() && managed.webhook_configuration.is_empty());
    }
}
