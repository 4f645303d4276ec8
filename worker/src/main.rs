//! `penstock`: runs, checks and explains jobs on one machine.

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    allocator::tune();
    penstock_worker::cli::main()
}

/// glibc's malloc, set for what the engine does with it.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod allocator {
    use std::ffi::OsStr;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    const VARIABLE: &str = "GLIBC_TUNABLES";
    /// Large blocks are short-lived and freed by another thread than made them; with an arena for each of the clients' many
    /// threads glibc keeps most of that, with two they wait for each other. Staged rows go back at once, fetched bytes (below
    /// the threshold) do not. Huge pages where malloc asks the kernel for them (`madvise`): every epoch touches its staged rows
    /// anew, and faults of small pages were a fifth of the CPU time of a job that copies rows.
    const TUNABLES: &str = "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=8:\
        glibc.malloc.mmap_threshold=6291456:glibc.malloc.trim_threshold=33554432";

    /// Starts the program again, as the same process, with the settings: malloc reads them only as it starts. Whoever set some
    /// knows better; where it fails the program runs without.
    pub fn tune() {
        if std::env::var_os(VARIABLE).is_some() {
            return;
        }
        let mut args = std::env::args_os();
        if let (Ok(program), Some(name)) = (std::env::current_exe(), args.next()) {
            // Comes back only with an error.
            let _ = Command::new(program)
                .arg0(name)
                .args(args)
                .env(VARIABLE, OsStr::new(TUNABLES))
                .exec();
        }
    }
}
