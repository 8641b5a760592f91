//! A real HTTP server on loopback that misbehaves, and a client that copes.
#![allow(clippy::unwrap_used, reason = "tests and their helpers")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use chat_client::{
    ApiKey, ChatClient, ChatError, ChatMessage, ChatRequest, ClientOptions, FinishReason, Image, Prices,
    RetryPolicy, Usage,
};

/// What the server does with a request.
#[derive(Clone)]
enum Mood {
    /// Status, more header lines, body.
    Says(u16, &'static str, String),
    /// Answers well after a while.
    Slow(Duration),
    /// Closes the connection without a word.
    Hangs,
    /// Promises more bytes than it sends.
    Cuts,
}

/// A request as the server saw it.
#[derive(Clone)]
struct Seen {
    head: String,
    body: String,
    at: Instant,
}

/// A server that has one mood per chat request and is well when they are used up.
struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    at_once: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

fn well() -> String {
    r#"{"id":"1","model":"served","choices":[{"index":0,"message":{"role":"assistant","content":"a red circle"},
        "finish_reason":"stop"}],"usage":{"prompt_tokens":100,"completion_tokens":20,"total_tokens":120}}"#
        .to_owned()
}

impl Server {
    fn start(moods: Vec<Mood>) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), moods)
    }

    fn start_at(address: SocketAddr, moods: Vec<Mood>) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let moods = Arc::new(Mutex::new(moods.into_iter()));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (at_once, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let server = Self { address, seen: seen.clone(), at_once: at_once.clone(), stop: stop.clone() };
        std::thread::spawn(move || {
            let now = Arc::new(AtomicUsize::new(0));
            for connection in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let (moods, seen, at_once, now) = (moods.clone(), seen.clone(), at_once.clone(), now.clone());
                std::thread::spawn(move || serve(connection.unwrap(), &moods, &seen, &at_once, &now));
            }
        });
        server
    }

    fn options(&self) -> ClientOptions {
        ClientOptions {
            retry: RetryPolicy {
                attempts: 4,
                first_wait: Duration::from_millis(10),
                longest_wait: Duration::from_millis(100),
            },
            timeout: Duration::from_secs(2),
            patience: Duration::from_secs(20),
            ..ClientOptions::new(format!("http://{}/v1", self.address))
        }
    }

    fn client(&self) -> ChatClient {
        ChatClient::new(self.options()).unwrap()
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Stops listening; its address is free when this returns.
    fn stop(self) -> SocketAddr {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        while TcpStream::connect(self.address).is_ok() {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.address
    }
}

/// Answers one request and closes.
fn serve(
    mut stream: TcpStream,
    moods: &Mutex<impl Iterator<Item = Mood>>,
    seen: &Mutex<Vec<Seen>>,
    at_once: &AtomicUsize,
    now: &AtomicUsize,
) {
    let mut bytes = Vec::new();
    let mut chunk = [0; 8192];
    let (head, body) = loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                break (head.to_owned(), body.to_owned());
            }
        }
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return,
            Ok(n) => bytes.extend_from_slice(&chunk[..n]),
        }
    };
    let send = |stream: &mut TcpStream, status: u16, headers: &str, body: &str, promised: usize| {
        let _ = write!(
            stream,
            "HTTP/1.1 {status} x\r\nContent-Length: {promised}\r\nConnection: close\r\n{headers}\r\n{body}"
        );
    };
    if head.starts_with("GET /v1/models ") {
        let list = r#"{"object":"list","data":[{"id":"served"},{"id":"other"}]}"#;
        return send(&mut stream, 200, "", list, list.len());
    }
    let busy = now.fetch_add(1, Ordering::SeqCst) + 1;
    at_once.fetch_max(busy, Ordering::SeqCst);
    seen.lock().unwrap().push(Seen { head, body, at: Instant::now() });
    let mood = moods.lock().unwrap().next();
    if let Some(Mood::Slow(wait)) = mood {
        std::thread::sleep(wait);
    }
    // Before the answer, upon which the client sends the next.
    now.fetch_sub(1, Ordering::SeqCst);
    match mood {
        Some(Mood::Says(status, headers, body)) => send(&mut stream, status, headers, &body, body.len()),
        Some(Mood::Hangs) => {}
        Some(Mood::Cuts) => send(&mut stream, 200, "", &well()[..40], well().len()),
        Some(Mood::Slow(_)) | None => send(&mut stream, 200, "", &well(), well().len()),
    }
}

