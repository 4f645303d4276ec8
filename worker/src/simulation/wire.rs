//! The way from one process to the broker: requests that are lost before or after the deed, late, or refused while the broker
//! is away, by the world's seed.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::StdRng;

use super::broker::{Broker, Fenced};
use super::trace::Trace;
use crate::error::{EngineError, Result};
use crate::process::simulated::is_dead;

/// How often what goes wrong; each a share of the requests.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Faults {
    pub before: f64,
    pub after: f64,
    pub late: f64,
    pub delay: Duration,
    pub away: bool,
}

/// Clones go the same way.
#[derive(Clone)]
pub(super) struct Wire {
    pub broker: Arc<Mutex<Broker>>,
    pub faults: Arc<Mutex<Faults>>,
    pub rng: Arc<Mutex<StdRng>>,
    pub trace: Trace,
    pub process: u64,
}

impl Wire {
    fn lost(object: &str, what: &str) -> EngineError {
        EngineError::retry(
            "PR0209",
            object,
            format!("{what}: the broker did not answer"),
        )
    }

    /// A request. A deed that came too late for its answer happens all the same.
    pub(super) async fn request<T: Send + 'static>(
        &self,
        object: &str,
        what: &'static str,
        deed: impl FnOnce(&mut Broker) -> Result<T, Fenced> + Send + 'static,
    ) -> Result<T> {
        let Faults {
            before,
            after,
            late,
            delay,
            away: _,
        } = *self.faults.lock();
        let (there, back, roll, lateness) = {
            let mut rng = self.rng.lock();
            (
                delay.mul_f64(rng.random()),
                delay.mul_f64(rng.random()),
                rng.random::<f64>(),
                delay.mul_f64(20.0 * rng.random::<f64>()),
            )
        };
        if is_dead() {
            // Killed earlier in this very poll: nothing leaves the process any more.
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(there).await;
        if self.faults.lock().away || roll < before {
            self.trace.note(self.process, what, object, "lost");
            return Err(Self::lost(object, what));
        }
        if roll < before + late {
            self.trace.note(self.process, what, object, "late");
            let broker = self.broker.clone();
            // In the network, where no kill reaches it.
            tokio::spawn(async move {
                tokio::time::sleep(lateness).await;
                deed(&mut broker.lock()).is_ok()
            });
            return Err(Self::lost(object, what));
        }
        let answer = {
            let mut broker = self.broker.lock();
            broker.expire();
            deed(&mut broker)
        };
        let said = if answer.is_ok() { "done" } else { "fenced" };
        self.trace.note(self.process, what, object, said);
        tokio::time::sleep(back).await;
        if roll < before + late + after {
            return Err(Self::lost(object, what));
        }
        // A client cannot tell a fence from other doubts: opening again and the marker decide.
        answer.map_err(|Fenced| {
            EngineError::retry(
                "PR0209",
                object,
                format!("{what}: a newer writer was opened"),
            )
        })
    }
}
