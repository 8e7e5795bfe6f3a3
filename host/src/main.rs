//! The command `credhost`. No logic here: see `cli`.

mod cli;

fn main() -> std::process::ExitCode {
    credhost::loader::allocator::keep_freed();
    // A worker must do nothing else, and must have only one thread until it is confined.
    if std::env::args_os().nth(1).is_some_and(|word| word == credhost::loader::worker::WORD) {
        credhost::loader::worker::child();
    }
    cli::main()
}