fn request() -> ChatRequest {
    ChatRequest::new(
        "m",
        [ChatMessage::user("What is lit?").with_image(Image::new("image/png", vec![7; 50_000]))],
    )
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(future)
}

fn says(status: u16, body: &str) -> Mood {
    Mood::Says(status, "", body.to_owned())
}

#[test]
fn a_good_answer_is_read_whole_and_counted() {
    let server = Server::start(Vec::new());
    let prices = Some(Prices { prompt: 2.0, completion: 10.0 });
    let client =
        ChatClient::new(ClientOptions { key: ApiKey::new("sk-secret"), prices, ..server.options() }).unwrap();
    let reply = block_on(client.complete(&request())).unwrap();
    assert_eq!((reply.text.as_str(), reply.model.as_str(), reply.attempts), ("a red circle", "served", 1));
    assert_eq!(reply.finish_reason, FinishReason::Stop);
    assert_eq!(reply.usage, Usage { prompt_tokens: 100, completion_tokens: 20 });
    let totals = client.totals();
    assert_eq!((totals.answered, totals.retries, totals.usage), (1, 0, reply.usage));
    assert!((totals.cost.unwrap() - 0.0004).abs() < 1e-12);
    let seen = &server.seen()[0];
    assert!(seen.head.starts_with("POST /v1/chat/completions HTTP/1.1"), "{}", seen.head);
    assert!(seen.head.to_lowercase().contains("authorization: bearer sk-secret"), "{}", seen.head);
    assert!(seen.body.contains("data:image/png;base64,Bwc"));
    assert!(!format!("{client:?}").contains("sk-secret"), "a key in a log");
    assert_eq!(block_on(client.models()).unwrap(), ["served", "other"]);
}

