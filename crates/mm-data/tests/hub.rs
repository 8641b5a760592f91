//! Downloads from a Hub on the loopback: a real HTTP server, the real client.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use mm_data::hub::{Hub, RepoKind};
use mm_data::{DataError, ImageColumn, OpenOptions, ParquetWriter, Sample};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Serves one repository's files as the Hub does; lives until the test's process ends.
struct FakeHub {
    endpoint: String,
    /// Request lines with the token each carried.
    requests: Arc<Mutex<Vec<String>>>,
}

impl FakeHub {
    /// `repository` as it stands in addresses: `models/…` or `datasets/…`.
    fn serve(repository: &'static str, files: BTreeMap<&'static str, Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                answer(stream.unwrap(), repository, &files, &log);
            }
        });
        Self { endpoint, requests }
    }

    fn client(&self, cache: &Path) -> Hub {
        let mut hub = Hub::from_env();
        hub.endpoint.clone_from(&self.endpoint);
        hub.cache = PathBuf::from(cache);
        hub.token = Some("hf_test".to_owned());
        hub.offline = false;
        hub
    }

    fn requests(&self) -> Vec<String> {
        std::mem::take(&mut *self.requests.lock().unwrap())
    }
}

fn answer(
    mut stream: TcpStream,
    repository: &str,
    files: &BTreeMap<&'static str, Vec<u8>>,
    log: &Mutex<Vec<String>>,
) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(request) = lines.next() else { return };
    let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let header = |name: &str| {
        headers.iter().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    };
    let path = request.split(' ').nth(1).unwrap_or_default();
    log.lock().unwrap().push(format!("{path} {}", header("authorization").unwrap_or_default()));
    let below = repository.strip_prefix("models/").unwrap_or(repository);
    let file =
        path.strip_prefix(&format!("/{below}/resolve/{COMMIT}/")).and_then(|name| files.get_key_value(name));
    let known = [format!("/api/{repository}/revision/main"), format!("/api/{repository}/revision/{COMMIT}")];
    let mut body = Vec::new();
    let head;
    if let Some((name, bytes)) = file {
        let range = header("range").unwrap_or_default();
        let (start, end) = range.trim_start_matches("bytes=").split_once('-').unwrap_or(("0", ""));
        let start: usize = start.parse().unwrap_or(0);
        let end = end.parse().map_or(bytes.len(), |end: usize| (end + 1).min(bytes.len()));
        body.extend_from_slice(&bytes[start..end]);
        head = format!(
            "HTTP/1.1 206 Partial Content\r\nETag: \"etag-{}\"\r\nX-Repo-Commit: {COMMIT}\r\n\
             Content-Range: bytes {start}-{}/{}\r\n",
            name.replace('/', "-"),
            end.max(1) - 1,
            bytes.len()
        );
    } else if known.iter().any(|known| known == path) {
        let names: Vec<String> = files.keys().map(|name| format!("{{\"rfilename\": \"{name}\"}}")).collect();
        body = format!("{{\"sha\": \"{COMMIT}\", \"siblings\": [{}]}}", names.join(", ")).into_bytes();
        head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n".to_owned();
    } else {
        head = "HTTP/1.1 404 Not Found\r\n".to_owned();
    }
    let end = format!("Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    let _ = stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(end.as_bytes()))
        .and_then(|()| stream.write_all(&body));
}

fn model() -> FakeHub {
    let files = BTreeMap::from([
        ("config.json", b"{}".to_vec()),
        ("model-00001-of-00002.safetensors", vec![7; 300_000]),
        ("model-00002-of-00002.safetensors", vec![8; 10]),
        ("layers.24/sae.safetensors", vec![9; 100]),
        ("pytorch_model.bin", vec![1; 50]),
        ("../../escaped.json", b"bad".to_vec()),
    ]);
    FakeHub::serve("models/org/model", files)
}

