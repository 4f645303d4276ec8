//! What this process has computed, of what it may: by the quotas of its control groups, or by the machine's cores.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Since the start of the process. A second more after a second: it has used all that it may. 0 in a simulation.
pub fn used() -> Duration {
    #[cfg(test)]
    if crate::process::simulated::current().is_some() {
        return Duration::ZERO;
    }
    static CPUS: OnceLock<f64> = OnceLock::new();
    let cpus = *CPUS.get_or_init(|| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let group = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        quota(Path::new("/sys/fs/cgroup"), &group).unwrap_or(cores as f64)
    });
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(spent.tv_sec).unwrap_or(0);
    let spent = Duration::new(seconds, u32::try_from(spent.tv_nsec).unwrap_or(0));
    spent.div_f64(cpus)
}

/// CPUs of the smallest quota of the group and those that it is in; `None`: there is none. `root`: where groups are mounted; `group`:
/// as /proc/self/cgroup names it, of either version of the kernel's interface.
fn quota(root: &Path, group: &str) -> Option<f64> {
    let named = |controller: &str| {
        let mut groups = group.lines().filter_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(":/")?;
            let is = controllers.split(',').any(|c| c == controller);
            is.then_some(path)
        });
        groups.next()
    };
    // A container sees its own group as the root, whatever its name is outside.
    let folders = |path: &'static str, group| {
        let folders = Path::new(group).ancestors();
        folders.map(move |part| root.join(path).join(part))
    };
    let two = folders("", named("").unwrap_or_default()).filter_map(|folder| {
        let text = fs::read_to_string(folder.join("cpu.max")).ok()?;
        let (quota, period) = text.trim().split_once(' ')?;
        Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok()?)
    });
    let one = folders("cpu", named("cpu").unwrap_or_default()).filter_map(|folder| {
        let number = |file| {
            let text = fs::read_to_string(folder.join(file)).ok()?;
            text.trim().parse::<f64>().ok()
        };
        Some(number("cpu.cfs_quota_us")? / number("cpu.cfs_period_us")?)
    });
    // Without a quota it is "max", or -1.
    let quotas = two.chain(one).filter(|cpus| *cpus > 0.0);
    quotas.min_by(f64::total_cmp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_quota_on_the_way_up_counts() {
        let root = tempfile::tempdir().unwrap();
        let job = root.path().join("pods/job");
        fs::create_dir_all(&job).unwrap();
        let write = |folder: &Path, text: &str| fs::write(folder.join("cpu.max"), text).unwrap();
        let cpus = || quota(root.path(), "0::/pods/job\n");
        assert_eq!(cpus(), None, "nothing says so");
        write(&job, "max 100000\n");
        assert_eq!(cpus(), None);
        write(&root.path().join("pods"), "150000 100000\n");
        assert_eq!(cpus(), Some(1.5));
        write(&job, "2500 10000\n");
        assert_eq!(cpus(), Some(0.25));
        write(root.path(), "100000 100000\n");
        assert_eq!(quota(root.path(), "0::/\n"), Some(1.0), "in a container");
    }

    #[test]
    fn the_older_interface_counts_too() {
        let root = tempfile::tempdir().unwrap();
        let job = root.path().join("cpu/pods/job");
        fs::create_dir_all(&job).unwrap();
        let write = |file: &str, text: &str| fs::write(job.join(file), text).unwrap();
        let cpus = || quota(root.path(), "5:memory:/\n3:cpuacct,cpu:/pods/job\n0::/\n");
        write("cpu.cfs_quota_us", "-1\n");
        write("cpu.cfs_period_us", "100000\n");
        assert_eq!(cpus(), None, "nothing says so");
        write("cpu.cfs_quota_us", "25000\n");
        assert_eq!(cpus(), Some(0.25));
        assert_eq!(quota(root.path(), "1:cpu:/old\n"), None);
    }

    #[test]
    fn what_is_computed_is_counted() {
        let before = used();
        let sum: u64 = (0..1_000_000).map(std::hint::black_box).sum();
        assert!(used() > before, "{sum}");
    }
}
