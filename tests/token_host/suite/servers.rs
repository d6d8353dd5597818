//! Faults of the programs that a module needs: a TPM's resource manager, p11-kit's server, openCryptoki's slot daemon.

use std::time::Duration;

use istio_hsm_ca::token_pool::Phase;
use nix::sys::signal::{Signal, kill};

use super::{modules::Module, place::Place};
use crate::harness::{Mill, PATIENCE, host_of, is, openssl_verifies, pool};

/// How long a program is away.
const AWAY: Duration = Duration::from_secs(2);

/// A daemon with a token of the module, which waits for the token as long as the test does.
async fn serving(module: Module, name: &str) -> (Place, Mill) {
    let place = Place::filled(module);
    let mut settings = pool(vec![place.token(name)]);
    settings.recovery_wait = PATIENCE;
    let issuer = place.issuer();
    let mill = Mill::proven(settings, &issuer).await;
    openssl_verifies(&mill.issue().await.unwrap(), issuer.roots_pem());
    (place, mill)
}

/// A request that is sent while a program is away, and is answered once it is back.
async fn served_once(mill: Mill, back: impl FnOnce()) {
    let return_later = async {
        tokio::time::sleep(AWAY).await;
        back();
    };
    let (issued, ()) = tokio::join!(mill.issue(), return_later);
    issued.unwrap();
    mill.until("serving again", is(0, Phase::Serving)).await;
    assert_eq!(mill.snapshot(0).wrong, 0);
    mill.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs another module: make test-tokens"]
async fn connection_to_a_p11_kit_server_that_is_cut_is_opened_again() {
    let (mut place, mill) = serving(Module::P11Kit, "p11-kit-cut").await;
    // A process of the server for each connection.
    let connections = place.servers().named("p11-kit").children();
    assert!(!connections.is_empty());
    for connection in connections {
        kill(connection, Signal::SIGKILL).unwrap();
    }
    served_once(mill, || ()).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs another module: make test-tokens"]
async fn p11_kit_server_that_is_away_is_waited_for() {
    let (mut place, mill) = serving(Module::P11Kit, "p11-kit-away").await;
    let server = place.servers().named("p11-kit");
    let connections = server.children();
    server.kill();
    for connection in connections {
        let _already_gone = kill(connection, Signal::SIGKILL);
    }
    served_once(mill, || server.start()).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs another module: make test-tokens"]
async fn resource_manager_of_a_tpm_that_is_away_is_waited_for() {
    let (mut place, mill) = serving(Module::Tpm2, "abrmd-away").await;
    let manager = place.servers().named("tpm2-abrmd");
    manager.kill();
    served_once(mill, || manager.start()).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs another module: make test-tokens"]
async fn tpm_that_is_reset_serves_again() {
    let (mut place, mill) = serving(Module::Tpm2, "tpm-reset").await;
    place.servers().named("swtpm").kill();
    served_once(mill, || {
        place.servers().named("swtpm").start();
        // It has lost its TPM and does not look for it again.
        place.servers().named("tpm2-abrmd").kill();
        place.servers().named("tpm2-abrmd").start();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs another module: make test-tokens"]
async fn slot_daemon_of_opencryptoki_is_needed_by_new_hosts_only() {
    let (mut place, mill) = serving(Module::OpenCryptoki, "pkcsslotd-away").await;
    let daemon = place.servers().named("pkcsslotd");
    daemon.kill();
    mill.issue().await.unwrap();
    daemon.start();
    mill.issue().await.unwrap();

    daemon.kill();
    kill(host_of("pkcsslotd-away"), Signal::SIGKILL).unwrap();
    served_once(mill, || daemon.start()).await;
}
