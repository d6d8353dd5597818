//! HTTP/2 frames written by hand (RFC 9113), for what no regular client sends.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

use super::daemon::SOON;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0x0;
pub const HEADERS: u8 = 0x1;
pub const RST_STREAM: u8 = 0x3;
pub const SETTINGS: u8 = 0x4;
pub const PING: u8 = 0x6;
pub const GOAWAY: u8 = 0x7;
pub const WINDOW_UPDATE: u8 = 0x8;
pub const CONTINUATION: u8 = 0x9;

pub const ACK: u8 = 0x1;
pub const END_STREAM: u8 = 0x1;
pub const END_HEADERS: u8 = 0x4;

pub const REFUSED_STREAM: u32 = 0x7;
pub const ENHANCE_YOUR_CALM: u32 = 0xb;

#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// A client's side of a connection, frame by frame.
pub struct Raw<S>(pub S);

impl Raw<TcpStream> {
    /// Connects without TLS and begins.
    pub async fn connect(address: SocketAddr) -> Self {
        Self::begin(TcpStream::connect(address).await.unwrap()).await
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Raw<S> {
    /// Sends the preface and empty settings.
    pub async fn begin(stream: S) -> Self {
        Self::begin_with(stream, &[]).await
    }

    /// Sends the preface and the payload of SETTINGS.
    pub async fn begin_with(stream: S, settings: &[u8]) -> Self {
        let mut raw = Self(stream);
        raw.send(PREFACE).await;
        raw.send(&frame(SETTINGS, 0, 0, settings)).await;
        raw
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        // The peer may have closed already: the caller checks what it sent before.
        let _ = self.0.write_all(bytes).await;
    }

    /// The next frame; `None` when the connection ends.
    pub async fn next(&mut self) -> Option<Frame> {
        self.next_within(SOON).await
    }

    pub async fn next_within(&mut self, time: Duration) -> Option<Frame> {
        tokio::time::timeout(time, async {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await.ok()?;
            let [l1, l2, l3, kind, flags, s1, s2, s3, s4] = head;
            let mut payload = vec![0; u32::from_be_bytes([0, l1, l2, l3]).try_into().unwrap()];
            self.0.read_exact(&mut payload).await.ok()?;
            Some(Frame { kind, flags, stream: u32::from_be_bytes([s1, s2, s3, s4]), payload })
        })
        .await
        .expect("the endpoint does not answer")
    }

    /// Skips to the next frame of a type.
    pub async fn next_of(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let frame = self.next().await?;
            if frame.kind == kind && !(kind == SETTINGS && frame.flags & ACK != 0) {
                return Some(frame);
            }
        }
    }
}

impl Frame {
    /// The error code at an offset of the payload.
    pub fn code_at(&self, offset: usize) -> u32 {
        u32::from_be_bytes(self.payload[offset..offset + 4].try_into().unwrap())
    }

    /// A setting of a SETTINGS frame.
    pub fn setting(&self, id: u16) -> Option<u32> {
        self.payload
            .chunks(6)
            .find(|entry| entry[..2] == id.to_be_bytes())
            .map(|entry| u32::from_be_bytes(entry[2..].try_into().unwrap()))
    }
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, l1, l2, l3] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&[l1, l2, l3, kind, flags][..], &stream.to_be_bytes(), payload].concat()
}

/// HEADERS of a call of the certificate service, the body to follow.
pub fn call(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &call_headers("/istio.v1.auth.IstioCertificateService/CreateCertificate"))
}

/// The header block of a call (HPACK, RFC 7541: literals without indexing).
pub fn call_headers(path: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x86, 0x04];
    text(&mut block, path);
    block.push(0x01);
    text(&mut block, "localhost");
    block.extend([0x0f, 0x10]);
    text(&mut block, "application/grpc");
    block
}

/// A header of the name `x` and a value of a length.
pub fn header(length: usize) -> Vec<u8> {
    let mut block = vec![0x00];
    text(&mut block, "x");
    text(&mut block, &"v".repeat(length));
    block
}

/// A string without Huffman code; its length with a prefix of seven bits (RFC 7541, section 5.1).
fn text(block: &mut Vec<u8>, text: &str) {
    match u8::try_from(text.len()) {
        Ok(length @ 0..127) => block.push(length),
        _ => {
            block.push(127);
            let mut rest = text.len() - 127;
            while rest >= 128 {
                block.push((rest % 128) as u8 | 128);
                rest /= 128;
            }
            block.push(rest as u8);
        }
    }
    block.extend(text.as_bytes());
}
