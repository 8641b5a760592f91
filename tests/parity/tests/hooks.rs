//! What hooks, caches and loading promise, on the models whose numbers families.rs checks.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod common;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use common::{Subject, array};
use lmm_hooks::{
    GenerationOptions, HookError, HookPoint, Hooks, LlavaNext, LoadOptions, PaddingSide, Phase, Sampling,
};
use parity_tests::{Array, Stages, Tolerance};
use safetensors::{SafeTensors, tensor::TensorView};
use tch::{Kind, Tensor};
use torch_nn::Weights;

const FAMILIES: [&str; 5] = ["llama", "vicuna", "mistral", "qwen2", "qwen2_window"];

fn logits(subject: &Subject, case: &str, hooks: &mut Hooks<'_>) -> Option<Tensor> {
    let _guard = tch::no_grad_guard();
    subject.model.forward(&subject.batch_of(case), hooks).unwrap().logits
}

/// The tensor at every hook point of a whole pass.
fn all_states(subject: &Subject, case: &str) -> BTreeMap<HookPoint, Tensor> {
    let seen = RefCell::new(BTreeMap::new());
    let mut hooks = Hooks::new();
    for point in subject.model.hook_points() {
        hooks = hooks.read(point, |context, tensor| {
            seen.borrow_mut().insert(context.point.clone(), tensor.copy());
        });
    }
    assert!(logits(subject, case, &mut hooks).is_some());
    drop(hooks);
    seen.into_inner()
}

#[test]
fn stopping_at_a_point_gives_what_the_whole_pass_gives() {
    for family in FAMILIES {
        let subject = Subject::load(family, Kind::Float);
        let whole = all_states(&subject, "one");
        assert_eq!(whole.len(), subject.model.hook_points().len());
        let batch = subject.batch_of("one");
        for (point, state) in &whole {
            let stopped = subject.model.hidden_states(&batch, std::slice::from_ref(point)).unwrap();
            assert!(stopped[point].equal(state), "{family}: {point}");
            assert_eq!(state.size().last(), Some(&subject.model.width(point).unwrap()), "{family}: {point}");
            let mut hooks = Hooks::new().read(point.clone(), |_, _| ()).stop_after_last();
            assert!(logits(&subject, "one", &mut hooks).is_none(), "{family}: {point}");
        }
    }
}

/// The last layer and the head are made impossible to compute: booleans have no matrix product.
#[test]
fn nothing_after_the_last_point_is_computed() {
    let mut subject = Subject::load("llama", Kind::Float);
    let before = HookPoint::layer(1);
    let batch = subject.batch_of("one");
    let want = subject.model.hidden_states(&batch, std::slice::from_ref(&before)).unwrap();
    let file = subject.fixture.model.join("model.safetensors");
    let tensors = Tensor::read_safetensors(file).unwrap().into_iter().map(|(name, tensor)| {
        let is_after =
            name.contains(".layers.2.mlp") && name.contains("language_model") || name.contains("lm_head");
        (name, if is_after { tensor.to_kind(Kind::Bool) } else { tensor })
    });
    let weights = Weights::from_tensors(tensors.collect());
    subject.model = LlavaNext::from_weights(subject.model.config().clone(), &weights).unwrap();
    let got = subject.model.hidden_states(&batch, std::slice::from_ref(&before)).unwrap();
    assert!(got[&before].equal(&want[&before]));
    let after = std::panic::AssertUnwindSafe(|| subject.model.hidden_states(&batch, &[HookPoint::layer(2)]));
    assert!(std::panic::catch_unwind(after).is_err(), "layer 2 was computed from booleans");
}

