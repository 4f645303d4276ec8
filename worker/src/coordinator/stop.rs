//! How a generation ends: what is waited for, how long, and what the log says then. A person who asks for a stop is not kept
//! waiting by a sink that does not answer: what is committed is safe, and the next run publishes it.

use std::time::Duration;

use penstock_checkpoint::record::{EpochRecord, Kind, StopReason, Stopped};
use tokio::time::Instant;

use super::{Coordinator, Outcome};
use crate::error::{EngineError, Result};
use crate::fault;
use crate::member::protocol::{FromMember, ToMember};
use crate::member::storage;

/// How long a stop waits for sinks.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How long it waits at least, in each of its steps.
const MOMENT: Duration = Duration::from_secs(1);

/// Why a wait is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waited {
    Came,
    /// A stop was asked for, and the sink did not answer in time.
    GaveUp,
}

impl Coordinator {
    /// When a stop that was asked for waits no longer; `None`: nobody asked.
    fn patience(&mut self) -> Option<Instant> {
        if *self.stop.borrow() && self.stop_by.is_none() {
            self.stop_by = Some(Instant::now() + PATIENCE);
        }
        self.stop_by
    }

    /// Takes messages in until `came`; for what a sink has to do. A stop bounds it.
    pub(super) async fn wait_for_sink(
        &mut self,
        mut came: impl FnMut(&Self, Option<&FromMember>) -> bool,
    ) -> Result<Waited> {
        if came(self, None) {
            return Ok(Waited::Came);
        }
        // However late it is, an answer that takes a moment is heard.
        let moment = Instant::now() + MOMENT;
        loop {
            let by = self.patience().map(|by| by.max(moment));
            if by.is_some_and(|by| Instant::now() >= by) {
                return Ok(Waited::GaveUp);
            }
            let message = self.next_message(by).await?;
            if came(self, message.as_ref()) {
                return Ok(Waited::Came);
            }
        }
    }

    /// The epoch in the making is given up: its sinks have no marker yet. Nothing of it is committed.
    pub(super) fn overdue(&mut self) -> EngineError {
        self.gave_up = true;
        EngineError::retry(
            "PR0209",
            "stop",
            "a sink did not answer, and the epoch in the making was given up",
        )
    }

    pub(super) async fn ended(&mut self, stop: bool, drained: bool) -> Result<Option<Outcome>> {
        if let Some((source, text)) = self.failing.take() {
            return self.fail_above(&source, &text).await.map(Some);
        }
        if drained {
            return self.stop_with(StopReason::Drained).await.map(Some);
        }
        if stop {
            return self.stop_with(StopReason::Suspended).await.map(Some);
        }
        Ok(None)
    }

    /// The wrong rows are committed; then the job stops. Started again it would count from nothing, and read on past them: only a
    /// change of the job, or a person who starts it, goes on.
    pub(super) async fn fail_above(&mut self, source: &str, text: &str) -> Result<Outcome> {
        self.stop_with(StopReason::Failed {
            code: "PR0206".to_owned(),
        })
        .await?;
        Err(EngineError::invalid(
            "PR0206",
            format!("source {source}"),
            text,
        ))
    }

    /// Waits until everything that may be published is out, then says that the job has stopped.
    pub(super) async fn stop_with(&mut self, why: StopReason) -> Result<Outcome> {
        if matches!(why, StopReason::Completed | StopReason::Drained) {
            // A version that came to the end of the input has run enough.
            self.accept().await?;
        }
        let published = self
            .wait_for_sink(|c, _| {
                let last = c.log.fold().last_publishable();
                last.is_none_or(|last| last <= c.done_through())
            })
            .await?;
        // Only a job of which everything is out may be called final: nobody could publish the rest any more.
        let why = match (published, why) {
            (Waited::GaveUp, StopReason::Drained | StopReason::Completed) => StopReason::Suspended,
            (Waited::Came | Waited::GaveUp, why) => why,
        };
        tracing::debug!(done = self.done.get(), "everything is out");
        fault::point("stop.before");
        let head = self.log.fold().head();
        let epoch = head.get();
        if self.log.fold().done_through() < self.done {
            let record = EpochRecord {
                commit: None,
                plan: None,
                done_through: self.done_through(),
            };
            self.log
                .append(self.generation, Kind::Epoch(record))
                .await
                .map_err(storage)?;
        }
        self.log
            .append(
                self.generation,
                Kind::Stopped(Stopped {
                    epoch: head,
                    why: why.clone(),
                }),
            )
            .await
            .map_err(storage)?;
        self.closure().await?;
        tracing::debug!("stopped");
        fault::point("stop.after");
        let pending = match published {
            Waited::GaveUp => Waited::GaveUp,
            Waited::Came => self.close_sinks().await?,
        };
        let pending = (pending == Waited::GaveUp).then(|| self.done_through().get());
        Ok(match (why, pending) {
            (StopReason::Completed, None) => Outcome::Completed { epoch },
            (StopReason::Drained, None) => Outcome::Drained { epoch },
            (_, pending) => Outcome::Stopped { epoch, pending },
        })
    }

    /// Sinks that hold rows back let them go. Only behind a `Stopped`: nobody commits in this generation any more, so
    /// everybody lets go of the same rows.
    pub(super) async fn close_sinks(&mut self) -> Result<Waited> {
        self.tell(ToMember::Close {
            born: self.born(),
            newest: self.log.fold().marker_bound(),
        });
        self.wait_for_sink(|_, message| matches!(message, Some(FromMember::Closed)))
            .await
    }
}
