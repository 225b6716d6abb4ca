//! The command that an operator types.

fn main() -> std::process::ExitCode {
    turnaround_daemon::cli::run()
}
