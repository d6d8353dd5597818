//! Reconciles requests for certificates until dropped. They are independent of each other and exist before they are
//! reconciled, so kube's `Controller` runs them concurrently.

use std::{collections::HashMap, fmt::Debug, future::Future, hash::Hash, sync::Arc, time::Duration};

use futures_util::{StreamExt, future, stream};
use kube::{
    Api, Resource,
    runtime::{
        controller::{self, Action, Config, Error as ControllerError},
        reflector::{ObjectRef, store::Writer},
        watcher::{self, Event},
    },
};
use parking_lot::{Mutex, MutexGuard};
use pki::{Issued, Issuer};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    issue::IssueError,
    kubernetes::{
        Cluster,
        cluster::chain,
        reconcile::is_conflict,
        status::StatusRecorder,
        watch_stream::{WatchItem, watch_stream},
    },
};

const CONCURRENT_REQUESTS: u16 = 32;
/// Delay before a request is retried; istiod waits for a minute.
pub(super) const RETRY_DELAY: Duration = Duration::from_secs(2);

/// A request is neither granted nor refused yet.
#[derive(Debug, thiserror::Error)]
pub(super) enum SignerError {
    #[error("{}", chain(.0))]
    Api(#[from] kube::Error),
    #[error(transparent)]
    Issue(#[from] IssueError),
}

/// An object that requests a certificate.
pub(super) trait RequestObject:
    Resource<DynamicType: Debug + Clone + Eq + Hash + Unpin>
    + Clone
    + Debug
    + DeserializeOwned
    + Serialize
    + Send
    + Sync
    + 'static
{
}

/// Answers one kind of requests.
pub(super) trait Reconciler: Send + Sync + 'static {
    type Object: RequestObject;
    /// What identifies the content of a request of one name.
    type Version: PartialEq + Send;

    fn progress(&self) -> &Progress<Self::Version>;

    fn reconcile(&self, request: &Self::Object) -> impl Future<Output = Result<Action, SignerError>> + Send;
}

/// The requests that wait for their answer.
pub(super) struct Progress<V> {
    status: Mutex<StatusRecorder>,
    /// Certificates that could not be written, by the request's name: while the API server fails, retries must not issue
    /// a certificate each.
    unwritten: Mutex<HashMap<String, (V, Issued)>>,
}

impl<V: PartialEq> Progress<V> {
    pub(super) fn new(controller: &'static str, cluster: &Arc<Cluster>) -> Self {
        Self { status: Mutex::new(StatusRecorder::new(controller, cluster)), unwritten: Mutex::default() }
    }

    fn status(&self) -> MutexGuard<'_, StatusRecorder> {
        self.status.lock()
    }

    /// Drops the unwritten certificate of a request that is done or deleted.
    pub(super) fn forget(&self, name: &str) {
        self.unwritten.lock().remove(name);
        self.status().object(name, None);
    }

    /// Takes the unwritten certificate for this version of a request, if the CA has not been replaced since.
    pub(super) fn take_unwritten(&self, name: &str, version: &V, issuer: &Arc<Issuer>) -> Option<Issued> {
        let (known, issued) = self.unwritten.lock().remove(name)?;
        (known == *version && Arc::ptr_eq(issued.tbs().issuer(), issuer)).then_some(issued)
    }

    pub(super) fn keep_unwritten(&self, name: &str, version: V, issued: Issued) {
        self.unwritten.lock().insert(name.to_owned(), (version, issued));
    }

    /// What follows the attempt to write an answer.
    pub(super) fn written<T>(&self, name: &str, result: Result<T, kube::Error>) -> Result<Action, SignerError> {
        match result {
            Ok(_) => {
                self.forget(name);
                self.status().count("changed");
                Ok(Action::await_change())
            }
            Err(kube::Error::Api(status)) if status.code == 404 => {
                self.forget(name);
                Ok(Action::await_change())
            }
            // The request was changed meanwhile. The watch reports the change; the retry covers a missed event.
            Err(error) if is_conflict(&error) => Ok(Action::requeue(RETRY_DELAY)),
            Err(error) => Err(error.into()),
        }
    }
}

/// Reconciles the requests of `api` that `selection` selects. `watch` names the watch in messages.
pub(super) async fn run<R: Reconciler>(
    api: Api<R::Object>,
    selection: watcher::Config,
    dynamic_type: <R::Object as Resource>::DynamicType,
    watch: String,
    reconciler: R,
) {
    let items = watch_stream(api, selection);
    let mut writer = Writer::new(dynamic_type.clone());
    let store = writer.as_reader();
    let context = Arc::new(reconciler);
    let reconciler = Arc::clone(&context);
    let mut listed = Vec::new();
    let changed = items.flat_map(move |item| {
        if let WatchItem::Event(event) = &item {
            writer.apply_watcher_event(event);
        }
        let progress = reconciler.progress();
        let mut requests = Vec::new();
        match item {
            WatchItem::Event(Event::Apply(request)) => requests.push(request),
            WatchItem::Event(Event::Init) => listed.clear(),
            // The store has the requests of a list only when the list is complete.
            WatchItem::Event(Event::InitApply(request)) => listed.push(request),
            WatchItem::Event(Event::InitDone) => {
                progress.status().count("unchanged");
                requests = std::mem::take(&mut listed);
            }
            WatchItem::Event(Event::Delete(request)) => progress.forget(&name_of(&request)),
            WatchItem::Failed(reason) => progress.status().watch(&watch, Some(reason)),
            WatchItem::Recovered => progress.status().watch(&watch, None),
        }
        stream::iter(requests.into_iter().map(Ok))
    });
    let reconciler = Arc::clone(&context);
    controller::Controller::for_stream_with(changed, store, dynamic_type)
        .with_config(Config::default().concurrency(CONCURRENT_REQUESTS))
        .run(|request, reconciler| async move { reconciler.reconcile(&request).await }, retry, context)
        .for_each(|result| {
            // `retry` and the watch report all other failures.
            if let Err(ControllerError::ObjectNotFound(request)) = result {
                reconciler.progress().forget(&name_of_reference(&request));
            }
            future::ready(())
        })
        .await;
}

fn retry<R: Reconciler>(request: Arc<R::Object>, error: &SignerError, reconciler: Arc<R>) -> Action {
    let mut status = reconciler.progress().status();
    status.object(&name_of(&*request), Some(error.to_string()));
    status.count("error");
    Action::requeue(RETRY_DELAY)
}

/// `namespace/name`, or the name of an object without a namespace.
pub(super) fn name_of(object: &impl Resource) -> String {
    joined(object.meta().namespace.as_deref(), object.meta().name.as_deref().unwrap_or_default())
}

/// [`name_of`] the object that kube's `Controller` refers to.
fn name_of_reference<L: kube::runtime::reflector::Lookup>(reference: &ObjectRef<L>) -> String {
    joined(reference.namespace.as_deref(), &reference.name)
}

fn joined(namespace: Option<&str>, name: &str) -> String {
    namespace.map_or_else(|| name.to_owned(), |namespace| format!("{namespace}/{name}"))
}