#[test]
fn hooks_of_one_point_run_in_the_order_they_were_added() {
    let subject = Subject::load("llama", Kind::Float);
    let order = RefCell::new(Vec::new());
    let mut hooks = Hooks::new()
        .read(HookPoint::layer(1), |context, _| order.borrow_mut().push(format!("{} read", context.point)))
        .replace(HookPoint::layer(1), |_, tensor| {
            order.borrow_mut().push("replaced".to_owned());
            tensor.zeros_like()
        })
        .read(HookPoint::layer(1), |_, tensor| {
            order.borrow_mut().push(format!("sum {}", tensor.sum(Kind::Float).double_value(&[])));
        })
        .read(HookPoint::layer(0), |context, _| order.borrow_mut().push(format!("{} read", context.point)))
        .stop_after_last();
    assert!(logits(&subject, "one", &mut hooks).is_none());
    drop(hooks);
    assert_eq!(order.into_inner(), ["model.layers.0 read", "model.layers.1 read", "replaced", "sum 0"]);
}

#[test]
fn replacing_every_point_by_itself_changes_nothing() {
    for family in FAMILIES {
        let subject = Subject::load(family, Kind::Float);
        let plain = logits(&subject, "two", &mut Hooks::new()).unwrap();
        let mut hooks = Hooks::new();
        for point in subject.model.hook_points() {
            hooks = hooks.replace(point, |_, tensor| tensor.copy());
        }
        assert!(logits(&subject, "two", &mut hooks).unwrap().equal(&plain), "{family}");
        drop(hooks);

        let case = subject.fixture.case("two");
        let batch = subject.batch(&[&subject.inputs(case)], PaddingSide::Left);
        let mut hooks = Hooks::new();
        for point in subject.model.hook_points() {
            hooks = hooks.replace(point, |_, tensor| tensor.copy());
        }
        let options = GenerationOptions::greedy(case.generated.len(), vec![]);
        let generated = subject.model.generate(&batch, &options, &mut hooks).unwrap();
        assert_eq!(generated[0], case.generated, "{family}");
    }
}

/// A replaced output is what the rest of the model sees, and nothing before it changes.
#[test]
fn what_replaces_an_output_goes_on_from_there() {
    for family in FAMILIES {
        let subject = Subject::load(family, Kind::Float);
        let plain = all_states(&subject, "one");
        for point in subject.model.hook_points() {
            let seen = RefCell::new(BTreeMap::new());
            let mut hooks = Hooks::new().replace(point.clone(), |_, tensor| tensor * -0.5);
            for other in subject.model.hook_points() {
                hooks = hooks.read(other, |context, tensor| {
                    seen.borrow_mut().insert(context.point.clone(), tensor.copy());
                });
            }
            logits(&subject, "one", &mut hooks);
            drop(hooks);
            let seen = seen.into_inner();
            assert!(
                seen[&point].equal(&(&plain[&point] * -0.5)),
                "{family}: {point} is read before replaced"
            );
            let order = subject.model.hook_points();
            let place = order.iter().position(|other| *other == point).unwrap();
            for earlier in &order[..place] {
                assert!(seen[earlier].equal(&plain[earlier]), "{family}: {point} changed {earlier}");
            }
            for later in &order[place + 1..] {
                assert!(!seen[later].equal(&plain[later]), "{family}: {point} did not reach {later}");
            }
        }
        // The last layer's output of another prompt of the same length gives that prompt's logits.
        let last = HookPoint::layer(subject.model.config().text_config.num_hidden_layers - 1);
        let mut inputs = subject.inputs(subject.fixture.case("text"));
        inputs.input_ids.reverse();
        let other = subject.batch(&[&inputs], PaddingSide::Right);
        let _guard = tch::no_grad_guard();
        let theirs =
            subject.model.hidden_states(&other, std::slice::from_ref(&last)).unwrap().remove(&last).unwrap();
        let want = subject.model.forward(&other, &mut Hooks::new()).unwrap().logits.unwrap();
        let mut hooks = Hooks::new().replace(last, |_, _| theirs.copy());
        let plain = logits(&subject, "text", &mut Hooks::new()).unwrap();
        assert!(!plain.equal(&want), "{family}: the prompts differ");
        assert!(logits(&subject, "text", &mut hooks).unwrap().equal(&want), "{family}");
    }
}

