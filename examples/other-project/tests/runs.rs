//! Both programs run on an autoencoder in the layout of the published ones, one of them from a Hub on loopback.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;

use sae_core::{Sae, SaeConfig, SaeTensors, WeightDtype};

const HOOK: &str = "model.layers.24";

/// An autoencoder that finds what it is given: 64 orthogonal directions, encoder and decoder alike.
fn sae(root: &Path) {
    let latents = 64;
    let identity: Vec<f32> =
        (0..latents * latents).map(|at| f32::from(at / latents == at % latents)).collect();
    let tensors = SaeTensors {
        encoder_weight: identity.clone(),
        encoder_bias: vec![0.0; latents],
        decoder_weight: identity,
        decoder_bias: vec![0.25; latents],
        skip_weight: None,
    };
    let sae = Sae::from_parts(SaeConfig::new(latents, latents, 4), tensors).unwrap();
    sae.save(&root.join(HOOK), WeightDtype::Bf16).unwrap();
}

fn ok(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn vectors_of_an_ndarray_are_encoded() {
    let root = tempfile::tempdir().unwrap();
    sae(root.path());
    let program =
        Command::new(env!("CARGO_BIN_EXE_ndarray_vectors")).arg(root.path().join(HOOK)).output().unwrap();
    let says = ok(program);
    assert!(says.contains("FVU 0.0000"), "{says}");
    assert!(says.contains("0 % of the latents never fire"), "{says}");
}

#[test]
fn a_published_sae_is_read_from_a_folder_and_from_a_hub() {
    let root = tempfile::tempdir().unwrap();
    sae(root.path());
    let folder = Command::new(env!("CARGO_BIN_EXE_published_sae")).arg(root.path()).output().unwrap();
    let folder = ok(folder);
    assert!(folder.starts_with("model.layers.24: 64 latents of 64 numbers, 4 at a time"), "{folder}");
    assert!(folder.contains("BF16"), "{folder}");

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let files = root.path().to_owned();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let files = files.clone();
            thread::spawn(move || serve(stream, &files));
        }
    });
    let home = tempfile::tempdir().unwrap();
    let hub = Command::new(env!("CARGO_BIN_EXE_published_sae"))
        .args(["someone/an-sae", HOOK])
        .envs([("HF_ENDPOINT", &endpoint), ("HF_HOME", &home.path().display().to_string())])
        .output()
        .unwrap();
    assert_eq!(ok(hub), folder);
}

/// Answers requests for `/<repository>/resolve/main/<file>` as the Hub does, with ranges.
fn serve(stream: TcpStream, root: &Path) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    loop {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if line.trim().is_empty() {
                break;
            }
            lines.push(line.trim().to_owned());
        }
        let path = lines[0].split(' ').nth(1).unwrap_or_default();
        let file = path.strip_prefix("/someone/an-sae/resolve/main/").map(|file| root.join(file));
        let Some(bytes) = file.and_then(|file: PathBuf| fs::read(file).ok()) else {
            let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
            continue;
        };
        let range = lines
            .iter()
            .find_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
        let (from, to) = range.as_deref().and_then(|range| range.split_once('-')).unwrap_or(("0", ""));
        let from: usize = from.parse().unwrap_or(0);
        let to = to.parse().unwrap_or(bytes.len() - 1).min(bytes.len() - 1);
        let head = format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {from}-{to}/{}\r\n\
             ETag: \"{}\"\r\nX-Repo-Commit: 0123456789abcdef0123456789abcdef01234567\r\n\r\n",
            to + 1 - from,
            bytes.len(),
            bytes.len(),
        );
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&bytes[from..=to]));
    }
}
