//! A server on threads whose every byte the test decides.

// Each test program uses another part of it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    /// How many came before it, over all connections.
    pub number: usize,
    pub path: String,
    pub headers: Vec<(String, String)>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, v)| v.as_str())
    }
}

#[derive(Clone)]
pub struct Server {
    pub address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    connections: Arc<AtomicUsize>,
}

impl Server {
    /// Serves plain HTTP. The handler says whether the connection is kept.
    pub fn start(
        handler: impl Fn(&Request, &mut dyn Write) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self::start_with(handler, Some)
    }

    /// Serves over whatever `wrap` makes of a connection.
    pub fn start_with<S: Read + Write + 'static>(
        handler: impl Fn(&Request, &mut dyn Write) -> bool + Send + Sync + 'static,
        wrap: impl Fn(TcpStream) -> Option<S> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            requests: Arc::default(),
            connections: Arc::default(),
        };
        let (shared, both) = (server.clone(), Arc::new((handler, wrap)));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                shared.connections.fetch_add(1, Ordering::SeqCst);
                let (shared, both) = (shared.clone(), Arc::clone(&both));
                std::thread::spawn(move || {
                    if let Some(stream) = both.1(stream) {
                        shared.converse(stream, &both.0);
                    }
                });
            }
        });
        server
    }

    fn converse(
        &self,
        stream: impl Read + Write,
        handler: &dyn Fn(&Request, &mut dyn Write) -> bool,
    ) {
        let mut stream = BufReader::new(stream);
        loop {
            let mut lines = Vec::new();
            loop {
                let mut line = String::new();
                if stream.read_line(&mut line).unwrap_or(0) == 0 {
                    return;
                }
                let line = line.trim_end();
                if line.is_empty() {
                    break;
                }
                lines.push(line.to_owned());
            }
            let path = lines[0].split(' ').nth(1).unwrap_or_default().to_owned();
            let headers = lines[1..].iter().filter_map(|l| l.split_once(": "));
            let headers = headers.map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
            let request = {
                let mut all = self.requests.lock().unwrap();
                let request = Request {
                    number: all.len(),
                    path,
                    headers,
                };
                all.push(request.clone());
                request
            };
            if !handler(&request, stream.get_mut()) {
                return;
            }
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Sends a whole answer; true, so that the connection is kept.
pub fn answer(out: &mut dyn Write, status: &str, headers: &str, body: &[u8]) -> bool {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    );
    out.write_all(&[head.as_bytes(), body].concat()).is_ok() && out.flush().is_ok()
}

/// What passes for a profile before it is decoded.
pub const PROFILE: &[u8] = b"\x1f\x8b\x08 not a real one, but it starts like one";

pub fn profile(out: &mut dyn Write) -> bool {
    answer(
        out,
        "200 OK",
        "Content-Type: application/octet-stream\r\n",
        PROFILE,
    )
}
