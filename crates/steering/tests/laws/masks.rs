//! Only the tokens that a plan is about change.

use std::cell::RefCell;

use lmm_hooks::{GenerationOptions, Hooks, LlavaNext, Phase};
use lmm_prep::{Inputs, TokenKind};
use steering::{Mode, Plan, Steering, SteeringError, When, Where};
use tch::{Kind, Tensor};

use crate::fixture::{batch, hook, inputs, model, plan, prompts, steerer};

/// Which tokens `add` changes in each pass of a generation, row by row.
fn changed(model: &LlavaNext, steering: &Steering<'_>, rows: &[&Inputs]) -> Vec<Vec<Vec<bool>>> {
    let batch = batch(rows);
    let (before, found) = (RefCell::new(Tensor::new()), RefCell::new(Vec::new()));
    let mut hooks = Hooks::new().read(hook(), |_, tensor| *before.borrow_mut() = tensor.copy());
    hooks = hooks.then(steering.hooks()).read(hook(), |context, tensor| {
        let moved = (tensor - &*before.borrow()).abs().sum_dim_intlist(-1, false, Kind::Float).gt(0.0);
        let row = |row: usize| {
            let moved = Vec::<bool>::try_from(moved.get(row as i64)).unwrap();
            match context.phase {
                Phase::Prefill => {
                    let own = context.batch.tokens_of(row);
                    assert!(moved[..own.start].iter().all(|moved| !moved), "padding was steered");
                    moved[own].to_vec()
                }
                Phase::Decode { .. } => moved,
            }
        };
        found.borrow_mut().push((0..rows.len()).map(row).collect());
    });
    let options = GenerationOptions::greedy(3, Vec::new());
    model.generate(&batch, &options, &mut hooks).unwrap();
    drop(hooks);
    found.into_inner()
}

fn is_image(inputs: &Inputs, position: usize) -> bool {
    inputs.layout.kind(position) != TokenKind::Text
}

#[test]
fn places_and_times_are_kept_apart() {
    let model = model();
    let steerer = steerer(&model);
    let prompts = prompts();
    let rows: Vec<&Inputs> = prompts.iter().collect();
    let mut mixed = Vec::new();
    for &place in Where::ALL {
        for &time in When::ALL {
            let plan = Plan { place, time, ..plan(Mode::Add, 3, 2.0) };
            let steering = match steerer.steering(&vec![plan.clone(); rows.len()]) {
                Ok(steering) => steering,
                Err(SteeringError::Nowhere { .. }) => continue,
                Err(error) => panic!("{error}"),
            };
            let passes = changed(&model, &steering, &rows);
            assert_eq!(passes.len(), 3);
            for (row, inputs) in rows.iter().enumerate() {
                let wanted = |position: usize| {
                    time != When::Decoding
                        && match place {
                            Where::All => true,
                            Where::Image => is_image(inputs, position),
                            Where::Text => !is_image(inputs, position),
                            Where::Last => position + 1 == inputs.input_ids.len(),
                            Where::Generated => false,
                        }
                };
                let wanted: Vec<bool> = (0..inputs.input_ids.len()).map(wanted).collect();
                assert_eq!(passes[0][row], wanted, "{place} {time}, row {row}");
                let answer = time != When::Prefill && !matches!(place, Where::Image | Where::Last);
                assert_eq!(passes[1][row], [answer], "{place} {time}, row {row}");
                assert_eq!(passes[2][row], [answer], "{place} {time}, row {row}");
            }
            mixed.push((plan, passes));
        }
    }
    assert_eq!(mixed.len(), 3 * 5 - 3);
    // Rows of different places and times.
    for chosen in mixed.chunks(rows.len()).filter(|chosen| chosen.len() == rows.len()) {
        let plans: Vec<Plan> = chosen.iter().map(|(plan, _)| plan.clone()).collect();
        let passes = changed(&model, &steerer.steering(&plans).unwrap(), &rows);
        for (pass, together) in passes.iter().enumerate() {
            for (row, (plan, alone)) in chosen.iter().enumerate() {
                assert_eq!(together[row], alone[pass][row], "{} {}, row {row}", plan.place, plan.time);
            }
        }
    }
}

/// An answer in one pass is steered as it is while it is generated.
#[test]
fn answers_behind_prompts_count_as_generated() {
    let model = model();
    let steerer = steerer(&model);
    let prompt = inputs(2, &[(10, 30)], 3, 1);
    for (place, time) in
        [(Where::Generated, When::Both), (Where::All, When::Prefill), (Where::Last, When::Both)]
    {
        let plan = Plan { place, time, ..plan(Mode::Clamp, 3, 4.0) };
        let steering = steerer.steering(std::slice::from_ref(&plan)).unwrap();
        let options = GenerationOptions::greedy(5, Vec::new());
        let text = model.generate(&batch(&[&prompt]), &options, &mut steering.hooks()).unwrap().remove(0);
        let mut whole = prompt.clone();
        whole.input_ids.extend(&text[..4]);
        whole.layout.n_tokens += 4;
        let length = prompt.input_ids.len();
        let mut hooks = steering.hooks_with_answers(&[length]);
        let logits = tch::no_grad(|| model.forward(&batch(&[&whole]), &mut hooks)).unwrap().logits.unwrap();
        let likeliest = logits.get(0).narrow(0, length as i64 - 1, 5).argmax(-1, false);
        let likeliest: Vec<i64> = Vec::try_from(likeliest).unwrap();
        assert_eq!(likeliest, text.iter().map(|&id| i64::from(id)).collect::<Vec<_>>(), "{place} {time}");
    }
}
