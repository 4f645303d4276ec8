//! The coordinator's view of a Kafka source: which partitions there are, where they begin and end, and showing positions to
//! people's lag tools. Ends are last stable offsets: every question is asked as `read_committed`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use penstock_crds::source::StartFromKind;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::metadata::Metadata;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaErrorCode;

use super::{KafkaSourceConfig, Topics, parse_split, split_id};
use crate::error::{EngineError, Result};
use crate::kafka::{self, Logged};
use crate::sources::{Discovered, Position, SourceEnumerator, SplitId};

const CODE: &str = "PR0208";
/// What one question to the brokers may take.
const ASK: Duration = Duration::from_secs(15);
/// What a call of the trait may take; the client does not always keep its own time.
const CALL: Duration = Duration::from_secs(60);

type Partition = (String, i32);

/// Blocking questions; runs on threads made for that.
struct Asker {
    config: Arc<KafkaSourceConfig>,
    object: String,
    consumer: Option<BaseConsumer<Logged>>,
}

pub(super) struct KafkaEnumerator {
    asker: Arc<Asker>,
}

impl KafkaEnumerator {
    pub(super) fn new(config: Arc<KafkaSourceConfig>) -> Result<Self> {
        let object = config.object();
        if let Topics::Pattern(pattern) = &config.topics {
            whole(pattern).map_err(|e| {
                let text = format!("topicPattern {pattern:?} is no regular expression");
                EngineError::invalid(CODE, &object, text).caused_by(e)
            })?;
        }
        let consumer = consumer(&config, &config.group_id, &object)?;
        Ok(Self {
            asker: Arc::new(Asker {
                config,
                object,
                consumer: Some(consumer),
            }),
        })
    }

    async fn ask<T, F>(&self, question: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Asker) -> Result<T> + Send + 'static,
    {
        let asker = Arc::clone(&self.asker);
        let task = tokio::task::spawn_blocking(move || question(&asker));
        match tokio::time::timeout(CALL, task).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(e)) => {
                let text = "a question to the brokers ended early";
                Err(EngineError::retry(CODE, &self.asker.object, text).caused_by(e))
            }
            Err(_) => {
                let text = format!("the brokers did not answer within {} s", CALL.as_secs());
                Err(EngineError::retry(CODE, &self.asker.object, text))
            }
        }
    }
}

fn consumer(config: &KafkaSourceConfig, group: &str, object: &str) -> Result<BaseConsumer<Logged>> {
    config
        .consumer(group, false)
        .create_with_context(Logged::new(object, &config.client))
        .map_err(|e| kafka::error(CODE, object, "making a consumer", e))
}

fn whole(pattern: &str) -> Result<regex::Regex, regex::Error> {
    regex::Regex::new(&format!("^(?:{pattern})$"))
}

impl Drop for Asker {
    fn drop(&mut self) {
        if let Some(consumer) = self.consumer.take() {
            kafka::abandon(consumer);
        }
    }
}

impl Asker {
    fn consumer(&self) -> &BaseConsumer<Logged> {
        self.consumer.as_ref().expect("there until dropped")
    }

    fn error(&self, doing: &str, cause: KafkaError) -> EngineError {
        let consumer = self.consumer();
        kafka::listen(consumer);
        consumer.context().failed(CODE, doing, cause)
    }

    fn metadata(&self, topic: Option<&str>) -> KafkaResult<Metadata> {
        let consumer = self.consumer();
        consumer.context().ask(
            ASK,
            || kafka::listen(consumer),
            |time| consumer.fetch_metadata(topic, time),
        )
    }

