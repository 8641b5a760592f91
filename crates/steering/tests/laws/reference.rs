//! multimodal-sae's way, against its formulas written out with dense matrices.

use lmm_hooks::{GenerationOptions, Hooks};
use steering::{Change, FeatureId, Plan};
use tch::{Kind, Tensor};

use crate::fixture::{batch, hook, inputs, model, relative_error, steerer};

#[test]
fn msae_by_dense_matrices() {
    let model = model();
    let steerer = steerer(&model);
    let sae = steerer.sae(&hook()).unwrap();
    let (encoder, bias, decoder) = (sae.encoder_weight(), sae.encoder_bias(), sae.decoder_weight());
    let centre = sae.decoder_bias();
    let prompt = inputs(3, &[(10, 30)], 4, 8);
    let batch = batch(&[&prompt]);
    for (feature, value) in [(3, 10.0), (17, 0.2), (40, -1.0)] {
        let by_hand = |hidden: &Tensor| {
            let mut latents = ((hidden - centre).matmul(&encoder.tr()) + bias).relu();
            if hidden.size()[1] != 1 {
                let _ = latents.narrow(2, feature, 1).fill_(value);
            }
            let (top, places) = latents.topk(6, -1, true, false);
            let _ = latents.zero_();
            latents.scatter(2, &places, &top).matmul(decoder) + centre
        };
        let change = Change { mode: steering::Mode::Clamp, value: value as f32 };
        let plan = Plan::msae().with(hook(), FeatureId(feature as u32), change);
        let steering = steerer.steering(&[plan]).unwrap();
        let states = |hooks: Hooks<'_>| {
            let found = std::cell::RefCell::new(Vec::new());
            let mut hooks = hooks.read(hook(), |_, tensor| found.borrow_mut().push(tensor.copy()));
            let options = GenerationOptions::greedy(6, Vec::new());
            let text = model.generate(&batch, &options, &mut hooks).unwrap();
            drop(hooks);
            (text, found.into_inner())
        };
        let (text, found) = states(steering.hooks());
        let (wanted_text, wanted) = states(Hooks::new().replace(hook(), |_, hidden| by_hand(&hidden)));
        assert_eq!(text, wanted_text, "feature {feature} at {value}");
        for (found, wanted) in found.iter().zip(&wanted) {
            assert!(relative_error(found, wanted) < 1e-5, "feature {feature} at {value}");
        }
        assert_eq!(found[0].kind(), Kind::Float);
    }
}
