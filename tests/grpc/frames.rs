//! HTTP/2 by hand (RFC 9113), for what no decent client would send.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::harness::SOON;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0x0;
pub const HEADERS: u8 = 0x1;
pub const RST_STREAM: u8 = 0x3;
pub const SETTINGS: u8 = 0x4;
pub const PING: u8 = 0x6;
pub const GOAWAY: u8 = 0x7;

pub const ACK: u8 = 0x1;
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

pub struct Raw(pub TcpStream);

impl Raw {
    /// Connects without TLS and sends the preface.
    pub async fn connect(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(PREFACE).await.unwrap();
        let mut raw = Self(stream);
        raw.send(&frame(SETTINGS, 0, 0, &[])).await;
        raw
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        // The other end may have closed already: the caller looks at what it said before.
        let _ = self.0.write_all(bytes).await;
    }

    /// The next frame; none when the connection ends.
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
        .expect("the endpoint says nothing")
    }

    /// Skips to the next frame of a kind.
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

    /// The settings of a SETTINGS frame.
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

/// HEADERS of a call of the certificate service (HPACK, RFC 7541: literals without indexing), the body to follow.
pub fn call(stream: u32) -> Vec<u8> {
    fn text(block: &mut Vec<u8>, text: &str) {
        block.push(text.len().try_into().unwrap());
        block.extend(text.as_bytes());
    }
    let mut block = vec![0x83, 0x86, 0x04];
    text(&mut block, "/istio.v1.auth.IstioCertificateService/CreateCertificate");
    block.push(0x01);
    text(&mut block, "localhost");
    block.extend([0x0f, 0x10]);
    text(&mut block, "application/grpc");
    frame(HEADERS, END_HEADERS, stream, &block)
}
