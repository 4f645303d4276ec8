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

/// Runs `work` where it may block; in a simulation, in place.
///
/// # Errors
/// When it panicked, or the runtime is going.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, tokio::task::JoinError> {
    #[cfg(test)]
    if simulated::current().is_some() {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await
}
