//! Hook points by pattern, and where a module's input is read.

use std::collections::BTreeMap;

use lmm_hooks::{HookError, HookPoint, Hooks, PaddingSide};
use torch_nn::tch::{Kind, Tensor};

use crate::fixture::{batch, config, families, inputs, model, relative_error, tensors};

#[test]
fn patterns_match_as_in_a_shell_and_in_forward_order() {
    let model = model(families()[0]);
    let matching = |patterns: &[&str]| -> Vec<String> {
        model.matching_points(patterns).unwrap().iter().map(ToString::to_string).collect()
    };
    assert_eq!(matching(&["model.layers.1"]), ["model.layers.1"]);
    assert_eq!(matching(&["model.layers.?"]), ["model.layers.0", "model.layers.1", "model.layers.2"]);
    assert_eq!(
        matching(&["*.[1-2].mlp", "model.layers.0.mlp"]),
        [0, 1, 2].map(|i| format!("model.layers.{i}.mlp"))
    );
    assert_eq!(matching(&["model.layers.[!02]*"]).len(), 5, "the layer and what is in it");
    assert_eq!(matching(&["*"]), matching(&["model.n**", "v*", "mod*", "multi*"]), "each once");
    assert_eq!(matching(&["*"]).len(), model.hook_points().len());
    assert_eq!(matching(&[]), [""; 0]);
}

#[test]
fn a_pattern_without_a_match_is_answered_with_the_nearest() {
    let model = model(families()[0]);
    let error = model.matching_points(&["model.layers.0", "model.layer.*"]).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("\"model.layer.*\"") && text.contains("model.layers.0,"), "{text}");
    assert!(matches!(error, HookError::UnmatchedPattern { .. }));
    for malformed in ["model.layers.[0", "Model.*", ""] {
        let error = model.matching_points(&[malformed]).unwrap_err();
        assert!(matches!(error, HookError::UnmatchedPattern { .. }), "{malformed}: {error}");
    }
    let error = model.matching_points(&["model.layers.7"]).unwrap_err();
    assert!(matches!(error, HookError::UnknownPoint { .. }), "{error}");
}

/// The modules of a layer on one token, whose attention is its own value: by hand from the stored tensors.
struct ByHand {
    tensors: BTreeMap<String, Tensor>,
    epsilon: f64,
    /// Query heads per key head.
    group: i64,
    head_dim: i64,
}

impl ByHand {
    fn tensor(&self, name: &str) -> &Tensor {
        &self.tensors[&format!("language_model.model.{name}")]
    }

    fn linear(&self, name: &str, x: &Tensor) -> Tensor {
        let bias = self.tensors.get(&format!("language_model.model.{name}.bias"));
        x.linear(self.tensor(&format!("{name}.weight")), bias)
    }

    fn module(&self, name: &str, x: &Tensor) -> Tensor {
        let at = |part: &str| format!("{name}.{part}");
        match name.rsplit('.').next().unwrap() {
            "mlp" => {
                let wide = self.linear(&at("gate_proj"), x).silu() * self.linear(&at("up_proj"), x);
                self.linear(&at("down_proj"), &wide)
            }
            "self_attn" => {
                let value = self.linear(&at("v_proj"), x);
                let heads = value.view([-1, self.head_dim]).repeat_interleave_self_int(self.group, 0, None);
                self.linear(&at("o_proj"), &heads.view([1, 1, -1]))
            }
            "norm" | "input_layernorm" | "post_attention_layernorm" => {
                let mean = (x * x).mean_dim([-1].as_slice(), true, Kind::Float);
                x / (mean + self.epsilon).sqrt() * self.tensor(&at("weight"))
            }
            _ => {
                let hidden = x + self.module(&at("self_attn"), &self.module(&at("input_layernorm"), x));
                let normed = self.module(&at("post_attention_layernorm"), &hidden);
                &hidden + self.module(&at("mlp"), &normed)
            }
        }
    }
}

#[test]
fn a_module_makes_its_output_of_what_is_read_at_its_input() {
    for family in families() {
        let (config, model) = (config(family), model(family));
        let text = &config.text_config;
        let by_hand = ByHand {
            tensors: tensors(&config, 1),
            epsilon: text.rms_norm_eps,
            group: (text.num_attention_heads / text.num_key_value_heads) as i64,
            head_dim: text.head_dim as i64,
        };
        let batch = batch(&[&inputs(1, &[], 0, 8)], PaddingSide::Right);
        let points = model.hook_points();
        let states = model.hidden_states(&batch, &model.matching_points(&["model.*"]).unwrap()).unwrap();
        let mut checked = 0;
        for point in points {
            let Ok(input) = model.input_point(&point) else { continue };
            if model.is_vision(&point).unwrap() {
                continue;
            }
            let name = point.as_str().strip_prefix("model.").unwrap();
            let error = relative_error(&by_hand.module(name, &states[&input]), &states[&point]);
            assert!(error < 1e-5, "{family:?}: {point} from {input}: {error:e}");
            checked += 1;
        }
        assert_eq!(checked, 4 * 3 + 1, "four per layer and the norm");
    }
}

#[test]
fn a_tower_layer_reads_the_one_before_and_some_inputs_are_not_to_be_had() {
    let model = model(families()[0]);
    let point = |name: &str| name.parse::<HookPoint>().unwrap();
    let tower = |layer: usize| point(&format!("vision_tower.vision_model.encoder.layers.{layer}"));
    assert_eq!(model.input_point(&tower(1)).unwrap(), tower(0));
    // What its input is decides what it gives: another image makes no difference once the input is replaced.
    let output = |seed: u64| {
        let batch = batch(&[&inputs(2, &[(10, 30)], 1, seed)], PaddingSide::Right);
        let mut found = None;
        let mut hooks = Hooks::new()
            .replace(tower(0), |_, tensor| tensor.ones_like())
            .read(tower(1), |_, tensor| found = Some(tensor.shallow_clone()))
            .stop_after_last();
        model.forward(&batch, &mut hooks).unwrap();
        drop(hooks);
        found.unwrap()
    };
    assert!(output(1).equal(&output(2)));
    for name in [
        "model.embed_tokens",
        "multi_modal_projector",
        "model.layers.1.post_attention_layernorm",
        tower(0).as_str(),
    ] {
        let error = model.input_point(&point(name)).unwrap_err();
        assert!(
            matches!(error, HookError::NoInputPoint { .. }) && error.to_string().contains(name),
            "{error}"
        );
    }
    let error = model.input_point(&point("model.layers.9")).unwrap_err();
    assert!(matches!(error, HookError::UnknownPoint { .. }), "{error}");
}
