//! What the planner said of jobs whose version was never made. Each text is planned once, in a task: a job that is looked at again finds
//! the verdict, and one whose plan takes long keeps nobody else from being looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use penstock_crds::diagnostic::Code;
use penstock_crds::job::StreamingJob;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::{Linter, text};
use crate::status::bounded;

/// Jobs of which a verdict is kept or made.
const MOST: usize = 1024;
/// Faults that are kept of one.
const MOST_FAULTS: usize = 16;
/// How long a look waits for the verdict: most texts are planned by then.
const WAIT: Duration = Duration::from_secs(1);
/// When a text is planned again that broke a bound: the machine may have been busy.
const AGAIN: Duration = Duration::from_secs(600);
/// The same where the planner itself failed.
const SOON: Duration = Duration::from_secs(15);

/// The planner and what it said.
pub struct Verdicts {
    linter: Linter,
    kept: Mutex<Kept>,
}

impl Verdicts {
    pub fn new(linter: Linter) -> Self {
        Self {
            linter,
            kept: Mutex::default(),
        }
    }

    /// What is wrong with a job's SQL. `None`: it is not known yet, and where it is being found out, `wake` is called in the end.
    pub async fn of(
        self: &Arc<Self>,
        job: &StreamingJob,
        wake: impl FnOnce() + Send + 'static,
    ) -> Option<Vec<String>> {
        let uid = job.metadata.uid.clone().unwrap_or_default();
        let text = match text(job) {
            Ok(text) => text,
            Err(error) => return Some(vec![not_planned(&error)]),
        };
        let text = xxhash_rust::xxh3::xxh3_64(text.as_bytes());
        let now = Instant::now();
        {
            let mut kept = self.kept.lock();
            if let Some(faults) = kept.find(&uid, text, now) {
                return Some(faults);
            }
            if !kept.begin(&uid, text, now) {
                return None;
            }
        }
        let (tell, mut told) = oneshot::channel();
        let (this, job) = (Arc::clone(self), job.clone());
        tokio::spawn(async move {
            let said = this.linter.faults(&job).await;
            let verdict = Verdict::of(said, Instant::now());
            this.kept.lock().end(&uid, &verdict);
            if tell.send(verdict.faults).is_err() {
                wake();
            }
        });
        if let Ok(told) = timeout(WAIT, &mut told).await {
            return told.ok();
        }
        // From here on either the verdict is here or the task wakes.
        told.close();
        told.try_recv().ok()
    }

    /// Drops what is kept of jobs other than these.
    pub fn forget(&self, uids: &BTreeSet<&str>) {
        let mut kept = self.kept.lock();
        kept.0.retain(|uid, _| uids.contains(uid.as_str()));
    }
}

/// What is known of each job, by its uid: of one text, the newest that was asked for.
#[derive(Default)]
struct Kept(BTreeMap<String, Text>);

struct Text {
    /// The hash of all that the planner reads.
    hash: u64,
    since: Instant,
    /// `None`: it is being planned.
    verdict: Option<Verdict>,
}

#[derive(Debug, Clone, PartialEq)]
struct Verdict {
    faults: Vec<String>,
    /// When it holds no more, if ever.
    until: Option<Instant>,
}

impl Verdict {
    fn of(said: std::io::Result<Vec<String>>, now: Instant) -> Self {
        let (mut faults, until) = match said {
            Ok(faults) if faults.iter().any(|f| broke_a_bound(f)) => (faults, Some(now + AGAIN)),
            Ok(faults) => (faults, None),
            Err(error) => (vec![not_planned(&error)], Some(now + SOON)),
        };
        faults.truncate(MOST_FAULTS);
        let faults = faults.iter().map(|fault| bounded(fault)).collect();
        Self { faults, until }
    }
}

fn broke_a_bound(fault: &str) -> bool {
    fault.ends_with(&format!("[{}]", Code::PLANNING))
}

fn not_planned(error: &std::io::Error) -> String {
    format!(
        "spec.sql: it could not be planned: {error} [{}]",
        Code::PLANNING
    )
}

impl Kept {
    fn find(&self, uid: &str, hash: u64, now: Instant) -> Option<Vec<String>> {
        let text = self.0.get(uid).filter(|text| text.hash == hash)?;
        let verdict = text.verdict.as_ref()?;
        let holds = verdict.until.is_none_or(|until| now < until);
        holds.then(|| verdict.faults.clone())
    }

