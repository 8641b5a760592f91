//! A prompt computes the same alone and beside others, whichever side the padding is on.

use lmm_hooks::{GenerationOptions, HookError, Hooks, PaddingSide};
use torch_nn::tch::Tensor;

use crate::fixture::{batch, families, inputs, model, prompts, relative_error};

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
