//! The rules, with API servers whose responses are set by the tests; tests/kube uses real ones.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::UNIX_EPOCH,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::*;
use crate::auth::ClusterId;

const EAST: &str = "https://east.test";
const WEST: &str = "https://west.test";
const NOW: u64 = 1_800_000_000;

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// A JWT of `iss`; its signature is not verified here.
fn token(iss: &str, change: impl FnOnce(&mut Value)) -> String {
    let mut claims = json!({
        "iss": iss, "sub": "system:serviceaccount:shop:web", "aud": ["istio-ca"], "exp": NOW + 600, "iat": NOW - 5,
        "kubernetes.io": {
            "namespace": "shop", "serviceaccount": {"name": "web", "uid": "s1"}, "pod": {"name": "web-1", "uid": "p1"}
        }
    });
    change(&mut claims);
    let part = |text: String| URL_SAFE_NO_PAD.encode(text);
    format!("{}.{}.c2ln", part(r#"{"alg":"RS256"}"#.to_owned()), part(claims.to_string()))
}

fn review() -> Review {
    Review {
        authenticated: true,
        error: None,
        audiences: vec!["istio-ca".into()],
        username: "system:serviceaccount:shop:web".into(),
        groups: vec!["system:serviceaccounts".into(), "system:authenticated".into()],
        pod_name: Some("web-1".into()),
        pod_uid: Some("p1".into()),
    }
}

#[derive(Debug)]
struct Server {
    answer: Mutex<Result<Review, Unanswered>>,
    asked: AtomicUsize,
}

impl Server {
    fn new() -> Arc<Self> {
        Arc::new(Self { answer: Mutex::new(Ok(review())), asked: AtomicUsize::new(0) })
    }

    fn say(&self, answer: Result<Review, Unanswered>) {
        *self.answer.lock().unwrap() = answer;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Reviewer for Server {
    fn review<'a>(&'a self, _: BearerToken<'a>, audiences: &'a [String]) -> BoxFuture<'a, Result<Review, Unanswered>> {
        assert_eq!(audiences, ["istio-ca"]);
        self.asked.fetch_add(1, Ordering::SeqCst);
        let answer = self.answer.lock().unwrap().clone();
        Box::pin(std::future::ready(answer))
    }
}

fn cluster(name: &str, issuer: &str, server: &Arc<Server>) -> Reviewed {
    Reviewed {
        cluster: name.to_owned().try_into().unwrap(),
        issuers: vec![issuer.into()],
        audiences: vec!["istio-ca".into()],
        namespaces: vec!["shop".parse().unwrap()],
        trust_domain: format!("{name}.test").parse().unwrap(),
        cache: Duration::from_secs(60),
        timeout: Duration::from_secs(1),
        reviewer: Arc::<Server>::clone(server),
    }
}

struct Two {
    east: Arc<Server>,
    west: Arc<Server>,
    reviews: TokenReviews,
}

impl Two {
    fn new() -> Self {
        let (east, west) = (Server::new(), Server::new());
        let reviews = TokenReviews::new(vec![cluster("east", EAST, &east), cluster("west", WEST, &west)]);
        Self { east, west, reviews }
    }

    /// `spiffe://...`, the label of the rejection, or "" if no cluster has the issuer.
    async fn check(&self, token: &str, cluster: &str, now: u64) -> String {
        let default = ClusterName::try_from("east".to_owned()).unwrap();
        let cluster_id = ClusterId::from_values(Some(cluster).filter(|cluster| !cluster.is_empty()));
        let credentials = Credentials { cluster_id, ..Credentials::default() };
        match self.reviews.check(&credentials, BearerToken::new(token), &default, at(now)).await {
            None => String::new(),
            Some(Ok(proven)) => proven.identity.to_string(),
            Some(Err(error)) => error.reason().to_owned(),
        }
    }
}

const EAST_WEB: &str = "spiffe://east.test/ns/shop/sa/web";

#[tokio::test]
async fn only_the_issuers_own_api_server_sees_a_token() {
    let two = Two::new();
    let (east, west) = (token(EAST, |_| ()), token(WEST, |_| ()));
    assert_eq!(two.check(&west, "east", NOW).await, "review_wrong_cluster");
    assert_eq!(two.check(&west, "", NOW).await, "review_wrong_cluster");
    assert_eq!(two.check(&east, "west", NOW).await, "review_wrong_cluster");
    assert_eq!(two.check(&east, "north", NOW).await, "review_wrong_cluster");
    assert_eq!(two.check(&token("https://other.test", |_| ()), "east", NOW).await, "");
    assert_eq!(two.check("garbage", "east", NOW).await, "");
    assert_eq!((two.east.asked(), two.west.asked()), (0, 0));
    assert_eq!(two.check(&west, "west", NOW).await, "spiffe://west.test/ns/shop/sa/web");
    assert_eq!((two.east.asked(), two.west.asked()), (0, 1));
    assert_eq!(two.check(&west, "east", NOW).await, "review_wrong_cluster", "nor from memory");
    assert_eq!(two.check(&east, "", NOW).await, EAST_WEB);
}

#[tokio::test]
async fn claims_are_checked_before_the_api_server_is_asked() {
    let two = Two::new();
    let cases: [(fn(&mut Value), &str); 5] = [
        (|claims| claims["aud"] = json!(["other"]), "jwt_audience"),
        (|claims| claims["exp"] = json!(NOW - 61), "jwt_expired"),
        (|claims| claims["sub"] = json!("system:node:n1"), "jwt_subject"),
        (|claims| claims["kubernetes.io"]["serviceaccount"]["name"] = json!("root"), "jwt_disagree"),
        (
            |claims| {
                claims["sub"] = json!("system:serviceaccount:bank:web");
                claims["kubernetes.io"]["namespace"] = json!("bank");
            },
            "jwt_namespace",
        ),
    ];
    for (change, expected) in cases {
        assert_eq!(two.check(&token(EAST, change), "east", NOW).await, expected);
    }
    assert_eq!(two.east.asked(), 0);
}

#[tokio::test]
async fn the_answer_is_checked_to_the_last_word() {
    let cases: [(fn(&mut Review), &str); 13] = [
        (|_| (), EAST_WEB),
        (|review| review.authenticated = false, "review_refused"),
        (|review| review.error = Some("no".into()), "review_refused"),
        (|review| review.audiences.clear(), "review_audience"),
        (|review| review.audiences = vec!["https://kubernetes.default.svc".into()], "review_audience"),
        (|review| review.groups = vec!["system:authenticated".into()], "review_no_service_account"),
        (|review| review.username = "system:serviceaccount:shop".into(), "review_no_service_account"),
        (|review| review.username = "system:serviceaccount:shop:web:x".into(), "review_no_service_account"),
        (|review| review.username = "system:serviceaccount::web".into(), "review_no_service_account"),
        (|review| review.username = "admin:serviceaccount:shop:web".into(), "review_no_service_account"),
        (|review| review.username = "system:serviceaccount:shop:root".into(), "review_disagree"),
        (|review| review.pod_uid = Some("p2".into()), "review_disagree"),
        (|review| review.pod_uid = None, "review_no_service_account"),
    ];
    for (change, expected) in cases {
        let two = Two::new();
        let mut answer = review();
        change(&mut answer);
        two.east.say(Ok(answer.clone()));
        assert_eq!(two.check(&token(EAST, |_| ()), "east", NOW).await, expected, "{answer:?}");
    }
}

#[tokio::test]
async fn answers_are_believed_for_a_while_and_never_past_the_tokens_end() {
    let two = Two::new();
    let (long, short) = (token(EAST, |_| ()), token(EAST, |claims| claims["exp"] = json!(NOW + 10)));
    for (now, asked) in [(NOW, 1), (NOW + 59, 1), (NOW + 60, 2)] {
        assert_eq!(two.check(&long, "east", now).await, EAST_WEB);
        assert_eq!(two.east.asked(), asked, "{now}");
    }
    assert_eq!(two.check(&short, "east", NOW).await, EAST_WEB);
    two.east.say(Ok(Review { authenticated: false, ..review() }));
    assert_eq!(two.check(&short, "east", NOW + 9).await, EAST_WEB);
    assert_eq!(two.check(&short, "east", NOW + 10).await, "review_refused", "reviewed again after expiry");
    assert_eq!(two.check(&long, "east", NOW - 1).await, "review_refused", "a clock set back ends it too");
}

#[tokio::test]
async fn a_refusal_is_not_believed_long_and_an_outage_not_at_all() {
    let two = Two::new();
    let token = token(EAST, |_| ());
    two.east.say(Err(Unanswered("away".into())));
    assert_eq!(two.check(&token, "east", NOW).await, "review_unanswered");
    two.east.say(Ok(Review { authenticated: false, ..review() }));
    assert_eq!(two.check(&token, "east", NOW).await, "review_refused");
    two.east.say(Ok(review()));
    assert_eq!(two.check(&token, "east", NOW + 9).await, "review_refused");
    assert_eq!(two.east.asked(), 2);
    assert_eq!(two.check(&token, "east", NOW + 10).await, EAST_WEB);
}

#[derive(Debug)]
struct Silent;

impl Reviewer for Silent {
    fn review<'a>(&'a self, _: BearerToken<'a>, _: &'a [String]) -> BoxFuture<'a, Result<Review, Unanswered>> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test]
async fn a_silent_api_server_is_given_up() {
    let server = Server::new();
    let silent =
        Reviewed { timeout: Duration::from_millis(20), reviewer: Arc::new(Silent), ..cluster("east", EAST, &server) };
    let reviews = TokenReviews::new(vec![silent]);
    let (token, default) = (token(EAST, |_| ()), ClusterName::try_from("east".to_owned()).unwrap());
    let result = reviews.check(&Credentials::default(), BearerToken::new(&token), &default, at(NOW)).await;
    let error = result.unwrap().unwrap_err();
    assert!(error.is_temporary());
}

/// Takes a second for each token, and knows which are good.
#[derive(Debug)]
struct Slow {
    good: Vec<String>,
    asked: AtomicUsize,
}

impl Reviewer for Slow {
    fn review<'a>(&'a self, token: BearerToken<'a>, _: &'a [String]) -> BoxFuture<'a, Result<Review, Unanswered>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let authenticated = self.good.iter().any(|good| good == token.expose());
        Box::pin(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok(Review { authenticated, ..review() })
        })
    }
}

