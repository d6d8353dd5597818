//! A proxy before an API server, by which a test cuts what goes through it and leaves the API server to itself.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::AbortHandle,
};

/// How a connection fares.
struct Connection {
    task: AbortHandle,
    /// Its two ends, held open when it is to be silent.
    silent: Arc<AtomicBool>,
}

/// The proxy; it ends with the runtime.
pub struct Proxy {
    pub address: SocketAddr,
    connections: Arc<Mutex<Vec<Connection>>>,
    closed: Arc<AtomicBool>,
    /// How many connections pass freely; the others wait.
    free: Arc<AtomicUsize>,
    /// Whether one waits, and whether it is to go on.
    waits: watch::Sender<bool>,
    goes_on: watch::Sender<bool>,
}

impl Proxy {
    /// Listens, and passes every connection on to `to`.
    pub async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections: Arc<Mutex<Vec<Connection>>> = Arc::default();
        let closed = Arc::new(AtomicBool::new(false));
        let (all, shut) = (Arc::clone(&connections), Arc::clone(&closed));
        let free = Arc::new(AtomicUsize::new(usize::MAX));
        let (waits, goes_on) = (watch::Sender::new(false), watch::Sender::new(false));
        let (left, waiting, released) = (Arc::clone(&free), waits.clone(), goes_on.clone());
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                if left.load(Ordering::SeqCst) == 0 {
                    waiting.send_replace(true);
                    released.subscribe().wait_for(|released| *released).await.unwrap();
                } else {
                    left.fetch_sub(1, Ordering::SeqCst);
                }
                if shut.load(Ordering::SeqCst) {
                    continue;
                }
                let silent = Arc::new(AtomicBool::new(false));
                let held = Arc::clone(&silent);
                let task = tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(to).await else { return };
                    let passed = copy_bidirectional(&mut near, &mut far);
                    tokio::select! {
                        _ended = passed => {}
                        () = until(&held) => std::future::pending::<()>().await,
                    }
                });
                all.lock().unwrap().push(Connection { task: task.abort_handle(), silent });
            }
        });
        Self { address, connections, closed, free, waits, goes_on }
    }

    /// Has so many more connections pass, and the next one wait.
    pub fn hold_after(&self, count: usize) {
        self.waits.send_replace(false);
        self.goes_on.send_replace(false);
        self.free.store(count, Ordering::SeqCst);
    }

    /// Waits for the one that waits.
    pub async fn held(&self) {
        self.waits.subscribe().wait_for(|waits| *waits).await.unwrap();
    }

    /// Lets it go on, and all that follow.
    pub fn release(&self) {
        self.free.store(usize::MAX, Ordering::SeqCst);
        self.goes_on.send_replace(true);
    }

    /// Has a kubeconfig lead through it.
    pub fn redirect(&self, kubeconfig: &Path, url: &str) {
        let text = fs::read_to_string(kubeconfig).unwrap();
        let through = text.replace(url, &format!("https://{}", self.address));
        assert_ne!(text, through);
        fs::write(kubeconfig, through).unwrap();
    }

    /// Cuts every connection, so that both sides see it.
    pub fn cut(&self) {
        for connection in self.connections.lock().unwrap().drain(..) {
            connection.task.abort();
        }
    }

    /// Every connection there is stays open and carries nothing any more; new ones are passed on.
    pub fn silence(&self) {
        for connection in self.connections.lock().unwrap().iter() {
            connection.silent.store(true, Ordering::SeqCst);
        }
    }

    /// Whether new connections are ended at once.
    pub fn close(&self, closed: bool) {
        self.closed.store(closed, Ordering::SeqCst);
    }
}

async fn until(flag: &AtomicBool) {
    while !flag.load(Ordering::SeqCst) {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
