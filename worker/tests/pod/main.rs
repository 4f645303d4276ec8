//! The program as it runs in a pod: its supervisor, and a version on trial. What both need to start it, ask it and end it is here.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Child;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

mod history;
mod supervise;
mod trial;

/// How long anything may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// The identity of the logs of these tests.
const LOG_ID: &str = "0f3c0000111122223333444455556666";

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// The body of an answer, when there is one and it is 200.
fn get(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: test\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.contains(" 200 ").then(|| body.to_owned())
}

/// Asks again until it is so.
fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let last = Instant::now() + PATIENCE;
    loop {
        if let Some(is) = ask() {
            return is;
        }
        assert!(Instant::now() < last, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The exit code of a process that ends by itself.
fn ended(child: &mut Child) -> Option<i32> {
    until("the process ends", || child.try_wait().unwrap()).code()
}

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// As the kubelet stops a pod.
fn terminate(child: &Child) {
    signal(i32::try_from(child.id()).unwrap(), Signal::TERM);
}
