//! Planted bugs of the engine: each leaves out one sentence of the protocol, so that the simulation can show that it would
//! notice. Named as in the models where they have a name for it. Outside of tests every one is a constant, and false.

/// A sentence that can be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// The snapshot is reported, and so committed, while its pack is still being uploaded.
    CommitBeforeUpload,
    /// An epoch's changes are applied to the volume when they are frozen.
    ApplyBeforeCommit,
    /// An epoch is published before its commit.
    PublishFirst,
    /// After doubt the same producer goes on, without opening again.
    NoPoison,
    /// After opening, everything handed over is published again, whatever the marker says.
    Republish,
    /// The marker names the epoch only: a publisher that takes over does not know which chunks are out.
    NoChunk,
    /// A missing marker counts as "nothing published yet".
    MissingResend,
    /// The initial marker is written without looking first.
    BornBlind,
    /// The initial marker names the epoch in flight, not the newest commit.
    BornAhead,
    /// `SinkBorn` is logged before the initial marker is written.
    BornFirst,
    /// "Every source is read to its end" counts though it was said before the newest split was assigned.
    StaleDone,
    /// `Commit(N)` waits for nothing.
    NoWait,
    /// A barrier counts as aligned though one channel has not delivered it.
    SkipsChannel,
    /// Key groups are handed over before what they lack is loaded: an instance that stands at an older epoch counts as complete.
    HandoverEarly,
    /// A key group has two owners: some rows of it are sent as if there were one slot less.
    TwoOwners,
    /// A worker coordinates, and is sent rows, though another process is that worker now.
    AnyProcess,
}

/// Whether the sentence is left out.
#[inline]
pub(crate) fn planted(bug: Bug) -> bool {
    #[cfg(test)]
    let on = switch::PLANTED.get() == Some(bug);
    #[cfg(not(test))]
    let on = {
        let _ = bug;
        false
    };
    on
}

#[cfg(test)]
pub(crate) mod switch {
    use std::cell::Cell;

    thread_local! {
        /// The one that is on, on this thread.
        pub(crate) static PLANTED: Cell<Option<super::Bug>> = const { Cell::new(None) };
        /// No bug, but another way to the same state: window aggregates delete a pane by its prefix and write it whole at
        /// each barrier, so that puts follow deletes that cover them.
        pub(crate) static REWRITES: Cell<bool> = const { Cell::new(false) };
    }
}