#[test]
fn a_model_is_downloaded_once() {
    let hub = model();
    let cache = tempfile::tempdir().unwrap();
    let client = hub.client(cache.path());
    let folder = client.resolve("org/model", RepoKind::Model, &["*.json", "*.safetensors"]).unwrap();
    assert!(folder.ends_with(format!("models--org--model/snapshots/{COMMIT}")), "{}", folder.display());
    assert_eq!(fs::read(folder.join("model-00001-of-00002.safetensors")).unwrap(), vec![7; 300_000]);
    assert_eq!(fs::read(folder.join("layers.24/sae.safetensors")).unwrap(), vec![9; 100]);
    assert!(!folder.join("pytorch_model.bin").exists());
    assert!(!cache.path().join("models--org--model/escaped.json").exists());
    let requests = hub.requests();
    assert!(requests.iter().all(|request| request.ends_with(" Bearer hf_test")), "{requests:?}");
    assert!(!requests.iter().any(|request| request.contains("escaped")), "{requests:?}");

    // Again: the list only. Offline: nothing. With the Hub gone: from the cache.
    assert_eq!(
        client.resolve("org/model@main", RepoKind::Model, &["*.json", "*.safetensors"]).unwrap(),
        folder
    );
    assert_eq!(hub.requests().len(), 1);
    let offline = Hub { offline: true, ..client.clone() };
    assert_eq!(offline.snapshot("org/model", RepoKind::Model, "main", &[]).unwrap(), folder);
    let gone = Hub { endpoint: "http://127.0.0.1:9".to_owned(), ..client };
    assert_eq!(gone.snapshot("org/model", RepoKind::Model, "main", &[]).unwrap(), folder);
    assert!(hub.requests().is_empty());
}

#[test]
fn a_data_set_is_downloaded_by_split() {
    let root = tempfile::tempdir().unwrap();
    let file = |id: &str| {
        let path = root.path().join(id);
        let mut writer = ParquetWriter::create(&path, ImageColumn::Single).unwrap();
        writer.push(Sample { id: Some(id.to_owned()), ..Sample::default() }).unwrap();
        writer.finish().unwrap();
        fs::read(path).unwrap()
    };
    let files = BTreeMap::from([
        ("data/train-00000-of-00001.parquet", file("train")),
        ("data/test-00000-of-00001.parquet", file("test")),
        ("README.md", b"card".to_vec()),
    ]);
    let hub = FakeHub::serve("datasets/org/shapes", files);
    let client = hub.client(&root.path().join("cache"));
    let options = OpenOptions { split: Some("test".to_owned()), ..OpenOptions::default() };
    let set = client.open_dataset("org/shapes", &options).unwrap();
    assert_eq!(set.get(0).unwrap().id.as_deref(), Some("test"));
    assert_eq!(set.name(), "org/shapes");
    let requests = hub.requests();
    assert!(
        !requests.iter().any(|request| request.contains("train-") || request.contains("README")),
        "{requests:?}"
    );
}

#[test]
fn local_folders_win() {
    let cache = tempfile::tempdir().unwrap();
    let hub = model();
    let local = cache.path().to_str().unwrap();
    assert_eq!(hub.client(cache.path()).resolve(local, RepoKind::Model, &[]).unwrap(), cache.path());
    assert!(hub.requests().is_empty());
}

#[test]
fn what_cannot_be_found_says_what_was_tried() {
    let hub = model();
    let cache = tempfile::tempdir().unwrap();
    let client = hub.client(cache.path());
    let error = client.resolve("org/other", RepoKind::Model, &[]).unwrap_err();
    let text = error.to_string();
    for part in ["org/other", &hub.endpoint, "no local folder", "HF_TOKEN"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(error.source().unwrap().to_string().contains("404"));

    let error = client.resolve("org/model", RepoKind::Model, &["*.gguf"]).unwrap_err();
    assert!(
        matches!(&error, DataError::NoHubFiles { .. }) && error.to_string().contains("*.gguf"),
        "{error}"
    );
    let offline = Hub { offline: true, ..client.clone() };
    let error = offline.resolve("org/never", RepoKind::Dataset, &[]).unwrap_err();
    assert!(error.to_string().contains("HF_HUB_OFFLINE"), "{error}");
    let gone = Hub { endpoint: "http://127.0.0.1:9".to_owned(), ..client };
    let error = gone.resolve("org/never", RepoKind::Model, &[]).unwrap_err();
    assert!(error.to_string().contains("http://127.0.0.1:9"), "{error}");
}

/// The client was built with TLS: it says hello (record type 22) to an https endpoint.
#[test]
fn https_is_spoken() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("https://{}", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let mut first = [0];
        listener.accept().unwrap().0.read_exact(&mut first).unwrap();
        first[0]
    });
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub { endpoint, cache: cache.path().to_path_buf(), token: None, offline: false };
    assert!(matches!(hub.snapshot("org/model", RepoKind::Model, "main", &[]), Err(DataError::Hub { .. })));
    assert_eq!(server.join().unwrap(), 22);
}
