//! Generation with a cache equals recomputation without one.

use std::cell::RefCell;

use lmm_hooks::{Batch, GenerationOptions, HookError, Hooks, LlavaNext, PaddingSide, Phase, Sampling};
use lmm_prep::{Inputs, TextFamily};

use crate::fixture::{batch, families, inputs, model, prompts};

const NEW_TOKENS: usize = 9;

/// Greedy generation by a whole forward pass per token.
fn recomputed(model: &LlavaNext, prompt: &Inputs, new_tokens: usize) -> Vec<u32> {
    let mut text = prompt.clone();
    let mut out = Vec::new();
    for _ in 0..new_tokens {
        let whole = batch(&[&text], PaddingSide::Right);
        let logits = model.forward(&whole, &mut Hooks::new()).unwrap().logits.unwrap();
        let token = logits.get(0).get(logits.size()[1] - 1).argmax(None, false).int64_value(&[]) as u32;
        out.push(token);
        text.input_ids.push(token);
        text.layout.n_tokens += 1;
    }
    out
}

fn left(samples: &[&Inputs]) -> Batch {
    batch(samples, PaddingSide::Left)
}

#[test]
fn cached_greedy_generation_equals_recomputation() {
    let prompts = prompts();
    for family in families() {
        let model = model(family);
        let options = GenerationOptions::greedy(NEW_TOKENS, Vec::new());
        let together = model.generate(&left(&prompts.each_ref()), &options, &mut Hooks::new()).unwrap();
        for (row, prompt) in prompts.iter().enumerate() {
            let expected = recomputed(&model, prompt, NEW_TOKENS);
            assert_eq!(together[row], expected, "{family:?}, sample {row}, in a batch");
            let alone = model.generate(&left(&[prompt]), &options, &mut Hooks::new()).unwrap();
            assert_eq!(alone[0], expected, "{family:?}, sample {row}, alone");
        }
    }
}

#[test]
fn a_sample_ends_at_any_ending_token_and_the_others_go_on() {
    let prompts = prompts();
    let model = model(TextFamily::Llama);
    let free = GenerationOptions::greedy(NEW_TOKENS, Vec::new());
    let free = model.generate(&left(&prompts.each_ref()), &free, &mut Hooks::new()).unwrap();
    let eos = vec![free[1][2], 31];
    let options = GenerationOptions::greedy(NEW_TOKENS, eos.clone());
    let ended = model.generate(&left(&prompts.each_ref()), &options, &mut Hooks::new()).unwrap();
    for (whole, cut) in free.iter().zip(&ended) {
        let end = whole.iter().position(|token| eos.contains(token)).map_or(whole.len(), |at| at + 1);
        assert_eq!(cut, &whole[..end]);
    }
    assert!(ended[1].len() <= 3);
}

#[test]
fn hooks_tell_prompt_from_new_tokens() {
    let prompts = prompts();
    let model = model(TextFamily::Qwen2);
    let batch = left(&prompts.each_ref());
    let seen = RefCell::new(Vec::new());
    let point = "model.layers.1".parse().unwrap();
    let mut hooks = Hooks::new()
        .read(point, |context, tensor| {
            assert_eq!(context.real.size(), tensor.size()[..2]);
            let last = context.positions.get(1).get(-1).int64_value(&[]);
            seen.borrow_mut().push((context.phase, tensor.size()[1], last));
        })
        .stop_after_last();
    let options = GenerationOptions::greedy(3, Vec::new());
    assert_eq!(model.generate(&batch, &options, &mut hooks).unwrap()[0].len(), 3);
    drop(hooks);
    let prompt = prompts[1].input_ids.len() as i64;
    let expected = [
        (Phase::Prefill, batch.width() as i64, prompt - 1),
        (Phase::Decode { step: 0 }, 1, prompt),
        (Phase::Decode { step: 1 }, 1, prompt + 1),
    ];
    assert_eq!(seen.into_inner(), expected);
}

