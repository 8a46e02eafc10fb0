//! Standard output: the only module that writes to it.

use crate::failure::{Result, io};
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use std::io::{BufWriter, IsTerminal as _, StdoutLock, Write};
use std::path::Path;

/// Standard output, buffered. What is written appears at [`Out::finish`].
pub(crate) struct Out(BufWriter<StdoutLock<'static>>);

impl Out {
    pub(crate) fn new() -> Self {
        Self(BufWriter::with_capacity(64 << 10, std::io::stdout().lock()))
    }

    /// One line of text.
    pub(crate) fn line(&mut self, text: impl std::fmt::Display) -> Result<()> {
        writeln!(self.0, "{text}").map_err(io("write to standard output"))
    }

    /// A document, indented, with a line's end behind it.
    pub(crate) fn json(&mut self, document: &impl Serialize) -> Result<()> {
        serde_json::to_writer_pretty(&mut self.0, document)
            .map_err(|error| io("write to standard output")(error.into()))?;
        self.line("")
    }

    /// Columns under their headings, as docker shows them.
    pub(crate) fn table(&mut self, headings: &[&str], rows: Vec<Vec<String>>) -> Result<()> {
        let mut table = plain_table();
        table.set_header(headings.iter().copied());
        let shown = |cell: String| crate::human::visible(&cell).into_owned();
        table.add_rows(rows.into_iter().map(|row| row.into_iter().map(shown).collect::<Vec<_>>()));
        pad(&mut table);
        self.line(table.trim_fmt())
    }

    /// Names and values, without headings.
    pub(crate) fn pairs(&mut self, pairs: &[(String, String)]) -> Result<()> {
        for (name, value) in pairs {
            self.line(format_args!("{name}: {}", crate::human::visible(value)))?;
        }
        Ok(())
    }

    /// What is buffered appears.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.0.flush().map_err(io("write to standard output"))
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

/// A table without lines.
fn plain_table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table
}

fn pad(table: &mut Table) {
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
}

/// Prints one line and is done.
pub(crate) fn say(text: impl std::fmt::Display) -> Result<()> {
    let mut out = Out::new();
    out.line(text)?;
    out.finish()
}

/// Prints a path and is done: byte for byte, because who reads it goes there.
pub(crate) fn say_path(path: &Path) -> Result<()> {
    let mut out = Out::new();
    let failed = io("write to standard output");
    out.write_all(path.as_os_str().as_encoded_bytes()).map_err(failed)?;
    out.line("")?;
    out.finish()
}

/// Ends the process with what the parser has to say: what was asked for (`--help`, `--version`), or what is wrong with the command line.
pub(crate) fn answer(error: &clap::Error) -> ! {
    if error.use_stderr() {
        error.exit();
    }
    let printed = error.print().and_then(|()| std::io::stdout().flush());
    match printed.map_err(io("write to standard output")) {
        Ok(()) => std::process::exit(0),
        Err(failure) => {
            failure.tell();
            std::process::exit(failure.code().into())
        }
    }
}

/// A remark on standard error, which is no error.
pub(crate) fn note(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr().lock(), "{}", crate::human::visible_lines(&text.to_string()));
}

/// The file or folder that an option names; none for `-`, which is the command's own input or output. A file of this name is `./-`.
pub(crate) fn named(path: Option<&Path>) -> Option<&Path> {
    path.filter(|path| path.as_os_str() != "-")
}

/// Bytes for a terminal would be of no use to anybody.
pub(crate) fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}
