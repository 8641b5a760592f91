//! Wrong inputs, each with a message that names the fix.

use std::net::TcpListener;

use pipeline_tests::chat::{Reply, Server};

use crate::support::{Scratch, images, stderr};

#[test]
fn servers_that_cannot_be_used() {
    let scratch = Scratch::new();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    scratch.fails(
        &format!("{} --patience 1", images(&format!("http://{free}/v1"))),
        1,
        &["no server at", "lmm-serve", "sglang", "--endpoint"],
    );
    let server = Server::says("x");
    scratch.fails(&images(&format!("http://{}", server.address)), 1, &["should end with /v1"]);
    scratch.fails(&images("localhost:30000"), 2, &["--endpoint", "http://127.0.0.1:30000/v1"]);
    scratch.fails(
        &format!("{} --explainer other", images(&server.endpoint())),
        2,
        &["no model \"other\"", "served"],
    );
    let two = Server::start_at("127.0.0.1:0".parse().unwrap(), &["a", "b"], |_, _| {
        Reply::answer("[EXPLANATION]: x")
    });
    scratch.fails(&images(&two.endpoint()), 2, &["several models", "--explainer", "a, b"]);
    scratch.succeeds(&format!("{} --explainer b --features 0", images(&two.endpoint())));
    assert!(two.seen()[0]["model"] == "b");
}

#[test]
fn secrets_in_the_address_are_refused_and_not_repeated() {
    let scratch = Scratch::new();
    for secret in ["http://me:pass-1@127.0.0.1:9/v1", "http://127.0.0.1:9/v1?key=pass-1"] {
        let output = scratch.run(&images(secret));
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains("into the environment") && !text.contains("pass-1"), "{text}");
        assert!(!scratch.path("out").exists());
    }
}

#[test]
fn a_server_that_does_not_list_its_models_is_asked_by_name() {
    let scratch = Scratch::new();
    let server =
        Server::start_at("127.0.0.1:0".parse().unwrap(), &[], |_, _| Reply::answer("[EXPLANATION]: x"));
    for status in [403, 500, 503] {
        server.models_answer(status);
        let run = images(&server.endpoint());
        scratch.succeeds(&format!("{run} --features 0 --overwrite --explainer mine"));
    }
    assert!(server.seen().iter().all(|request| request["model"] == "mine"));
    server.models_answer(401);
    scratch.fails(&format!("{} --explainer mine", images(&server.endpoint())), 1, &["wants a key"]);
    server.models_answer(500);
    scratch.fails(&images(&server.endpoint()), 1, &["name one with --explainer"]);
}

#[test]
fn a_filter_of_contents_costs_its_feature_and_a_bad_key_the_run() {
    let scratch = Scratch::new();
    let server = Server::start(|number, _| match number {
        2 => Reply::error(403, "this picture is against our rules"),
        _ => Reply::answer("[EXPLANATION]: x"),
    });
    let summary = scratch.succeeds(&format!("{} --features 0-4 --concurrency 1", images(&server.endpoint())));
    assert_eq!((summary["answered"].as_u64(), summary["failed"].as_u64()), (Some(4), Some(1)));
    let failed = &scratch.records("out/explanations.jsonl")[2];
    assert_eq!(failed.asked.as_ref().unwrap().attempts, 1);
    let server = Server::start(|_, _| Reply::error(403, "no"));
    scratch.fails(
        &format!("{} --concurrency 1 --overwrite", images(&server.endpoint())),
        1,
        &["is the API key right?"],
    );
    assert_eq!(server.count(), 1);
}

