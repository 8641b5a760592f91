//! What the server refuses, whom it turns away, and how it ends.

use std::io::Read as _;
use std::process::Command;

use serde_json::{Value, json};

use crate::http::{receive, send};
use crate::server::{
    MODEL, Reference, Server, chat_request, copy_with_long_context, image_part, model_folder, request, scene,
    text, write_sae,
};

const ABANDONED: &str = "lmm_serve_requests_total{outcome=\"abandoned\"}";

#[test]
fn what_cannot_be_served_is_refused_with_its_reason() {
    let flags =
        ["--max-body", "200KiB", "--max-images", "2", "--max-pixels", "40000", "--served-model-name", MODEL];
    let server = Server::start(&flags, None);
    let (image, questions) = scene(0);
    let good = request(std::slice::from_ref(&image), &questions[0]);
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut body = good.clone();
        change(&mut body);
        let response = server.post(&body);
        let error = response.json()["error"].clone();
        (response.status, error["param"].as_str().unwrap_or_default().to_owned(), error)
    };
    let url = |url: &'static str| {
        move |body: &mut Value| body["messages"][0]["content"][0]["image_url"]["url"] = json!(url)
    };
    let image_param = "messages[0].content[0].image_url.url";
    type Change<'a> = &'a dyn Fn(&mut Value);
    let checks: [(Change<'_>, u16, &str, &str); 13] = [
        (&|body| body["n"] = json!(2), 400, "n", "n is not supported"),
        (&|body| body["model"] = json!("gpt"), 404, "model", "does not exist"),
        (&|body| body["tools"] = json!([{}]), 400, "tools", "not supported"),
        (&|body| body["steer"] = json!({"1": 2}), 400, "steer", "--sae"),
        (&url("https://example.com/a.png"), 400, image_param, "fetches nothing"),
        (&url("data:image/png;base64,aGVsbG8="), 400, image_param, "no image"),
        (&|body| body["messages"][0]["role"] = json!("tool"), 400, "messages[0].role", "expected system"),
        (
            &|body| body["messages"][0]["content"][1]["text"] = json!("<image> what ?"),
            400,
            "messages",
            "<image>",
        ),
        (
            &|body| body["messages"][0]["content"][1]["text"] = json!("shape ".repeat(1100)),
            400,
            "messages",
            "at most 1024 tokens",
        ),
        // So long that it is not cut into tokens.
        (
            &|body| body["messages"][0]["content"][1]["text"] = json!("a ".repeat(70_000)),
            400,
            "messages",
            "bytes of text",
        ),
        // Each image would do, both are too many pixels.
        (
            &|body| {
                body["messages"][0]["content"] = json!(vec![image_part(&image::RgbImage::new(150, 150)); 2]);
            },
            400,
            "messages[0].content[1].image_url.url",
            "more than the 17500 left",
        ),
        (&url("data"), 400, image_param, "this is none"),
        (
            &|body| body["messages"][0]["content"] = json!(vec![image_part(&image::RgbImage::new(3, 3)); 3]),
            400,
            "messages",
            "at most 2",
        ),
    ];
    for (change, status, param, says) in checks {
        let (got, named, error) = refused(change);
        assert_eq!((got, named.as_str()), (status, param), "{error}");
        assert!(error["message"].as_str().unwrap().contains(says), "{error}");
        assert_eq!(error["type"], "invalid_request_error");
    }
    let long = refused(&|body| body["messages"][0]["content"][1]["text"] = json!("shape ".repeat(1100)));
    assert_eq!(long.2["code"], "context_length_exceeded");
    assert_eq!(refused(&|body| body["model"] = json!("gpt")).2["code"], "model_not_found");
    let large = image_part(&image::RgbImage::new(201, 200));
    let large = refused(&|body| body["messages"][0]["content"][0] = large.clone());
    assert!(large.2["message"].as_str().unwrap().contains("--max-pixels"), "{}", large.2);

    let post = |body: &[u8]| receive(send(&server.address, "POST", "/v1/chat/completions", &[], body));
    assert_eq!((post(b"{").status, post(b"").status, post(b"[1]").status), (400, 400, 400));
    assert!(post(&[0xFF, 0x00]).json()["error"]["message"].as_str().unwrap().contains("JSON"));
    // What a page of the web can send to a loopback server without asking.
    for headers in [&[("Content-Type", "text/plain")][..], &[("Content-Type", "")]] {
        let body = good.to_string();
        let plain = receive(send(&server.address, "POST", "/v1/chat/completions", headers, body.as_bytes()));
        assert_eq!(plain.status, 415, "{}", plain.body);
    }
    let large = post(&vec![b' '; 300 << 10]);
    assert_eq!((large.status, large.json()["error"]["type"].as_str()), (413, Some("invalid_request_error")));
    assert_eq!((server.get("/v1/chat/completions").status, server.get("/nowhere").status), (404, 404));
    let asked = server.metric("lmm_serve_requests_total{outcome=\"refused\"}");
    assert_eq!(asked, 13 + 3 + 4 + 1 + 2);
    // And none of it harmed the server.
    let reference = Reference::load();
    assert_eq!(text(&server.post(&good)), reference.answer(&[image], &questions[0]));
}

