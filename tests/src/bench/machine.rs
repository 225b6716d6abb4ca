//! What it was measured on: a figure without that says little.

use std::fmt;
use std::io;

use serde::Serialize;
use turnaround_workflows::clock::{Clock as _, SystemClock};

#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    pub at: String,
    pub cpu: String,
    pub cores: usize,
    pub kernel: String,
    pub redis: String,
    /// Load average of the last minute, before anything was measured. More than a few tenths: somebody else works here too.
    pub load_before: f64,
    /// The command that measures the same again.
    pub rerun: String,
}

pub(super) fn look() -> io::Result<Machine> {
    let read = |path: &str| std::fs::read_to_string(path);
    let cpu = read("/proc/cpuinfo")?;
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name.to_owned()));
    let load = read("/proc/loadavg")?;
    let version = std::process::Command::new("redis-server").arg("--version").output()?;
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let version = version.split_whitespace().find_map(|word| word.strip_prefix("v=").map(str::to_owned));
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    Ok(Machine {
        at: SystemClock.now().to_string(),
        cpu: cpu.unwrap_or_else(|| "unknown".to_owned()),
        cores: std::thread::available_parallelism()?.get(),
        kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        redis: version.unwrap_or_else(|| "unknown".to_owned()),
        load_before: load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(f64::NAN),
        rerun: format!("cargo bench-report -- {}", arguments.join(" ")),
    })
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { at, cpu, cores, kernel, redis, load_before, rerun } = self;
        writeln!(f, "{at}, {cpu}, {cores} cores, Linux {kernel}, Redis {redis}, load before {load_before}")?;
        write!(f, "measured again by: {rerun}")
    }
}