/// The states seen while generating with the cache are those of one pass over prompt and answer, also where the batch
/// is padded and the window is shorter than the prompt.
#[test]
fn cached_generation_sees_the_states_of_one_whole_pass() {
    for family in FAMILIES {
        let subject = Subject::load(family, Kind::Float);
        let names = ["two", "text"];
        let inputs = names.map(|name| subject.inputs(subject.fixture.case(name)));
        let batch = subject.batch(&[&inputs[0], &inputs[1]], PaddingSide::Left);
        let point = HookPoint::layer(2);
        let passes = RefCell::new(Vec::new());
        let mut hooks = Hooks::new().read(point.clone(), |context, tensor| {
            passes.borrow_mut().push((context.phase, tensor.copy()));
        });
        let generated =
            subject.model.generate(&batch, &GenerationOptions::greedy(8, vec![]), &mut hooks).unwrap();
        drop(hooks);
        let passes = passes.into_inner();
        let phases: Vec<Phase> = passes.iter().map(|(phase, _)| *phase).collect();
        let expected: Vec<Phase> =
            std::iter::once(Phase::Prefill).chain((0..7).map(|step| Phase::Decode { step })).collect();
        assert_eq!(phases, expected, "{family}");

        let states: Vec<&Tensor> = passes.iter().map(|(_, tensor)| tensor).collect();
        let states = Tensor::cat(&states, 1);
        let mut stages = Stages::new(format!("{family}: cache"), Tolerance::F32);
        for (row, (name, inputs)) in names.iter().zip(inputs).enumerate() {
            let mut longer = inputs;
            longer.input_ids.extend(&generated[row][..7]);
            longer.layout.n_tokens += 7;
            let whole = subject.batch(&[&longer], PaddingSide::Right);
            let want = subject
                .model
                .hidden_states(&whole, std::slice::from_ref(&point))
                .unwrap()
                .remove(&point)
                .unwrap();
            let start = batch.tokens_of(row).start as i64;
            let got = states.get(row as i64).slice(0, start, None, 1);
            stages.close(name, &array(&got), &array(&want.squeeze_dim(0)));
        }
        stages.finish();
    }
}

#[test]
fn sampling_from_one_token_is_greedy_and_seeds_repeat() {
    let subject = Subject::load("llama", Kind::Float);
    let case = subject.fixture.case("one");
    let batch = subject.batch(&[&subject.inputs(case)], PaddingSide::Left);
    let generate = |temperature, top_p, top_k, seed| {
        let sampling = Sampling::Sample { temperature, top_p, top_k, seed };
        let options =
            GenerationOptions { sampling, ..GenerationOptions::greedy(case.generated.len(), vec![]) };
        subject.model.generate(&batch, &options, &mut Hooks::new()).unwrap().remove(0)
    };
    assert_eq!(generate(1.0, 1.0, Some(1), 7), case.generated);
    assert_eq!(generate(1.0, 1e-6, None, 7), case.generated);
    assert_eq!(generate(1.0, 1.0, None, 7), generate(1.0, 1.0, None, 7));
    assert_ne!(generate(1.0, 1.0, None, 7), generate(1.0, 1.0, None, 8));
}

