//! Ends of a generation: a stop while a sink does not answer, a stop while the log is another's, and a look at a job that
//! somebody else drained meanwhile.

use async_trait::async_trait;
use bytes::Bytes;
use penstock_crds::manifest;

use super::*;
use crate::job::generations::one_after_another;
use crate::job::plan_of;
use crate::sinks::{
    DirectSender, Marker, Rolling, ShardPublisher, Sink, SinkEncoder, StagedRecords,
};

const JOB: &str = r#"
apiVersion: penstock.dev/v1alpha1
kind: StreamingJob
metadata: {name: silent}
spec:
  sources:
    - name: t
      kafka: {bootstrapServers: "none:1", topics: [t]}
      format: {json: {}}
      columns: [{name: id, type: BIGINT}]
  sql: INSERT INTO out SELECT id FROM t
  sinks:
    - name: out
      kafka: {bootstrapServers: "none:1", topic: out}
      format: {json: {}}
  trigger: {availableNow: {drain: true}}
"#;

fn job() -> MemoryJob {
    job_of(JOB)
}

fn job_of(manifest: &str) -> MemoryJob {
    let resources = manifest::load(manifest, "job.yaml").unwrap();
    let resource = resources.into_iter().next().unwrap();
    let job = resource.job().unwrap().clone();
    let plan = plan_of(&job, &resource.positions).unwrap();
    MemoryJob::new(Arc::new(job), Arc::new(plan), 2, None)
}

fn rows(job: &MemoryJob, n: u64) {
    ids(job, 0..n);
}

fn ids(job: &MemoryJob, ids: impl Iterator<Item = u64>) {
    job.push(
        "t",
        ids.map(|i| MemoryRecord {
            value: Some(Bytes::from(format!("{{\"id\":{i}}}"))),
            ..MemoryRecord::default()
        }),
    );
}

/// What a sink never answers to.
#[derive(Clone, Copy, PartialEq)]
enum Never {
    Bears,
    Publishes,
}

struct Silent {
    sink: SinkRef,
    never: Never,
}

#[async_trait]
impl Sink for Silent {
    fn guarantee(&self) -> Guarantee {
        self.sink.guarantee()
    }
    fn shards(&self) -> u16 {
        self.sink.shards()
    }
    async fn prepare(&self) -> Result<()> {
        self.sink.prepare().await
    }
    fn encoder(&self) -> Result<Box<dyn SinkEncoder>> {
        self.sink.encoder()
    }
    fn stage_record(&self, record: &Record, out: &mut StagedRecords) {
        self.sink.stage_record(record, out);
    }
    fn publisher(&self, shard: u16, partition: i32) -> Result<Box<dyn ShardPublisher>> {
        Ok(Box::new(SilentPublisher {
            publisher: self.sink.publisher(shard, partition)?,
            never: self.never,
        }))
    }
    fn direct(&self) -> Result<Box<dyn DirectSender>> {
        self.sink.direct()
    }
}

struct SilentPublisher {
    publisher: Box<dyn ShardPublisher>,
    never: Never,
}

#[async_trait]
impl ShardPublisher for SilentPublisher {
    async fn open(&mut self) -> Result<Option<Marker>> {
        self.publisher.open().await
    }
    async fn init_marker(&mut self, marker: Marker) -> Result<()> {
        if self.never == Never::Bears {
            std::future::pending::<()>().await;
        }
        self.publisher.init_marker(marker).await
    }
    async fn publish(&mut self, chunk: Bytes, marker: Marker) -> Result<()> {
        if self.never == Never::Publishes {
            std::future::pending::<()>().await;
        }
        self.publisher.publish(chunk, marker).await
    }
    fn rolling(&mut self) -> Option<&mut dyn Rolling> {
        self.publisher.rolling()
    }
}

/// A run whose sink is silent; a stop is asked for after two seconds. Answers how it ended, and after how many seconds.
fn stopped(job: &MemoryJob, never: Never) -> (Outcome, u64) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let ended = runtime.block_on(async {
        let (ask, stop) = watch::channel(false);
        tokio::spawn(async move {
            tokio::time::sleep(std::time::Duration::from_secs(2)).await;
            ask.send(true).unwrap();
            std::future::pending::<()>().await;
        });
        let began = tokio::time::Instant::now();
        let mut setup = job.setup(true).await.unwrap();
        for (_, sink, _) in &mut setup.connected.sinks {
            *sink = Arc::new(Silent {
                sink: sink.clone(),
                never,
            });
        }
        let ended = serve(
            &job.job,
            &job.plan,
            setup,
            Team::Here(1),
            stop,
            Arc::default(),
        )
        .await;
        (ended.unwrap().0, began.elapsed().as_secs())
    });
    drop(runtime);
    ended
}

