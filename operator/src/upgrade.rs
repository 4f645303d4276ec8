//! From version to version: which one is to run now, and what must be remembered to say so later. Pure.
//!
//! ```text
//!              the spec asks for another            it runs and is on trial no more
//!   accepted ─────────────────────────▶ on its way ─────────────────────────────────▶ accepted
//!      ▲                                   │ gave up, or not running by progressDeadline
//!      └───────── rolled back ◀────────────┘   (no second try until the spec changes)
//! ```
//!
//! What is remembered is an annotation of the StatefulSet: that a version was accepted is read from the workers, which have it
//! from the job's log; while they are down it must be known here.

use penstock_crds::job::OnUpgradeFailure;
use penstock_crds::status::Phase;
use penstock_crds::units::Timestamp;

use crate::facts::{Facts, GaveUp, Memory, RolledBack, Trial, gave_up, is_ready, version_of};

/// The code with which a version refuses to come back: the one after it is accepted already.
const ACCEPTED_ALREADY: &str = "PR0413";

impl Memory {
    /// What is to be remembered from now on. `wanted`: the version that the spec asks for.
    pub fn next(mut self, facts: &Facts, wanted: &str) -> Self {
        self.learn(facts, wanted);
        if self
            .rolled_back
            .as_ref()
            .is_some_and(|r| r.version != wanted)
        {
            self.rolled_back = None;
        }
        let on_its_way = self.accepted.as_deref().is_some_and(|a| a != wanted)
            && self.rolled_back.is_none()
            && !facts.job.spec.suspend;
        if !on_its_way {
            self.trial = None;
            return self;
        }
        if self.trial.as_ref().is_none_or(|t| t.version != wanted) {
            self.trial =
                Timestamp::from_epoch_millis(facts.now.timestamp_millis()).map(|since| Trial {
                    version: wanted.to_owned(),
                    since,
                    ran: false,
                });
        }
        if let Some(trial) = &mut self.trial
            && facts
                .status()
                .is_some_and(|s| s.phase == Phase::Running && s.version == trial.version)
        {
            trial.ran = true;
        }
        if let Some(why) = self.failure(facts)
            && facts.job.spec.upgrade.on_failure == OnUpgradeFailure::Rollback
            && self
                .accepted
                .as_ref()
                .is_some_and(|a| facts.versions.contains_key(a))
        {
            self.trial = None;
            self.ended = None;
            self.rolled_back = Some(RolledBack {
                version: wanted.to_owned(),
                why,
            });
        }
        self
    }

    /// The version that is to run, and whether it comes back after another failed.
    pub fn to_run<'a>(&'a self, wanted: &'a str) -> (&'a str, bool) {
        match (&self.rolled_back, &self.accepted) {
            (Some(failed), Some(accepted)) if failed.version == wanted => (accepted, true),
            _ => (wanted, false),
        }
    }

    /// From what the workers say.
    fn learn(&mut self, facts: &Facts, wanted: &str) {
        if let Some(said) = facts.status()
            && !said.on_trial
            && matches!(said.phase, Phase::Running | Phase::Completed)
            && Some(said.version.as_str()) == facts.running_version()
        {
            self.accepted = Some(said.version.clone());
        }
        let refuses = |p| gave_up(p).is_some_and(|g| g.code == ACCEPTED_ALREADY);
        if self.rolled_back.is_some() && facts.pods.iter().any(refuses) {
            // It was accepted before anybody here heard of it.
            self.accepted = Some(wanted.to_owned());
            self.rolled_back = None;
        }
    }

    /// Why the version on its way has failed.
    fn failure(&self, facts: &Facts) -> Option<GaveUp> {
        let trial = self.trial.as_ref()?;
        let mine = || {
            let pods = facts.pods.iter();
            pods.filter(|p| version_of(p) == Some(&trial.version))
        };
        if let Some(why) = mine().find_map(gave_up) {
            return Some(why);
        }
        let deadline = facts.job.spec.upgrade.progress_deadline;
        let patience = std::time::Duration::from(deadline).as_millis() as i64;
        let late = facts.now.timestamp_millis() - trial.since.epoch_millis() >= patience;
        // A pod that is ready and does not answer at this moment may well run: nobody was here to hear it.
        let unheard = facts.status().is_none() && mine().any(is_ready);
        (late && !trial.ran && !unheard).then(|| GaveUp {
            code: "PR0414".to_owned(),
            message: format!("it did not run within {deadline}"),
        })
    }

    /// Versions that may run again.
    pub fn needs(&self, version: &str) -> bool {
        self.accepted.as_deref() == Some(version)
    }
}
