//! Other processes from /proc (proc(5)): children, memory, threads, descriptors.

use std::fs;

use nix::unistd::Pid;

/// The children of a process that have not ended.
pub fn children(of: Pid) -> Vec<Pid> {
    let parent = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        let (state, parent) = (fields.next()?.to_owned(), fields.next()?.parse::<i32>().ok()?);
        (state != "Z").then_some(parent)
    };
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| parent(*pid) == Some(of.as_raw()))
        .map(Pid::from_raw)
        .collect()
}

/// Whether a process exists and is not a zombie that its new parent has not reaped yet.
pub fn lives(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X'])))
}

/// Resource usage of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Resident memory in KiB.
    pub memory: u64,
    pub threads: u64,
    pub descriptors: u64,
}

impl Usage {
    /// Its current usage; `None` if it has just ended.
    ///
    /// # Panics
    /// If the descriptors cannot be read: daemon and hosts are not dumpable, so only root may count them.
    pub fn of(pid: Pid) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let number = |name: &str| -> Option<u64> {
            let line = status.lines().find(|line| line.starts_with(name))?;
            line.split_ascii_whitespace().nth(1)?.parse().ok()
        };
        let descriptors = match fs::read_dir(format!("/proc/{pid}/fd")) {
            Ok(listing) => u64::try_from(listing.count()).unwrap(),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied && lives(pid) => panic!(
                "this test counts the descriptors of processes that are not dumpable, which only root may: {error}; \
                 run it as root, or leave it out with --skip"
            ),
            Err(_) => return None,
        };
        Some(Self { memory: number("VmRSS:")?, threads: number("Threads:")?, descriptors })
    }

    /// The maximum of each figure.
    pub fn most(self, other: Self) -> Self {
        Self {
            memory: self.memory.max(other.memory),
            threads: self.threads.max(other.threads),
            descriptors: self.descriptors.max(other.descriptors),
        }
    }
}
