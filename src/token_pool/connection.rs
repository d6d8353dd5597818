//! The two tasks of a connection to a host: one writes the outbox, one reads the answers. A request that is alone is
//! written without the first (`token::outbox`).
//!
//! The socket is registered for reading only. If it were registered for writing as well, the daemon would be woken each
//! time the host has read something. Writability is awaited only after an incomplete write.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{Interest, unix::AsyncFd},
    task::JoinHandle,
};

use super::{router::Router, token::Token};
use token_host::protocol::{Frame, ProtocolError, Reply};

/// Size of one read, more than a frame.
const BUFFER: usize = 64 * 1024;

/// How long replies are awaited from a host that no longer accepts requests.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(200);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    #[error("the token host closed the connection")]
    Closed,
    #[error("the connection to the token host broke: {0}")]
    Io(#[from] io::Error),
    #[error("the token host violates the protocol: {0}")]
    Protocol(#[from] ProtocolError),
}

/// A connection to a host. Dropping it ends its tasks.
#[derive(Debug)]
pub(super) struct HostConnection {
    reader: JoinHandle<ConnectionError>,
    writer: JoinHandle<ConnectionError>,
}

impl HostConnection {
    /// Starts the tasks. The socket must be non-blocking.
    pub(super) fn start(router: &Arc<Router>, token: &Arc<Token>, host: u64, stream: UnixStream) -> io::Result<Self> {
        let write = Arc::new(stream.try_clone()?);
        let read = watched(stream, Interest::READABLE)?;
        token.lock().open_outbox(Arc::clone(&write));
        Ok(Self {
            reader: tokio::spawn(reader(Arc::clone(router), Arc::clone(token), host, read)),
            writer: tokio::spawn(writer(Arc::clone(token), host, write)),
        })
    }

    /// Waits for the connection to end.
    pub(super) async fn ended(&mut self) -> ConnectionError {
        let ended = tokio::select! {
            ended = &mut self.reader => ended,
            // Replies that the host sent before it closed are read first.
            ended = &mut self.writer => match tokio::time::timeout(DRAIN_TIMEOUT, &mut self.reader).await {
                Ok(reader) => reader,
                Err(_) => ended,
            },
        };
        ended.unwrap_or(ConnectionError::Closed)
    }
}

impl Drop for HostConnection {
    fn drop(&mut self) {
        self.reader.abort();
        self.writer.abort();
    }
}

async fn writer(token: Arc<Token>, host: u64, socket: Arc<UnixStream>) -> ConnectionError {
    let mut buffer = Vec::new();
    loop {
        token.lock().take_outbox(host, &mut buffer);
        if buffer.is_empty() {
            token.writer.notified().await;
            // Lets the other runnable tasks add their frames to the same write.
            tokio::task::yield_now().await;
            continue;
        }
        if let Err(error) = write_all(&socket, &buffer).await {
            return error.into();
        }
        if buffer.capacity() > BUFFER {
            buffer = Vec::new();
        }
    }
}

fn watched(socket: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    #[expect(
        deprecated,
        reason = "its successor is unsafe for types that change their descriptor, which sockets do not"
    )]
    AsyncFd::with_interest(socket, interest)
}

/// Writes everything, waiting for room in the socket if necessary.
async fn write_all(socket: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    let mut room: Option<AsyncFd<UnixStream>> = None;
    while !bytes.is_empty() {
        let mut socket = socket;
        let written = match &room {
            None => socket.write(bytes),
            Some(room) => room.async_io(Interest::WRITABLE, |mut socket| socket.write(bytes)).await,
        };
        match written {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // A second descriptor, since the reader's is registered already.
                room = Some(watched(socket.try_clone()?, Interest::WRITABLE)?);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn reader(router: Arc<Router>, token: Arc<Token>, host: u64, socket: AsyncFd<UnixStream>) -> ConnectionError {
    // Room for the rest of a frame and one more read.
    let mut buffer = vec![0; 2 * BUFFER];
    let mut filled = 0;
    let mut replies = Vec::new();
    loop {
        let space = buffer.get_mut(filled..).unwrap_or_default();
        match socket.async_io(Interest::READABLE, |mut socket| socket.read(space)).await {
            Ok(0) => return ConnectionError::Closed,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return error.into(),
        }
        let used = match decode(buffer.get(..filled).unwrap_or_default(), &mut replies) {
            Ok(used) => used,
            Err(error) => return error.into(),
        };
        if !replies.is_empty()
            && let Err(error) = router.answered(&token, host, replies.drain(..))
        {
            return error.into();
        }
        buffer.copy_within(used..filled, 0);
        filled -= used;
    }
}

/// Decodes all whole frames, and returns their length in bytes.
fn decode(buffer: &[u8], replies: &mut Vec<(u64, Reply)>) -> Result<usize, ProtocolError> {
    let mut used = 0;
    while let Some((frame, length)) = Frame::split_reply(buffer.get(used..).unwrap_or_default())? {
        replies.push((frame.correlation, Reply::decode(frame)?));
        used += length;
    }
    Ok(used)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn write_waits_for_room_in_the_socket() {
        let (near, mut far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let bytes: Vec<u8> = (0..4_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let expected = bytes.clone();
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            far.read_to_end(&mut all).unwrap();
            all
        });
        write_all(&near, &bytes).await.unwrap();
        drop(near);
        assert!(reader.join().unwrap() == expected);
    }

    #[tokio::test]
    async fn write_to_a_closed_peer_fails() {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        drop(far);
        assert_eq!(write_all(&near, b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
