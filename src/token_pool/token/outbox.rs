//! Frames to be written to a token's host.

use std::{io::Write, os::unix::net::UnixStream, sync::Arc};

/// The frames that have not been written, and where to.
#[derive(Debug, Default)]
pub(in super::super) struct Outbox {
    frames: Vec<u8>,
    /// The connection to the current host; non-blocking.
    socket: Option<Arc<UnixStream>>,
    /// The writer has taken frames and not come back: what follows them must wait for it.
    writing: bool,
}

impl Outbox {
    /// Frames are written to this socket from now on.
    pub(super) fn open(&mut self, socket: Arc<UnixStream>) {
        self.socket = Some(socket);
    }

    /// Where to encode further frames.
    pub(super) fn frames(&mut self) -> &mut Vec<u8> {
        &mut self.frames
    }

    /// Moves all frames to the writer, which calls this again once it has written them.
    pub(super) fn take(&mut self, into: &mut Vec<u8>) {
        into.clear();
        std::mem::swap(&mut self.frames, into);
        self.writing = !into.is_empty();
    }

    /// Writes what the socket takes at once, unless the writer is writing. `false` if the writer must do it.
    pub(super) fn write(&mut self) -> bool {
        let Some(socket) = self.socket.as_deref().filter(|_| !self.writing) else { return false };
        // The writer meets the same error, and reports it.
        let Ok(written) = { socket }.write(&self.frames) else { return false };
        self.frames.drain(..written);
        self.frames.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn outbox() -> (Outbox, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        far.set_nonblocking(true).unwrap();
        let mut outbox = Outbox::default();
        assert!(!outbox.write(), "there is no host");
        outbox.open(Arc::new(near));
        (outbox, far)
    }

    #[test]
    fn frames_are_written_at_once_unless_the_writer_has_earlier_ones() {
        let (mut outbox, mut far) = outbox();
        outbox.frames().extend(b"first");
        assert!(outbox.write());
        let mut read = [0; 16];
        assert_eq!(far.read(&mut read).unwrap(), 5);
        let mut taken = Vec::new();
        outbox.frames().extend(b"second");
        outbox.take(&mut taken);
        outbox.frames().extend(b"third");
        assert!(!outbox.write(), "the second would come after the third");
        outbox.take(&mut taken);
        assert_eq!(taken, b"third");
        outbox.take(&mut taken);
        outbox.frames().extend(b"fourth");
        assert!(taken.is_empty() && outbox.write());
    }

    #[test]
    fn what_the_socket_does_not_take_is_left_for_the_writer() {
        let (mut outbox, mut far) = outbox();
        let all: Vec<u8> = (0..1_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        outbox.frames().extend(&all);
        assert!(!outbox.write());
        let (mut read, mut rest) = (vec![0; all.len()], Vec::new());
        let count = far.read(&mut read).unwrap();
        outbox.take(&mut rest);
        read.truncate(count);
        let mut more = vec![0; all.len()];
        while let Ok(count) = far.read(&mut more) {
            read.extend(&more[..count]);
        }
        assert!(!rest.is_empty() && [read, rest].concat() == all);
        drop(far);
        outbox.take(&mut Vec::new());
        outbox.frames().extend(b"lost");
        assert!(!outbox.write(), "the host is gone");
    }
}
