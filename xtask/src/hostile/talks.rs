//! Conversations that no sound server of HTTP has.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::profiles::{Dice, gzip};

/// How many kinds there are.
pub const KINDS: u64 = 30;
/// Nobody is kept longer than this, whatever the other side does.
const LONGEST: Duration = Duration::from_secs(40);
/// Of so many conversations with one of the slow kinds one is slow: each takes as long as
/// memtrace has patience.
const SLOW_ONE_IN: u64 = 3;

/// Conversation number `number` about a profile that is `honest`.
pub fn hold(number: u64, stream: &mut TcpStream, honest: &[u8]) {
    let mut dice = Dice(number.wrapping_mul(0x9e6c_63d0_876a_68ad));
    let _ = stream.set_write_timeout(Some(Duration::from_secs(5)));
    let begun = Instant::now();
    let kind = number % KINDS;
    // An early end, which kinds that are not slow now come to.
    let is_slow = dice.below(SLOW_ONE_IN) == 0;
    let slowly = |stream: &mut TcpStream, bytes: &[u8]| {
        for byte in bytes.chunks(1 + bytes.len() / 400) {
            if !is_slow || begun.elapsed() > LONGEST || stream.write_all(byte).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    let endlessly = |stream: &mut TcpStream, bytes: &[u8]| {
        while begun.elapsed() < LONGEST && stream.write_all(bytes).is_ok() {}
    };
    let ok = |length: &str| {
        format!("HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n{length}\r\n")
    };
    let half = &honest[..honest.len() / 2];
    let answer: Vec<u8> = match kind {
        // Slow: heads, bodies, chunks; or nothing at all.
        0 => return slowly(stream, ok("X: y\r\n").repeat(4).as_bytes()),
        1 => {
            let _ = stream.write_all(ok("Content-Length: 100000\r\n").as_bytes());
            return slowly(stream, honest);
        }
        2 => {
            let _ = stream.write_all(ok("Transfer-Encoding: chunked\r\n").as_bytes());
            return slowly(stream, &b"1\r\nx\r\n".repeat(100));
        }
        3 => {
            if is_slow {
                let _ = stream.set_read_timeout(Some(LONGEST));
                // Until the other side has had enough.
                let _ = stream.read(&mut [0; 64]);
            }
            return;
        }
        // Without end.
        4 => {
            let _ = stream.write_all(ok("").as_bytes());
            return endlessly(stream, &vec![0x0a; 64 << 10]);
        }
        5 => {
            let _ = stream.write_all(ok("Transfer-Encoding: chunked\r\n").as_bytes());
            let chunk = [b"10000\r\n", &vec![0x0a; 0x10000][..], b"\r\n"].concat();
            return endlessly(stream, &chunk);
        }
        6 => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
            return endlessly(
                stream,
                format!("X-{number}: {}\r\n", "y".repeat(1000)).as_bytes(),
            );
        }
        7 => {
            let _ = stream.write_all(b"HTTP/1.1 200 ");
            return endlessly(stream, &[b'O'; 4096]);
        }
        8 if is_slow => return endlessly(stream, b"HTTP/1.1 100 Continue\r\n\r\n"),
        8 => b"HTTP/1.1 100 Continue\r\n\r\n".repeat(100),
        // Broken off: with what was asked unread, the kernel answers with a reset.
        9 => return,
        10 => ok("Content-Length: 1000000\r\n").into_bytes(),
        11 => [
            ok(&format!("Content-Length: {}\r\n", honest.len())).as_bytes(),
            half,
        ]
        .concat(),
        12 => b"HTTP/1.1 2".to_vec(),
        // Lengths that are wrong.
        13 => [ok("Content-Length: 10\r\n").as_bytes(), honest].concat(),
        14 => ok("Content-Length: 18446744073709551615\r\n").into_bytes(),
        15 => ok("Content-Length: -5\r\n").into_bytes(),
        16 => [
            ok("Content-Length: 5\r\nContent-Length: 7\r\n").as_bytes(),
            honest,
        ]
        .concat(),
        17 => [
            ok("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n").as_bytes(),
            b"5\r\nhello\r\n0\r\n\r\n",
        ]
        .concat(),
        18 => [
            ok("Transfer-Encoding: chunked\r\n").as_bytes(),
            [
                &b"zz\r\n"[..],
                b"ffffffffffffffff\r\n",
                b"-1\r\n",
                b"5;x=y\r\nab",
            ][dice.below(4) as usize],
        ]
        .concat(),
        // Elsewhere.
        19 => b"HTTP/1.1 302 Found\r\nLocation: /debug/pprof/heap\r\nContent-Length: 0\r\n\r\n"
            .to_vec(),
        20 => format!(
            "HTTP/1.1 307 T\r\nLocation: {}\r\nContent-Length: 0\r\n\r\n",
            [
                "//[::",
                "http://127.0.0.1:1/x",
                "file:///etc/passwd",
                "\u{202e}"
            ][dice.below(4) as usize]
        )
        .into_bytes(),
        // Other languages.
        21 => honest.to_vec(),
        22 => b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03".repeat(20),
        23 => b"SSH-2.0-OpenSSH_9.9\r\n".to_vec(),
        24 => b"HTTP/2.0 200\r\n\r\n".to_vec(),
        25 => b"HTTP/1.1 200 OK\r\nA\0B: c\r\n: \r\n\x1b[2J\r\n\r\n".to_vec(),
        // Said to be compressed, once more or otherwise.
        26 => {
            let body = gzip(&gzip(&vec![0; 1 << 20]));
            let head = format!(
                "Content-Encoding: gzip, gzip, br\r\nContent-Length: {}\r\n",
                body.len()
            );
            [ok(&head).as_bytes(), &body].concat()
        }
        27 => b"HTTP/1.1 503 \r\nRetry-After: 0\r\nContent-Length: 99999999\r\n\r\n".to_vec(),
        28 => b"HTTP/1.1 999 \x1b]0;x\x07\r\nRetry-After: Sun, 99 Xxx 9999\r\n\r\n".to_vec(),
        // More than was asked for: the next answer before the next question.
        _ => {
            let one = [
                ok(&format!("Content-Length: {}\r\n", honest.len())).as_bytes(),
                honest,
            ]
            .concat();
            [&one[..], &one].concat()
        }
    };
    let _ = stream.write_all(&answer);
}
