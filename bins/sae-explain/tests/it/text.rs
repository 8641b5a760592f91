//! `sae-explain text`: marked tokens, strengths and likelier tokens of the embedded model.

use std::path::PathBuf;

use act_cache::{
    CacheDescription, CacheJob, HookDescription, PartWriter, SampleCodes, SampleRecord, Shard, merge,
};
use lmm_prep::Tokenizer;
use pipeline_tests::chat::{Server, shown};
use sae_core::{Sae, SaeConfig, SaeTensors, WeightDtype};
use sae_types::{FeatureId, HookPoint, SampleId, SparseCodes};
use serde_json::json;

use crate::support::Scratch;

fn model() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/shapes-lmm-s"))
}

/// A cache of 12 sentences in `texts`: feature 1 is on on colours, feature 2 on the first token of one sentence.
fn write_cache(scratch: &Scratch, keep_tokens: bool) {
    let tokenizer = Tokenizer::load(&model()).unwrap();
    let hook = HookPoint::layer(1);
    let mut description = CacheDescription { model: "m".into(), ..CacheDescription::default() };
    description.hooks.insert(hook.clone(), HookDescription { width: 4, k: 2, ..HookDescription::default() });
    let job = CacheJob { keep_tokens, n_splits: 1, ..CacheJob::new(description) };
    let parts = scratch.path("texts.parts");
    let mut writer = PartWriter::open(&parts, &job, Shard::WHOLE, 1 << 20).unwrap();
    for sample in 0..12u32 {
        let (colour, shape) =
            (["red", "blue", "green"][sample as usize % 3], ["circle", "square"][sample as usize % 2]);
        let ids = tokenizer.encode(&format!("what colour is the {colour} {shape} ?"), false).unwrap();
        let mut codes = SparseCodes::new(4);
        for &id in &ids {
            let text = tokenizer.decode(&[id], false).unwrap();
            let value = 1.0 + sample as f32 / 4.0;
            codes.push_row((text.trim() == colour).then_some((FeatureId(1), value))).unwrap();
        }
        let record =
            SampleRecord { sample: SampleId(sample), n_tokens: ids.len() as u32, ..SampleRecord::default() };
        let tokens: Vec<u32> = (0..ids.len() as u32).collect();
        let kept = keep_tokens.then_some(&ids[..]);
        writer.push(&record, kept, &[SampleCodes { hook: &hook, tokens: &tokens, codes: &codes }]).unwrap();
        writer.advance(SampleId(sample + 1), &serde_json::Value::Null).unwrap();
    }
    writer.finish(SampleId(12), &serde_json::Value::Null).unwrap();
    std::fs::create_dir(scratch.path("texts")).unwrap();
    merge(&parts, &scratch.path("texts")).unwrap();
}

