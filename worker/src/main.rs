//! `penstock`: runs, checks and explains jobs on one machine.

use std::process::ExitCode;

fn main() -> ExitCode {
    allocator();
    penstock_worker::cli::main()
}

/// Large blocks are short-lived and freed by another thread than made them; with an arena for each of the clients' many threads
/// glibc keeps most of that. Two arenas, staged rows that go back at once, and fetched bytes (below the threshold) that do
/// not, hold a third less memory and save the faults of fresh pages.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
fn allocator() {
    // SAFETY: the calls change settings of malloc, and no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 6 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 32 << 20);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn allocator() {}
