//! What the program says of itself, to shells and to `man`.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use pgleak_tests::pgleak::run;

#[test]
fn completions_are_scripts_that_shells_read() {
    let script = run(["completions", "bash"]).unwrap().success().unwrap().stdout;
    for word in ["capture", "diff", "--overhead", "--min-bytes"] {
        assert!(script.contains(word), "{word} is not in {script}");
    }
    let mut bash = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
    bash.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(bash.wait().unwrap().success(), "bash cannot read it");
    // What is for pgleak's own use is not offered.
    assert!(!script.contains("sacrifice"), "{script}");
    let refused = run(["completions", "tcl"]).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{}", refused.stderr);
}

#[test]
fn each_command_has_a_manual_page() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("man");
    run(["man".as_ref(), "--out".as_ref(), out.as_os_str()]).unwrap().success().unwrap();
    let help = run(["--help"]).unwrap().success().unwrap().stdout;
    let (_, commands) = help.split_once("Commands:").unwrap();
    // The text behind a name goes on in lines that are further in.
    let is_name = |line: &&str| line.starts_with("  ") && !line.starts_with("   ");
    let named = commands.lines().skip(1).take_while(|line| !line.is_empty()).filter(is_name);
    let named: Vec<&str> =
        named.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").collect();
    assert!(named.len() >= 9, "{named:?}");
    for name in named {
        let page = std::fs::read_to_string(out.join(format!("pgleak-{name}.1"))).unwrap();
        assert!(page.replace("\\-", "-").contains(&format!("pgleak {name}")), "{page}");
    }
    let page = run(["man", "capture"]).unwrap().success().unwrap().stdout;
    assert_eq!(page, std::fs::read_to_string(out.join("pgleak-capture.1")).unwrap());
    let refused = run(["man", "fly"]).unwrap();
    assert!(
        refused.status.code() == Some(2) && refused.stderr.contains("no command 'fly'"),
        "{}",
        refused.stderr
    );
}

#[test]
fn top_draws_on_a_terminal_only() {
    let refused = run(["top"]).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{}", refused.stderr);
    assert_eq!(refused.stdout, "");
    assert!(refused.stderr.contains("standard output is no terminal"), "{}", refused.stderr);
    let refused = run(["top", "--interval", "1ms"]).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{}", refused.stderr);
}