#[test]
fn a_stop_waits_half_a_minute_for_a_sink_that_does_not_publish_and_the_next_run_publishes() {
    let mut job = job();
    rows(&job, 100);
    let (ended, seconds) = stopped(&job, Never::Publishes);
    let Outcome::Stopped {
        epoch,
        pending: Some(published),
    } = ended
    else {
        panic!("{ended:?}");
    };
    assert!(published < epoch, "{published} of {epoch}");
    assert!((30..40).contains(&seconds), "after {seconds} s");
    assert_eq!(job.published("out", 0).len(), 0);
    let ended = job.run(true).unwrap();
    assert!(matches!(ended, Outcome::Drained { .. }), "{ended:?}");
    assert_eq!(job.published("out", 0).len(), 100);
}

#[test]
fn while_a_sink_holds_every_commit_back_the_lag_is_measured_by_the_clock() {
    let job = job();
    rows(&job, 100);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let progress = Arc::new(Progress::default());
    runtime.block_on(async {
        let (_never, stop) = watch::channel(false);
        let mut setup = job.setup(false).await.unwrap();
        setup.trigger = Trigger::Continuous;
        for (_, sink, _) in &mut setup.connected.sinks {
            *sink = Arc::new(Silent {
                sink: sink.clone(),
                never: Never::Publishes,
            });
        }
        let more = async {
            let minutes = |n: u64| tokio::time::sleep(std::time::Duration::from_secs(60 * n));
            minutes(5).await;
            assert_eq!(progress.now().lag, Some(0));
            rows(&job, 50);
            minutes(5).await;
        };
        tokio::select! {
            ended = serve(&job.job, &job.plan, setup, Team::Here(1), stop, progress.clone()) => panic!("{:?}", ended.map(|(outcome, _)| outcome)),
            () = more => {}
        }
    });
    assert_eq!(progress.now().lag, Some(50));
}

#[test]
fn a_stop_gives_up_an_epoch_whose_shards_cannot_be_born_and_the_next_run_reads_it_again() {
    let mut job = job();
    rows(&job, 100);
    let (ended, seconds) = stopped(&job, Never::Bears);
    assert!(
        matches!(ended, Outcome::Stopped { pending: None, .. }),
        "{ended:?}"
    );
    assert!((30..40).contains(&seconds), "after {seconds} s");
    job.run(true).unwrap();
    assert_eq!(job.published("out", 0).len(), 100);
}