    /// Partitions of the source's topics, by topic and number.
    fn partitions(&self) -> Result<Vec<Partition>> {
        let mut out = Vec::new();
        match &self.config.topics {
            Topics::Named(names) => {
                for name in names {
                    match self.count(name)? {
                        Some(n) => out.extend((0..n).map(|p| (name.clone(), p))),
                        None => {
                            let text = format!("topic {name} does not exist");
                            return Err(EngineError::retry(CODE, &self.object, text));
                        }
                    }
                }
            }
            Topics::Pattern(pattern) => {
                let pattern = whole(pattern).map_err(|e| {
                    EngineError::invalid(CODE, &self.object, "bad topicPattern").caused_by(e)
                })?;
                let metadata = self
                    .metadata(None)
                    .map_err(|e| self.error("listing topics", e))?;
                for topic in metadata.topics() {
                    let name = topic.name();
                    if !name.starts_with("__") && topic.error().is_none() && pattern.is_match(name)
                    {
                        out.extend(topic.partitions().iter().map(|p| (name.to_owned(), p.id())));
                    }
                }
            }
        }
        out.sort();
        out.dedup();
        Ok(out)
    }

    /// Number of a topic's partitions; `None`: there is no such topic.
    fn count(&self, name: &str) -> Result<Option<i32>> {
        let metadata = self
            .metadata(Some(name))
            .map_err(|e| self.error(&format!("asking for topic {name}"), e))?;
        let Some(topic) = metadata.topics().iter().find(|t| t.name() == name) else {
            return Ok(None);
        };
        match topic.error().map(RDKafkaErrorCode::from) {
            None => Ok(i32::try_from(topic.partitions().len()).ok()),
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                Ok(None)
            }
            Some(code) => {
                let doing = format!("asking for topic {name}");
                Err(self.error(&doing, KafkaError::MetadataFetch(code)))
            }
        }
    }

    /// ListOffsets in one question per broker. `at`: an instant in ms, or -1 for the end and -2 for the beginning, which
    /// the protocol writes in the same field. The answer -1 means that no record is so late.
    fn list_offsets(
        &self,
        partitions: &[Partition],
        at: Offset,
    ) -> Result<BTreeMap<Partition, i64>> {
        let mut list = TopicPartitionList::new();
        for (topic, partition) in partitions {
            list.add_partition_offset(topic, *partition, at)
                .map_err(|e| self.error("asking for offsets", e))?;
        }
        if partitions.is_empty() {
            return Ok(BTreeMap::new());
        }
        let answer = self
            .consumer()
            .offsets_for_times(list, ASK)
            .map_err(|e| self.error("asking for offsets", e))?;
        let mut out = BTreeMap::new();
        for element in answer.elements() {
            let partition = (element.topic().to_owned(), element.partition());
            if let Err(e) = element.error() {
                let doing = format!("asking for offsets of {}/{}", partition.0, partition.1);
                return Err(self.error(&doing, e));
            }
            out.insert(partition, element.offset().to_raw().unwrap_or(-1));
        }
        Ok(out)
    }

    /// Of each partition the first offset at or after `ms`; the end, where no record is so late.
    fn at_instant(&self, partitions: &[Partition], ms: i64) -> Result<BTreeMap<Partition, i64>> {
        let ends = self.list_offsets(partitions, Offset::End)?;
        let mut found = self.list_offsets(partitions, Offset::Offset(ms.max(0)))?;
        for (partition, offset) in &mut found {
            let end = ends.get(partition).copied().unwrap_or(*offset);
            if *offset < 0 || *offset > end {
                *offset = end;
            }
        }
        Ok(found)
    }

    fn first_starts(&self, partitions: &[Partition]) -> Result<BTreeMap<Partition, i64>> {
        let mut starts = match self.config.start_from.kind() {
            StartFromKind::Latest => return self.list_offsets(partitions, Offset::End),
            StartFromKind::Timestamp(t) => return self.at_instant(partitions, t.epoch_millis()),
            StartFromKind::Earliest | StartFromKind::Offsets(_) | StartFromKind::Group(_) => {
                self.list_offsets(partitions, Offset::Beginning)?
            }
        };
        match self.config.start_from.kind() {
            StartFromKind::Offsets(given) => {
                for o in given {
                    if let Some(start) = starts.get_mut(&(o.topic.clone(), o.partition)) {
                        *start = o.offset;
                    }
                }
            }
            StartFromKind::Group(group) => {
                let member = consumer(&self.config, group, &self.object)?;
                let mut list = TopicPartitionList::new();
                for (topic, partition) in partitions {
                    list.add_partition(topic, *partition);
                }
                let committed = member.committed_offsets(list, ASK);
                kafka::abandon(member);
                let committed = committed
                    .map_err(|e| self.error(&format!("reading offsets of group {group}"), e))?;
                for element in committed.elements() {
                    let at = (element.topic().to_owned(), element.partition());
                    if let (Offset::Offset(offset), Some(start)) =
                        (element.offset(), starts.get_mut(&at))
                    {
                        *start = offset;
                    }
                }
            }
            StartFromKind::Earliest | StartFromKind::Latest | StartFromKind::Timestamp(_) => {}
        }
        Ok(starts)
    }

    /// Those of `splits` whose topic and partition are still there.
    fn existing(&self, splits: &[SplitId]) -> Result<Vec<Partition>> {
        let mut counts: BTreeMap<&str, Option<i32>> = BTreeMap::new();
        let mut out = Vec::new();
        for (topic, partition) in splits.iter().filter_map(parse_split) {
            let count = match counts.get(topic) {
                Some(count) => *count,
                None => *counts.entry(topic).or_insert(self.count(topic)?),
            };
            if count.is_some_and(|n| partition < n) {
                out.push((topic.to_owned(), partition));
            }
        }
        Ok(out)
    }
}

