//! The ICE agent: see `ginnel::cli`.

fn main() -> std::process::ExitCode {
    ginnel::cli::run_agent()
}
