//! Wrong flags: 2 where the command line is wrong in itself, 1 where it does not fit what is there.

use std::fs;
use std::path::Path;

use pipeline_tests::Scratch;

const TRAIN: &str = "model images --num-latents 64 --k 4 --eval-examples 0 --save-dir out";

fn scratch() -> Scratch {
    let scratch = Scratch::new();
    scratch.images("images", 2);
    scratch
}

#[test]
fn unknown_and_missing_flags() {
    let scratch = scratch();
    scratch.refuses("sae-train", &format!("{TRAIN} --layers 2 --frobnicate"), 2, &["--frobnicate"]);
    scratch.refuses("sae-train", "model images --layers 2", 2, &["--save-dir"]);
    scratch.refuses("sae-train", TRAIN, 2, &["--layers"]);
    scratch.refuses("sae-train", &format!("{TRAIN} --layers two"), 2, &["--layers", "two"]);
    scratch.refuses("sae-train", &format!("{TRAIN} --layers 2 --batch-size 0"), 2, &["--batch-size"]);
    scratch.refuses("sae-cache", "", 2, &["images"]);
    scratch.refuses("sae-cache", "images model images --save-dir out", 2, &["--sae"]);
    scratch.refuses("sae-data", "shapes --save-dir out", 2, &["--count"]);
    scratch.refuses("sae-data", "shapes --count 0 --save-dir out", 2, &["--count"]);
    scratch.refuses("sae-data", "shapes --count 1 --split a/b --save-dir out", 2, &["--split", "a/b"]);
    scratch.refuses("feature-page", "--cache out --out page.html", 2, &["--dataset"]);
}

#[test]
fn help_is_data() {
    let scratch = scratch();
    for (program, arguments, flag) in [
        ("sae-data", "shapes --help", "--count"),
        ("sae-train", "--help", "--hookpoints"),
        ("sae-cache", "images --help", "--filters"),
        ("feature-page", "--help", "--features"),
    ] {
        let help = scratch.run(program, arguments).stdout;
        assert!(help.contains(flag), "{help}");
    }
}

#[test]
fn unknown_hook_points_are_answered_with_the_nearest() {
    let scratch = scratch();
    let near = ["model.layer.2", "nearest", "model.layers.2"];
    scratch.refuses("sae-train", &format!("{TRAIN} --hookpoints model.layer.2"), 1, &near);
    let beyond = ["model.layers.9", "nearest", "model.layers.0"];
    scratch.refuses("sae-train", &format!("{TRAIN} --hookpoints model.layers.9"), 1, &beyond);
    scratch.refuses("sae-train", &format!("{TRAIN} --layers 9"), 1, &beyond);
    scratch.refuses("sae-train", &format!("{TRAIN} --hookpoints ../out"), 2, &["--hookpoints", "../out"]);
}

#[test]
fn more_latents_at_once_than_there_are() {
    let arguments = "model images --layers 2 --num-latents 64 --k 65 --eval-examples 0 --save-dir out";
    scratch().refuses("sae-train", arguments, 1, &["k", "65", "64"]);
}

#[test]
fn a_world_of_several() {
    let scratch = scratch();
    let arguments = "images model images --sae sae --save-dir out --world-size 2";
    scratch.refuses("sae-cache", arguments, 2, &["--rank"]);
    let arguments = "images model images --sae sae --save-dir out --rank 2 --world-size 2";
    scratch.refuses("sae-cache", arguments, 2, &["rank 2 of 2"]);
    for world in ["--world-size 2", "--rank 0 --world-size 2"] {
        scratch.refuses(
            "sae-data",
            &format!("shapes --count 1 --save-dir out {world}"),
            2,
            &["--world-size"],
        );
    }
    scratch.refuses("sae-train", &format!("{TRAIN} --layers 2 --world-size 2"), 2, &["--rank"]);
    // Nobody started the other: built with MPI or without, that is said.
    let arguments = format!("{TRAIN} --layers 2 --rank 0 --world-size 2");
    scratch.refuses("sae-train", &arguments, 1, &["MPI cannot be used"]);
}

#[test]
fn cuda_without_a_gpu_is_an_error_and_never_a_cpu_run() {
    if Path::new("/dev/nvidiactl").exists() {
        eprintln!("skipped: this machine has a GPU");
        return;
    }
    let scratch = scratch();
    let arguments = format!("{TRAIN} --layers 2 --device cuda");
    scratch.refuses("sae-train", &arguments, 1, &["--device cuda", "--device cpu"]);
    scratch.refuses(
        "sae-train",
        &format!("{TRAIN} --layers 2 --device tpu"),
        2,
        &["--device", "tpu", "cuda:N"],
    );
}

#[test]
fn an_output_folder_that_is_there() {
    let scratch = scratch();
    fs::create_dir(scratch.path("out")).unwrap();
    fs::write(scratch.path("out/kept"), "precious").unwrap();
    fs::write(scratch.path("file"), "x").unwrap();
    for (program, arguments) in [
        ("sae-data", "shapes --count 1 --save-dir".to_owned()),
        ("sae-train", "model images --layers 2 --num-latents 64 --eval-examples 0 --save-dir".to_owned()),
        ("sae-cache", "images model images --sae sae --save-dir".to_owned()),
    ] {
        scratch.refuses(program, &format!("{arguments} out"), 1, &["out", "--overwrite"]);
        scratch.refuses(program, &format!("{arguments} file"), 1, &["file", "not a folder"]);
    }
    // Whoever said --overwrite keeps what was there until its successor is whole.
    scratch.refuses("sae-train", &format!("{TRAIN} --layers 9 --overwrite"), 1, &["model.layers.9"]);
    scratch.run("sae-data", "shapes --count 1 --save-dir out --overwrite");
    assert!(!scratch.path("out/kept").exists() && scratch.path("out/run.json").exists());
}

#[test]
fn a_context_of_no_tokens() {
    scratch().refuses("sae-train", &format!("{TRAIN} --layers 2 --ctx-len 0"), 2, &["--ctx-len", "0"]);
}