/// Checks tokens, each on a connection of a network, as if at once; how long each took and what it came to.
async fn at_once(slow: &Arc<Slow>, asks: Vec<(u8, u64, String)>) -> Vec<(Duration, Option<&'static str>)> {
    let server = Server::new();
    let reviewed = Reviewed {
        timeout: Duration::from_secs(5),
        reviewer: Arc::<Slow>::clone(slow),
        ..cluster("east", EAST, &server)
    };
    let (reviews, default) = (TokenReviews::new(vec![reviewed]), ClusterName::try_from("east".to_owned()).unwrap());
    let began = tokio::time::Instant::now();
    let checks = asks.iter().map(|(network, connection, token)| {
        let network = std::net::IpAddr::from([192, 0, 2, *network]).into();
        let client = Some(Client { network, connection: *connection });
        let (reviews, default) = (&reviews, &default);
        async move {
            let credentials = Credentials { client, ..Credentials::default() };
            let result = reviews.check(&credentials, BearerToken::new(token), default, at(NOW)).await.unwrap();
            (began.elapsed(), result.err().map(|error| error.reason()))
        }
    });
    futures_util::future::join_all(checks).await
}

/// Forged tokens that could be genuine, 400 at once: a later client is served within two reviews' time, from another
/// address and from another connection of the same.
#[tokio::test(start_paused = true)]
async fn forged_tokens_keep_nobody_waiting_but_their_senders() {
    let numbered = |number: u64| token(EAST, |claims| claims["iat"] = json!(NOW - number));
    let good: Vec<String> = (1000..1006).map(numbered).collect();
    let slow = Arc::new(Slow { good: good.clone(), asked: AtomicUsize::new(0) });
    let mut asks: Vec<_> = (0..400).map(|number| (1, number % 4, numbered(number))).collect();
    asks.extend(
        good.into_iter()
            .enumerate()
            .map(|(number, token)| (if number < 3 { 2 } else { 1 }, 100 + number as u64, token)),
    );
    for (took, refused) in at_once(&slow, asks).await.into_iter().skip(400) {
        assert_eq!(refused, None);
        assert!(took <= Duration::from_secs(2), "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_forged_token_is_not_asked_about_again_and_again() {
    let slow = Arc::new(Slow { good: Vec::new(), asked: AtomicUsize::new(0) });
    let answers = at_once(&slow, vec![(1, 1, token(EAST, |_| ())); 400]).await;
    assert!(answers.iter().all(|(_, refused)| *refused == Some("review_refused")));
    assert!(slow.asked.load(Ordering::SeqCst) <= AT_ONCE);
}
