//! Channels between members of one process.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Channel, Exchange, Failing, Inlet, LocalInlet, LocalOutlet, Outlet, Peer, Shared};
use crate::error::Result;

/// Channels whose other end has not been asked for yet.
#[derive(Debug, Default)]
pub struct Hub(Mutex<BTreeMap<Channel, Arc<Shared>>>);

impl Hub {
    /// The channel; its second end takes it out.
    fn end(&self, channel: Channel) -> Arc<Shared> {
        let mut open = self.0.lock();
        open.remove(&channel)
            .unwrap_or_else(|| Arc::clone(open.entry(channel).or_default()))
    }
}

impl Exchange for Hub {
    /// A queue within the process does not break.
    fn begin(&self, _: u64, _: Failing) {}

    fn outlet(&self, channel: Channel, _: Peer, slot: Arc<Notify>) -> Result<Box<dyn Outlet>> {
        let shared = self.end(channel);
        // Nobody asks twice for the same end.
        let _ = shared.sender.set(slot);
        Ok(Box::new(LocalOutlet(shared)))
    }

    fn inlet(&self, channel: Channel, _: Peer, slot: Arc<Notify>) -> Result<Box<dyn Inlet>> {
        let shared = self.end(channel);
        let _ = shared.receiver.set(slot);
        Ok(Box::new(LocalInlet(shared)))
    }
}
