//! Control groups: bounds of memory and of CPU time around workers that are no pods, as the kubelet sets them around those that are.
//! Both versions of the kernel's interface, whichever the machine has.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

const ROOT: &str = "/sys/fs/cgroup";
/// Microseconds of which a quota is a share: short, so that one with a small share does not stand still for long.
const PERIOD: u64 = 10_000;

/// What processes of a group may have together.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bounds {
    /// Bytes; beyond them the kernel kills.
    pub memory: Option<u64>,
    /// CPUs.
    pub cpus: Option<f64>,
}

/// A group, until it is dropped; its processes have ended by then.
pub struct Group {
    /// One, or one for each controller.
    folders: Vec<PathBuf>,
    memory: PathBuf,
    two: bool,
}

impl Group {
    /// # Errors
    /// Without root, or on a machine whose groups have neither controller.
    pub fn new(name: &str, bounds: Bounds) -> Result<Self> {
        let name = format!("penstock-e2e-{name}");
        let two = Path::new(ROOT).join("cgroup.controllers").exists();
        let of = |controller: &str| match two {
            true => Path::new(ROOT).join(&name),
            false => Path::new(ROOT).join(controller).join(&name),
        };
        if two {
            // It may be there already, or be refused: then the bounds are.
            let _ = fs::write(
                Path::new(ROOT).join("cgroup.subtree_control"),
                "+memory +cpu",
            );
        }
        let group = Self {
            folders: match two {
                true => vec![of("")],
                false => vec![of("memory"), of("cpu")],
            },
            memory: of("memory"),
            two,
        };
        for folder in &group.folders {
            let made = fs::create_dir_all(folder);
            made.with_context(|| format!("cannot make the control group {}", folder.display()))?;
        }
        let set = |controller: &str, file: &str, value: String| {
            let path = of(controller).join(file);
            fs::write(&path, value).with_context(|| format!("cannot set {}", path.display()))
        };
        if let Some(bytes) = bounds.memory {
            let file = if two {
                "memory.max"
            } else {
                "memory.limit_in_bytes"
            };
            set("memory", file, bytes.to_string())?;
        }
        if let Some(cpus) = bounds.cpus {
            let quota = (cpus * PERIOD as f64) as u64;
            match two {
                true => set("cpu", "cpu.max", format!("{quota} {PERIOD}"))?,
                false => {
                    set("cpu", "cpu.cfs_period_us", PERIOD.to_string())?;
                    set("cpu", "cpu.cfs_quota_us", quota.to_string())?;
                }
            }
        }
        Ok(group)
    }

    /// Takes a process in, with all its threads.
    pub fn take(&self, process: u32) -> Result<()> {
        for folder in &self.folders {
            let path = folder.join("cgroup.procs");
            fs::write(&path, process.to_string())
                .with_context(|| format!("cannot move a process to {}", path.display()))?;
        }
        Ok(())
    }

    /// How many processes the kernel has killed for memory, and the most bytes that the group had at a time.
    pub fn memory(&self) -> Result<(u64, u64)> {
        let (events, most) = match self.two {
            true => ("memory.events", "memory.peak"),
            false => ("memory.oom_control", "memory.max_usage_in_bytes"),
        };
        let read = |file: &str| {
            let path = self.memory.join(file);
            fs::read_to_string(&path).with_context(|| path.display().to_string())
        };
        let events = read(events)?;
        let mut kills = events.lines().filter_map(|l| l.strip_prefix("oom_kill "));
        let kills = kills.next().context("no count of kills")?.trim().parse()?;
        Ok((kills, read(most)?.trim().parse()?))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for folder in &self.folders {
            // Processes that have just ended are still in it for a moment.
            for _ in 0..50 {
                if fs::remove_dir(folder).is_ok() || !folder.exists() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
    }
}

/// A quantity of memory as pods have it: 512Mi.
pub fn bytes(text: &str) -> Result<u64> {
    let (number, unit) = text.split_at(
        text.find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len()),
    );
    let unit = match unit {
        "" => 1,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => 0,
    };
    ensure!(unit > 0, "{text}: bytes, Mi or Gi");
    Ok(number.parse::<u64>()? * unit)
}
