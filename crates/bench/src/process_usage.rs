//! CPU time of other processes: a daemon and its token hosts, from /proc (proc(5)).

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};
use serde::Serialize;

/// Resource usage of one process.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProcessTime {
    /// The process ID.
    pub pid: u32,
    /// Name of its command, as stored by the kernel.
    pub name: String,
    /// User and system time, in seconds.
    pub cpu_seconds: f64,
}

/// One reading of a process and all its descendants.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading(BTreeMap<u32, ProcessTime>);

#[derive(Debug, PartialEq)]
struct Stat {
    name: String,
    parent: u32,
    ticks: u64,
}

impl Reading {
    /// Reads a process and its descendants now. The kernel counts in ticks of 10 ms, so measure for seconds.
    ///
    /// # Errors
    /// If the process does not exist, or /proc is not mounted.
    pub fn take(pid: u32) -> Result<Self> {
        let second = sysconf(SysconfVar::CLK_TCK)?.and_then(|ticks| u32::try_from(ticks).ok()).unwrap_or(100);
        let mut all = BTreeMap::new();
        for entry in fs::read_dir("/proc").context("cannot read /proc")?.flatten() {
            let Some(found) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            // A process may end between listing and reading.
            if let Some(stat) = fs::read_to_string(entry.path().join("stat")).ok().as_deref().and_then(parse) {
                all.insert(found, stat);
            }
        }
        anyhow::ensure!(all.contains_key(&pid), "there is no process {pid}; give the daemon's process id");
        let family = family(&all, pid);
        let time = |(&pid, stat): (&u32, &Stat)| {
            let ticks = f64::from(u32::try_from(stat.ticks).unwrap_or(u32::MAX));
            (pid, ProcessTime { pid, name: stat.name.clone(), cpu_seconds: ticks / f64::from(second) })
        };
        Ok(Self(all.iter().filter(|(pid, _)| family.contains(pid)).map(time).collect()))
    }

    /// Usage of each process since an earlier reading; new processes count in full.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Vec<ProcessTime> {
        let used = |now: &ProcessTime| {
            let before = earlier.0.get(&now.pid).map_or(0.0, |before| before.cpu_seconds);
            ProcessTime { cpu_seconds: now.cpu_seconds - before, ..now.clone() }
        };
        self.0.values().map(used).collect()
    }
}

fn family(all: &BTreeMap<u32, Stat>, root: u32) -> Vec<u32> {
    let mut family = vec![root];
    let mut next = 0;
    // Each round adds the children of one member. This terminates, since a process has one parent.
    while let Some(&parent) = family.get(next) {
        family.extend(all.iter().filter(|(_, stat)| stat.parent == parent).map(|(&pid, _)| pid));
        next += 1;
    }
    family
}

/// Parses /proc/PID/stat: the name is in parentheses and can contain any character.
fn parse(text: &str) -> Option<Stat> {
    let (before, after) = text.rsplit_once(')')?;
    let name = before.split_once('(')?.1.to_owned();
    let mut fields = after.split_ascii_whitespace();
    // After the name: state, ppid, then utime and stime as fields 14 and 15 of the line.
    let parent = fields.nth(1)?.parse().ok()?;
    let user: u64 = fields.nth(9)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Stat { name, parent, ticks: user + system })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_whatever_the_name_holds() {
        let line = "4242 (a) b (c) S 17 4242 17 0 -1 4194560 100 0 0 0 31 11 0 0 20 0 1 0 100 0 0";
        assert_eq!(parse(line), Some(Stat { name: "a) b (c".into(), parent: 17, ticks: 42 }));
        for bad in ["", "1 (x", "1 (x) S", "1 (x) S y 0"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_family_is_a_process_and_its_descendants() {
        let stat = |parent| Stat { name: String::new(), parent, ticks: 0 };
        let all = BTreeMap::from([(1, stat(0)), (2, stat(1)), (3, stat(2)), (4, stat(1)), (5, stat(4))]);
        assert_eq!(family(&all, 2), [2, 3]);
        assert_eq!(family(&all, 1), [1, 2, 4, 3, 5]);
    }

    #[test]
    fn this_process_has_used_time() {
        let reading = Reading::take(std::process::id()).unwrap();
        assert!(reading.0.contains_key(&std::process::id()));
        assert!(Reading::take(u32::MAX).is_err());
    }
}