#[test]
fn a_job_that_another_process_drained_meanwhile_is_finished() {
    let mut job = job();
    rows(&job, 100);
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_time().build().unwrap()
    };
    job.run(false).unwrap();
    // Looks at the log before the other one drains it.
    let late = runtime().block_on(job.setup(true)).unwrap();
    let drained = job.run(true).unwrap();
    let (_never, stop) = watch::channel(false);
    let ended = runtime().block_on(serve(
        &job.job,
        &job.plan,
        late,
        Team::Here(1),
        stop,
        Arc::default(),
    ));
    assert_eq!(ended.unwrap().0, drained);
    assert!(matches!(drained, Outcome::Drained { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_meets_a_fence_is_a_stop() {
    for kind in [
        crate::error::ErrorKind::Fenced,
        crate::error::ErrorKind::Retry,
    ] {
        let (ask, stop) = watch::channel(false);
        let progress = Progress::default();
        let ended = one_after_another(&stop, &progress, || async {
            ask.send(true).unwrap();
            Err::<(), _>(EngineError::new(kind, "PR0401", "log", "it is another's"))
        });
        assert_eq!(ended.await.unwrap(), None);
    }
    // Asked for in the pause between two generations.
    let (ask, stop) = watch::channel(false);
    let progress = Progress::default();
    let asked = async {
        tokio::time::sleep(std::time::Duration::from_secs(5)).await;
        ask.send(true).unwrap();
        std::future::pending::<()>().await;
    };
    let generations = one_after_another(&stop, &progress, || async {
        Err::<(), _>(EngineError::retry("PR0402", "log", "it does not answer"))
    });
    let ended = tokio::select! { ended = generations => ended, () = asked => unreachable!() };
    assert_eq!(ended.unwrap(), None);
}

/// Of the status page: rows into and out of an operator, by slot.
fn counted(graph: &penstock_crds::rpc::Graph, uid: &str) -> (Vec<u64>, Vec<u64>) {
    let of = graph.operators.iter().find(|o| o.uid == uid);
    let subtasks = &of.expect("an operator of the plan").subtasks;
    let all = subtasks.iter().map(|s| (s.rows_in, s.rows_out));
    all.unzip()
}

#[test]
fn what_operators_send_is_what_the_next_ones_get_over_all_workers() {
    let sql = "INSERT INTO out SELECT DISTINCT id FROM t";
    let manifest = JOB.replace("INSERT INTO out SELECT id FROM t", sql) + "  state: {ttl: 1h}\n";
    let mut job = job_of(&manifest).members(3);
    rows(&job, 1000);
    job.run(true).unwrap();
    let now = job.progress().graph().expect("it has committed");
    let graph = super::super::graph::shown(&job.plan.graph, &now);
    let sum = |rows: Vec<u64>| rows.into_iter().sum::<u64>();
    for operator in graph.operators.iter().filter(|o| o.kind != "source") {
        let sent = operator
            .inputs
            .iter()
            .map(|i| sum(counted(&graph, &i.uid).1));
        let got = sum(counted(&graph, &operator.uid).0);
        assert_eq!((got, sent.sum::<u64>()), (1000, 1000), "{graph:?}");
        assert_eq!(operator.subtasks.len(), 6, "two slots of three workers");
    }
    let keyed = graph
        .operators
        .iter()
        .filter(|o| o.inputs.iter().any(|i| i.keyed));
    let keyed: Vec<_> = keyed.collect();
    assert!(!keyed.is_empty(), "{graph:?}");
    for operator in keyed {
        let (rows_in, _) = counted(&graph, &operator.uid);
        assert!(rows_in.iter().all(|rows| *rows > 50), "{rows_in:?}");
    }
    let mut next = 0;
    for (n, worker) in graph.workers.iter().enumerate() {
        let [range] = worker.ranges[..] else {
            panic!("{worker:?}");
        };
        assert_eq!(
            (worker.worker as usize, worker.slots, range.first),
            (n, 2, next)
        );
        next = range.last + 1;
        assert_eq!(worker.key_groups, u32::from(next - range.first));
    }
    assert_eq!((graph.workers.len(), next), (3, 64));
}

/// Of a job that counts 40,000 rows by their ids on two workers: what its keyed operator shows.
fn hottest(id: impl Fn(u64) -> u64) -> (penstock_crds::rpc::Operator, f64) {
    let sql = "INSERT INTO out SELECT id, COUNT(*) AS n FROM t GROUP BY id";
    let manifest = JOB
        .replace("INSERT INTO out SELECT id FROM t", sql)
        .replace("topic: out}", "topic: out}\n      outputMode: Update")
        + "  state: {ttl: 1h}\n";
    let mut job = job_of(&manifest).members(2);
    ids(&job, (0..40_000).map(id));
    job.run(true).unwrap();
    let now = job.progress().graph().expect("it has committed");
    let graph = super::super::graph::shown(&job.plan.graph, &now);
    let keyed = graph.operators.into_iter().find(|o| o.kind == "aggregate");
    let share = job.progress().now().hot_key_share;
    (keyed.expect("an aggregate by key"), share)
}

#[test]
fn a_key_with_half_of_the_rows_is_named_with_its_share() {
    let (operator, metric) = hottest(|n| if n % 2 == 0 { 7 } else { 1000 + n });
    let key = operator.hottest_key.expect("a hot key");
    assert_eq!(key.key, "7");
    assert!((key.share - 0.5).abs() < 0.08, "{key:?}");
    assert!((key.share - metric).abs() < 0.001, "{metric}");
    let group = operator.hottest_group.expect("its key group");
    assert!((group.share - 0.5).abs() < 0.1, "{group:?}");
}

#[test]
fn no_key_is_named_where_all_have_as_many_rows() {
    let (operator, metric) = hottest(|n| n % 500);
    assert_eq!((operator.hottest_key, metric), (None, 0.0));
    let group = operator.hottest_group.expect("rows came by key");
    assert!(group.share < 0.15, "{group:?}");
}

#[test]
fn each_claim_of_an_adopted_log_says_who_has_adopted_it() {
    let job = job();
    rows(&job, 100);
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().build().unwrap();
    let generation = |setup: Setup| {
        let (_never, stop) = watch::channel(false);
        let (team, progress) = (Team::Here(1), Arc::default());
        let served = serve(&job.job, &job.plan, setup, team, stop, progress);
        runtime.block_on(served).unwrap().1
    };
    let first = Setup {
        adopts: Some(crate::coordinator::Adopts {
            by: "uid-2".to_owned(),
            back_to: None,
        }),
        ..runtime.block_on(job.setup(false)).unwrap()
    };
    let log = generation(first);
    // As where workers come or go: the log is taken over from the generation before, and nobody is asked what is adopted.
    let next = Setup {
        log,
        ..runtime.block_on(job.setup(false)).unwrap()
    };
    let log = generation(next);
    let claim = log.fold().claim().unwrap();
    assert_eq!(claim.by.as_deref(), Some("uid-2"));
}
