//! A proxy before an API server, by which a test cuts what goes through it and leaves the API server to itself.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
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
}

impl Proxy {
    /// Listens, and passes every connection on to `to`.
    pub async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections: Arc<Mutex<Vec<Connection>>> = Arc::default();
        let closed = Arc::new(AtomicBool::new(false));
        let (all, shut) = (Arc::clone(&connections), Arc::clone(&closed));
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
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
        Self { address, connections, closed }
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