    /// Whether the text is to be planned now: not while another of this job is, nor where as many jobs as may wait for theirs.
    fn begin(&mut self, uid: &str, hash: u64, now: Instant) -> bool {
        match self.0.get(uid) {
            Some(text) if text.verdict.is_none() => return false,
            None if self.0.len() >= MOST => {
                let made = self.0.iter().filter(|(_, text)| text.verdict.is_some());
                let oldest = made.min_by_key(|(_, text)| text.since);
                let Some(oldest) = oldest.map(|(uid, _)| uid.clone()) else {
                    return false;
                };
                self.0.remove(&oldest);
            }
            Some(_) | None => {}
        }
        let text = Text {
            hash,
            since: now,
            verdict: None,
        };
        self.0.insert(uid.to_owned(), text);
        true
    }

    /// Of a job that is gone nothing is kept.
    fn end(&mut self, uid: &str, verdict: &Verdict) {
        if let Some(text) = self.0.get_mut(uid) {
            text.verdict = Some(verdict.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::tests::job;
    use crate::lint::given_up;
    use crate::lint::tests::planner;

    fn verdict(fault: &str, now: Instant) -> Verdict {
        Verdict::of(Ok(vec![fault.to_owned()]), now)
    }

    #[test]
    fn a_verdict_holds_for_its_text_and_one_on_a_bound_not_for_ever() {
        let now = Instant::now();
        let mut kept = Kept::default();
        assert!(kept.begin("a", 1, now));
        assert_eq!(kept.find("a", 1, now), None);
        assert!(!kept.begin("a", 1, now), "it is being planned");
        assert!(!kept.begin("a", 2, now), "the job has its turn already");
        kept.end("a", &verdict("wrong [PS0102]", now));
        let later = now + AGAIN;
        assert_eq!(
            kept.find("a", 1, later),
            Some(vec!["wrong [PS0102]".to_owned()])
        );
        assert_eq!(kept.find("a", 2, now), None);
        assert!(kept.begin("a", 2, now));
        kept.end("a", &verdict("too much [PS0075]", now));
        assert!(kept.find("a", 2, now).is_some());
        assert_eq!(kept.find("a", 2, later), None);
        assert!(kept.begin("a", 2, later));
    }

    #[test]
    fn there_are_never_more_than_so_many() {
        let now = Instant::now();
        let mut kept = Kept::default();
        for job in 0..MOST {
            assert!(kept.begin(&job.to_string(), 1, now));
        }
        assert!(!kept.begin("more", 1, now), "all of them are being planned");
        for job in [7, 5] {
            kept.end(&job.to_string(), &verdict("", now));
        }
        kept.0.get_mut("5").unwrap().since = now - Duration::from_secs(1);
        assert!(kept.begin("more", 1, now));
        assert!(!kept.0.contains_key("5") && kept.0.contains_key("7"));
        assert_eq!(kept.0.len(), MOST);
        let many = Verdict::of(Ok(vec!["x".repeat(5000); 100]), now);
        assert_eq!(many.faults.len(), MOST_FAULTS);
        assert!(many.faults.iter().all(|fault| fault.len() < 1010));
    }

    #[tokio::test]
    async fn a_text_is_planned_once() {
        let folder = tempfile::tempdir().unwrap();
        let says =
            r#"{"code":"PS0102","severity":"error","path":"spec.sql","message":"no such column"}"#;
        let count = folder.path().join("count");
        let does = format!("cat >/dev/null; echo >>{}; echo '{says}'", count.display());
        let verdicts = Arc::new(Verdicts::new(planner(folder.path(), &does)));
        let mut job = job();
        let fault = vec!["spec.sql: no such column [PS0102]".to_owned()];
        let known = async |job: &StreamingJob| loop {
            // A machine that is busy takes its time.
            if let Some(faults) = verdicts.of(job, || ()).await {
                return faults;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let planned = || std::fs::read_to_string(&count).unwrap().lines().count();
        assert_eq!(known(&job).await, fault);
        assert_eq!(known(&job).await, fault);
        assert_eq!(planned(), 1);
        job.spec.sql.push(' ');
        assert_eq!(known(&job).await, fault);
        assert_eq!(planned(), 2);
        verdicts.forget(&BTreeSet::from(["another"]));
        assert!(verdicts.kept.lock().0.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_plan_that_takes_long_holds_nobody_and_wakes_its_job_in_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let verdicts = Arc::new(Verdicts::new(planner(folder.path(), "exec sleep 60")));
        let job = job();
        let (wake, woken) = oneshot::channel();
        let began = Instant::now();
        let told = verdicts.of(&job, || wake.send(()).unwrap()).await;
        assert_eq!((told, began.elapsed().as_secs()), (None, WAIT.as_secs()));
        assert_eq!(verdicts.of(&job, || unreachable!()).await, None);
        assert_eq!(
            began.elapsed().as_secs(),
            WAIT.as_secs(),
            "it waits no more"
        );
        woken.await.unwrap();
        let told = verdicts.of(&job, || unreachable!()).await;
        assert_eq!(told, Some(given_up().faults));
    }
}