#[test]
fn a_key_is_asked_for_where_there_is_one() {
    let server = Server::start(&[], Some("open sesame"));
    let get = |path, key: &str| receive(send(&server.address, "GET", path, &[("Authorization", key)], b""));
    assert_eq!(get("/v1/models", "Bearer open sesame").status, 200);
    for wrong in ["Bearer open", "open sesame", "Basic open sesame"] {
        let response = get("/v1/models", wrong);
        assert_eq!((response.status, &response.json()["error"]["code"]), (401, &json!("invalid_api_key")));
    }
    assert_eq!(server.get("/v1/models").status, 401);
    assert_eq!(server.post(&json!({})).status, 401);
    // One that still sends a large body sees the answer, too.
    let large = vec![b' '; 8 << 20];
    for (path, status) in [("/v1/chat/completions", 401), ("/chat/completions", 404)] {
        assert_eq!(receive(send(&server.address, "POST", path, &[], &large)).status, status);
    }
    // Who watches over the server needs none.
    assert_eq!((server.get("/health").status, server.get("/metrics").status), (200, 200));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = server.client_with(Some("open sesame"));
    let question = chat_request(&[], "how many shapes are there ?");
    assert!(runtime.block_on(client.complete(&question)).is_ok());
    let error = runtime.block_on(server.client().complete(&question)).unwrap_err().to_string();
    assert!(error.contains("401"), "{error}");
}

/// A server with one place in its batch and one in its backlog, and a request that takes long: under this steering the model says one
/// word for ever, `tokens` times.
fn narrow(tokens: u32) -> (tempfile::TempDir, Server, Value) {
    let folder = tempfile::tempdir().unwrap();
    let [model, sae] = [MODEL, "sae"].map(|name| folder.path().join(name));
    std::fs::create_dir(&model).unwrap();
    copy_with_long_context(&model);
    write_sae(&sae);
    let sae = sae.display().to_string();
    let server = Server::start_with(&model, &["--sae", &sae, "--max-batch", "1", "--backlog", "1"], None);
    let (image, questions) = scene(0);
    let mut long = request(&[image], &questions[0]);
    (long["steer"], long["max_tokens"]) = (json!({"0": 100}), json!(tokens));
    (folder, server, long)
}

