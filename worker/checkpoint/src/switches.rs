//! Planted bugs: each switch leaves out one sentence of the protocol, so that tests can show that they would notice.
//! Named as in the job log's model. Outside tests and the `planted-bugs` feature all are constants, and false.

macro_rules! switches {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// All off by default.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Switches {
            $(
                #[cfg(any(test, feature = "planted-bugs"))]
                pub $name: bool,
            )*
        }

        impl Switches {
            $(
                $(#[$doc])*
                #[inline]
                pub fn $name(self) -> bool {
                    #[cfg(any(test, feature = "planted-bugs"))]
                    let on = self.$name;
                    #[cfg(not(any(test, feature = "planted-bugs")))]
                    let on = false;
                    on
                }
            )*

            /// The switch of that name, on. `None` for a name that does not exist.
            #[cfg(any(test, feature = "planted-bugs"))]
            pub fn named(name: &str) -> Option<Switches> {
                let mut s = Switches::default();
                match name {
                    $(stringify!($name) => s.$name = true,)*
                    _ => return None,
                }
                Some(s)
            }

            /// Every name.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name)),*];
        }
    };
}

switches! {
    /// An old coordinator appends at the tail without a fence.
    no_fence,
    /// A PUT whose reply was lost is sent again at the next key, without reading the first back.
    no_readback,
    /// The marker is compared with the branch, not with the whole log.
    branch_marker,
    /// Epoch numbers go on from the branch's head.
    reuse,
    /// Going back does not finish the sinks of H.
    no_finish,
    /// A recovery claim restores the newest commit, also after going back.
    restore_newest,
    /// A recovery claim restores the newest commit, also after a rollback.
    restore_dropped,
    /// Restore takes the newest closure at or before N by number, not the newest ancestor.
    closure_number,
    /// Commits of a trial wait as others do.
    wait_kept,
    /// The log does not say that a version is on trial: a recovery publishes marker+1..N.
    staged_unmarked,
    /// A rollback finishes the sinks of the newest commit first.
    finish_trial,
    /// A rollback that lost its race for the tail to Accepted claims again all the same.
    skip_check,
    /// The handover claim does not wait for Done(N).
    ho_no_done,
    /// Done(N) of a handover during a trial waits for the staged epochs too.
    ho_trial,
}
