//! A prompt computes the same alone and beside others, whichever side the padding is on.

use lmm_hooks::{Batch, GenerationOptions, HookError, Hooks, LlavaNext, PaddingSide};
use torch_nn::Weights;
use torch_nn::tch::{Device, Kind, Tensor};

use crate::fixture::{batch, config, families, inputs, model, prompts, relative_error, tensors};

/// Batched matrix products may be summed in another order.
const TOLERANCE: f64 = 2e-6;

#[test]
fn padded_batches_agree_with_single_prompts() {
    let prompts = prompts();
    for family in families() {
        let model = model(family);
        for side in [PaddingSide::Right, PaddingSide::Left] {
            let batch = batch(&prompts.each_ref(), side);
            let together = model.forward(&batch, &mut Hooks::new()).unwrap().logits.unwrap();
            for (row, prompt) in prompts.iter().enumerate() {
                let single = crate::fixture::batch(&[prompt], side);
                let alone = model.forward(&single, &mut Hooks::new()).unwrap().logits.unwrap();
                let own = batch.tokens_of(row);
                let own = together.get(row as i64).narrow(0, own.start as i64, own.len() as i64);
                let error = relative_error(&own, &alone.get(0));
                assert!(error < TOLERANCE, "{family:?}, {side:?}, sample {row}: {error:e}");
            }
            assert_eq!(together.isnan().any().int64_value(&[]), 0, "padding made a NaN");
        }
    }
}

/// One prompt with several answers is as many prompts, its pictures seen once.
#[test]
fn a_prompt_continued_is_the_prompt_repeated() {
    let prompt = inputs(1, &[(16, 16), (40, 9)], 5, 3);
    let answers: [&[u32]; 3] = [&[4, 5, 6], &[], &[7]];
    let with = |answer: &&[u32]| {
        let mut inputs = prompt.clone();
        inputs.input_ids.extend(*answer);
        inputs.layout.n_tokens = inputs.input_ids.len();
        inputs
    };
    let rows = answers.each_ref().map(with);
    let model = model(families()[0]);
    for side in [PaddingSide::Right, PaddingSide::Left] {
        let repeated = batch(&rows.each_ref(), side);
        let continued =
            Batch::continued(&prompt, &answers, crate::fixture::PAD, Device::Cpu, Kind::Float, side).unwrap();
        assert_eq!((continued.lengths(), continued.width()), (repeated.lengths(), repeated.width()));
        assert_eq!(continued.image_tokens(), repeated.image_tokens());
        let tiles = |batch: &Batch| batch.pixels().unwrap().size()[0];
        assert_eq!(3 * tiles(&continued), tiles(&repeated));
        let logits = |batch| model.forward(batch, &mut Hooks::new()).unwrap().logits.unwrap();
        let error = relative_error(&logits(&continued), &logits(&repeated));
        assert!(error < TOLERANCE, "{side:?}: {error:e}");
    }
    let beyond =
        Batch::continued(&prompt, &[&[99]], 0, Device::Cpu, Kind::Float, PaddingSide::Right).unwrap();
    let error = model.forward(&beyond, &mut Hooks::new()).unwrap_err();
    assert!(matches!(error, HookError::TokenBeyondVocabulary { token: 99, .. }), "{error}");
}

#[test]
fn single_logits_are_f32_whatever_the_model_computes_in() {
    let prompts = prompts();
    let full = model(families()[0]);
    let batch = batch(&prompts.each_ref(), PaddingSide::Right);
    let hidden = full.last_hidden(&batch, &mut Hooks::new()).unwrap().unwrap();
    let some = full.logits_of(&hidden, &[5, 31, 0]);
    let all = full.lm_head(&hidden);
    for (place, token) in [5, 31, 0].into_iter().enumerate() {
        let error = relative_error(&some.select(2, place as i64), &all.select(2, token));
        assert!(error < TOLERANCE, "token {token}: {error:e}");
    }
    let config = config(families()[0]);
    let head = tensors(&config, 1)["language_model.lm_head.weight"].to_kind(Kind::BFloat16);
    let weights =
        tensors(&config, 1).into_iter().map(|(name, tensor)| (name, tensor.to_kind(Kind::BFloat16)));
    let half = LlavaNext::from_weights(config, &Weights::from_tensors(weights.collect())).unwrap();
    let hidden = hidden.to_kind(Kind::BFloat16);
    let exact = hidden.to_kind(Kind::Double).matmul(&head.get(5).to_kind(Kind::Double));
    let error = |got: Tensor| relative_error(&got.to_kind(Kind::Double), &exact);
    assert!(error(half.logits_of(&hidden, &[5]).squeeze_dim(2)) < TOLERANCE);
    assert!(error(half.lm_head(&hidden).select(2, 5)) > 1e-4, "the head itself rounds");
}

