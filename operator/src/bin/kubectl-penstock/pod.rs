//! What a worker shows to who is in its pod alone, by way of `kubectl port-forward`.

use std::process::Stdio;
use std::time::Duration;

use penstock_operator::build::PUBLIC_PORT;
use reqwest::{Response, StatusCode};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;

use super::Trouble;

/// How long the way to the pod may take, and then the answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// A page of a pod. `program` is kubectl, `scope` its arguments of namespace and context.
pub async fn page(program: &str, scope: &[&str], pod: &str, page: &str) -> Result<String, Trouble> {
    let asked = tokio::time::timeout(PATIENCE, ask(program, scope, pod, page));
    asked.await.unwrap_or_else(|_| {
        let seconds = PATIENCE.as_secs();
        Err(Trouble::Other(format!(
            "pod {pod} did not answer within {seconds} s"
        )))
    })
}

async fn ask(program: &str, scope: &[&str], pod: &str, page: &str) -> Result<String, Trouble> {
    let other =
        |e: &dyn std::fmt::Display| Trouble::Other(format!("pod {pod} does not answer: {e}"));
    let mut forward = Command::new(program)
        .arg("port-forward")
        .args(scope)
        .args(["--address", "127.0.0.1"])
        .args([format!("pod/{pod}"), format!(":{PUBLIC_PORT}")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| Trouble::Other(format!("cannot run {program}: {e}")))?;
    let (out, errors) = (forward.stdout.take(), forward.stderr.take());
    let mut lines = BufReader::new(out.ok_or_else(|| other(&"no pipe"))?).lines();
    let port = match lines.next_line().await.map_err(|e| other(&e))? {
        Some(line) => port_of(&line).ok_or_else(|| other(&line))?,
        None => {
            let mut why = String::new();
            if let Some(mut errors) = errors {
                errors
                    .read_to_string(&mut why)
                    .await
                    .map_err(|e| other(&e))?;
            }
            return Err(match why.contains("(Forbidden)") {
                true => Trouble::NoRight(why.trim().to_owned()),
                false => other(&why.trim()),
            });
        }
    };
    let answer = get(port, page).await.map_err(|e| other(&e))?;
    match answer.status() {
        StatusCode::OK => answer.text().await.map_err(|e| other(&e)),
        status => Err(other(&status)),
    }
}

/// The port that kubectl has taken: `Forwarding from 127.0.0.1:40123 -> 8080`.
fn port_of(line: &str) -> Option<u16> {
    let from = line.strip_prefix("Forwarding from 127.0.0.1:")?;
    from.split_once(' ')?.0.parse().ok()
}

async fn get(port: u16, page: &str) -> reqwest::Result<Response> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let url = format!("http://127.0.0.1:{port}{page}");
    client.get(url).send().await
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tokio::io::AsyncWriteExt;

    use super::*;

    /// A program in the place of kubectl.
    fn kubectl(folder: &std::path::Path, script: &str) -> String {
        let file = folder.join("kubectl");
        std::fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
        file.display().to_string()
    }

    #[tokio::test]
    async fn a_page_comes_through_the_forwarded_port() {
        // As `main` does; another test may have done it before.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = [0; 1024];
            let n = stream.read(&mut asked).await.unwrap();
            assert!(asked[..n].starts_with(b"GET /epochs HTTP/1.1\r\n"));
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]";
            stream.write_all(answer).await.unwrap();
            // The way to a pod stays open when the answer is whole.
            std::future::pending::<()>().await;
        });
        let folder = tempfile::tempdir().unwrap();
        let words = "port-forward --namespace risk --address 127.0.0.1 pod/payments-worker-0 :8080";
        let script = format!(
            r#"[ "$*" = "{words}" ] && echo "Forwarding from 127.0.0.1:{port} -> 8080"; sleep 20"#
        );
        let program = kubectl(folder.path(), &script);
        let scope = ["--namespace", "risk"];
        let text = page(&program, &scope, "payments-worker-0", "/epochs").await;
        assert_eq!(text.unwrap(), "[]");
    }

    #[tokio::test]
    async fn a_right_that_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let script = "echo 'Error from server (Forbidden): pods \"x\" is forbidden' >&2; exit 1";
        let program = kubectl(folder.path(), script);
        let refused = page(&program, &[], "x", "/epochs").await;
        assert!(matches!(refused, Err(Trouble::NoRight(why)) if why.contains("Forbidden")));
    }
}
