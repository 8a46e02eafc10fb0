//! The `vellum` command.
//!
//! [`cli`] is the table of commands; each command is a file in [`commands`] whose documentation is its manual.
//! [`context`] opens the store (and enters an ordinary user's namespace first), [`output`] is the only place
//! that writes to standard output, [`failure`] the only one that knows exit codes.

mod cli;
mod commands;
mod context;
mod demo;
mod failure;
mod human;
mod output;
mod progress;
mod views;
mod workers;

use std::process::ExitCode;

fn main() -> ExitCode {
    // Workers are told apart before anything else, while the process is as fresh as it can be.
    if let Some(code) = workers::run() {
        return code;
    }
    // Modes of what is made are always given in full; the caller's mask must not narrow them.
    rustix::process::umask(rustix::fs::Mode::WGRP | rustix::fs::Mode::WOTH);
    let cli = cli::Cli::read();
    match commands::run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
