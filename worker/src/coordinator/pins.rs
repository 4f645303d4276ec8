//! Savepoints: epochs that are pinned in the log while somebody asks for it. What is asked for is a state, not a message: it is said
//! again until the log shows it, and saying it twice is once.

use std::collections::{BTreeMap, BTreeSet};

use penstock_checkpoint::record::{Kind, Pin, Unpin};
use tokio::sync::watch;

use super::Coordinator;
use super::progress::PinNow;
use crate::error::Result;
use crate::member::storage;

/// What is asked for while a job runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// Savepoints that are to be there.
    pub pins: BTreeSet<String>,
    /// Savepoints that are not to be there.
    pub unpins: BTreeSet<String>,
}

impl Asked {
    pub fn pin(&mut self, name: &str) {
        self.unpins.remove(name);
        self.pins.insert(name.to_owned());
    }

    pub fn unpin(&mut self, name: &str) {
        self.pins.remove(name);
        self.unpins.insert(name.to_owned());
    }

    /// Nobody asks.
    pub fn nothing() -> watch::Receiver<Self> {
        watch::channel(Self::default()).1
    }
}

/// Returns when something else is asked for; never, once nobody can ask any more.
pub(super) async fn changed(asked: &mut watch::Receiver<Asked>) {
    if asked.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

impl Coordinator {
    /// Whether a savepoint waits for an epoch of its own. In a trial it waits for the acceptance.
    pub(super) fn owes_pins(&self) -> bool {
        let fold = self.log.fold();
        let asked = self.settings.asked.borrow();
        fold.trial().is_none() && asked.pins.iter().any(|p| !fold.pins().contains_key(p))
    }

    /// Pins the newest commit for what is asked for and is not there; gives up what is not wanted any more.
    pub(super) async fn keep_pins(&mut self) -> Result<()> {
        let asked = self.settings.asked.borrow_and_update().clone();
        let epoch = self.log.fold().head();
        let mut records = Vec::new();
        if self.owes_pins() && epoch > self.log.fold().root() {
            let known = self.log.fold().pins();
            let missing = asked.pins.iter().filter(|p| !known.contains_key(*p));
            records.extend(missing.map(|name| {
                let name = name.clone();
                Kind::Pin(Pin { epoch, name })
            }));
        }
        let known = self.log.fold().pins();
        let gone = asked.unpins.iter().filter(|p| known.contains_key(*p));
        records.extend(gone.map(|name| Kind::Unpin(Unpin { name: name.clone() })));
        if records.is_empty() {
            return Ok(());
        }
        for record in records {
            tracing::info!(epoch = epoch.get(), record = ?record, "savepoint");
            self.log
                .append(self.generation, record)
                .await
                .map_err(storage)?;
        }
        // The pinned epoch is restored from a closure of its own.
        self.closure().await?;
        self.show_pins();
        Ok(())
    }

    /// For /status.
    pub(super) fn show_pins(&self) {
        let bytes: u64 = self.log.state().map_or(0, |state| state.bytes());
        let before = self.progress.now().pins;
        let pins = self.log.fold().pins().iter().map(|(name, epoch)| {
            let known = before.get(name).map(|p| p.bytes);
            let here = (*epoch == self.log.fold().head()).then_some(bytes);
            let pin = PinNow {
                epoch: epoch.get(),
                bytes: here.or(known).unwrap_or_default(),
            };
            (name.clone(), pin)
        });
        let pins: BTreeMap<String, PinNow> = pins.collect();
        self.progress.pins(pins);
    }
}
