//! Generation one token at a time, each row as its own options say.

use std::cell::Cell;

use lmm_hooks::{
    Batch, Generation, GenerationOptions, HookError, HookPoint, Hooks, LlavaNext, NewToken, PaddingSide,
    Sampling,
};
use lmm_prep::{Inputs, TextFamily};
use torch_nn::tch::Kind;

use crate::fixture::{batch, model, prompts};

fn left(samples: &[&Inputs]) -> Batch {
    batch(samples, PaddingSide::Left)
}

/// What each row says until all have ended.
fn rest(generation: &mut Generation<'_, '_>, rows: usize) -> Vec<Vec<NewToken>> {
    let mut texts = vec![Vec::new(); rows];
    while let Some(tokens) = generation.step().unwrap() {
        assert!(tokens.iter().any(Option::is_some), "a pass for nothing");
        for (text, token) in texts.iter_mut().zip(tokens) {
            text.extend(token);
        }
    }
    texts
}

fn ids(text: &[NewToken]) -> Vec<u32> {
    text.iter().map(|token| token.id).collect()
}

fn alone(model: &LlavaNext, prompt: &Inputs, options: &GenerationOptions) -> Vec<u32> {
    model.generate(&left(&[prompt]), options, &mut Hooks::new()).unwrap().remove(0)
}

#[test]
fn rows_of_a_batch_with_options_of_their_own_equal_each_alone() {
    let prompts = prompts();
    for family in [TextFamily::Llama, TextFamily::Mistral] {
        let model = model(family);
        let free = alone(&model, &prompts[0], &GenerationOptions::greedy(9, Vec::new()));
        let sampling = Sampling::Sample { temperature: 1.5, top_p: 0.95, top_k: Some(20), seed: 7 };
        let options = [
            GenerationOptions::greedy(9, vec![free[4]]),
            GenerationOptions { sampling, ..GenerationOptions::greedy(5, Vec::new()) },
            GenerationOptions { repetition_penalty: 2.0, ..GenerationOptions::greedy(7, Vec::new()) },
        ];
        let whole = left(&prompts.each_ref());
        let mut hooks = Hooks::new();
        let mut generation = model.start_generation(&whole, &options, &mut hooks).unwrap();
        let texts = rest(&mut generation, 3);
        for (row, text) in texts.iter().enumerate() {
            assert_eq!(ids(text), alone(&model, &prompts[row], &options[row]), "{family:?}, row {row}");
            assert!(generation.has_ended(row));
        }
        assert!(texts[0].len() <= 5);
        assert_eq!((texts[1].len(), texts[2].len()), (5, 7));
        assert!(generation.step().unwrap().is_none(), "nor is there any more afterwards");
    }
}

#[test]
fn a_stream_of_random_numbers_is_a_rows_own_wherever_it_stands() {
    let prompt = &prompts()[1];
    let model = model(TextFamily::Qwen2);
    let sampling = Sampling::Sample { temperature: 2.0, top_p: 1.0, top_k: None, seed: 3 };
    let options =
        |stream| GenerationOptions { sampling, stream, ..GenerationOptions::greedy(12, Vec::new()) };
    let first = alone(&model, prompt, &options(0));
    let other = alone(&model, prompt, &options(1));
    assert_ne!(first, other);
    let whole = left(&[prompt, prompt, prompt]);
    let mut hooks = Hooks::new();
    let mut generation =
        model.start_generation(&whole, &[options(1), options(0), options(0)], &mut hooks).unwrap();
    let texts = rest(&mut generation, 3);
    assert_eq!(
        [ids(&texts[0]), ids(&texts[1]), ids(&texts[2])],
        [other.clone(), first.clone(), first.clone()]
    );
    // `generate` counts the streams on.
    let both = model.generate(&left(&[prompt, prompt]), &options(0), &mut Hooks::new()).unwrap();
    assert_eq!(both, [first, other]);
}

