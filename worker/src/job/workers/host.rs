//! The half of a worker that answers the others: what it sees, who leaves, what to load ahead, and to be a member.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use penstock_checkpoint::ids::Generation;
use tokio::sync::{mpsc, oneshot};

use super::ahead::{Prepare, load};
use super::{About, Ended, Ground, Membership, Shared};
use crate::coordinator::Outcome;
use crate::coordinator::progress::{Phase, Progress};
use crate::error::{EngineError, Result};
use crate::job::connectors::LogFacts;
use crate::member::protocol::FromMember;
use crate::member::remote::{self, Answer, decode, encode};
use crate::member::team::Line;
use crate::network::{Exchange, Net, Talk};
use crate::process;

/// The half of a worker that answers the others.
pub(super) struct Host {
    pub progress: Arc<Progress>,
    pub net: Arc<dyn Net>,
    pub ground: Arc<dyn Ground>,
    pub shared: Arc<Shared>,
}

impl Host {
    pub async fn run(self: Arc<Self>, mut talks: mpsc::UnboundedReceiver<Talk>) {
        // Ends the membership that runs.
        let mut running: Option<oneshot::Sender<()>> = None;
        while let Some(talk) = talks.recv().await {
            match decode::<About>(&talk.about) {
                Ok(About::Look) => {
                    self.shared.comes(talk.with);
                    let seen = encode(&self.shared.seen()).unwrap_or_default();
                    let _ = talk.to.send(seen);
                }
                Ok(About::Prepare(ask)) => {
                    self.shared.comes(talk.with);
                    process::spawn(self.clone().load(talk, *ask));
                }
                Ok(About::Leave(who)) => {
                    self.shared.leaves(who);
                    let _ = talk.to.send(Bytes::new());
                }
                // It leaves the job to the others.
                Ok(About::End(from, Ended::With(Outcome::Stopped { .. })))
                    if !self.shared.is_stopping() =>
                {
                    self.shared.leaves(from);
                    self.shared.over(from);
                    let _ = talk.to.send(Bytes::new());
                }
                Ok(About::End(from, ended)) => {
                    if self.shared.is_of(from) {
                        self.shared.ended.send_replace(Some(ended));
                    }
                    let _ = talk.to.send(Bytes::new());
                }
                Ok(About::Membership(membership)) => {
                    if membership.to != self.shared.me || !self.accepts(membership.generation) {
                        continue;
                    }
                    self.shared.comes(membership.from.id);
                    self.shared.hear(membership.from);
                    let (end, ending) = oneshot::channel();
                    // The one before, if it still runs, is over.
                    drop(running.replace(end));
                    process::spawn(self.clone().attend(talk, membership, ending));
                }
                Err(error) => tracing::warn!(%error, with = %talk.with, "not understood"),
            }
        }
    }

    /// Loads ahead, unless whoever asked for it is gone.
    async fn load(self: Arc<Self>, mut talk: Talk, ask: Prepare) {
        let loaded = tokio::select! {
            loaded = load(&*self.ground, &self.shared, ask) => loaded,
            _ = talk.from.recv() => return,
        };
        let answer = encode(&loaded.err().map(|error| error.to_string()));
        let _ = talk.to.send(answer.unwrap_or_default());
    }

    /// A lower generation is refused; a higher one ends what runs here.
    fn accepts(&self, generation: Generation) -> bool {
        let mut newest = self.shared.newest.lock();
        if generation < *newest {
            return false;
        }
        *newest = generation;
        self.shared.superseded.send_replace(generation);
        true
    }

    async fn attend(
        self: Arc<Self>,
        mut talk: Talk,
        membership: Membership,
        ending: oneshot::Receiver<()>,
    ) {
        let (generation, from) = (membership.generation, membership.from);
        let attended = tokio::select! {
            attended = self.member(&mut talk, membership) => attended,
            // Of one that is newer more has been heard by now.
            _ = ending => return,
        };
        self.shared.over(from);
        if !self.shared.leading.load(Ordering::Relaxed) {
            self.progress.phase(Phase::Pending);
        }
        if let Err(error) = attended {
            tracing::warn!(%error, %generation, "this worker's part of the generation has ended");
            if let Ok(words) = encode(&Answer::Say(FromMember::Failed(error))) {
                let _ = talk.to.send(words);
            }
        }
    }

    async fn member(&self, talk: &mut Talk, membership: Membership) -> Result<()> {
        if membership.runs != self.shared.runs {
            let object = self.shared.me.to_string();
            let text = "it runs another version of the job than the coordinator: the workers were started with different manifests";
            return Err(EngineError::retry("PR0320", object, text));
        }
        // Of the generation before, if that still ends.
        let held = match self.shared.hold().await {
            Ok(held) => held,
            Err(stuck) => {
                let EngineError {
                    code,
                    object,
                    message,
                    ..
                } = stuck.in_words();
                // This process does not mend it, its successor does.
                self.shared.ended.send_replace(Some(Ended::By(stuck)));
                return Err(EngineError::retry(code, object, message));
            }
        };
        // One that this worker claimed meanwhile has begun here and is over: channels of lower ones went with it.
        if membership.generation < *self.shared.newest.lock() {
            let text = "a newer generation has begun here meanwhile";
            return Err(EngineError::retry("PR0320", "generation", text));
        }
        let facts = LogFacts {
            id: membership.log,
            markers: membership.markers,
        };
        let exchange: Arc<dyn Exchange> = self.net.clone();
        let line = self
            .ground
            .member(self.shared.me.id, facts, exchange, held)?;
        let Line { to, mut from } = line;
        let with = membership.from;
        let beat = || self.shared.hear(with);
        let said = |said: &FromMember| {
            if matches!(said, FromMember::Started) {
                self.progress.phase(Phase::Running);
            }
        };
        self.progress.phase(Phase::Restoring);
        remote::attend(talk, &to, &mut from, beat, said).await
    }
}
