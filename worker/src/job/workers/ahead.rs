//! Loading what moves before it moves: the coordinator's side, which asks those who take part next, and theirs, beside what runs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use penstock_checkpoint::ids::LogId;
use penstock_checkpoint::log::JobLog;
use penstock_checkpoint::recovery::RestorePlan;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{About, Ground, LOOK, Shared, Worker};
use crate::coordinator::ancestors;
use crate::error::{EngineError, Result};
use crate::member::remote::{decode, encode};
use crate::member::restore::Loader;
use crate::member::seat::Seat;
use crate::member::storage;
use crate::network::{Net, Peer};

/// How often what moves is loaded ahead.
const ROUNDS: usize = 5;
/// How long that may take in all, where workers come and where one goes: a pod is given a minute at least.
pub(super) const COMES: Duration = Duration::from_secs(300);
pub(super) const LEAVES: Duration = Duration::from_secs(30);

/// What a member of the next generation is to load ahead.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Prepare {
    to: Peer,
    log: LogId,
    runs: u64,
    /// Where it will sit.
    seat: Seat,
    key_groups: u16,
    restore: Arc<RestorePlan>,
    /// Epochs that the restored one stands on, itself included, as ranges.
    ancestors: Arc<Vec<(u64, u64)>>,
}

impl Worker {
    /// Has the members of the next generation load what they will have and do not have yet, while this one runs: so the pause between
    /// the two is that of the last commits, and not of the state. More than once, as commits are made meanwhile, and others come.
    pub(super) async fn load_ahead(&self, within: Duration) {
        let _one = self.preparing.lock().await;
        let (by, mut before) = (Instant::now() + within, BTreeSet::new());
        let mut log = None;
        for _ in 0..ROUNDS {
            let began = Instant::now();
            let next = self.next_team().await;
            let prepared = self.prepare(&next, &mut log);
            match tokio::time::timeout_at(by, prepared).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    return tracing::warn!(%error, "nothing was loaded ahead: the pause is longer");
                }
                Err(_) => {
                    return tracing::warn!("not everything was loaded ahead: the pause is longer");
                }
            }
            let took = began.elapsed();
            tracing::info!(workers = next.len(), ms = took.as_millis(), "loaded ahead");
            if next == before && took < LOOK {
                return;
            }
            before = next;
        }
    }

    /// `log`: of the round before, which is followed: a long one takes as long to open as the round.
    async fn prepare(&self, next: &BTreeSet<Peer>, log: &mut Option<JobLog>) -> Result<()> {
        let log = match log {
            Some(log) => {
                log.follow().await.map_err(storage)?;
                log
            }
            None => log.insert(self.ground.log().await?.0),
        };
        let restore = log.restore(log.fold().head()).await.map_err(storage)?;
        if restore.state.chains.is_empty() {
            return Ok(());
        }
        let (restore, ancestors) = (Arc::new(restore), Arc::new(ancestors(log.fold())));
        let asks = next.iter().enumerate().map(|(member, to)| {
            let ask = Prepare {
                to: *to,
                log: log.fold().log(),
                runs: self.shared.runs,
                seat: Seat {
                    member,
                    members: next.len(),
                    slots: self.ground.slots(),
                },
                key_groups: log.fold().key_groups(),
                restore: restore.clone(),
                ancestors: ancestors.clone(),
            };
            async move {
                let loaded = match *to == self.shared.me {
                    true => load(&*self.ground, &self.shared, ask).await,
                    false => ask_to_load(&*self.net, ask).await,
                };
                // It loads it when the generation begins.
                if let Err(error) = loaded {
                    tracing::warn!(%error, worker = %to, "what moves to it is not loaded ahead");
                }
            }
        });
        join_all(asks).await;
        Ok(())
    }
}

/// Has another worker load, and waits until it has.
async fn ask_to_load(net: &dyn Net, ask: Prepare) -> Result<()> {
    let to = ask.to;
    let silent = || EngineError::retry("PR0320", to.to_string(), "it does not answer");
    let about = About::Prepare(Box::new(ask));
    let mut talk = net.talk(to.id, encode(&about)?).await?;
    match decode::<Option<String>>(&talk.from.recv().await.ok_or_else(silent)?)? {
        None => Ok(()),
        Some(text) => Err(EngineError::retry("PR0320", to.to_string(), text)),
    }
}

/// Loads what this worker is asked for, beside what runs here, until that ends.
pub(super) async fn load(ground: &dyn Ground, shared: &Shared, ask: Prepare) -> Result<()> {
    let object = || shared.me.to_string();
    if ask.to != shared.me || ask.runs != shared.runs {
        return Err(EngineError::retry(
            "PR0320",
            object(),
            "it runs something else",
        ));
    }
    let (end, ended) = oneshot::channel();
    // What was asked for before is not wanted any more.
    drop(shared.loading.lock().replace(end));
    let _loads = shared.loads.lock().await;
    let loading = async {
        let open = || ground.volume_of(shared.me.id, ask.log);
        let lent = shared.volume.lent(ask.log, open)?;
        let loader = Loader {
            store: ground.loads_from(ask.log)?,
            log: ask.log,
            instances: lent.ahead.clone(),
        };
        let groups = lent.lacks(ask.seat.own_groups(ask.key_groups));
        loader.load(groups, &ask.restore, &ask.ancestors).await
    };
    tokio::select! {
        loaded = loading => loaded,
        _ = ended => Err(EngineError::retry("PR0320", object(), "a generation has begun")),
    }
}