#[test]
fn files_that_no_run_wrote_are_not_replaced() {
    let scratch = Scratch::new();
    let server = Server::says("[EXPLANATION]: x");
    std::fs::create_dir(scratch.path("out")).unwrap();
    let original = r#"[{"model.layers.1_feature0": "theirs"}]"#;
    std::fs::write(scratch.path("out/model_layers_1.json"), original).unwrap();
    let run = images(&server.endpoint());
    scratch.fails(&run, 2, &["model_layers_1.json is there", "--explanation-dir", "--overwrite"]);
    scratch.fails(&format!("{run} --resume"), 2, &["model_layers_1.json is there"]);
    assert_eq!(std::fs::read_to_string(scratch.path("out/model_layers_1.json")).unwrap(), original);
    assert_eq!(std::fs::read_dir(scratch.path("out")).unwrap().count(), 1);
    scratch.succeeds(&format!("{run} --overwrite"));
}

#[test]
fn a_server_that_refuses_everything_ends_the_run_at_once() {
    let scratch = Scratch::new();
    for (status, says) in [(401, "is the API key right?"), (404, "the model's name right?")] {
        let server = Server::start(move |_, _| Reply::error(status, "no"));
        scratch.fails(
            &format!("{} --concurrency 1 --overwrite", images(&server.endpoint())),
            1,
            &[says, "--resume"],
        );
        assert_eq!(server.count(), 1);
        assert!(scratch.records("out/explanations.jsonl").iter().all(|record| record.asked.is_none()));
    }
    let server = Server::start(|_, _| Reply::error(500, "out of memory"));
    let run = format!("{} --features 0,1 --attempts 1 --overwrite", images(&server.endpoint()));
    scratch.fails(&run, 1, &["nothing was answered, 2 features failed", "out of memory"]);
}

#[test]
fn inputs_that_do_not_fit() {
    let scratch = Scratch::new();
    let server = Server::says("[EXPLANATION]: x");
    let run = images(&server.endpoint());
    std::fs::create_dir(scratch.path("data2")).unwrap();
    std::fs::copy(scratch.path("data/000.png"), scratch.path("data2/000.png")).unwrap();
    let other = run.replace("--dataset data", "--dataset data2");
    scratch.fails(
        &other,
        2,
        &["is not the data set the cache was made of", "sae-cache inspect", "--allow-drift"],
    );
    scratch.fails(&format!("{run} --features 9-3"), 2, &["is no feature"]);
    scratch.fails(&format!("{run} --features 100-200"), 1, &["choose none of the features"]);
    scratch.fails(
        &format!("{run} --hookpoints model.layers.7"),
        1,
        &["there is nothing of model.layers.7", "model.layers.1"],
    );
    scratch.fails(&format!("{run} --jpeg-quality 0"), 2, &["--jpeg-quality"]);
    scratch.fails(&format!("{run} --square 0"), 2, &["--square"]);
    scratch.fails(&format!("{run} --prompt none.txt"), 1, &["cannot read the instructions none.txt"]);
    scratch.fails(&format!("{run} --timeout 0"), 2, &["--timeout"]);
    for flags in ["--temperature nan", "--temperature=-1", "--price-prompt inf --price-completion 1"] {
        scratch.fails(&format!("{run} {flags}"), 2, &["expected a number from 0"]);
    }
    scratch.fails(&format!("{run} --price-prompt 1"), 2, &["--price-completion"]);
    scratch.fails(&run.replace("--cache cache", "--cache none"), 1, &["none"]);
    scratch.fails(
        &format!("refine --explanations none --endpoint {}", server.endpoint()),
        1,
        &["none does not exist"],
    );
    scratch.fails(
        &format!("refine --explanations data --endpoint {}", server.endpoint()),
        1,
        &["model_layers_24.json"],
    );
    scratch.fails(&format!("{run} --overwrite --rank 0 --world-size 2"), 2, &["cannot agree on --overwrite"]);
    assert_eq!(server.count(), 0);
    // Every image of the other set but the first is missing, and the first is the same.
    let drifted = format!("{other} --allow-drift --features 0 --max-examples 99");
    let summary = scratch.succeeds(&drifted);
    assert_eq!((summary["answered"].as_u64(), server.count()), (Some(1), 1));
    assert_eq!(scratch.records("out/explanations.jsonl")[0].shown.len(), 1);
}
