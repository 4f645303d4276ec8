//! A process of a simulation: its tasks run through a gate that can be shut (SIGSTOP), opened again, or shut for ever
//! (`kill -9`), between any two polls. Everything that reaches outside of the process asks `is_dead` first.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

thread_local! {
    static CURRENT: RefCell<Option<Process>> = const { RefCell::new(None) };
    static DEATHS: RefCell<BTreeSet<&'static str>> = const { RefCell::new(BTreeSet::new()) };
}

/// The process whose task is being polled on this thread.
pub(crate) fn current() -> Option<Process> {
    CURRENT.with_borrow(Clone::clone)
}

/// Whether the running task's process has been killed in this very poll.
pub(crate) fn is_dead() -> bool {
    CURRENT.with_borrow(|p| p.as_ref().is_some_and(Process::is_dead))
}

/// A fault point was passed.
pub(crate) fn passed(point: &'static str) {
    CURRENT.with_borrow(|p| {
        if let Some(process) = p
            && process.passed()
        {
            DEATHS.with_borrow_mut(|d| d.insert(point));
        }
    });
}

/// Fault points at which processes of this thread died since this was asked last.
pub(crate) fn take_deaths() -> BTreeSet<&'static str> {
    DEATHS.take()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Running,
    Stalled,
    Dead,
}

/// When a process dies by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Death {
    /// Before so many more polls of its tasks.
    Polls(u64),
    /// At the so many-th fault point from now on.
    Points(u64),
}

#[derive(Debug)]
struct State {
    life: Life,
    death: Option<Death>,
    polls: u64,
    /// Tasks that were due while the gate was shut.
    waiting: Vec<Waker>,
    rng: StdRng,
}

/// Clones are the same process.
#[derive(Clone, Debug)]
pub(crate) struct Process(Arc<Mutex<State>>);

/// One of so many polls is put off behind the other tasks that are due.
const JITTER: u32 = 16;
/// More than any process of a simulation needs.
const POLLS: u64 = 3_000_000;

impl Process {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            life: Life::Running,
            death: None,
            polls: 0,
            waiting: Vec::new(),
            rng: StdRng::seed_from_u64(seed),
        })))
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.0.lock().life == Life::Dead
    }

    pub(crate) fn is_running(&self) -> bool {
        self.0.lock().life == Life::Running
    }

    /// Polls of its tasks so far: a process that turns without end never lets virtual time go on.
    pub(crate) fn is_mad(&self) -> bool {
        self.0.lock().polls > POLLS
    }

    pub(crate) fn kill(&self) {
        let mut state = self.0.lock();
        state.life = Life::Dead;
        state.waiting.clear();
    }

    pub(crate) fn die(&self, death: Death) {
        self.0.lock().death = Some(death);
    }

    pub(crate) fn stall(&self) {
        let mut state = self.0.lock();
        if state.life == Life::Running {
            state.life = Life::Stalled;
        }
    }

    pub(crate) fn wake(&self) {
        let mut state = self.0.lock();
        if state.life == Life::Stalled {
            state.life = Life::Running;
            state.waiting.drain(..).for_each(Waker::wake);
        }
    }

    /// Whether the process dies here.
    fn passed(&self) -> bool {
        let mut state = self.0.lock();
        if state.life != Life::Running {
            return false;
        }
        if let Some(Death::Points(left)) = &mut state.death {
            *left = left.saturating_sub(1);
            if *left == 0 {
                state.life = Life::Dead;
                return true;
            }
        }
        false
    }

    /// The task, as one of this process.
    pub(crate) fn gate<F: Future>(&self, task: F) -> Gated<F> {
        Gated {
            process: self.clone(),
            task: Some(Box::pin(task)),
        }
    }

    /// Whether a task may run now; if not, it is called when it may.
    fn admit(&self, cx: &Context<'_>) -> bool {
        let mut state = self.0.lock();
        match state.life {
            Life::Dead => return false,
            Life::Stalled => {
                state.waiting.push(cx.waker().clone());
                return false;
            }
            Life::Running => {}
        }
        state.polls += 1;
        if state.polls > POLLS {
            state.life = Life::Dead;
            return false;
        }
        if let Some(Death::Polls(left)) = &mut state.death {
            *left = left.saturating_sub(1);
            if *left == 0 {
                state.life = Life::Dead;
                return false;
            }
        }
        if state.rng.random_ratio(1, JITTER) {
            cx.waker().wake_by_ref();
            return false;
        }
        true
    }
}

/// A task behind its process's gate. When the process dies the task is dropped at its await, and never ends.
pub(crate) struct Gated<F> {
    process: Process,
    task: Option<Pin<Box<F>>>,
}

/// Marks the process as the running one.
struct Entered(Option<Process>);

impl Entered {
    fn new(process: &Process) -> Self {
        Self(CURRENT.replace(Some(process.clone())))
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

impl<F: Future> Future for Gated<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.get_mut();
        let polled = if this.process.admit(cx) {
            let _entered = Entered::new(&this.process);
            match &mut this.task {
                Some(task) => task.as_mut().poll(cx),
                None => Poll::Pending,
            }
        } else {
            Poll::Pending
        };
        if this.process.is_dead() {
            let _entered = Entered::new(&this.process);
            this.task = None;
            return Poll::Pending;
        }
        polled
    }
}