#[test]
fn equal_inputs_give_equal_bits() {
    let prompts = prompts();
    let batch = batch(&prompts.each_ref(), PaddingSide::Left);
    let run = || model(families()[0]).forward(&batch, &mut Hooks::new()).unwrap().logits.unwrap();
    assert!(run().equal(&run()));
}

/// Two questions after one image, in one row: each computes what it does alone behind the image.
#[test]
fn a_mask_of_ones_own_keeps_packed_questions_apart() {
    let prefix = inputs(2, &[(10, 30)], 0, 1);
    let shared = prefix.input_ids.len();
    let with = |questions: &[&[u32]]| {
        let mut inputs = prefix.clone();
        inputs.input_ids.extend(questions.iter().copied().flatten());
        inputs.layout.n_tokens = inputs.input_ids.len();
        inputs
    };
    let questions: [&[u32]; 2] = [&[4, 5, 6], &[7, 8]];
    let packed = with(&questions);
    let total = packed.input_ids.len();
    let segment = |token: usize| if token < shared { 0 } else { 1 + usize::from(token >= shared + 3) };
    let allowed: Vec<bool> = (0..total * total)
        .map(|pair| (pair / total, pair % total))
        .map(|(query, key)| key <= query && (segment(key) == 0 || segment(key) == segment(query)))
        .collect();
    let positions: Vec<i64> =
        (0..total).map(|token| if segment(token) == 2 { token - 3 } else { token } as i64).collect();
    let total = total as i64;
    let packed = batch(&[&packed], PaddingSide::Right).with_attention(
        Tensor::from_slice(&positions).view([1, total]),
        Tensor::from_slice(&allowed).view([1, 1, total, total]),
    );
    let model = model(families()[0]);
    let together = model.forward(&packed, &mut Hooks::new()).unwrap().logits.unwrap().get(0);
    let mut start = shared as i64;
    for question in questions {
        let alone = batch(&[&with(&[question])], PaddingSide::Right);
        let alone = model.forward(&alone, &mut Hooks::new()).unwrap().logits.unwrap().get(0);
        let length = question.len() as i64;
        let error =
            relative_error(&together.narrow(0, start, length), &alone.narrow(0, shared as i64, length));
        assert!(error < TOLERANCE, "{question:?}: {error:e}");
        start += length;
    }
    let error =
        model.generate(&packed, &GenerationOptions::greedy(1, Vec::new()), &mut Hooks::new()).unwrap_err();
    assert!(matches!(error, HookError::GivenAttention), "{error}");
}

#[test]
fn images_matter_and_land_where_the_layout_says() {
    let mut prompt = prompts()[0].clone();
    let model = model(families()[0]);
    let point = "model.embed_tokens".parse().unwrap();
    let states = |prompt: &lmm_prep::Inputs| {
        let found = model.hidden_states(&batch(&[prompt], PaddingSide::Right), std::slice::from_ref(&point));
        found.unwrap().remove(&point).unwrap().get(0)
    };
    let before = states(&prompt);
    let span = prompt.layout.images[0];
    // One pixel of the second tile of the canvas: its only high-resolution patches are those of the right half.
    let tile = prompt.images[0].grid.n_tiles() - 1;
    prompt.images[0].pixels[[tile, 0, 3, 3]] += 1.0;
    let after = states(&prompt);
    let changed = (&after - &before).abs().sum_dim_intlist([1i64].as_slice(), false, None);
    for position in 0..prompt.input_ids.len() {
        let differs = changed.double_value(&[position as i64]) > 0.0;
        let expected = match prompt.layout.kind(position) {
            lmm_prep::TokenKind::Tile { col, .. } => col >= span.high.1 / 2,
            _ => false,
        };
        assert_eq!(differs, expected, "position {position}: {:?}", prompt.layout.kind(position));
    }
}
