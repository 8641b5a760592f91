//! `sae-steer run`.

use serde_json::Value;

use crate::support::{Scratch, fails, succeeds};

const QUESTION: &str = "what color is the circle ?";

#[test]
fn one_prompt_is_answered_twice() {
    let scratch = Scratch::of(1);
    let run = |flags: &str| scratch.stage("run", QUESTION, &format!("-i scenes/000.png {flags}"));
    let json = |flags: &str| -> Value {
        serde_json::from_str(&succeeds(&mut run(&format!("{flags} --json")))).unwrap()
    };
    let clamped = json("-f 2 -k 30");
    assert_eq!(clamped["changed"], true, "{clamped}");
    assert_eq!(clamped["features"][0]["hook"], "model.layers.2");
    let (original, steered) = (clamped["original"].as_str().unwrap(), clamped["steered"].as_str().unwrap());
    let shown = format!("=== original\n{original}\n=== steered\n{steered}\n");
    assert_eq!(succeeds(&mut run("-f 2 -k 30")), shown);
    assert_eq!(succeeds(&mut run("-f model.layers.2:2 -k 30 --stream")), shown);
    // What changes nothing, and what may only change the answer from its second token on.
    assert_eq!(json("-f 2 5 -k 0 --mode add")["changed"], false);
    let late = json("-f 2 -k 30 --where generated");
    let first =
        |text: &Value| text.as_str().unwrap().split_whitespace().next().unwrap_or_default().to_owned();
    assert_eq!(first(&late["steered"]), first(&late["original"]));
    // The reconstruction of eight features is not the hidden state.
    assert_eq!(json("-f 7 -k 0 --compat msae")["changed"], true);
    let two = json("-f 2 4 -k 30 -6.5");
    assert_eq!((&two["features"][1]["feature"], &two["features"][1]["value"]), (&4.into(), &(-6.5).into()));
    let ablated = json("-f 2 --mode ablate");
    assert!(ablated["features"][0].get("value").is_none(), "{ablated}");
    // Without template and image.
    let pure: Value = serde_json::from_str(&succeeds(&mut scratch.stage(
        "run",
        "user : hello assistant :",
        "-f 2 --pure-text --json",
    )))
    .unwrap();
    assert!(pure["original"].is_string());
    // Never longer than the context, however long it may be.
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/shapes-lmm-s");
    let mut long = vec!["run", model, "--sae", "sae", "-t", QUESTION, "-i", "scenes/000.png", "-q", "--json"];
    long.extend(["-f", "2", "-k", "0", "--mode", "add", "--max-new-tokens", "1000000000000"]);
    let long: Value = serde_json::from_str(&succeeds(&mut scratch.command(&long))).unwrap();
    assert_eq!(long["changed"], false);
    let mut endless = vec!["run", model, "--sae", "sae", "-f", "2", "-q", "--pure-text", "-t"];
    let words = "circle ".repeat(1100);
    endless.push(&words);
    fails(&mut scratch.command(&endless), 2, "the model reads 1024");
    for (flags, says) in [
        ("-f 8", "there are 8"),
        ("-f model.layers.1:0", "no autoencoder"),
        ("-f 2 2", "named twice"),
        ("-f 2 3 4 -k 1 2", "2 values for 3 features"),
        ("-f 2 -k 1e39", "cannot be held"),
        ("-f 2 --where last --when decoding", "no token is both last and decoding"),
        ("-f 2 --mode louder", "clamp, add, scale"),
        ("-f 2 --temperature=-1", "expected a number from 0"),
        ("-f 2 --hookpoint model.layers.0", "has model.layers.2"),
    ] {
        fails(&mut run(flags), 2, says);
    }
}
