//! The command `credhost`. No logic here: see `cli`.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
