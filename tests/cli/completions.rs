//! Completions, asked of the shells themselves.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::skip;
use crate::support::{Ran, binary, finish, record_skip, test_name, unionfs};

#[test]
fn completions_are_printed_for_each_shell_and_that_shell_reads_them() {
    for shell in ["bash", "zsh", "fish"] {
        let ran = unionfs(["completions", shell]);
        assert_eq!(ran.code, Some(0), "{shell}");
        assert!(ran.out.contains("redirect-dir") && ran.out.contains("passthrough"), "{shell}: {}", ran.out);
        let dir = tempfile::tempdir().expect("a temporary directory");
        let script = dir.path().join(shell);
        fs::write(&script, &ran.out).expect("it is ours");
        match Command::new(shell).arg("-n").arg(&script).output() {
            Ok(output) => assert!(output.status.success(), "{shell}: {}", String::from_utf8_lossy(&output.stderr)),
            Err(error) => record_skip(&test_name(), &format!("the syntax is not checked: {shell}: {error}")),
        }
    }
    assert_eq!(unionfs(["completions", "csh"]).code, Some(2));
}

/// A directory with the completions of one shell as `script`, two directories `layer1` and `layer2`, and `unionfs-rs`.
fn completing(shell: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let ran = unionfs(["completions", shell]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{shell}");
    fs::write(dir.path().join("script"), ran.out).expect("it is ours");
    for name in ["layer1", "layer2"] {
        fs::create_dir(dir.path().join(name)).expect("it is ours");
    }
    std::os::unix::fs::symlink(binary(), dir.path().join("unionfs-rs")).expect("it is ours");
    dir
}

/// Runs a shell in the directory of its completions, or says why it does not run.
fn shell_in(dir: &Path, shell: &str, args: &[&str]) -> Result<Ran, String> {
    // Asked first: to be started is what a shell that is not there fails at.
    Command::new(shell).args(["-c", "true"]).output().map_err(|error| format!("{shell}: {error}"))?;
    Ok(finish(Command::new(shell).args(args).current_dir(dir).env("HOME", dir).env("TERM", "dumb")))
}

#[test]
fn bash_completes_commands_options_and_values() {
    let dir = completing("bash");
    // What readline does: the function that `complete` names, with the words up to the cursor.
    let ask = r#"
        source ./script || exit
        spec=$(complete -p unionfs-rs) || exit
        spec=${spec##*-F }
        while read -ra words; do
            COMP_WORDS=("${words[@]}") COMP_CWORD=$((${#words[@]} - 1)) COMPREPLY=()
            [ "${words[-1]}" != _ ] || COMP_WORDS[COMP_CWORD]=
            "${spec%% *}" unionfs-rs "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
            echo "${COMPREPLY[*]}"
        done
    "#;
    let table = [
        ("mo", "mount"),
        ("mount --red", "--redirect-dir"),
        ("mount --io _", "auto cached writeback passthrough"),
        ("mount --lower / --redirect-dir no", "nofollow"),
        ("umount --l", "--lazy"),
        ("completions z", "zsh"),
        ("doctor --h", "--help"),
    ];
    let lines: String = table.map(|(line, _)| format!("unionfs-rs {line}\n")).concat();
    fs::write(dir.path().join("lines"), lines).expect("it is ours");
    let ran = shell_in(dir.path(), "bash", &["--norc", "-c", &format!("exec <lines\n{ask}")]).expect("bash is there");
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    let expected: Vec<&str> = table.iter().map(|(_, replies)| *replies).collect();
    assert_eq!(ran.out.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn zsh_completes_commands_options_and_lists_of_layers() {
    let dir = completing("zsh");
    // An interactive shell on a terminal of its own, in which Tab completes, writes down the line and empties it.
    let zshrc = "PS1=; path=($PWD $path); autoload -U compinit; compinit -u -D; source ./script\n\
        tell() { zle complete-word; print -r -- $BUFFER >>told; BUFFER= }; zle -N tell; bindkey '^I' tell\n";
    fs::write(dir.path().join(".zshrc"), zshrc).expect("it is ours");
    let ask = "zmodload zsh/zpty || exit; zpty shell 'ZDOTDIR=$PWD zsh -d -i'\n\
        while read -r line; do zpty -w -n shell $line$'\\t'; done <lines; zpty -w shell exit\n\
        while zpty -r shell; do :; done";
    let table = [
        ("mou", "mount"),
        ("mount --redi", "--redirect-dir="),
        ("mount --io pa", "passthrough"),
        ("mount --upper lay", "layer"),
        ("mount --lower lay", "layer"),
        ("mount --lower layer1:lay", "layer1:layer"),
        ("umount --l", "--lazy"),
        ("completions fi", "fish"),
    ];
    let lines: String = table.map(|(line, _)| format!("unionfs-rs {line}\n")).concat();
    fs::write(dir.path().join("lines"), lines).expect("it is ours");
    let ran = match shell_in(dir.path(), "zsh", &["-f", "-c", ask]) {
        Ok(ran) => ran,
        Err(reason) => skip!("{reason}"),
    };
    let told = fs::read_to_string(dir.path().join("told")).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
    let told: Vec<&str> = told.lines().filter_map(|line| line.split_ascii_whitespace().last()).collect();
    let expected: Vec<&str> = table.iter().map(|(_, word)| *word).collect();
    assert_eq!(told, expected, "{ran:?}");
    assert!(!ran.out.contains("command not found"), "{}", ran.out);
}

#[test]
fn fish_completes_commands_options_and_lists_of_layers() {
    let dir = completing("fish");
    let ask = "source ./script; while read line; complete -C $line | string replace -r '\\t.*' '' | string join ' '; end <lines; true";
    let table = [
        ("mou", "mount"),
        ("mount --redi", "--redirect-dir"),
        ("mount --io ", "auto cached passthrough writeback"),
        ("mount --lower lay", "layer1/ layer2/"),
        ("mount --lower layer1:lay", "layer1:layer1/ layer1:layer2/"),
        ("umount --l", "--lazy"),
        ("completions fi", "fish"),
    ];
    let lines: String = table.map(|(line, _)| format!("unionfs-rs {line}\n")).concat();
    fs::write(dir.path().join("lines"), lines).expect("it is ours");
    let ran = match shell_in(dir.path(), "fish", &["--no-config", "-c", ask]) {
        Ok(ran) => ran,
        Err(reason) => skip!("{reason}"),
    };
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    let expected: Vec<&str> = table.iter().map(|(_, words)| *words).collect();
    assert_eq!(ran.out.lines().collect::<Vec<_>>(), expected);
}