fn positions(offsets: BTreeMap<Partition, i64>) -> BTreeMap<SplitId, Position> {
    offsets
        .into_iter()
        .map(|((topic, partition), offset)| (split_id(&topic, partition), Position(offset)))
        .collect()
}

#[async_trait]
impl SourceEnumerator for KafkaEnumerator {
    async fn discover(
        &mut self,
        known: &BTreeMap<SplitId, Position>,
        first: bool,
    ) -> Result<Vec<Discovered>> {
        let known: Vec<SplitId> = known.keys().cloned().collect();
        self.ask(move |asker| {
            let mut new = asker.partitions()?;
            new.retain(|(topic, partition)| {
                known.binary_search(&split_id(topic, *partition)).is_err()
            });
            let starts = if first {
                asker.first_starts(&new)?
            } else {
                asker.list_offsets(&new, Offset::Beginning)?
            };
            let split = |(split, start)| Discovered { split, start };
            Ok(positions(starts).into_iter().map(split).collect())
        })
        .await
    }

    async fn ends(&mut self, splits: &[SplitId]) -> Result<BTreeMap<SplitId, Position>> {
        let partitions: Vec<Partition> = splits
            .iter()
            .filter_map(parse_split)
            .map(|(topic, partition)| (topic.to_owned(), partition))
            .collect();
        self.ask(move |asker| {
            let ends = match asker.config.stop_at_ms {
                None => asker.list_offsets(&partitions, Offset::End)?,
                Some(ms) => asker.at_instant(&partitions, ms)?,
            };
            Ok(positions(ends))
        })
        .await
    }

    async fn starts(&mut self, splits: &[SplitId]) -> Result<BTreeMap<SplitId, Position>> {
        let splits = splits.to_vec();
        self.ask(move |asker| {
            let there = asker.existing(&splits)?;
            Ok(positions(asker.list_offsets(&there, Offset::Beginning)?))
        })
        .await
    }

    fn bounded(&self) -> bool {
        self.asker.config.stop_at_ms.is_some()
    }

    async fn show_positions(&mut self, positions: &BTreeMap<SplitId, Position>) {
        let mut list = TopicPartitionList::new();
        for (split, position) in positions {
            if let Some((topic, partition)) = parse_split(split) {
                // Of an offset that the client takes for a word of its own there is nothing to show.
                let _ = list.add_partition_offset(topic, partition, Offset::Offset(position.0));
            }
        }
        let consumer = self.asker.consumer();
        // Answers of earlier commits; the context logs the bad ones.
        let _ = consumer.poll(Duration::ZERO);
        if list.count() > 0
            && let Err(error) = consumer.commit(&list, CommitMode::Async)
        {
            tracing::warn!(object = %self.asker.object, %error, "offsets could not be shown");
        }
    }
}
