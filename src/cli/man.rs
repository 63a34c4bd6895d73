//! `unionfs-rs man`: one manual page for the command and its subcommands.

use std::io;

use clap::Command;
use clap_mangen::Man;

/// Writes the page in roff.
///
/// clap_mangen makes a page of each subcommand; here theirs become subsections, since there is one
/// command to read about.
pub fn render(command: Command, out: &mut impl io::Write) -> io::Result<()> {
    let mut command = command;
    command.build();
    let man = Man::new(command.clone()).section("8").manual("System Administration");
    man.render_title(out)?;
    man.render_name_section(out)?;
    man.render_synopsis_section(out)?;
    man.render_description_section(out)?;
    for subcommand in command.get_subcommands() {
        writeln!(out, ".SH \"{}\"", subcommand.get_name().to_uppercase())?;
        let mut sections = Vec::new();
        let man = Man::new(subcommand.clone());
        man.render_synopsis_section(&mut sections)?;
        man.render_description_section(&mut sections)?;
        man.render_options_section(&mut sections)?;
        // The examples and exit codes of the command itself are repeated in the help of its main
        // subcommand; a page shows them once, at its end.
        if subcommand.get_after_help().map(ToString::to_string) != command.get_after_help().map(ToString::to_string) {
            man.render_extra_section(&mut sections)?;
        }
        out.write_all(String::from_utf8_lossy(&sections).replace("\n.SH ", "\n.SS ").as_bytes())?;
    }
    man.render_extra_section(out)?;
    man.render_version_section(out)
}
