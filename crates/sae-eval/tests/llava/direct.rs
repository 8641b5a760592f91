//! Every figure again, without batches, streams or shared passes, in f64.

use std::cell::RefCell;

use lmm_hooks::{Batch, HookPoint, Hooks, LlavaNext, PaddingSide};
use lmm_prep::{Inputs, TokenKind};
use ndarray::{Array2, Axis};
use sae_core::{Activation, Sae, SaeConfig};
use sae_eval::{Evaluation, Subject};
use tch::{Device, Kind, Tensor};

use crate::fixture::{WIDTH, counted, evaluate, model, prompts, random_sae};

/// What a pass over one prompt gives: log-probabilities `[tokens, vocabulary]`.
fn log_probabilities(model: &LlavaNext, prompt: &Inputs, hooks: &mut Hooks<'_>) -> Tensor {
    let batch = Batch::new(&[prompt], 0, Device::Cpu, Kind::Float, PaddingSide::Right).unwrap();
    let _no_gradients = tch::no_grad_guard();
    model
        .forward(&batch, hooks)
        .unwrap()
        .logits
        .unwrap()
        .get(0)
        .to_kind(Kind::Double)
        .log_softmax(-1, None::<Kind>)
}

/// The tensor `[tokens, width]` at a hook point.
fn states(model: &LlavaNext, prompt: &Inputs, point: &HookPoint) -> Array2<f32> {
    let found = RefCell::new(None);
    let mut hooks = Hooks::new().read(point.clone(), |_, tensor| *found.borrow_mut() = Some(tensor.get(0)));
    let _ = log_probabilities(model, prompt, &mut hooks);
    drop(hooks);
    let flat = Vec::<f32>::try_from(found.into_inner().unwrap().reshape([-1])).unwrap();
    Array2::from_shape_vec((prompt.input_ids.len(), WIDTH), flat).unwrap()
}

/// A pass with rows of `replacement` at the counted positions of `point`.
fn spliced(
    model: &LlavaNext,
    prompt: &Inputs,
    point: &HookPoint,
    positions: &[usize],
    replacement: &Array2<f32>,
) -> Tensor {
    let mut hooks = Hooks::new().replace(point.clone(), |_, tensor| {
        let changed = tensor.copy();
        for (row, &position) in positions.iter().enumerate() {
            let row = Tensor::from_slice(replacement.row(row).as_slice().unwrap());
            changed.get(0).get(position as i64).copy_(&row);
        }
        changed
    });
    log_probabilities(model, prompt, &mut hooks)
}

fn fvu(y: &Array2<f64>, result: &Array2<f64>) -> f64 {
    let mean = y.mean_axis(Axis(0)).unwrap();
    (y - result).mapv(|x| x * x).sum() / (y - &mean).mapv(|x| x * x).sum()
}

