//! The two tasks of a connection to a host: one writes what the outbox holds, one reads the answers.

use std::{io, sync::Arc};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinHandle,
};

use super::state::Shared;
use crate::token::protocol::{Frame, ProtocolError, Reply};

/// Room for one read, more than a frame.
const BUFFER: usize = 64 * 1024;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("the token host closed the connection")]
    Closed,
    #[error("the connection to the token host broke: {0}")]
    Io(#[from] io::Error),
    #[error("the token host does not keep to the protocol: {0}")]
    Protocol(#[from] ProtocolError),
}

/// A connection at work; its tasks end with it.
#[derive(Debug)]
pub(super) struct Link {
    reader: JoinHandle<LinkError>,
    writer: JoinHandle<LinkError>,
}

impl Link {
    pub(super) fn start(shared: &Arc<Shared>, at: usize, host: u64, stream: UnixStream) -> Self {
        let (read, write) = stream.into_split();
        Self {
            reader: tokio::spawn(reader(Arc::clone(shared), at, host, read)),
            writer: tokio::spawn(writer(Arc::clone(shared), at, host, write)),
        }
    }

    /// Waits for the connection to end.
    pub(super) async fn ended(&mut self) -> LinkError {
        let ended = tokio::select! {
            ended = &mut self.reader => ended,
            ended = &mut self.writer => ended,
        };
        ended.unwrap_or(LinkError::Closed)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.reader.abort();
        self.writer.abort();
    }
}

async fn writer(shared: Arc<Shared>, at: usize, host: u64, mut write: OwnedWriteHalf) -> LinkError {
    let Some(fixed) = shared.fixed.get(at) else { return LinkError::Closed };
    let mut buffer = Vec::new();
    loop {
        fixed.writer.notified().await;
        // Once, so that the tasks that are ready now put their frames into the same write.
        tokio::task::yield_now().await;
        shared.take_outbox(at, host, &mut buffer);
        if buffer.is_empty() {
            continue;
        }
        if let Err(error) = write.write_all(&buffer).await {
            return error.into();
        }
        if buffer.capacity() > BUFFER {
            buffer = Vec::new();
        }
    }
}

async fn reader(shared: Arc<Shared>, at: usize, host: u64, mut read: OwnedReadHalf) -> LinkError {
    let mut buffer = Vec::with_capacity(BUFFER);
    let mut replies = Vec::new();
    loop {
        match read.read_buf(&mut buffer).await {
            Ok(0) => return LinkError::Closed,
            Ok(_) => {}
            Err(error) => return error.into(),
        }
        let used = match decode(&buffer, &mut replies) {
            Ok(used) => used,
            Err(error) => return error.into(),
        };
        if !replies.is_empty()
            && let Err(error) = shared.answered(at, host, replies.drain(..))
        {
            return error.into();
        }
        buffer.drain(..used);
        buffer.reserve(BUFFER);
    }
}

/// Decodes every whole frame and tells how many bytes they take.
fn decode(buffer: &[u8], replies: &mut Vec<(u64, Reply)>) -> Result<usize, ProtocolError> {
    let mut used = 0;
    while let Some((frame, length)) = Frame::split(buffer.get(used..).unwrap_or_default())? {
        replies.push((frame.correlation, Reply::decode(&frame)?));
        used += length;
    }
    Ok(used)
}
