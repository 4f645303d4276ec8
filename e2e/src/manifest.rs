//! Owns the change of an example's manifest into a suite's: the same sources, SQL and sinks, other brokers, topics and storage.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_yaml::{Mapping, Value};

/// A manifest under change.
pub struct Manifest(Value);

impl Manifest {
    pub fn load(path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self(serde_yaml::from_str(&text).with_context(|| {
            format!("{} is not YAML", path.display())
        })?))
    }

    pub fn save(&self, path: &Path) -> Result<()> {
        fs::write(path, serde_yaml::to_string(&self.0)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// The text that stands at a path of names.
    pub fn text(&self, path: &[&str]) -> Result<String> {
        let found = path.iter().try_fold(&self.0, |at, name| at.get(*name));
        let text = found.and_then(Value::as_str);
        Ok(text
            .with_context(|| format!("{path:?} is no text"))?
            .to_owned())
    }

    /// Sets what stands at a path of names, making mappings on the way. The value is YAML text.
    pub fn set(&mut self, path: &[&str], yaml: &str) -> Result<&mut Self> {
        let value = serde_yaml::from_str(yaml).with_context(|| format!("not YAML: {yaml}"))?;
        let (last, way) = path.split_last().context("an empty path")?;
        let mut at = &mut self.0;
        for name in way {
            let Value::Mapping(mapping) = at else {
                bail!("{path:?}: no mapping above {name}")
            };
            at = mapping
                .entry(Value::from(*name))
                .or_insert_with(|| Value::Mapping(Mapping::new()));
        }
        let Value::Mapping(mapping) = at else {
            bail!("{path:?}: no mapping above {last}")
        };
        mapping.insert(Value::from(*last), value);
        Ok(self)
    }

    /// Sets a field of `kafka` in every member of `spec.sources` or `spec.sinks` that has one. The value is YAML text.
    pub fn set_kafka(&mut self, list: &str, field: &str, yaml: &str) -> Result<&mut Self> {
        let value: Value =
            serde_yaml::from_str(yaml).with_context(|| format!("not YAML: {yaml}"))?;
        let members = self.0.get_mut("spec").and_then(|spec| spec.get_mut(list));
        let Some(Value::Sequence(members)) = members else {
            bail!("spec.{list} is missing")
        };
        for member in members {
            if let Some(Value::Mapping(kafka)) = member.get_mut("kafka") {
                kafka.insert(Value::from(field), value.clone());
            }
        }
        Ok(self)
    }

    /// Points every Kafka source and sink at these brokers and puts a prefix before the names of all topics.
    pub fn rehome(&mut self, brokers: &str, prefix: &str) -> Result<&mut Self> {
        for list in ["sources", "sinks"] {
            let Some(Value::Sequence(members)) =
                self.0.get_mut("spec").and_then(|spec| spec.get_mut(list))
            else {
                bail!("spec.{list} is missing")
            };
            for member in members {
                let Some(Value::Mapping(kafka)) = member.get_mut("kafka") else {
                    continue;
                };
                kafka.insert(Value::from("bootstrapServers"), Value::from(brokers));
                if let Some(topic) = kafka.get_mut(Value::from("topic")) {
                    *topic = Value::from(format!("{prefix}{}", topic.as_str().unwrap_or_default()));
                }
                if let Some(Value::Sequence(topics)) = kafka.get_mut(Value::from("topics")) {
                    for topic in topics {
                        *topic =
                            Value::from(format!("{prefix}{}", topic.as_str().unwrap_or_default()));
                    }
                }
            }
        }
        Ok(self)
    }
}

/// Fails the test when this text is not a manifest as the engine reads it.
#[cfg(test)]
pub fn assert_valid(text: &str) {
    if let Err(faults) = penstock_crds::manifest::load(text, "job.yaml") {
        panic!("{faults:#?}\n{text}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flights_example_is_valid_as_it_stands_and_as_the_suites_change_it() {
        let path = crate::bed::root().join("examples/flights/job.yaml");
        assert_valid(&fs::read_to_string(&path).unwrap());
        let mut manifest = Manifest::load(&path).unwrap();
        manifest
            .rehome("127.0.0.1:29292", "eo-")
            .unwrap()
            .set(&["spec", "trigger"], "{continuous: {}}")
            .unwrap();
        let storage = "{s3: {bucket: streams, prefix: e2e, region: us-east-1, endpoint: 'http://127.0.0.1:29200', pathStyle: true}}";
        manifest
            .set(&["spec", "checkpoint", "interval"], "300ms")
            .unwrap();
        manifest
            .set(&["spec", "checkpoint", "storage"], storage)
            .unwrap();
        assert_valid(&serde_yaml::to_string(&manifest.0).unwrap());
    }

    #[test]
    fn brokers_and_topics_change_and_the_rest_stays() {
        let mut manifest = Manifest(serde_yaml::from_str(
            "spec: {sources: [{name: a, kafka: {bootstrapServers: x, topics: [in]}}], sinks: [{name: b, kafka: {topic: out}}, {name: c, print: {}}]}",
        ).unwrap());
        manifest
            .rehome("h:1", "p-")
            .unwrap()
            .set(&["spec", "checkpoint", "interval"], "1s")
            .unwrap();
        assert_eq!(
            manifest.0,
            serde_yaml::from_str::<Value>(
                "spec: {sources: [{name: a, kafka: {bootstrapServers: 'h:1', topics: [p-in]}}], sinks: [{name: b, kafka: {topic: p-out, bootstrapServers: 'h:1'}}, {name: c, print: {}}], checkpoint: {interval: 1s}}"
            )
            .unwrap()
        );
    }
}
