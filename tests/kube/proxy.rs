//! A proxy in front of an API server with which a test interrupts connections while the API server keeps running.

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

/// State of a connection.
struct Connection {
    task: AbortHandle,
    /// Keeps both ends open without passing data.
    silent: Arc<AtomicBool>,
}

/// The proxy; it ends with the runtime.
pub struct Proxy {
    pub address: SocketAddr,
    connections: Arc<Mutex<Vec<Connection>>>,
    closed: Arc<AtomicBool>,
    /// Number of connections that pass; further ones wait.
    free: Arc<AtomicUsize>,
    /// Whether a connection waits, and whether it may continue.
    waits: watch::Sender<bool>,
    goes_on: watch::Sender<bool>,
}

impl Proxy {
    /// Listens, and forwards every connection to `to`.
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

    /// Lets this number of connections pass, and the next one wait.
    pub fn hold_after(&self, count: usize) {
        self.waits.send_replace(false);
        self.goes_on.send_replace(false);
        self.free.store(count, Ordering::SeqCst);
    }

    /// Waits until a connection waits.
    pub async fn held(&self) {
        self.waits.subscribe().wait_for(|waits| *waits).await.unwrap();
    }

    /// Lets it and all following connections continue.
    pub fn release(&self) {
        self.free.store(usize::MAX, Ordering::SeqCst);
        self.goes_on.send_replace(true);
    }

    /// Changes a kubeconfig to use the proxy.
    pub fn redirect(&self, kubeconfig: &Path, url: &str) {
        let text = fs::read_to_string(kubeconfig).unwrap();
        let through = text.replace(url, &format!("https://{}", self.address));
        assert_ne!(text, through);
        fs::write(kubeconfig, through).unwrap();
    }

    /// Closes every connection, visibly for both sides.
    pub fn cut(&self) {
        for connection in self.connections.lock().unwrap().drain(..) {
            connection.task.abort();
        }
    }

    /// Keeps existing connections open without passing data; new ones are forwarded.
    pub fn silence(&self) {
        for connection in self.connections.lock().unwrap().iter() {
            connection.silent.store(true, Ordering::SeqCst);
        }
    }

    /// Sets whether new connections are closed at once.
    pub fn close(&self, closed: bool) {
        self.closed.store(closed, Ordering::SeqCst);
    }
}

async fn until(flag: &AtomicBool) {
    while !flag.load(Ordering::SeqCst) {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