#[test]
fn moods_pass() {
    for mood in [
        says(429, r#"{"error":{"message":"slow down"}}"#),
        says(500, "oops"),
        says(503, ""),
        says(408, ""),
        says(200, "<html>not JSON"),
        says(200, r#"{"choices":[]}"#),
        says(200, r#"{"choices":[{"message":{"content":null},"finish_reason":"stop"}]}"#),
        says(200, r#"{"choices":[{"message":{"content":"  "},"finish_reason":"length"}]}"#),
        says(200, r#"{"object":"error","message":"CUDA out of memory"}"#),
        says(502, "bad gateway"),
        Mood::Hangs,
        Mood::Cuts,
        Mood::Slow(Duration::from_millis(2300)),
    ] {
        let server = Server::start(vec![mood; 2]);
        let client = server.client();
        let reply = block_on(client.complete(&request())).unwrap();
        assert_eq!((reply.text.as_str(), reply.attempts), ("a red circle", 3));
        assert_eq!((client.totals().answered, client.totals().retries), (1, 2));
    }
}

#[test]
fn what_would_not_pass_is_told_at_once() {
    for (status, body, says_so) in [
        (401, r#"{"error":{"message":"bad key"}}"#, "answered 401: bad key (is the API key right?)"),
        (404, r#"{"detail":"Not Found"}"#, "answered 404: Not Found (are the endpoint, up to /v1,"),
        (400, r#"{"object":"error","message":"too many images"}"#, "answered 400: too many images"),
        (429, r#"{"error":{"message":"no credit","code":"insufficient_quota"}}"#, "answered 429: no credit"),
        (302, "", "answered 302: no message"),
    ] {
        let server = Server::start(vec![says(status, body); 5]);
        let error = block_on(server.client().complete(&request())).unwrap_err().to_string();
        assert!(error.contains(says_so), "{error}");
        assert_eq!(server.seen().len(), 1);
    }
}

#[test]
fn attempts_end_and_the_last_failure_is_told() {
    let server = Server::start(vec![says(500, r#"{"error":"out of memory"}"#); 9]);
    let client = server.client();
    let error = block_on(client.complete(&request())).unwrap_err().to_string();
    assert!(
        error.contains("no answer in 4 attempts; the last: 500 Internal Server Error: out of memory"),
        "{error}"
    );
    assert_eq!((server.seen().len(), client.totals().failed), (4, 1));
}

#[test]
fn retry_after_is_heeded() {
    let busy = Mood::Says(429, "Retry-After: 1\r\n", String::new());
    let server = Server::start(vec![busy]);
    block_on(server.client().complete(&request())).unwrap();
    let seen = server.seen();
    assert!(seen[1].at - seen[0].at >= Duration::from_secs(1), "{:?}", seen[1].at - seen[0].at);
}

#[test]
fn no_more_than_allowed_are_on_their_way() {
    let server = Server::start(vec![Mood::Slow(Duration::from_millis(50)); 12]);
    let max_concurrent = NonZeroUsize::new(3).unwrap();
    let client = ChatClient::new(ClientOptions { max_concurrent, ..server.options() }).unwrap();
    block_on(async {
        let calls: Vec<_> = (0..12)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move { client.complete(&request()).await })
            })
            .collect();
        for call in calls {
            call.await.unwrap().unwrap();
        }
    });
    let at_once = server.at_once.load(Ordering::SeqCst);
    assert!((2..=3).contains(&at_once), "{at_once} at once");
}

#[test]
fn starts_are_spread_over_the_minute() {
    let server = Server::start(Vec::new());
    let requests_per_minute = NonZeroUsize::new(600);
    let client = ChatClient::new(ClientOptions { requests_per_minute, ..server.options() }).unwrap();
    let started = Instant::now();
    block_on(async {
        for _ in 0..6 {
            client.complete(&request()).await.unwrap();
        }
    });
    assert!(started.elapsed() >= Duration::from_millis(500), "{:?}", started.elapsed());
}

#[test]
fn a_restarted_server_is_waited_for_and_costs_no_attempt() {
    let server = Server::start(Vec::new());
    let retry = RetryPolicy { attempts: 4, ..server.options().retry };
    let client = ChatClient::new(ClientOptions { retry, ..server.options() }).unwrap();
    let address = server.stop();
    let back = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(1500));
        Server::start_at(address, Vec::new())
    });
    block_on(async {
        let calls: Vec<_> = (0..20)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move { client.complete(&request()).await })
            })
            .collect();
        for call in calls {
            assert!(call.await.unwrap().unwrap().attempts <= 4);
        }
    });
    let server = back.join().unwrap();
    assert_eq!(client.totals().answered, 20);
    assert!(client.totals().outages > 0);
    assert_eq!(server.seen().len(), 20, "nothing was sent twice");
}

#[test]
fn a_server_that_stays_away_is_given_up() {
    let server = Server::start(Vec::new());
    let patience = Duration::from_millis(300);
    let client = ChatClient::new(ClientOptions { patience, ..server.options() }).unwrap();
    server.stop();
    let started = Instant::now();
    let error = block_on(client.complete(&request())).unwrap_err();
    assert!(
        matches!(error, ChatError::Gone { .. }) && error.to_string().contains("start the server"),
        "{error}"
    );
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[test]
fn a_proxy_without_a_server_is_waited_for() {
    // 503 of a server that is busy, and of a proxy that has none.
    let busy = says(503, r#"{"error":{"message":"busy"}}"#);
    let server = Server::start(vec![busy; 9]);
    let error = block_on(server.client().complete(&request())).unwrap_err();
    assert!(matches!(error, ChatError::GaveUp { attempts: 4, .. }), "{error}");
    let server = Server::start(vec![says(503, "<html>no backend"); 3]);
    let client = server.client();
    let reply = block_on(client.complete(&request())).unwrap();
    // Lost are the two before it was noticed.
    assert_eq!((reply.attempts, server.seen().len(), client.totals().outages), (3, 4, 1));
}

#[test]
fn options_that_make_no_client_are_named() {
    for url in ["", "localhost:30000", "ftp://x/v1", "http://"] {
        let error = ChatClient::new(ClientOptions::new(url)).unwrap_err().to_string();
        assert!(error.starts_with("the base URL is"), "{url}: {error}");
    }
    for url in [
        "https://me:pass-1@x/v1",
        "https://me@x/v1",
        "https://x/v1?key=pass-1",
        "https://x/v1#pass-1",
        "https://me:pass-1@",
    ] {
        let error = ChatClient::new(ClientOptions::new(url)).unwrap_err().to_string();
        assert!(!error.contains("pass-1") && error.starts_with("the base URL is \"hidden\""), "{error}");
    }
    ChatClient::new(ClientOptions::new("https://x/v1?api-version=2024-10-21")).unwrap();
    let key = ApiKey::new("two\nlines");
    let error = ChatClient::new(ClientOptions { key, ..ClientOptions::new("http://x/v1") }).unwrap_err();
    assert!(!error.to_string().contains("lines\""), "{error}");
    assert_eq!(ApiKey::new("  "), None);
}
