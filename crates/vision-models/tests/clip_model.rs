//! What shortcuts promise: the pooled token alone gives what all tokens give, and neighbours in a batch change nothing.

#![expect(clippy::unwrap_used, reason = "a model that cannot be made should fail its test")]

use std::collections::BTreeMap;

use lmm_prep::{ClipConfig, ClipTextConfig, ClipVisionConfig};
use torch_nn::Weights;
use torch_nn::tch::{Device, Kind, Tensor, manual_seed};
use vision_models::ClipModel;

const OPTIONS: (Kind, Device) = (Kind::Float, Device::Cpu);

fn config() -> ClipConfig {
    let mut text = ClipTextConfig::default();
    (text.vocab_size, text.hidden_size, text.intermediate_size) = (20, 12, 24);
    (text.num_hidden_layers, text.num_attention_heads, text.max_position_embeddings) = (3, 3, 9);
    text.eos_token_id = 7;
    let mut vision = ClipVisionConfig::default();
    (vision.hidden_size, vision.intermediate_size, vision.num_attention_heads) = (8, 16, 2);
    (vision.num_hidden_layers, vision.image_size, vision.patch_size) = (3, 8, 4);
    let mut config = ClipConfig::new(text, vision);
    config.projection_dim = 6;
    config
}

fn model() -> ClipModel {
    manual_seed(5);
    let random = |(name, shape): (String, Vec<i64>)| (name, Tensor::randn(shape, OPTIONS) * 0.4);
    let tensors = ClipModel::parameter_shapes(&config()).into_iter().map(random).collect();
    let weights = Weights::from_tensors(tensors);
    let model = ClipModel::load(&weights.root(), &config());
    weights.finish().unwrap();
    model
}

#[track_caller]
fn assert_close(got: &Tensor, want: &Tensor) {
    assert_eq!(got.size(), want.size());
    let difference = (got - want).abs().max().double_value(&[]);
    assert!(difference < 1e-5, "off by {difference:e}");
}

#[test]
fn the_class_token_alone_is_that_of_all_tokens() {
    let model = model();
    let pixels = Tensor::randn([3, 3, 8, 8], OPTIONS);
    let all = model.vision().normed_tokens(&pixels);
    assert_eq!(all.size(), [3, 5, 8]);
    assert_close(&model.vision().pooled(&pixels), &all.select(1, 0));
    assert_close(&model.image_features(&pixels), &model.token_features(&pixels).select(1, 0));
    // And it depends on every patch.
    let other = pixels.copy();
    let _ = other.narrow(2, 4, 4).narrow(3, 4, 4).fill_(0.0);
    let change = (model.vision().pooled(&other) - all.select(1, 0)).abs().max().double_value(&[]);
    assert!(change > 1e-3, "changed by {change:e}");
}

#[test]
fn a_text_is_itself_in_any_batch_and_sees_nothing_past_its_end() {
    let model = model();
    let texts = [vec![1, 4, 5, 7], vec![1, 7], vec![1, 9, 9, 3, 12, 7, 2, 2]];
    let together = model.text_features(&model.text().batch(&texts, Device::Cpu));
    assert_eq!(together.size(), [3, 6]);
    for (row, text) in texts.iter().enumerate() {
        let batch = model.text().batch(std::slice::from_ref(text), Device::Cpu);
        let alone = model.text_features(&batch);
        assert_close(&together.get(row as i64).unsqueeze(0), &alone);
        let end = text.iter().position(|&id| id == 7).unwrap();
        let all = model.text().normed_tokens(&batch);
        assert_close(&model.text().pooled(&batch), &all.select(1, end as i64));
    }
    let cut = model.text_features(&model.text().batch(&[texts[2][..6].to_vec()], Device::Cpu));
    assert_close(&together.get(2).unsqueeze(0), &cut);
}

#[test]
fn gradients_reach_every_parameter() {
    manual_seed(6);
    let random = |(name, shape): (String, Vec<i64>)| {
        (name, (Tensor::randn(shape, OPTIONS) * 0.4).set_requires_grad(true))
    };
    let tensors: BTreeMap<String, Tensor> =
        ClipModel::parameter_shapes(&config()).into_iter().map(random).collect();
    let shared = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
    let model = ClipModel::load(&Weights::from_tensors(shared).root(), &config());
    let images = model.image_features(&Tensor::randn([2, 3, 8, 8], OPTIONS));
    let texts = model.text_features(&model.text().batch(&[vec![1, 4, 7], vec![1, 5, 6, 7]], Device::Cpu));
    let scores = images.matmul(&texts.tr()) * model.logit_scale().exp();
    scores.square().sum(Kind::Float).backward();
    for (name, tensor) in &tensors {
        // A key's bias moves all scores of a query alike, which softmax does not see.
        let grad = tensor.grad();
        assert!(grad.defined(), "{name}");
        let largest = grad.abs().max().double_value(&[]);
        assert!(largest > 0.0 || name.ends_with("k_proj.bias"), "{name}");
    }
}

#[test]
fn a_tensor_of_another_shape_is_named() {
    let mut shapes = ClipModel::parameter_shapes(&config());
    shapes.insert("text_projection.weight".to_owned(), vec![6, 13]);
    shapes.remove("vision_model.post_layernorm.bias");
    let zeros = |(name, shape): (String, Vec<i64>)| (name, Tensor::zeros(shape, OPTIONS));
    let weights = Weights::from_tensors(shapes.into_iter().map(zeros).collect());
    let _ = ClipModel::load(&weights.root(), &config());
    let error = weights.finish().unwrap_err().to_string();
    assert!(error.contains("text_projection.weight") && error.contains("[6, 13]"), "{error}");
    assert!(error.contains("vision_model.post_layernorm.bias"), "{error}");
}

#[test]
#[should_panic(expected = "texts of 2 to 10 tokens given to a tower for 1 to 9")]
fn a_text_longer_than_the_tower_is_refused() {
    let _ = model().text().batch(&[vec![1, 7], vec![1; 10]], Device::Cpu);
}
