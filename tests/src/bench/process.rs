//! What a process has used, as the kernel says.

use std::io;
use std::time::Duration;

/// Ticks of `/proc/PID/stat` in a second: USER_HZ, which Linux never changes for programs.
const TICKS_PER_SECOND: u32 = 100;

/// `ESRCH`: what the kernel says of a thread that ends while its file is read.
const NO_SUCH_PROCESS: i32 = 3;

/// User and system time of all threads of process `pid`, also of those that have ended. To 10 ms.
pub(super) fn cpu(pid: u32) -> io::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in brackets, may have spaces in it.
    let fields: Vec<&str> = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
    // proc(5): utime and stime are the 14th and 15th fields, and the 3rd is the first one after the name.
    let ticks = |place: usize| fields.get(place - 3).and_then(|field| field.parse::<u32>().ok());
    let ticks = ticks(14).zip(ticks(15)).map(|(user, system)| user + system);
    ticks.map(|ticks| Duration::from_secs(1) * ticks / TICKS_PER_SECOND).ok_or_else(|| io::Error::other(format!("can't read {stat}")))
}

/// What all living threads of a process have used until now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usage {
    pub(super) cpu: Duration,
    /// Times that a thread went to sleep by itself, and so was woken again.
    pub(super) sleeps: u64,
}

/// To the nanosecond, but without threads that have ended: for processes whose threads stay.
pub(super) fn usage(pid: u32) -> io::Result<Usage> {
    let mut usage = Usage { cpu: Duration::ZERO, sleeps: 0 };
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let thread = thread?.path();
        let read = |file: &str| std::fs::read_to_string(thread.join(file));
        let (schedstat, status) = match (read("schedstat"), read("status")) {
            (Ok(schedstat), Ok(status)) => (schedstat, status),
            // It has ended since the list was made.
            (Err(error), _) | (_, Err(error)) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(NO_SUCH_PROCESS) => continue,
            (Err(error), _) | (_, Err(error)) => return Err(error),
        };
        let nanos = schedstat.split_whitespace().next().and_then(|nanos| nanos.parse().ok());
        usage.cpu += Duration::from_nanos(nanos.ok_or_else(|| io::Error::other(format!("can't read {schedstat}")))?);
        usage.sleeps += field(&status, "voluntary_ctxt_switches")?;
    }
    Ok(usage)
}

/// The most memory that process `pid` ever had at the same time, in bytes.
pub(super) fn memory_peak(pid: u32) -> io::Result<u64> {
    Ok(field(&std::fs::read_to_string(format!("/proc/{pid}/status"))?, "VmHWM")? * 1024)
}

/// The number behind `name:` in a `/proc/.../status`.
fn field(status: &str, name: &str) -> io::Result<u64> {
    let found = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.split_whitespace().next()?.parse().ok());
    found.ok_or_else(|| io::Error::other(format!("no number {name} in {status}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_process_uses_time_and_a_sleeping_one_sleeps() {
        let me = std::process::id();
        let before = (cpu(me).unwrap(), usage(me).unwrap());
        let mut sum = 0_u64;
        while cpu(me).unwrap() - before.0 < Duration::from_millis(50) {
            sum = (0..100_000_u64).fold(sum, |sum, n| std::hint::black_box(sum ^ n));
        }
        std::thread::sleep(Duration::from_millis(1));
        let after = usage(me).unwrap();
        assert!(after.cpu > before.1.cpu && after.sleeps > before.1.sleeps);
        assert!(memory_peak(me).unwrap() > 100_000);
    }
}