/// Only leaving ends an answer here: each would take far longer than the test.
#[test]
fn whom_there_is_no_place_for_comes_back_and_who_leaves_is_not_waited_for() {
    const TOKENS: u32 = 20_000;
    const BUSY: &str = "lmm_serve_requests_total{outcome=\"busy\"}";
    let (_folder, server, long) = narrow(TOKENS);
    let (image, questions) = scene(1);
    let first = server.ask(&long);
    server.wait_for("lmm_serve_running", |running| running == 1);
    let second = server.ask(&long);
    server.wait_for("lmm_serve_waiting", |waiting| waiting == 1);
    let third = server.post(&long);
    assert_eq!((third.status, third.header("retry-after")), (503, Some("1")));
    assert!(third.json()["error"]["message"].as_str().unwrap().contains("--backlog"), "{}", third.body);
    // The client that knows such answers gets through once there is a place.
    let asked = chat_request(std::slice::from_ref(&image), &questions[0]);
    let client = server.client();
    let reply = std::thread::scope(|scope| {
        let reply = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(client.complete(&asked)).unwrap()
        });
        server.wait_for(BUSY, |busy| busy >= 2);
        // One leaves while it waits, one before its answer is complete.
        drop(second);
        server.wait_for(ABANDONED, |abandoned| abandoned == 1);
        drop(first);
        server.wait_for(ABANDONED, |abandoned| abandoned == 2);
        reply.join().unwrap()
    });
    assert_eq!(reply.text, Reference::load().answer(&[image], &questions[0]));
    server.wait_for("lmm_serve_running", |running| running == 0);

    // And one in the middle of a stream.
    let mut streamed = long.clone();
    streamed["stream"] = json!(true);
    let mut stream = server.ask(&streamed);
    let mut start = [0; 300];
    stream.read_exact(&mut start).unwrap();
    assert!(start.starts_with(b"HTTP/1.1 200"));
    drop(stream);
    server.wait_for(ABANDONED, |abandoned| abandoned == 3);
    server.wait_for("lmm_serve_running", |running| running == 0);
    let written = server.metric("lmm_serve_completion_tokens_total");
    assert!(written < u64::from(TOKENS), "{written} tokens were written, of which few were for anybody");
    assert_eq!(server.metric("lmm_serve_waiting"), 0);
}

fn terminate(server: &Server) {
    let kill = format!("kill -TERM {}", server.child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
}

#[test]
fn a_signal_turns_away_who_waits_and_ends_the_server_when_the_last_client_has_left() {
    let (_folder, mut server, mut long) = narrow(20_000);
    long["stream"] = json!(true);
    let mut runs = server.ask(&long);
    server.wait_for("lmm_serve_running", |running| running == 1);
    let waits = server.ask(&long);
    server.wait_for("lmm_serve_waiting", |waiting| waiting == 1);
    terminate(&server);
    let turned_away = receive(waits);
    assert_eq!(turned_away.status, 503);
    assert!(turned_away.json()["error"]["message"].as_str().unwrap().contains("shutting down"));
    // What runs goes on.
    let mut more = vec![0; 1 << 16];
    runs.read_exact(&mut more).unwrap();
    drop(runs);
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_signal_lets_the_answer_under_way_end() {
    let (_folder, mut server, mut long) = narrow(500);
    long["stream"] = json!(true);
    let runs = server.ask(&long);
    // An answer that had ended by now would be whole as well.
    runs.peek(&mut [0]).unwrap();
    terminate(&server);
    let events = receive(runs).events();
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "length");
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
}

#[test]
fn wrong_flags_end_it_at_once() {
    let run = |flags: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_lmm-serve"))
            .env_remove("LMM_SERVE_API_KEY")
            .arg(model_folder())
            .args(["--port", "0"])
            .args(flags)
            .output()
            .unwrap();
        assert!(output.stdout.is_empty());
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let folder = tempfile::tempdir().unwrap();
    write_sae(folder.path());
    let sae = folder.path().display().to_string();
    let (code, log) = run(&["--sae", &sae, "--steer", "8=1"]);
    assert!(code == Some(2) && log.contains("there are 8"), "{log}");
    let (code, log) = run(&["--api-key-env", "NO_SUCH_VARIABLE"]);
    assert!(code == Some(2) && log.contains("NO_SUCH_VARIABLE"), "{log}");
    let (code, log) = run(&["--sae", &sae, "--steer", "3=1", "--steer", "model.layers.2:3=2"]);
    assert!(code == Some(2) && log.contains("named twice"), "{log}");
    let mute = tempfile::tempdir().unwrap();
    copy_with_long_context(mute.path());
    std::fs::remove_file(mute.path().join("chat_template.jinja")).unwrap();
    let output =
        Command::new(env!("CARGO_BIN_EXE_lmm-serve")).arg(mute.path()).args(["--port", "0"]).output();
    let output = output.unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && log.contains("chat template"), "{log}");
    let (code, log) = run(&["--sae", &folder.path().join("nothing").display().to_string()]);
    assert!(code == Some(1) && log.contains("nothing"), "{log}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut busy = Command::new(env!("CARGO_BIN_EXE_lmm-serve"));
    let busy = busy.arg(model_folder()).args(["--port", &port]).output().unwrap();
    assert_eq!(busy.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&busy.stderr).contains("cannot listen"));
}
