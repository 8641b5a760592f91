//! A steered model says something else, to whom it is asked of only.

use lmm_hooks::{GenerationOptions, Hooks};
use serde_json::{Value, json};
use tch::Kind;

use crate::server::{Reference, Server, batch, request, scene, text, write_sae};

#[test]
fn features_are_held_for_the_server_or_for_one_request() {
    let folder = tempfile::tempdir().unwrap();
    write_sae(folder.path());
    let sae = folder.path().display().to_string();
    let flags = ["--sae", &sae, "--steer", "model.layers.2:2=30"];
    let server = Server::start(&flags, None);
    let reference = Reference::load();
    let (image, questions) = scene(0);
    let images = [image];
    let ask = |steer: Value| {
        let mut body = request(&images, &questions[0]);
        (body["steer"], body["max_tokens"]) = (steer, json!(12));
        body
    };
    let plain = reference.answer(&images, &questions[0]);
    assert_eq!(text(&server.post(&ask(json!({})))), plain, "an empty object is no steering");
    let own = text(&server.post(&ask(Value::Null)));
    assert_ne!(own, plain);
    assert_eq!(text(&server.post(&ask(json!({"2": 30})))), own);
    assert_eq!(text(&server.post(&ask(json!({"model.layers.2:2": 30.0})))), own);

    // What it must say, by hand: the decoder's row, times how far the feature is from its value, on every token of prompt and answer.
    let loaded = sae_core::Sae::load(&folder.path().join("model.layers.2")).unwrap();
    let torch = sae_torch::TorchSae::from_sae(&loaded, tch::Device::Cpu, Kind::Float).unwrap();
    let by_hand = |feature: i64, value: f64| {
        let row = torch.decoder_weight().get(feature);
        let mut hooks = Hooks::new().replace("model.layers.2".parse().unwrap(), |_, hidden| {
            let size = hidden.size();
            let codes = torch.encode(&hidden.reshape([-1, 128]));
            let on = codes.values.masked_fill(&codes.indices.ne(feature), 0.0);
            let missing = -(on.sum_dim_intlist(1, false, Kind::Float) - value);
            hidden + (missing.unsqueeze(1) * &row).reshape(size.as_slice())
        });
        let options = GenerationOptions::greedy(12, vec![2]);
        let inputs = reference.inputs(&images, &questions[0]);
        let tokens = reference.network.generate(&batch(&inputs), &options, &mut hooks).unwrap().remove(0);
        reference.text(&tokens)
    };
    assert_eq!(own, by_hand(2, 30.0));
    // Differently steered requests at once, in turns.
    let asked = [(0, 20.0), (4, 20.0), (0, 20.0), (5, -6.0), (3, 100.0)];
    let streams = asked.map(|(feature, value)| server.ask(&ask(json!({feature.to_string(): value}))));
    for (stream, (feature, value)) in streams.into_iter().zip(asked) {
        assert_eq!(text(&crate::http::receive(stream)), by_hand(feature, value), "{feature}={value}");
    }
    // So much that the layers after it have no numbers for it: no sense, but an answer.
    for temperature in [0, 1] {
        let mut body = ask(json!({"0": 3e38}));
        body["temperature"] = json!(temperature);
        assert_eq!(server.post(&body).status, 200);
    }
    for (steer, says) in [
        (json!({"8": 1}), "there are 8"),
        (json!({"model.layers.1:0": 1}), "no autoencoder"),
        (json!({"first": 1}), "no number of a feature"),
        (json!({"0": "much"}), "steer"),
        (json!({"0": 1e39}), "cannot be held"),
        (json!({"0": 1, "model.layers.2:0": 2}), "named twice"),
    ] {
        let refused = server.post(&ask(steer));
        assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("steer")));
        assert!(refused.json()["error"]["message"].as_str().unwrap().contains(says), "{}", refused.body);
    }
}
