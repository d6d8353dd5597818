//! Shell completions and man pages.

use std::{fs, process::Command};

use super::harness::Machine;

#[test]
fn completions_are_generated_for_each_shell() {
    let machine = Machine::new();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = machine.run(&format!("completions {shell}"), &[]);
        assert_eq!(script.status, 0, "{shell}: {}", script.err);
        assert!(script.out.contains("--config") && script.out.contains("import"), "{shell}: {}", script.out);
    }
    let script = machine.run("completions bash", &[]).out;
    let file = machine.write("completions.bash", script);
    // COMP_WORDS as set by bash for `istio-hsm-ca ins<TAB>`.
    let complete = "source \"$1\"; COMP_WORDS=(istio-hsm-ca ins); COMP_CWORD=1; \
                    _istio__hsm__ca istio-hsm-ca ins istio-hsm-ca; echo \"${COMPREPLY[@]}\"";
    let output = Command::new("bash").args(["-c", complete, "bash"]).arg(file).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "inspect install", "{output:?}");
}

#[test]
fn each_command_has_a_man_page() {
    let machine = Machine::new();
    fs::create_dir(machine.path("man")).unwrap();
    let written = machine.run("man $/man", &[]);
    assert_eq!(written.status, 0, "{}", written.err);
    let help = machine.run("--help", &[]).out;
    let list = help.split_once("Commands:\n").unwrap().1.lines().take_while(|line| !line.is_empty());
    // Continuation lines are indented further.
    let lines = list.filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')));
    let commands: Vec<_> = lines.filter_map(|line| line.split_whitespace().next()).collect();
    assert!(commands.contains(&"import") && commands.contains(&"serve"), "{help}");
    for command in commands.iter().filter(|command| **command != "help") {
        let page = machine.read(&format!("man/istio-hsm-ca-{command}.1"));
        assert!(page.contains(".TH") && page.contains(".SH SYNOPSIS"), "{command}: {page}");
    }
    machine.run("man $/missing", &[]).refused(&["cannot write man pages to", "/missing", "existing directory"]);
}
