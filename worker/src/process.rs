//! Tasks of this process: how the engine starts one. Under test a task belongs to the simulated process that started it,
//! which can be stalled, woken and killed at any await; elsewhere this is tokio's `spawn` and nothing more.

use tokio::task::JoinHandle;

#[cfg(test)]
pub(crate) mod simulated;

/// Starts a task that ends with the process.
pub fn spawn<F>(task: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    #[cfg(test)]
    if let Some(process) = simulated::current() {
        return tokio::spawn(process.gate(task));
    }
    tokio::spawn(task)
}
