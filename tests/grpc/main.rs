//! The gRPC front end at its boundary: real sockets on the loopback, real TLS, real HTTP/2.

mod agent;
mod frames;
mod generated;
mod harness;
mod limits;
mod serving;
mod tls;