/// The last norm's weight and the unembedding `[vocabulary, d_model]`.
fn unembedding() -> (Vec<f32>, Vec<f32>) {
    let bytes = std::fs::read(model().join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let numbers = |name: &str| -> Vec<f32> {
        let data = tensors.tensor(name).unwrap().data().to_vec();
        data.chunks_exact(4).map(|n| f32::from_le_bytes(n.try_into().unwrap())).collect()
    };
    (numbers("language_model.model.norm.weight"), numbers("language_model.lm_head.weight"))
}

#[test]
fn likelier_tokens_are_those_the_decoder_row_points_at() {
    let scratch = Scratch::new();
    write_cache(&scratch, true);
    let tokenizer = Tokenizer::load(&model()).unwrap();
    let (norm, head) = unembedding();
    let d = norm.len();
    let red = tokenizer.encode("red", false).unwrap()[0] as usize;
    let target = &head[red * d..(red + 1) * d];
    // Behind the norm's weight, the decoder row of feature 1 is the row of "red".
    let mut weight = vec![0.1; 4 * d];
    weight[d..2 * d].iter_mut().zip(target.iter().zip(&norm)).for_each(|(w, (a, b))| *w = a / b);
    let tensors = SaeTensors {
        encoder_weight: weight.clone(),
        encoder_bias: vec![0.0; 4],
        decoder_weight: weight,
        decoder_bias: vec![0.0; d],
        skip_weight: None,
    };
    let sae = Sae::from_parts(SaeConfig::new(d, 4, 2), tensors.clone()).unwrap();
    sae.save(&scratch.path("sae/model.layers.1"), WeightDtype::F32).unwrap();
    let products = head.chunks(d).map(|row| row.iter().zip(target).map(|(a, b)| a * b).sum::<f32>());
    let mut order: Vec<(usize, f32)> = products.enumerate().collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1));
    let words =
        order[..3].iter().map(|(id, _)| format!("{:?}", tokenizer.decode(&[*id as u32], false).unwrap()));
    let want = format!("Tokens made more likely: {}", words.collect::<Vec<_>>().join(", "));
    assert!(want.contains("red"), "{want}");

    let server = Server::says("[EXPLANATION]: x");
    let model = model();
    let run = format!(
        "text --cache texts --model {} --explanation-dir out --endpoint {}",
        model.display(),
        server.endpoint()
    );
    scratch.succeeds(&format!("{run} --logits 3 --sae sae"));
    // Another autoencoder is another run, and one of another size is none of the cache.
    let mut tensors = tensors;
    tensors.decoder_bias[0] = 1.0;
    let other = Sae::from_parts(SaeConfig::new(d, 4, 2), tensors).unwrap();
    other.save(&scratch.path("other/model.layers.1"), WeightDtype::F32).unwrap();
    scratch.fails(&format!("{run} --logits 3 --sae other --resume"), 2, &["--sae (SHA-256) was"]);
    let (encoder_weight, decoder_weight) = (vec![0.1; 3 * d], vec![0.1; 3 * d]);
    let (encoder_bias, decoder_bias) = (vec![0.0; 3], vec![0.0; d]);
    let tensors =
        SaeTensors { encoder_weight, encoder_bias, decoder_weight, decoder_bias, skip_weight: None };
    let small = Sae::from_parts(SaeConfig::new(d, 3, 2), tensors).unwrap();
    small.save(&scratch.path("small/model.layers.1"), WeightDtype::F32).unwrap();
    scratch.fails(
        &format!("{run} --logits 3 --sae small --resume"),
        1,
        &["has 3 latents, the cache was made with one of 4"],
    );
    let text = shown(&server.seen()[0]).1;
    assert!(text.ends_with(&want), "{text}\nlacks {want}");
    assert!(text.contains("more likely to come next"), "{text}");
}

#[test]
fn tokens_are_marked_and_their_strengths_listed() {
    let scratch = Scratch::new();
    write_cache(&scratch, true);
    let server = Server::says("First, colours.\n[EXPLANATION]: names of colours");
    let run = format!(
        "text --cache texts --model {} --explanation-dir out --endpoint {}",
        model().display(),
        server.endpoint()
    );
    let summary = scratch.succeeds(&format!("{run} --activations --cot --max-examples 4 --context 5"));
    assert_eq!((&summary["answered"], &summary["skipped"]), (&json!(1), &json!(3)));
    let text = shown(&server.seen()[0]).1;
    // Sample 11, the strongest: green square.
    assert!(
        text.contains("Excerpt 1: ") && (text.contains("<< green>>") || text.contains("<<green>>")),
        "{text}"
    );
    assert!(
        text.contains("green\": 10)") && text.contains("Think aloud") && text.contains("square"),
        "{text}"
    );
    assert!(!text.contains("Excerpt 5"), "{text}");
    let records = scratch.records("out/explanations.jsonl");
    let record = records.iter().find(|record| record.feature == FeatureId(1)).unwrap();
    assert_eq!((record.shown.len(), record.shown[0].sample.0), (4, 11));
    scratch.fails(&format!("{run} --resume --context 6"), 2, &["--context was 5, is 6"]);
}

#[test]
fn a_cache_without_token_ids_is_told() {
    let scratch = Scratch::new();
    write_cache(&scratch, false);
    let run = format!("text --cache texts --model {} --explanation-dir out", model().display());
    scratch.fails(&run, 1, &["keeps no token ids", "--keep-tokens"]);
    scratch.fails(&format!("{run} --logits 3"), 2, &["--sae"]);
    scratch.fails(&format!("{run} --threshold nan"), 2, &["expected a number from 0 to 1"]);
    let images = "images --cache texts --dataset data --explanation-dir out";
    scratch.fails(images, 1, &["names no base tile", "sae-explain text"]);
}