/// Hook points that do not exist, right-padded generation.
#[test]
fn what_cannot_be_done_is_said() {
    let subject = Subject::load("llama", Kind::Float);
    let unknown = HookPoint::new("model.layers.3").unwrap();
    let error = subject.model.check(&unknown).unwrap_err();
    assert!(error.to_string().contains("model.layers.2"), "{error}");
    let error = subject.model.forward(&subject.batch_of("text"), &mut Hooks::new().read(unknown, |_, _| ()));
    assert!(matches!(error, Err(HookError::UnknownPoint { .. })));
    let projector = HookPoint::new("multi_modal_projector").unwrap();
    let error = subject.model.hidden_states(&subject.batch_of("text"), &[projector]).unwrap_err();
    assert!(matches!(error, HookError::NotReached { .. }), "{error}");
    let inputs = ["one", "text"].map(|name| subject.inputs(subject.fixture.case(name)));
    let batch = subject.batch(&[&inputs[0], &inputs[1]], PaddingSide::Right);
    let error = subject.model.generate(&batch, &GenerationOptions::greedy(1, vec![]), &mut Hooks::new());
    assert!(matches!(error, Err(HookError::RightPadded)));
    let mut hooks = Hooks::new().replace(HookPoint::layer(0), |_, tensor| tensor.narrow(1, 0, 1));
    let error = subject.model.forward(&subject.batch_of("text"), &mut hooks);
    assert!(matches!(error, Err(HookError::ReplacedShape { .. })));
}

/// A copy of a fixture's checkpoint with its tensors renamed, or left out for `None`, in one file.
fn rewritten(from: &Path, rename: impl Fn(&str) -> Option<String>) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    std::fs::copy(from.join("config.json"), to.path().join("config.json")).unwrap();
    let files: Vec<Vec<u8>> = std::fs::read_dir(from)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .map(|path| std::fs::read(path).unwrap())
        .collect();
    let parsed: Vec<SafeTensors<'_>> =
        files.iter().map(|file| SafeTensors::deserialize(file).unwrap()).collect();
    let tensors: BTreeMap<String, TensorView<'_>> = parsed
        .iter()
        .flat_map(SafeTensors::iter)
        .filter_map(|(name, view)| Some((rename(name)?, view)))
        .collect();
    safetensors::serialize_to_file(tensors, None, &to.path().join("model.safetensors")).unwrap();
    to
}

fn logits_of(folder: &Path, subject: &Subject, kind: Kind) -> Result<Array, HookError> {
    let options = LoadOptions { kind, ..LoadOptions::default() };
    let model = LlavaNext::load(folder, &options)?;
    let _guard = tch::no_grad_guard();
    Ok(array(&model.forward(&subject.batch_of("one"), &mut Hooks::new())?.logits.unwrap()))
}

const OLD_AND_NEW: [(&str, &str); 5] = [
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("vision_tower.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("image_newline", "model.image_newline"),
];

fn renamed(name: &str, pairs: impl Iterator<Item = (&'static str, &'static str)>) -> String {
    let (from, to) = pairs.into_iter().find(|(from, _)| name.starts_with(from)).unwrap();
    name.replacen(from, to, 1)
}

#[test]
fn both_key_layouts_and_shards_give_one_model() {
    for (family, is_new) in [("llama", true), ("vicuna", false), ("mistral", false), ("qwen2", true)] {
        let subject = Subject::load(family, Kind::Float);
        let other = rewritten(&subject.fixture.model, |name| {
            Some(if is_new {
                renamed(name, OLD_AND_NEW.map(|(old, new)| (new, old)).into_iter())
            } else {
                renamed(name, OLD_AND_NEW.into_iter())
            })
        });
        let own = logits_of(&subject.fixture.model, &subject, Kind::Float).unwrap();
        assert_eq!(own, logits_of(other.path(), &subject, Kind::Float).unwrap(), "{family}");
    }
}

#[test]
fn weights_that_do_not_fit_are_named() {
    let subject = Subject::load("qwen2", Kind::Float);
    let name = "model.language_model.layers.1.self_attn.k_proj.bias";
    let missing = rewritten(&subject.fixture.model, |own| (own != name).then(|| own.to_owned()));
    let unused = rewritten(&subject.fixture.model, |own| {
        Some(if own == name { format!("{name}_extra") } else { own.to_owned() })
    });
    for (folder, expected) in [(&missing, name.to_owned()), (&unused, format!("{name}_extra"))] {
        let error = logits_of(folder.path(), &subject, Kind::Float).unwrap_err();
        let chain = format!("{error}: {}", std::error::Error::source(&error).unwrap());
        assert!(chain.contains(&expected), "{chain}");
    }
}
