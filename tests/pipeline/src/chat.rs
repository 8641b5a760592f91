//! A chat server on loopback that answers what a test tells it to.

#![expect(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a test fails by panicking, in its helpers too"
)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use image::RgbImage;
use serde_json::{Value, json};

/// What the server says to a request.
#[derive(Debug)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// JSON.
    pub body: String,
}

impl Reply {
    /// An answer of the model.
    pub fn answer(text: &str) -> Self {
        let body = json!({
            "model": "served",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 7},
        });
        Self { status: 200, body: body.to_string() }
    }

    /// An answer of one token, with the probabilities of the likeliest ones.
    pub fn token(text: &str, top: &[(&str, f64)]) -> Self {
        let logprob = |text: &str| top.iter().find(|(top, _)| *top == text).map_or(-9999.0, |(_, p)| p.ln());
        let top: Vec<Value> = top.iter().map(|(text, p)| json!({"token": text, "logprob": p.ln()})).collect();
        let token = json!({"token": text, "logprob": logprob(text), "top_logprobs": top});
        let body = json!({
            "model": "served",
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
                "logprobs": {"content": [token]},
            }],
        });
        Self { status: 200, body: body.to_string() }
    }

    /// A refusal, or a server that is not well.
    pub fn error(status: u16, message: &str) -> Self {
        Self { status, body: json!({"error": {"message": message}}).to_string() }
    }
}

type Answers = dyn Fn(usize, &Value) -> Reply + Send + Sync;

/// The server. Requests are numbered from 0 in the order they came.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    state: Arc<State>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Server({})", self.address)
    }
}

struct State {
    answers: Box<Answers>,
    /// Bodies are kept for tests, not for measurements.
    keeps: bool,
    seen: Mutex<Vec<Value>>,
    heads: Mutex<Vec<String>>,
    count: AtomicUsize,
    stop: AtomicBool,
    models: Vec<&'static str>,
    /// What the list of models is answered with.
    models_status: AtomicU16,
}

impl Server {
    /// Starts it; `answers` is given the number of a request and its body.
    pub fn start(answers: impl Fn(usize, &Value) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), &["served"], answers)
    }

    /// Always the same answer.
    pub fn says(text: &'static str) -> Self {
        Self::start(move |_, _| Reply::answer(text))
    }

    /// The same at an address and with a list of models.
    pub fn start_at(
        address: SocketAddr,
        models: &[&'static str],
        answers: impl Fn(usize, &Value) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::launch(address, models, true, Box::new(answers))
    }

    /// Reads requests whole and answers at once, without looking into them.
    pub fn instant() -> Self {
        let answers = |_: usize, _: &Value| Reply::answer("[EXPLANATION]: a red circle");
        Self::launch("127.0.0.1:0".parse().unwrap(), &["served"], false, Box::new(answers))
    }

    fn launch(address: SocketAddr, models: &[&'static str], keeps: bool, answers: Box<Answers>) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            answers,
            keeps,
            seen: Mutex::default(),
            heads: Mutex::default(),
            count: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            models: models.to_vec(),
            models_status: AtomicU16::new(200),
        });
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                if shared.stop.load(Ordering::SeqCst) {
                    return;
                }
                let state = Arc::clone(&shared);
                std::thread::spawn(move || serve(connection.unwrap(), &state));
            }
        });
        Self { address, state }
    }

    /// What `--endpoint` takes.
    pub fn endpoint(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// How many chat requests came whole.
    pub fn count(&self) -> usize {
        self.state.count.load(Ordering::SeqCst)
    }

    /// From now on the list of models is answered with this status.
    pub fn models_answer(&self, status: u16) {
        self.state.models_status.store(status, Ordering::SeqCst);
    }

    /// The bodies that came so far.
    pub fn seen(&self) -> Vec<Value> {
        self.state.seen.lock().unwrap().clone()
    }

    /// Their heads.
    pub fn heads(&self) -> Vec<String> {
        self.state.heads.lock().unwrap().clone()
    }

    /// Stops answering and listening; the address is free when this returns.
    pub fn stop(self) -> SocketAddr {
        self.state.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        while TcpStream::connect(self.address).is_ok() {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.address
    }
}

/// The pictures of a request, decoded, and its words.
pub fn shown(request: &Value) -> (Vec<RgbImage>, String) {
    let content = &request["messages"][0]["content"];
    if let Some(text) = content.as_str() {
        return (Vec::new(), text.to_owned());
    }
    let (mut pictures, mut text) = (Vec::new(), String::new());
    for part in content.as_array().unwrap() {
        if let Some(url) = part["image_url"]["url"].as_str() {
            let (head, data) = url.split_once(',').unwrap();
            assert!(head.starts_with("data:image/") && head.ends_with(";base64"), "{head}");
            let bytes = base64::engine::general_purpose::STANDARD.decode(data).unwrap();
            pictures.push(lmm_prep::decode_image(&bytes).unwrap());
        } else {
            text += part["text"].as_str().unwrap();
        }
    }
    (pictures, text)
}

/// Answers the requests of one connection.
fn serve(mut stream: TcpStream, state: &State) {
    let _ = stream.set_nodelay(true);
    let mut bytes = Vec::new();
    loop {
        let Some(end) = read_head(&mut stream, &mut bytes) else { return };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().unwrap())
        });
        let start = end + 4;
        let whole = start + length.unwrap_or(0);
        let have = bytes.len();
        if have < whole {
            bytes.resize(whole, 0);
            if stream.read_exact(&mut bytes[have..]).is_err() {
                return;
            }
        }
        if state.stop.load(Ordering::SeqCst) {
            return;
        }
        let reply = if head.starts_with("GET /v1/models ") {
            let data: Vec<Value> = state.models.iter().map(|id| json!({"id": id})).collect();
            let status = state.models_status.load(Ordering::SeqCst);
            Reply { status, body: json!({"object": "list", "data": data}).to_string() }
        } else if head.starts_with("POST /v1/chat/completions ") {
            let number = state.count.fetch_add(1, Ordering::SeqCst);
            let request = if state.keeps {
                let request: Value = serde_json::from_slice(&bytes[start..whole]).unwrap();
                state.seen.lock().unwrap().push(request.clone());
                state.heads.lock().unwrap().push(head);
                request
            } else {
                Value::Null
            };
            (state.answers)(number, &request)
        } else {
            Reply::error(404, "no such place")
        };
        let Reply { status, body } = reply;
        let text = format!(
            "HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        if stream.write_all(text.as_bytes()).is_err() {
            return;
        }
        bytes.drain(..whole);
    }
}

/// Reads until a head is whole; gives where it ends.
fn read_head(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<usize> {
    let mut chunk = vec![0; 1 << 16];
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            return Some(end);
        }
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return None,
            Ok(n) => bytes.extend_from_slice(&chunk[..n]),
        }
    }
}
