//! `ceremony split-pin`, and commands that take shares of a PIN.

use super::harness::Machine;
use testkit::softhsm::PIN;

#[test]
fn split_pin_opens_the_token_with_enough_shares() {
    let machine = Machine::new();
    machine.directory.pin_file();
    machine.done_alone("ceremony split-pin --shares 3 --threshold 2 --name ca --out $/shares --pin-file $/pin");
    let share = |number: u8| format!("--pin-share $/shares/share-{number}.txt");
    let text = machine.read("shares/share-1.txt");
    assert!(text.contains("Share 1 of 3") && !text.contains(PIN), "{text}");
    let inspect = |shares: &str| machine.run(&format!("inspect --token {} {shares}", machine.uri("ca")), &[]);
    let view = inspect(&format!("{} {}", share(3), share(1)));
    assert_eq!(view.status, 0, "{view:?}");
    inspect(&share(1)).refused(&["2 shares are needed to restore the PIN, and 1 were given"]);
    machine.write("shares/share-2.txt", machine.read("shares/share-2.txt").replacen('1', "2", 1).replace("-0", "-1"));
    inspect(&format!("{} {}", share(1), share(2))).refused(&["share-2.txt"]);
    // No attempt was used up by any of these.
    assert_eq!(inspect(&format!("{} {}", share(1), share(3))).status, 0);
    machine
        .run("ceremony split-pin --shares 2 --threshold 3 --out $/more --pin-file $/pin", &[])
        .refused(&["could never be restored"]);
    machine
        .run("ceremony split-pin --shares 3 --threshold 2 --out $/shares --pin-file $/pin", &[])
        .refused(&["exists already"]);
}