#[test]
fn log_probabilities_are_those_of_a_forward_pass() {
    let prompts = prompts();
    let model = model(TextFamily::Llama);
    let sampling = Sampling::Sample { temperature: 3.0, top_p: 0.9, top_k: None, seed: 1 };
    let options = [
        GenerationOptions { logprobs: Some(4), ..GenerationOptions::greedy(6, Vec::new()) },
        GenerationOptions { sampling, logprobs: Some(0), ..GenerationOptions::greedy(6, Vec::new()) },
        GenerationOptions::greedy(6, Vec::new()),
    ];
    let whole = left(&prompts.each_ref());
    let mut hooks = Hooks::new();
    let texts = rest(&mut model.start_generation(&whole, &options, &mut hooks).unwrap(), 3);
    assert!(texts[2].iter().all(|token| token.logprob.is_none() && token.top.is_empty()));
    for row in 0..2 {
        let mut read = prompts[row].clone();
        let start = read.input_ids.len();
        read.input_ids.extend(ids(&texts[row]));
        read.layout.n_tokens = read.input_ids.len();
        let logits = model.forward(&left(&[&read]), &mut Hooks::new()).unwrap().logits.unwrap();
        let expected = logits.get(0).log_softmax(-1, Kind::Double);
        for (place, token) in texts[row].iter().enumerate() {
            let expected = expected.get((start + place - 1) as i64);
            let of = |id: u32| expected.double_value(&[i64::from(id)]);
            let near = |id: u32, logprob: f32| {
                let want = of(id);
                assert!((f64::from(logprob) - want).abs() < 1e-4, "row {row}, {place}: {logprob}, {want}");
            };
            near(token.id, token.logprob.unwrap());
            token.top.iter().for_each(|&(id, logprob)| near(id, logprob));
            assert!(token.top.is_sorted_by(|a, b| a.1 >= b.1));
            if row == 0 {
                assert_eq!((token.top.len(), token.top[0].0), (4, token.id), "the likeliest is chosen");
                let above = (0..32).filter(|&id| of(id) > f64::from(token.top[3].1) + 1e-4).count();
                assert!(above <= 3, "{above} are likelier than the fourth");
            } else {
                assert!(token.top.is_empty());
            }
        }
    }
}

#[test]
fn a_row_ended_from_outside_says_no_more_and_the_others_go_on() {
    let prompts = prompts();
    let model = model(TextFamily::Llama);
    let options = GenerationOptions::greedy(6, Vec::new());
    let free = prompts.each_ref().map(|prompt| alone(&model, prompt, &options));
    let whole = left(&prompts.each_ref());
    let mut hooks = Hooks::new();
    let mut generation = model.start_generation(&whole, &vec![options; 3], &mut hooks).unwrap();
    generation.end(2);
    let first = generation.step().unwrap().unwrap();
    assert!(first[2].is_none() && generation.has_ended(2));
    let second = generation.step().unwrap().unwrap();
    generation.end(0);
    let texts = rest(&mut generation, 3);
    assert!(texts[0].is_empty() && texts[2].is_empty());
    let said = |row: usize| {
        let mut said: Vec<u32> = [&first, &second].iter().flat_map(|step| &step[row]).map(|t| t.id).collect();
        said.extend(ids(&texts[row]));
        said
    };
    assert_eq!(said(0), free[0][..2]);
    assert_eq!(said(1), free[1]);
}

#[test]
fn no_pass_is_made_that_nobody_needs() {
    let prompts = prompts();
    let model = model(TextFamily::Llama);
    let whole = left(&prompts.each_ref());
    let passes = Cell::new(0);
    let counted = || Hooks::new().read(HookPoint::layer(0), |_, _| passes.set(passes.get() + 1));
    let run = |lengths: [usize; 3], end_after: usize| {
        passes.set(0);
        let options = lengths.map(|length| GenerationOptions::greedy(length, Vec::new()));
        let mut hooks = counted();
        let mut generation = model.start_generation(&whole, &options, &mut hooks).unwrap();
        for _ in 0..end_after {
            generation.step().unwrap().unwrap();
        }
        (0..3).for_each(|row| generation.end(row));
        assert!(generation.step().unwrap().is_none());
        passes.get()
    };
    assert_eq!(run([9, 9, 9], 0), 0);
    assert_eq!(run([9, 9, 9], 1), 1);
    assert_eq!(run([9, 9, 9], 4), 4);
    assert_eq!(run([0, 0, 0], 0), 0);
    passes.set(0);
    let mut hooks = counted();
    let options = [3, 0, 5].map(|length| GenerationOptions::greedy(length, Vec::new()));
    let mut generation = model.start_generation(&whole, &options, &mut hooks).unwrap();
    let lengths = rest(&mut generation, 3).iter().map(Vec::len).collect::<Vec<_>>();
    drop(generation);
    drop(hooks);
    // The prompts' pass gives the first token, and nobody reads the last.
    assert_eq!((lengths, passes.get()), (vec![3, 0, 5], 5));
}

#[test]
fn a_pass_that_fails_ends_all_rows() {
    let prompts = prompts();
    let model = model(TextFamily::Llama);
    let whole = left(&prompts.each_ref());
    let calls = Cell::new(0);
    let mut hooks = Hooks::new().replace(HookPoint::layer(1), |_, tensor| {
        calls.set(calls.get() + 1);
        if calls.get() == 2 { tensor.narrow(2, 0, 1) } else { tensor }
    });
    let options = vec![GenerationOptions::greedy(4, Vec::new()); 3];
    let mut generation = model.start_generation(&whole, &options, &mut hooks).unwrap();
    assert!(generation.step().unwrap().is_some());
    let error = generation.step().unwrap_err();
    assert!(matches!(error, HookError::ReplacedShape { .. }), "{error}");
    assert!(generation.step().unwrap().is_none());
}
