//! The coordinator's view: which partitions there are, where they start and end. Every call to the brokers runs on a thread for
//! blocking work and is bounded in time; ends are last stable offsets.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};

use super::{KafkaSourceConfig, StartAt, Topics, client, join, split_of};
use crate::error::{EngineError, Result};
use crate::sources::{Discovered, Position, SourceEnumerator, SplitId};

const CALL: Duration = Duration::from_secs(20);

type Partition = (String, i32);

pub(super) struct Enumerator {
    config: Arc<KafkaSourceConfig>,
    consumer: Arc<BaseConsumer>,
}

impl Enumerator {
    pub fn new(config: Arc<KafkaSourceConfig>) -> Result<Self> {
        let consumer = Arc::new(client::consumer(&config)?);
        Ok(Self { config, consumer })
    }

    async fn call<T: Send + 'static>(
        &self,
        what: &'static str,
        call: impl FnOnce(&BaseConsumer) -> KafkaResult<T> + Send + 'static,
    ) -> Result<T> {
        let consumer = Arc::clone(&self.consumer);
        let object = self.config.object();
        let done = tokio::task::spawn_blocking(move || call(&consumer)).await;
        match done {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(e)) => Err(EngineError::retry("PR0208", object, what).caused_by(e)),
            Err(e) => Err(EngineError::retry("PR0208", object, what).caused_by(e)),
        }
    }

    /// All partitions of the topics, sorted.
    async fn partitions(&self) -> Result<Vec<Partition>> {
        let topics = self.config.topics.clone();
        let mut all = self
            .call("the brokers do not tell the partitions", move |consumer| {
                let mut all = Vec::new();
                let mut add = |metadata: &rdkafka::metadata::Metadata, named: bool| {
                    for topic in metadata.topics() {
                        if let Some(error) = topic.error().filter(|_| named) {
                            return Err(KafkaError::MetadataFetch(error.into()));
                        }
                        let ids = topic.partitions().iter().map(|p| p.id());
                        all.extend(ids.map(|id| (topic.name().to_owned(), id)));
                    }
                    Ok(())
                };
                match &topics {
                    Topics::Named(names) => {
                        for name in names {
                            add(&consumer.fetch_metadata(Some(name), CALL)?, true)?;
                        }
                    }
                    Topics::Matching(_) => add(&consumer.fetch_metadata(None, CALL)?, false)?,
                }
                Ok(all)
            })
            .await?;
        if let Topics::Matching(pattern) = &self.config.topics {
            all.retain(|(topic, _)| pattern.is_match(topic) && !topic.starts_with("__"));
        }
        all.sort();
        Ok(all)
    }

    /// Those of the partitions that the brokers know.
    async fn existing(&self, asked: Vec<Partition>) -> Result<BTreeSet<Partition>> {
        self.call("the brokers do not tell the partitions", move |consumer| {
            let mut there = BTreeSet::new();
            for topic in asked.iter().map(|(topic, _)| topic).collect::<BTreeSet<_>>() {
                for found in consumer.fetch_metadata(Some(topic), CALL)?.topics() {
                    let ids = found.partitions().iter().map(|p| p.id());
                    there.extend(ids.map(|id| (found.name().to_owned(), id)));
                }
            }
            there.retain(|partition| asked.contains(partition));
            Ok(there)
        })
        .await
    }

    /// Earliest and last stable offset; a partition that is not there is absent.
    async fn bounds(&self, partitions: Vec<Partition>) -> Result<BTreeMap<Partition, (i64, i64)>> {
        self.call("the brokers do not tell the offsets", move |consumer| {
            let mut bounds = BTreeMap::new();
            for (topic, partition) in partitions {
                match consumer.fetch_watermarks(&topic, partition, CALL) {
                    Ok(found) => {
                        bounds.insert((topic, partition), found);
                    }
                    Err(e) if is_gone(&e) => {}
                    Err(e) => return Err(e),
                }
            }
            Ok(bounds)
        })
        .await
    }

    /// Offsets of the first records at or after an instant; where there is none, the end.
    async fn at_time(&self, partitions: Vec<Partition>, ms: i64) -> Result<BTreeMap<Partition, i64>> {
        let found = self
            .call("the brokers do not tell the offsets of a time", move |consumer| {
                let mut list = TopicPartitionList::new();
                for (topic, partition) in &partitions {
                    list.add_partition_offset(topic, *partition, Offset::Offset(ms))?;
                }
                consumer.offsets_for_times(list, CALL)
            })
            .await?;
        Ok(offsets(&found))
    }

    async fn first_positions(&self, new: &[Partition]) -> Result<BTreeMap<Partition, i64>> {
        let bounds = self.bounds(new.to_vec()).await?;
        let earliest = || bounds.iter().map(|(p, (low, _))| (p.clone(), *low));
        let latest = || bounds.iter().map(|(p, (_, high))| (p.clone(), *high));
        let given = match &self.config.start {
            StartAt::Earliest => BTreeMap::new(),
            StartAt::Latest => latest().collect(),
            StartAt::Time(ms) => {
                let mut found: BTreeMap<_, _> = latest().collect();
                found.extend(self.at_time(new.to_vec(), *ms).await?);
                found
            }
            StartAt::Offsets(given) => given.clone(),
            StartAt::Group(group) => {
                let mut config = (*self.config).clone();
                config.group_id.clone_from(group);
                let reader = Self::new(Arc::new(config))?;
                let wanted = new.to_vec();
                let found = reader.call("the group's offsets cannot be read", move |consumer| {
                    let mut list = TopicPartitionList::new();
                    for (topic, partition) in &wanted {
                        list.add_partition(topic, *partition);
                    }
                    consumer.committed_offsets(list, CALL)
                });
                offsets(&found.await?)
            }
        };
        Ok(earliest()
            .map(|(partition, low)| {
                let at = given.get(&partition).copied().unwrap_or(low);
                (partition, at)
            })
            .collect())
    }
}

