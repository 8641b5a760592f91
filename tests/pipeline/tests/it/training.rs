//! What `sae-train` can be asked for, and `sae-score reconstruction`.

use std::fs;

use pipeline_tests::Scratch;
use sae_core::{Activation, Sae};
use serde_json::Value;

const TRAIN: &str = "model data --batch-size 4 --eval-examples 4 --lr 5e-3 --save-dir out";

fn scratch(scenes: usize) -> Scratch {
    let scratch = Scratch::new();
    scratch.run("sae-data", &format!("shapes --count {scenes} --save-dir data"));
    scratch
}

fn sae(scratch: &Scratch, folder: &str) -> Sae {
    Sae::load(&scratch.path(folder)).unwrap_or_else(|error| panic!("{folder}: {error}"))
}

fn lines(scratch: &Scratch, file: &str) -> Vec<Value> {
    scratch.read(file).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn many_autoencoders_on_one_forward_pass_are_those_trained_alone() {
    let scratch = scratch(16);
    scratch.run(
        "sae-train",
        &format!(
            "{TRAIN} --layers 1,2 --num-latents 64,96 --k 4,8 --activation topk,batch-topk --init-seeds 1,2"
        ),
    );
    let mut count = 0;
    for latents in [64, 96] {
        for k in [4, 8] {
            for (activation, name) in [("topk", "topk"), ("batch-topk", "batch-topk")] {
                for seed in [1, 2] {
                    for layer in [1, 2] {
                        let folder =
                            format!("out/latents-{latents}_k-{k}_{name}_seed-{seed}/model.layers.{layer}");
                        let sae = sae(&scratch, &folder);
                        assert_eq!((sae.num_latents(), sae.k()), (latents, k));
                        let batch = matches!(sae.config().activation, Activation::BatchTopK { threshold } if threshold > 0.0);
                        assert_eq!(batch, activation == "batch-topk");
                        count += 1;
                    }
                }
            }
        }
    }
    assert_eq!(count, 32);
    assert_eq!(scratch.json("out/evaluation.json").as_object().unwrap().len(), 32);

    let alone = TRAIN.replace("--save-dir out", "--save-dir alone");
    scratch.run(
        "sae-train",
        &format!(
            "{alone} --layers 2 --num-latents 96 --k 4 --activation batch-topk --seed 42 --init-seeds 2"
        ),
    );
    let bytes = |folder: &str| fs::read(scratch.path(folder).join("model.layers.2/sae.safetensors")).unwrap();
    assert!(bytes("out/latents-96_k-4_batch-topk_seed-2") == bytes("alone"));
}

#[test]
fn patterns_and_strides_choose_hook_points() {
    let scratch = scratch(8);
    let small = "--num-latents 64 --k 4";
    scratch.run("sae-train", &format!("{TRAIN} {small} --hookpoints model.layers.*.mlp --layer-stride 2"));
    let found = Sae::find(&scratch.path("out")).unwrap();
    let found: Vec<&str> = found.keys().map(sae_types::HookPoint::as_str).collect();
    assert_eq!(found, ["model.layers.0.mlp", "model.layers.2.mlp"]);
    let none = TRAIN.replace("--save-dir out", "--save-dir none");
    scratch.refuses(
        "sae-train",
        &format!("{none} {small} --hookpoints model.layers.*.mpl"),
        1,
        &["model.layers.*.mpl"],
    );
}

#[test]
fn transcoders_with_a_skip_connection_train_and_read_back() {
    let scratch = scratch(40);
    let arguments = format!(
        "{TRAIN} --hookpoints model.layers.1.mlp --transcode --skip-connection --num-latents 128 --k 8 --epochs 3"
    );
    scratch.run("sae-train", &arguments);
    let sae = sae(&scratch, "out/model.layers.1.mlp");
    assert!(sae.config().transcode && sae.skip_weight().is_some());
    let steps = lines(&scratch, "out/metrics.jsonl");
    let fvu = |line: &Value| line["fvu"].as_f64().unwrap();
    let steps: Vec<f64> = steps.iter().filter(|line| line.get("fvu").is_some()).map(fvu).collect();
    assert!(steps[steps.len() - 1] < 0.7 * steps[0], "{steps:?}");

    let scored =
        scratch.run("sae-score", "reconstruction model data --sae out --max-examples 8 --json").stdout;
    let scored: Value = serde_json::from_str(&scored).unwrap();
    assert!(scored["model.layers.1.mlp"]["fvu"].as_f64().unwrap() < 1.0, "{scored}");
    scratch.refuses(
        "sae-train",
        &arguments.replace(".1.mlp", ".1.post_attention_layernorm").replace("dir out", "dir no"),
        1,
        &["input"],
    );
}

#[test]
fn scoring_prints_what_training_measured() {
    let scratch = scratch(24);
    scratch.run("sae-train", &format!("{TRAIN} --layers 2 --num-latents 96 --k 8 --epochs 2"));
    let trained = &scratch.json("out/evaluation.json")["model.layers.2"];
    for field in [
        "fvu",
        "fvu_image",
        "fvu_text",
        "l0",
        "dead_share",
        "dense_share",
        "ce_recovered",
        "kl",
        "duplicate_share",
    ] {
        assert!(trained[field].is_number(), "{field}: {trained}");
    }
    let events: Vec<_> = fs::read_dir(scratch.path("out/tensorboard")).unwrap().collect();
    let events = events[0].as_ref().unwrap();
    assert!(events.file_name().to_string_lossy().starts_with("events.out.tfevents."));
    assert!(events.metadata().unwrap().len() > 1000, "scalars of every step");
    let table = scratch.run("sae-score", "reconstruction model data --sae out").stdout;
    assert!(table.contains("model.layers.2") && table.contains("fvu"), "{table}");
    // All samples but the four held out were seen in training, so that FVU can only be near, not equal.
    let scored =
        scratch.run("sae-score", "reconstruction model data --sae out --json --save-dir scores").stdout;
    let scored: Value = serde_json::from_str(&scored).unwrap();
    let ratio = scored["model.layers.2"]["fvu"].as_f64().unwrap() / trained["fvu"].as_f64().unwrap();
    assert!((0.5..1.5).contains(&ratio), "{ratio}");
    assert_eq!(scratch.json("scores/evaluation.json"), scored);
}

#[test]
fn tokens_that_do_not_count_are_left_out() {
    let scratch = scratch(12);
    let tokens = |flags: &str| {
        let train = TRAIN.replace("--save-dir out", "--save-dir out --overwrite");
        scratch.run("sae-train", &format!("{train} --layers 2 --num-latents 64 --k 4 {flags}"));
        scratch.json("out/run.json")["counts"]["model.layers.2 tokens"].as_u64().unwrap()
    };
    let all = tokens("");
    let (image, text) = (tokens("--text-weight 0"), tokens("--image-weight 0"));
    assert!(image > 0 && text > 0 && image + text == all, "{image} + {text} = {all}");
    assert!(tokens("--keep-bos") == all + 8);
    let (assistant, user) = (tokens("--roles assistant"), tokens("--roles user"));
    assert!(assistant > 0 && user > image && assistant + user < all, "{assistant} {user} {all}");
    assert_eq!(tokens("--ctx-len 10"), 8 * 9);
    assert!(tokens("--max-norm-multiple 1.2") < all);
    assert_eq!(tokens("--text-weight 2 --image-weight 0.5"), all);
    let none = "--layers 2 --num-latents 64 --k 4 --text-weight 0 --image-weight 0";
    scratch.refuses(
        "sae-train",
        &TRAIN.replace("dir out", &format!("dir none {none}")),
        1,
        &["--image-weight"],
    );
}

#[test]
fn fine_tuning_goes_on_from_an_autoencoder() {
    let scratch = scratch(24);
    scratch.run(
        "sae-train",
        &format!("{TRAIN} --layers 2 --num-latents 96 --k 8 --epochs 4 --matryoshka 0.25,0.5"),
    );
    let tuned = TRAIN.replace("--save-dir out", "--save-dir tuned");
    scratch.run("sae-train", &format!("{tuned} --layers 2 --finetune out"));
    let (before, after) = (lines(&scratch, "out/metrics.jsonl"), lines(&scratch, "tuned/metrics.jsonl"));
    let fvu = |line: &Value| line["fvu"].as_f64().unwrap();
    let trained = before.iter().rev().find(|line| line.get("fvu").is_some()).unwrap();
    assert!(
        fvu(&after[0]) < 1.2 * fvu(trained) && fvu(trained) < 0.8 * fvu(&before[0]),
        "{trained} {}",
        after[0]
    );
    assert_eq!(sae(&scratch, "tuned/model.layers.2").config().matryoshka, [24, 48, 96]);
    scratch.refuses(
        "sae-train",
        &format!("{tuned} --overwrite --layers 1 --finetune out"),
        1,
        &["model.layers.1", "model.layers.2"],
    );
    scratch.refuses(
        "sae-train",
        &format!("{tuned} --overwrite --layers 2 --finetune out --transcode"),
        1,
        &["--transcode"],
    );
}

#[test]
fn plain_text_and_tokens() {
    let scratch = Scratch::new();
    let line = |i| format!("{{\"text\": \"a red circle and a blue square number {i} in the picture\"}}");
    let lines: Vec<String> = (0..60).map(line).collect();
    fs::write(scratch.path("text.jsonl"), lines.join("\n")).unwrap();
    let train = "--layers 1 --num-latents 64 --k 4 --eval-examples 2 --batch-size 4";
    scratch.refuses(
        "sae-train",
        &format!("model text.jsonl {train} --save-dir out"),
        1,
        &["sae-data text model text.jsonl"],
    );
    scratch.run("sae-data", "text model text.jsonl --ctx-len 16 --save-dir tokens");
    scratch.run("sae-train", &format!("model tokens {train} --save-dir out"));
    let pieces = scratch.json("tokens/run.json")["counts"]["pieces"].as_u64().unwrap();
    let read = scratch.json("out/run.json")["counts"]["model.layers.1 tokens"].as_u64().unwrap();
    // Two held out, and of the others BOS, with which the model's pieces begin.
    assert_eq!(read, (pieces - 2) * 15);

    // The same ids as sparsify has them, without a word on what they are: u16 unless told otherwise.
    let ids = fs::read(scratch.path("tokens/data/train.bin")).unwrap();
    fs::write(scratch.path("raw.bin"), ids).unwrap();
    scratch.run("sae-train", &format!("model raw.bin {train} --ctx-len 16 --save-dir raw"));
    let bytes = |folder: &str| fs::read(scratch.path(folder).join("model.layers.1/sae.safetensors")).unwrap();
    assert!(bytes("out") == bytes("raw"), "the same tokens, the same autoencoder");
    scratch.refuses(
        "sae-train",
        &format!("model raw.bin {train} --token-dtype u32 --save-dir no"),
        1,
        &["raw.bin"],
    );
}

#[test]
fn eight_bits_report_their_error_and_change_little() {
    let scratch = scratch(16);
    let small = "--layers 2 --num-latents 64 --k 4";
    scratch.run("sae-train", &format!("{TRAIN} {small}"));
    let eight = TRAIN.replace("--save-dir out", "--save-dir eight");
    scratch.run("sae-train", &format!("{eight} {small} --load-in-8bit")).says(&["8 bits"]);
    let report = scratch.json("eight/quantisation.json");
    let mean = report["mean_relative_error"].as_f64().unwrap();
    assert!(mean > 0.0 && mean < 0.02, "{report}");
    let fvu = |folder: &str| {
        scratch.json(&format!("{folder}/evaluation.json"))["model.layers.2"]["fvu"].as_f64().unwrap()
    };
    assert!((fvu("eight") / fvu("out") - 1.0).abs() < 0.05, "{} {}", fvu("eight"), fvu("out"));
}

#[test]
fn a_dry_run_says_what_is_needed_and_leaves_nothing() {
    let scratch = scratch(8);
    let before = scratch.listing();
    let said =
        scratch.run("sae-train", &format!("{TRAIN} --layers 2 --num-latents 64 --k 4 --dry-run")).stdout;
    for words in [
        "model.layers.2: 64 latents, k 4, 16576 parameters",
        "memory",
        "optimizer",
        "disk",
        "two checkpoints",
    ] {
        assert!(said.contains(words), "no {words:?} in\n{said}");
    }
    assert_eq!(scratch.listing(), before);
    // Four billion latents of 128 numbers fit no machine that runs this test.
    let huge = format!("{TRAIN} --layers 2 --num-latents 4000000000 --k 4");
    scratch.refuses("sae-train", &huge, 1, &["of memory", "--optimizer adam8bit"]);
    scratch.refuses("sae-train", &format!("{huge} --dry-run"), 1, &["of memory"]);
}

#[test]
fn the_objectives_all_learn() {
    let scratch = scratch(40);
    for (name, flags) in [
        ("multi-topk", "--multi-topk"),
        ("auxk", "--auxk-alpha 0.03125 --dead-feature-threshold 1000"),
        ("matryoshka", "--matryoshka 0.125,0.5"),
        ("signum", "--optimizer signum --lr 2e-3"),
        ("adam8bit", "--optimizer adam8bit --lr 5e-3"),
        ("pieces", "--micro-acc-steps 3 --lr 5e-3"),
        ("cosine", "--lr-schedule cosine --max-grad-norm inf --bias-init mean --lr 5e-3"),
    ] {
        let train =
            "model data --layers 2 --num-latents 128 --k 8 --batch-size 4 --epochs 3 --eval-examples 4";
        let lr = if flags.contains("--lr ") { "" } else { "--lr 5e-3" };
        scratch.run("sae-train", &format!("{train} {lr} {flags} --save-dir {name}"));
        let lines = lines(&scratch, &format!("{name}/metrics.jsonl"));
        let steps: Vec<f64> = lines.iter().filter_map(|line| line["fvu"].as_f64()).collect();
        assert!(steps.len() > 20 && steps[steps.len() - 1] < 0.7 * steps[0], "{name}: {steps:?}");
    }
}

#[test]
fn samples_left_out_are_listed() {
    let scratch = Scratch::new();
    scratch.images("images", 6);
    fs::write(scratch.path("images/002.png"), b"\x89PNG\r\n\x1a\nand then nothing").unwrap();
    scratch.run(
        "sae-train",
        "model images --layers 2 --num-latents 64 --k 4 --eval-examples 0 --epochs 2 --max-bad 1 --save-dir out",
    );
    let bad = lines(&scratch, "out/bad_records.jsonl");
    assert_eq!(bad.len(), 1);
    assert!(bad[0]["file"].as_str().unwrap().contains("002.png"), "{}", bad[0]);
    assert!(bad[0]["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{}", bad[0]);
}