#[test]
fn replacing_during_generation_steers_it() {
    let prompt = inputs(5, &[(10, 30)], 2, 9);
    let model = model(TextFamily::Mistral);
    let options = GenerationOptions::greedy(6, Vec::new());
    let plain = model.generate(&left(&[&prompt]), &options, &mut Hooks::new()).unwrap();
    let same = Hooks::new().replace("model.layers.2".parse().unwrap(), |_, tensor| tensor.copy());
    assert_eq!(model.generate(&left(&[&prompt]), &options, &mut { same }).unwrap(), plain);
    let flipped =
        Hooks::new().replace("model.layers.2".parse().unwrap(), |context, tensor| match context.phase {
            Phase::Prefill => tensor,
            Phase::Decode { .. } => -tensor,
        });
    let steered = model.generate(&left(&[&prompt]), &options, &mut { flipped }).unwrap();
    assert_eq!(steered[0][0], plain[0][0], "the first token comes of the prompt");
    assert_ne!(steered, plain);
}

#[test]
fn sampling_is_seeded_and_a_row_does_not_depend_on_its_neighbours() {
    let prompts = prompts();
    let model = model(TextFamily::Llama);
    let sampling = |seed| Sampling::Sample { temperature: 1.5, top_p: 0.95, top_k: Some(20), seed };
    let options =
        |seed| GenerationOptions { sampling: sampling(seed), ..GenerationOptions::greedy(8, Vec::new()) };
    let run = |samples: &[&Inputs], seed| {
        model.generate(&left(samples), &options(seed), &mut Hooks::new()).unwrap()
    };
    let first = run(&prompts.each_ref(), 1);
    assert_eq!(first, run(&prompts.each_ref(), 1));
    assert_ne!(first, run(&prompts.each_ref(), 2));
    assert_eq!(first[0], run(&[&prompts[0]], 1)[0]);
    // So narrow a choice is greedy.
    let narrow = Sampling::Sample { temperature: 1.0, top_p: 1.0, top_k: Some(1), seed: 3 };
    let narrow = GenerationOptions { sampling: narrow, ..GenerationOptions::greedy(8, Vec::new()) };
    let greedy = GenerationOptions::greedy(8, Vec::new());
    let run = |options| model.generate(&left(&prompts.each_ref()), options, &mut Hooks::new()).unwrap();
    assert_eq!(run(&narrow), run(&greedy));
}

#[test]
fn a_repetition_penalty_discourages_what_was_said() {
    let prompt = inputs(6, &[], 0, 11);
    let model = model(TextFamily::Llama);
    let options = GenerationOptions { repetition_penalty: 1e6, ..GenerationOptions::greedy(12, Vec::new()) };
    let text = model.generate(&left(&[&prompt]), &options, &mut Hooks::new()).unwrap().remove(0);
    let mut distinct = text.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), text.len(), "{text:?}");
}

#[test]
fn bad_options_are_refused() {
    let prompts = prompts();
    let model = model(TextFamily::Llama);
    let right = batch(&prompts.each_ref(), PaddingSide::Right);
    let greedy = GenerationOptions::greedy(2, Vec::new());
    let error = model.generate(&right, &greedy, &mut Hooks::new()).unwrap_err();
    assert!(matches!(error, HookError::RightPadded), "{error}");
    for (temperature, top_p, top_k) in
        [(0.0, 1.0, None), (f64::NAN, 1.0, None), (1.0, 1.1, None), (1.0, 1.0, Some(0))]
    {
        let sampling = Sampling::Sample { temperature, top_p, top_k, seed: 0 };
        let options = GenerationOptions { sampling, ..greedy.clone() };
        let error = model.generate(&left(&[&prompts[0]]), &options, &mut Hooks::new()).unwrap_err();
        assert!(matches!(error, HookError::GenerationOption { .. }), "{error}");
    }
    assert_eq!(
        model
            .generate(&right, &GenerationOptions::greedy(0, Vec::new()), &mut Hooks::new())
            .unwrap_err()
            .to_string(),
        HookError::RightPadded.to_string()
    );
}