fn is_gone(e: &KafkaError) -> bool {
    matches!(
        e.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownPartition
        )
    )
}

fn offsets(list: &TopicPartitionList) -> BTreeMap<Partition, i64> {
    let each = list.elements().into_iter();
    each.filter_map(|e| match e.offset() {
        Offset::Offset(offset) => Some(((e.topic().to_owned(), e.partition()), offset)),
        _ => None,
    })
    .collect()
}

fn places(splits: &[SplitId]) -> Vec<Partition> {
    let each = splits.iter().filter_map(split_of);
    each.map(|(topic, partition)| (topic.to_owned(), partition)).collect()
}

#[async_trait]
impl SourceEnumerator for Enumerator {
    async fn discover(
        &mut self,
        known: &BTreeMap<SplitId, Position>,
        first: bool,
    ) -> Result<Vec<Discovered>> {
        let mut new = self.partitions().await?;
        new.retain(|(topic, partition)| !known.contains_key(&join(topic, *partition)));
        let starts = if first {
            self.first_positions(&new).await?
        } else {
            let bounds = self.bounds(new).await?;
            bounds.into_iter().map(|(p, (low, _))| (p, low)).collect()
        };
        let found = starts.into_iter().map(|((topic, partition), start)| Discovered {
            split: join(&topic, partition),
            start: Position(start),
        });
        Ok(found.collect())
    }

    async fn ends(&mut self, splits: &[SplitId]) -> Result<BTreeMap<SplitId, Position>> {
        let partitions = places(splits);
        let mut ends: BTreeMap<Partition, i64> = self
            .bounds(partitions.clone())
            .await?
            .into_iter()
            .map(|(partition, (_, high))| (partition, high))
            .collect();
        if let Some(stop) = self.config.stop_at_ms {
            for (partition, offset) in self.at_time(partitions, stop).await? {
                ends.entry(partition).and_modify(|end| *end = offset.min(*end));
            }
        }
        Ok(ends.into_iter().map(|((t, p), end)| (join(&t, p), Position(end))).collect())
    }

    async fn starts(&mut self, splits: &[SplitId]) -> Result<BTreeMap<SplitId, Position>> {
        // A question about a partition that is not there waits for one that is; ask what is there first.
        let there: BTreeSet<Partition> = self.existing(places(splits)).await?;
        let bounds = self.bounds(there.into_iter().collect()).await?;
        let each = bounds.into_iter();
        Ok(each.map(|((t, p), (low, _))| (join(&t, p), Position(low))).collect())
    }

    fn bounded(&self) -> bool {
        self.config.stop_at_ms.is_some()
    }

    async fn show_positions(&mut self, positions: &BTreeMap<SplitId, Position>) {
        let mut list = TopicPartitionList::new();
        for (split, position) in positions {
            if let Some((topic, partition)) = split_of(split) {
                // An offset that librdkafka refuses is not worth more than a log line.
                let _ = list.add_partition_offset(topic, partition, Offset::Offset(position.0));
            }
        }
        let shown = self.call("offsets cannot be shown", move |consumer| {
            consumer.commit(&list, CommitMode::Async)
        });
        if let Err(error) = shown.await {
            tracing::warn!(source = %self.config.name, %error, "offsets were not shown to the consumer group");
        }
    }
}
