//! Completions for shells and manual pages, from the definitions of the arguments.

use clap::{Args, Command};
use clap_complete::Shell;
use std::io::{self, Write};
use std::path::PathBuf;

/// Options of `completions`.
#[derive(Debug, Args)]
pub(super) struct CompletionsCommand {
    /// The shell; `source <(agent completions bash)` uses its script at once
    shell: Shell,
}

/// Options of `man`.
#[derive(Debug, Args)]
pub(super) struct ManCommand {
    /// Folder for the pages of all commands, such as ~/.local/share/man/man1. Without it, the main page goes to standard output
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
}

impl CompletionsCommand {
    /// Writes the script to standard output.
    pub(super) fn run(&self, mut command: Command) -> io::Result<()> {
        let name = command.get_name().to_owned();
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, name, &mut script);
        write_all(&script)
    }
}

impl ManCommand {
    /// Writes the pages.
    pub(super) fn run(&self, command: Command) -> io::Result<()> {
        // No page for `help` and its commands.
        let command = command.disable_help_subcommand(true);
        match &self.folder {
            Some(folder) => {
                std::fs::create_dir_all(folder)?;
                clap_mangen::generate_to(command, folder)
            }
            None => {
                let mut page = Vec::new();
                clap_mangen::Man::new(command).render(&mut page)?;
                write_all(&page)
            }
        }
    }
}

fn write_all(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}