fn check(
    model: &LlavaNext,
    prompts: &[Inputs],
    input: &HookPoint,
    output: &HookPoint,
    sae: &Sae,
    got: &Evaluation,
) {
    let (mut original, mut with_sae, mut zero, mut kl, mut n) = (0.0, 0.0, 0.0, 0.0, 0_usize);
    let (mut rows, mut results, mut image) = (Vec::new(), Vec::new(), Vec::new());
    let (mut codes_image, mut codes_text) = (0, 0);
    let mut fired = vec![0_u32; sae.num_latents()];
    for prompt in prompts {
        let positions = &counted(&[prompt])[0];
        let x = states(model, prompt, input).select(Axis(0), positions);
        let y = states(model, prompt, output).select(Axis(0), positions);
        let (codes, result) = sae.reconstruct(x.view()).unwrap();
        for (row, &position) in positions.iter().enumerate() {
            let is_image = prompt.layout.kind(position) != TokenKind::Text;
            image.push(is_image);
            *(if is_image { &mut codes_image } else { &mut codes_text }) += codes.row(row).len();
            codes.row(row).latents.iter().for_each(|&latent| fired[latent as usize] += 1);
            rows.push(y.row(row).mapv(f64::from));
            results.push(result.row(row).mapv(f64::from));
        }
        let plain = log_probabilities(model, prompt, &mut Hooks::new());
        let sae = spliced(model, prompt, output, positions, &result);
        let zeros = spliced(model, prompt, output, positions, &Array2::zeros(result.dim()));
        for next in 1..prompt.input_ids.len() {
            if prompt.layout.kind(next) != TokenKind::Text {
                continue;
            }
            let (at, token) = (next as i64 - 1, i64::from(prompt.input_ids[next]));
            n += 1;
            original -= plain.double_value(&[at, token]);
            with_sae -= sae.double_value(&[at, token]);
            zero -= zeros.double_value(&[at, token]);
            kl += (plain.get(at).exp() * (plain.get(at) - sae.get(at))).sum(Kind::Double).double_value(&[]);
        }
    }
    let matrix = |rows: &[ndarray::Array1<f64>], only: &dyn Fn(bool) -> bool| {
        let rows: Vec<_> = rows
            .iter()
            .zip(&image)
            .filter(|(_, image)| only(**image))
            .flat_map(|(row, _)| row.to_vec())
            .collect();
        Array2::from_shape_vec((rows.len() / WIDTH, WIDTH), rows).unwrap()
    };
    let fvu = |only: &dyn Fn(bool) -> bool| Some(fvu(&matrix(&rows, only), &matrix(&results, only)));
    let pairs = || rows.iter().zip(&results);
    let length = |row: &ndarray::Array1<f64>| row.dot(row).sqrt();
    let tokens = rows.len() as f64;
    let images = image.iter().filter(|image| **image).count();
    let n_f64 = n as f64;
    let share = |of: &dyn Fn(f64) -> bool| {
        Some(fired.iter().filter(|count| of(f64::from(**count))).count() as f64 / fired.len() as f64)
    };
    let figures = [
        ("fvu", got.fvu, fvu(&|_| true)),
        ("fvu_image", got.fvu_image, fvu(&|image| image)),
        ("fvu_text", got.fvu_text, fvu(&|image| !image)),
        (
            "cosine",
            got.cosine,
            Some(pairs().map(|(y, z)| y.dot(z) / length(y) / length(z)).sum::<f64>() / tokens),
        ),
        (
            "norm_ratio",
            got.norm_ratio,
            Some(pairs().map(|(y, z)| length(z) / length(y)).sum::<f64>() / tokens),
        ),
        ("l0", got.l0, Some((codes_image + codes_text) as f64 / tokens)),
        ("l0_image", got.l0_image, Some(codes_image as f64 / images as f64)),
        ("l0_text", got.l0_text, Some(codes_text as f64 / (rows.len() - images) as f64)),
        ("dead_share", got.dead_share, share(&|count| count == 0.0)),
        ("dense_share", got.dense_share, share(&|count| count > 0.1 * tokens)),
        ("ce_original", got.ce_original, Some(original / n_f64)),
        ("ce_spliced", got.ce_spliced, Some(with_sae / n_f64)),
        ("ce_zero", got.ce_zero, Some(zero / n_f64)),
        ("ce_recovered", got.ce_recovered, Some((zero - with_sae) / (zero - original))),
        ("kl", got.kl, Some(kl / n_f64)),
    ];
    for (name, got, want) in figures {
        let (got, want) = (got.unwrap(), want.unwrap());
        assert!((got - want).abs() < 2e-5 * (1.0 + want.abs()), "{output}, {name}: {got}, directly {want}");
    }
    assert_eq!((got.tokens, got.tokens_image, got.predicted_tokens), (rows.len(), images, n));
    assert!(images > 0 && images < rows.len() && n > 5, "too little to measure");
    assert!((got.ce_spliced.unwrap() - got.ce_original.unwrap()).abs() > 1e-3, "splicing does nothing");
    assert!(got.dead_share != Some(1.0) && got.l0.unwrap() > 0.5, "nothing fires");
}

#[test]
fn figures_equal_a_direct_computation() {
    let (model, prompts) = (model(), prompts());
    let plain = SaeConfig::new(WIDTH, 40, 6);
    let mut batch = plain.clone();
    batch.activation = Activation::BatchTopK { threshold: 0.6 };
    let mut transcoder = plain.clone();
    (transcoder.transcode, transcoder.skip_connection) = (true, true);
    let saes =
        [random_sae(plain.clone(), 5), random_sae(batch, 6), random_sae(plain, 7), random_sae(transcoder, 8)];
    let [layer, attention, norm, mlp] = [
        "model.layers.1",
        "model.layers.0.self_attn",
        "model.layers.2.post_attention_layernorm",
        "model.layers.2.mlp",
    ]
    .map(|point| point.parse::<HookPoint>().unwrap());
    let subjects = vec![
        Subject::autoencoder("topk", layer.clone(), &saes[0]),
        Subject::autoencoder("batch_topk", layer.clone(), &saes[1]),
        Subject::autoencoder("attention", attention.clone(), &saes[2]),
        Subject::transcoder("transcoder", norm.clone(), mlp.clone(), &saes[3]),
    ];
    let evaluations = evaluate(&model, subjects, &prompts, 3, PaddingSide::Right);
    let places = [(&layer, &layer), (&layer, &layer), (&attention, &attention), (&norm, &mlp)];
    for ((evaluation, sae), (input, output)) in evaluations.iter().zip(&saes).zip(places) {
        check(&model, &prompts, input, output, sae, evaluation);
        assert_eq!(evaluation.hook, output.as_str());
    }
    assert_eq!(evaluations[0].ce_zero, evaluations[1].ce_zero);
}
