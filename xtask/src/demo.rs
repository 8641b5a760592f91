//! `cargo xtask demo`: the whole pipeline on the embedded data set and model, one process per stage.
//!
//! The stages are the real binaries with the flags a user would give. They are built in the `dev` profile, which
//! compiles dependencies and the crates with the arithmetic at opt-level 2: another profile would compile libtorch's
//! bindings once more, for longer than the whole demo takes.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use cargo_metadata::{Message, TargetKind};
use serde_json::Value;

use crate::project::{Project, Targets};
use crate::setup::{self, Existing, Flavour};
use crate::steps::Steps;

/// Where everything goes, from the workspace root.
const OUT: &str = "demo-out";
const PAGE: &str = "demo-out/index.html";
const REPORT: &str = "demo-out/explanations.json";
const SCORES: &str = "demo-out/iou/iou.summary.json";
const EFFECTS: &str = "demo-out/effects.json";

/// Holds fast attribution against switching features off. It takes 1,000 passes a question.
const CHECK: &str =
    "check assets/shapes-lmm-s --sae demo-out/sae --data demo-out/questions/few.json --chat --json";

/// The larger model that explains the features.
const EXPLAINER: &str = "assets/shapes-lmm-l";

/// Stands in a stage's arguments for the address of the explainer's server, which runs while the stage does.
const ENDPOINT: &str = "{endpoint}";

/// What the demo's autoencoder must reach on held-out scenes.
const MOST_FVU: f64 = 0.05;
const MOST_DEAD: f64 = 0.05;
const LEAST_RECOVERED: f64 = 0.97;

/// What the explanations must reach: the share that say exactly the concept of a specific feature, and how many times that of the
/// best constant answer it must be.
const LEAST_EXACT: f64 = 0.6;
const TIMES_CONSTANT: f64 = 4.0;

/// How many times as much as those of other features an explanation must overlap with its feature: of all that are explained, and of those
/// that stand for one concept by the masks of the same images.
const TIMES_PERMUTED: f64 = 5.0;

/// What steering and attribution must reach, and on how many scenes: the share of answers that clamping turns into the feature's
/// concept, beside a random feature's; the share of the strongest features that lie on what was asked about, and how many times that
/// of random ones it must be.
const LEAST_SCENES: f64 = 100.0;
const LEAST_STEERED: f64 = 0.8;
const MOST_BY_CHANCE: f64 = 0.1;
const LEAST_ON_OBJECT: f64 = 0.6;
const TIMES_CHANCE: f64 = 2.0;

/// The rank correlation of integrated gradients with switching features off, over the 100 strongest; a mean over questions.
const LEAST_CORRELATION: f64 = 0.9;

/// One run of a stage's binary, in the workspace root.
struct Stage {
    /// What the stage is called in the report.
    name: &'static str,
    program: &'static str,
    arguments: &'static str,
}

/// The pipeline, in order. Arguments are split at blanks.
const STAGES: [Stage; 15] = [
    Stage {
        name: "draw training scenes",
        program: "sae-data",
        arguments: "shapes --count 1500 --seed 1 --split train --save-dir demo-out/train",
    },
    Stage {
        name: "draw test scenes",
        program: "sae-data",
        arguments: "shapes --count 500 --seed 2 --split test --save-dir demo-out/test",
    },
    Stage {
        name: "train the SAE",
        program: "sae-train",
        // AuxK with an impatient threshold: a run of half a million tokens cannot wait 10 million for a latent to be dead.
        arguments: "assets/shapes-lmm-s demo-out/train --layers 2 --num-latents 512 --k 24 --epochs 3 --lr 2e-3 \
                    --auxk-alpha 0.03125 --dead-feature-threshold 20000 --eval-examples 200 --save-dir demo-out/sae",
    },
    Stage {
        name: "cache activations",
        program: "sae-cache",
        arguments: "images assets/shapes-lmm-s demo-out/test --sae demo-out/sae --save-dir demo-out/cache",
    },
    Stage {
        name: "explain features",
        program: "sae-explain",
        // Words the explainer knows, and masks as those it was trained on.
        arguments: "images --cache demo-out/cache --dataset demo-out/test --explanation-dir demo-out/explanations \
                    --endpoint {endpoint} --concurrency 16 --prompt assets/shapes-lmm-l/explain.txt --cut half-maximum --image-side 0 \
                    --image-format png",
    },
    Stage {
        name: "draw the page",
        program: "feature-page",
        arguments: "--cache demo-out/cache --dataset demo-out/test --examples 5 \
                    --explanations demo-out/explanations/model_layers_2.json --report demo-out/explanations.json \
                    --specific-filters demo-out/specific.json --out demo-out/index.html",
    },
    Stage {
        name: "score overlaps",
        program: "sae-score",
        arguments: "iou --explanations demo-out/explanations --cache demo-out/cache --dataset demo-out/test --masks annotations \
                    --image-side 0 --save-dir demo-out/iou",
    },
    Stage {
        name: "score with CLIP",
        program: "sae-score",
        arguments: "clip --explanations demo-out/explanations --cache demo-out/cache --dataset demo-out/test --clip assets/shapes-clip \
                    --image-side 0 --save-dir demo-out/clip",
    },
    Stage {
        name: "let a judge tell regions",
        program: "sae-score",
        arguments: "fuzz --explanations demo-out/explanations --cache demo-out/cache --dataset demo-out/test --endpoint {endpoint} \
                    --concurrency 16 --prompt assets/shapes-lmm-l/judge.txt --cut half-maximum --image-side 0 --image-format png \
                    --filters demo-out/specific.json --permuted --save-dir demo-out/fuzz",
    },
    Stage {
        name: "see whether images are alike",
        program: "sae-score",
        arguments: "monosemanticity --cache demo-out/cache --dataset demo-out/test --encoder assets/shapes-clip --image-side 0 \
                    --save-dir demo-out/monosemanticity",
    },
    Stage {
        name: "draw the score table",
        program: "score-table",
        arguments: "--report demo-out/explanations.json --hook model.layers.2 --iou demo-out/iou --clip demo-out/clip \
                    --fuzz demo-out/fuzz --monosemanticity demo-out/monosemanticity --out demo-out/scores.html",
    },
    Stage {
        name: "choose questions",
        program: "shapes-effects",
        arguments: "ask --dataset demo-out/test --cache demo-out/cache --report demo-out/explanations.json --concept red \
                    --out demo-out/questions",
    },
    Stage {
        name: "steer",
        program: "sae-steer",
        // Some four times the largest activation: one layer is left to act on, and the scene says otherwise on every patch.
        arguments: "sweep assets/shapes-lmm-s --sae demo-out/sae --data demo-out/questions/questions.json \
                    --filters demo-out/questions/filters.json -k 150 --max-new-tokens 4 --batch-size 16 --save-dir demo-out/steered",
    },
    Stage {
        name: "attribute",
        program: "sae-attribute",
        arguments: "run assets/shapes-lmm-s --sae demo-out/sae --data demo-out/questions/questions.json --chat \
                    --save-dir demo-out/attributed",
    },
    Stage {
        name: "count the effects",
        program: "shapes-effects",
        arguments: "judge --questions demo-out/questions --dataset demo-out/test --sweep demo-out/steered \
                    --effects demo-out/attributed --out demo-out/effects.json --page demo-out/effects.html",
    },
];

pub(crate) fn run(project: &Project, steps: &mut Steps, targets: Targets) -> Result<()> {
    steps.work("setup", || setup::prepare(&project.libtorch(), Flavour::Cpu, Existing::Keep))?;
    let mut programs = BTreeMap::new();
    steps.work("build", || {
        programs = build(project, targets)?;
        Ok(format!("    {} binaries", programs.len()))
    })?;

    let out = project.root().join(OUT);
    if out.exists() {
        fs::remove_dir_all(&out).with_context(|| format!("cannot remove {}", out.display()))?;
    }
    for stage in &STAGES {
        let program =
            programs.get(stage.program).with_context(|| format!("no binary {} was built", stage.program))?;
        let mut server = None;
        let mut arguments = stage.arguments.to_owned();
        if arguments.contains(ENDPOINT) {
            let program = programs.get("lmm-serve").context("no binary lmm-serve was built")?;
            println!("\n$ lmm-serve {EXPLAINER} --port 0 &");
            let started = Server::start(
                Command::new(program).args([EXPLAINER, "--port", "0"]).current_dir(project.root()),
            )?;
            arguments = arguments.replace(ENDPOINT, &started.endpoint);
            server = Some(started);
        }
        println!("\n$ {} {arguments}", stage.program);
        let mut command = Command::new(program);
        command.args(arguments.split_whitespace()).current_dir(project.root());
        steps.command(stage.name, &mut command)?;
        drop(server);
    }
    steps.work("judge the SAE", || judge(&project.root().join(OUT).join("sae/evaluation.json")))?;
    steps.work("judge the explanations", || judge_explanations(&project.root().join(REPORT)))?;
    steps.work("judge the scores", || {
        judge_scores(&project.root().join(SCORES), &project.root().join(REPORT))
    })?;
    steps.work("judge the effects", || judge_effects(&project.root().join(EFFECTS)))?;
    let attribute = programs.get("sae-attribute").context("no binary sae-attribute was built")?;
    println!("\n$ sae-attribute {CHECK}");
    steps.work("check fast attribution", || {
        let mut command = Command::new(attribute);
        command.args(CHECK.split_whitespace()).current_dir(project.root()).stderr(Stdio::inherit());
        let checked = command.output().context("cannot start sae-attribute")?;
        ensure!(checked.status.success(), "sae-attribute check failed (its log stands above)");
        judge_check(&checked.stdout)
    })?;
    let page = project.root().join(PAGE);
    ensure!(page.exists(), "every stage ended well, but there is no {}", page.display());
    steps.work("page", || Ok(format!("    open {}", page.display())))
}

/// A server that runs in the background and ends when this drops.
struct Server {
    child: Child,
    endpoint: String,
}

impl Server {
    /// Starts `command`, which says on its first line where it listens.
    fn start(command: &mut Command) -> Result<Self> {
        let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start the server")?;
        let output = child.stdout.take().context("the server's output is not readable")?;
        let mut server = Self { child, endpoint: String::new() };
        BufReader::new(output).read_line(&mut server.endpoint).context("reading the server's address")?;
        server.endpoint.truncate(server.endpoint.trim_end().len());
        ensure!(!server.endpoint.is_empty(), "the server ended before it listened (its log stands above)");
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Holds the autoencoder against what the README promises of the demo, on scenes it was not trained on.
fn judge(evaluation: &Path) -> Result<String> {
    let text =
        fs::read_to_string(evaluation).with_context(|| format!("cannot read {}", evaluation.display()))?;
    let measured: BTreeMap<String, Value> =
        serde_json::from_str(&text).with_context(|| format!("{} is no evaluation", evaluation.display()))?;
    let mut report = Vec::new();
    for (hook, values) in &measured {
        let value = |name: &str| values[name].as_f64().with_context(|| format!("{hook} has no {name}"));
        let (fvu, dead, l0) = (value("fvu")?, value("dead_share")?, value("l0")?);
        let recovered = value("ce_recovered")?;
        report.push(format!(
            "    {hook}: FVU {fvu:.4}, L0 {l0:.1}, dead latents {:.1} %, cross-entropy recovered {:.1} %",
            100.0 * dead,
            100.0 * recovered
        ));
        ensure!(fvu <= MOST_FVU, "the FVU at {hook} is {fvu:.4}, promised is at most {MOST_FVU}");
        ensure!(
            recovered >= LEAST_RECOVERED,
            "{:.1} % of the cross-entropy at {hook} is recovered, promised is {} %",
            100.0 * recovered,
            100.0 * LEAST_RECOVERED
        );
        ensure!(
            dead < MOST_DEAD,
            "{:.1} % of the latents at {hook} are dead, promised is less than {} %",
            100.0 * dead,
            100.0 * MOST_DEAD
        );
    }
    ensure!(!report.is_empty(), "{} measures nothing", evaluation.display());
    Ok(report.join("\n"))
}

/// Holds the explanations against the annotated concepts.
fn judge_explanations(report: &Path) -> Result<String> {
    let text = fs::read_to_string(report).with_context(|| format!("cannot read {}", report.display()))?;
    let measured: Value =
        serde_json::from_str(&text).with_context(|| format!("{} is no report", report.display()))?;
    let value =
        |name: &str| measured[name].as_f64().with_context(|| format!("{} has no {name}", report.display()));
    let (exact, constant) = (value("exact")?, value("constant_exact")?);
    let (n, other) = (value("n")?, value("other_features_explanation_exact")?);
    ensure!(
        exact >= LEAST_EXACT && exact >= TIMES_CONSTANT * constant,
        "{:.1} % of the explanations say exactly the concept, promised are {} % and {TIMES_CONSTANT} times the {:.1} % of \
         the best constant answer",
        100.0 * exact,
        100.0 * LEAST_EXACT,
        100.0 * constant
    );
    Ok(format!(
        "    {:.1} % of {n} explanations say exactly the concept; the best constant answer {:.1} %, another feature's \
         explanation {:.1} %",
        100.0 * exact,
        100.0 * constant,
        100.0 * other
    ))
}

/// Holds the overlap of features and what their explanations name against what those of others do: of all in `summary`, and of the specific ones
/// of `report`.
fn judge_scores(summary: &Path, report: &Path) -> Result<String> {
    let read = |path: &Path| -> Result<Value> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display()))
    };
    let (scores, report) = (read(summary)?, read(report)?);
    let list = |value: &Value| value["features"].as_array().cloned().unwrap_or_default();
    let specific: Vec<String> =
        list(&report).iter().map(|feature| format!("_feature{}", feature["feature"])).collect();
    let is_specific = |name: &str| specific.iter().any(|end| name.ends_with(end));
    let mut told = Vec::new();
    for (what, counts) in
        [("explained", &(|_: &str| true) as &dyn Fn(&str) -> bool), ("specific", &is_specific)]
    {
        let both = |feature: &Value| {
            let is_counted = counts(feature["feature"].as_str().unwrap_or_default());
            let both = feature["mean"].as_f64().zip(feature["baselines"][0].as_f64());
            both.filter(|_| is_counted)
        };
        let (own, permuted): (Vec<f64>, Vec<f64>) = list(&scores).iter().filter_map(both).unzip();
        ensure!(!own.is_empty(), "{} scores no {what} feature", summary.display());
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let (own, permuted, n) = (mean(&own), mean(&permuted), own.len());
        ensure!(
            own >= TIMES_PERMUTED * permuted,
            "{what} features overlap what their explanations name by {own:.3}, what other features' name by {permuted:.3}; promised are \
             {TIMES_PERMUTED} times as much"
        );
        told.push(format!(
            "    {n} {what} features overlap what their explanations name by {own:.3}, what another feature's names by {permuted:.3}"
        ));
    }
    Ok(told.join("\n"))
}

/// Holds steering and attribution against random features.
fn judge_effects(report: &Path) -> Result<String> {
    let text = fs::read_to_string(report).with_context(|| format!("cannot read {}", report.display()))?;
    let measured: Value =
        serde_json::from_str(&text).with_context(|| format!("{} is no report", report.display()))?;
    let value = |pointer: &str| {
        let found = measured.pointer(pointer).and_then(Value::as_f64);
        found.with_context(|| format!("{} has no {pointer}", report.display()))
    };
    let share = |pointer: &str| value(&format!("{pointer}/share"));
    let (steered, random) = (share("/steering/named")?, share("/steering/random")?);
    let (strongest, chance) = (share("/attribution/strongest")?, share("/attribution/random")?);
    let scenes = [value("/steering/scenes")?, value("/attribution/scenes")?];
    ensure!(scenes.iter().all(|&n| n >= LEAST_SCENES), "{scenes:?} scenes, promised are {LEAST_SCENES}");
    ensure!(
        steered >= LEAST_STEERED && random <= MOST_BY_CHANCE,
        "clamping the feature changes {:.1} % of the answers to its concept and a random one {:.1} %, promised are at least {} % \
         and at most {} %",
        100.0 * steered,
        100.0 * random,
        100.0 * LEAST_STEERED,
        100.0 * MOST_BY_CHANCE
    );
    ensure!(
        strongest >= LEAST_ON_OBJECT && strongest >= TIMES_CHANCE * chance,
        "{:.1} % of the strongest features lie on the object asked about and {:.1} % of random ones, promised are {} % and \
         {TIMES_CHANCE} times the random ones",
        100.0 * strongest,
        100.0 * chance,
        100.0 * LEAST_ON_OBJECT
    );
    Ok(format!(
        "    clamping the feature changes {:.1} % of {} answers to its concept, a random feature {:.1} %\n    \
         {:.1} % of the strongest features of {} answers lie on the object asked about, of random features {:.1} %",
        100.0 * steered,
        scenes[0],
        100.0 * random,
        100.0 * strongest,
        scenes[1],
        100.0 * chance
    ))
}

/// Holds the rank correlations that `sae-attribute check` printed against what is promised.
fn judge_check(printed: &[u8]) -> Result<String> {
    let rows: Vec<Value> = serde_json::from_slice(printed).context("sae-attribute check printed no JSON")?;
    let mean = |method: &str| {
        let values: Vec<f64> = rows
            .iter()
            .filter(|row| row["method"] == method)
            .map(|row| row["spearman"].as_f64().context("a row without a correlation"))
            .collect::<Result<_>>()?;
        ensure!(!values.is_empty(), "{method} was not checked");
        Ok(values.iter().sum::<f64>() / values.len() as f64)
    };
    let (fast, integrated) = (mean("one-pass")?, mean("ig")?);
    ensure!(
        integrated >= LEAST_CORRELATION,
        "integrated gradients correlate {integrated:.3} with switching features off, promised is {LEAST_CORRELATION}"
    );
    Ok(format!(
        "    rank correlation with switching the 100 strongest features off: one pass {fast:.3}, integrated gradients \
         {integrated:.3}"
    ))
}

/// Builds every binary of the workspace and returns where each lies.
fn build(project: &Project, targets: Targets) -> Result<BTreeMap<String, PathBuf>> {
    let mut cargo = project.cargo(&["build", "--message-format", "json-render-diagnostics"]);
    cargo.args(targets.arguments());
    let mut child = cargo.stdout(Stdio::piped()).spawn().context("cannot start `cargo build`")?;
    let output = child.stdout.take().context("cargo's output is not readable")?;
    let mut programs = BTreeMap::new();
    for message in Message::parse_stream(BufReader::new(output)) {
        if let Message::CompilerArtifact(artifact) = message.context("cannot read cargo's messages")?
            && artifact.target.kind.contains(&TargetKind::Bin)
            && !artifact.profile.test
            && let Some(path) = artifact.executable
        {
            programs.insert(artifact.target.name, path.into_std_path_buf());
        }
    }
    if !child.wait().context("waiting for `cargo build`")?.success() {
        bail!("the binaries could not be built (cargo's message stands above)");
    }
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_autoencoder_is_not_passed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("evaluation.json");
        let judged = |fvu: &str, dead: f64, recovered: f64| {
            let text = format!(
                r#"{{"model.layers.2":{{"fvu":{fvu},"dead_share":{dead},"l0":16.0,"ce_recovered":{recovered}}}}}"#
            );
            fs::write(&file, text).unwrap();
            judge(&file)
        };
        assert!(judged("0.04", 0.03, 0.98).unwrap().contains("dead latents 3.0 %"));
        for (fvu, dead, recovered) in
            [("0.06", 0.0, 1.0), ("0.04", 0.06, 1.0), ("0.04", 0.0, 0.9), ("null", 0.0, 1.0)]
        {
            assert!(judged(fvu, dead, recovered).is_err(), "{fvu} {dead} {recovered}");
        }
        fs::write(&file, "{}").unwrap();
        assert!(judge(&file).is_err());
    }

    #[test]
    fn explanations_no_better_than_a_constant_are_not_passed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("explanations.json");
        let judged = |exact: f64, constant: f64| {
            let text = format!(
                r#"{{"n":50,"exact":{exact},"constant_exact":{constant},"other_features_explanation_exact":0.05}}"#
            );
            fs::write(&file, text).unwrap();
            judge_explanations(&file)
        };
        assert!(judged(0.6, 0.1).unwrap().contains("60.0 % of 50"));
        assert!(judged(0.5, 0.05).is_err() && judged(0.7, 0.4).is_err());
        fs::write(&file, "{}").unwrap();
        assert!(judge_explanations(&file).is_err());
    }

    #[test]
    fn overlaps_no_better_than_those_of_others_are_not_passed() {
        let folder = tempfile::tempdir().unwrap();
        let [summary, report] =
            ["iou.summary.json", "explanations.json"].map(|name| folder.path().join(name));
        fs::write(&report, r#"{"features":[{"feature":2},{"feature":12},{"feature":7}]}"#).unwrap();
        let judged = |permuted: f64| {
            let feature = |n: u32, mean: f64| serde_json::json!({"feature": format!("model.layers.2_feature{n}"), "mean": mean, "baselines": [permuted]});
            // The last stands for a concept, but is held against nothing.
            let alone =
                serde_json::json!({"feature": "model.layers.2_feature7", "mean": 0.9, "baselines": [null]});
            let features = [feature(2, 0.5), feature(12, 0.3), feature(1, 0.0), alone];
            fs::write(&summary, serde_json::json!({"features": features}).to_string()).unwrap();
            judge_scores(&summary, &report)
        };
        assert!(
            judged(0.05)
                .unwrap()
                .contains("2 specific features overlap what their explanations name by 0.400")
        );
        // The specific ones would do, all of them do not.
        assert!(judged(0.06).unwrap_err().to_string().contains("explained features"));
        assert!(judged(0.1).is_err());
        fs::write(&report, "{}").unwrap();
        assert!(judged(0.05).is_err());
    }

    #[test]
    fn effects_no_better_than_chance_are_not_passed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("effects.json");
        let judged = |scenes: u32, named: f64, random: f64, strongest: f64, chance: f64| {
            let share = |share: f64| serde_json::json!({"n": 1, "share": share});
            let text = serde_json::json!({
                "steering": {"scenes": scenes, "named": share(named), "random": share(random)},
                "attribution": {"scenes": scenes, "strongest": share(strongest), "random": share(chance)},
            });
            fs::write(&file, text.to_string()).unwrap();
            judge_effects(&file)
        };
        assert!(judged(113, 0.9, 0.01, 0.8, 0.3).unwrap().contains("90.0 % of 113"));
        for (scenes, named, random, strongest, chance) in [
            (99, 0.9, 0.0, 0.8, 0.3),
            (113, 0.7, 0.0, 0.8, 0.3),
            (113, 0.9, 0.2, 0.8, 0.3),
            (113, 0.9, 0.0, 0.5, 0.1),
            (113, 0.9, 0.0, 0.8, 0.5),
        ] {
            assert!(judged(scenes, named, random, strongest, chance).is_err());
        }
        fs::write(&file, "{}").unwrap();
        assert!(judge_effects(&file).is_err());
    }

    #[test]
    fn attribution_that_cannot_be_trusted_is_not_passed() {
        let printed = |integrated: f64| {
            let row =
                |method: &str, spearman: f64| serde_json::json!({"method": method, "spearman": spearman});
            serde_json::json!([row("one-pass", 0.7), row("ig", integrated), row("ig", 0.98)]).to_string()
        };
        assert!(judge_check(printed(0.96).as_bytes()).unwrap().contains("0.970"));
        assert!(judge_check(printed(0.8).as_bytes()).is_err());
        assert!(judge_check(b"[]").is_err() && judge_check(b"no").is_err());
    }

    #[test]
    fn stages_stay_inside_their_folder_and_one_makes_the_page() {
        for stage in &STAGES {
            let writes = stage.arguments.split_whitespace().filter(|word| word.starts_with(OUT)).count();
            assert!(writes > 0, "{} writes nowhere", stage.name);
            assert!(!stage.arguments.contains(" /"), "{} names an absolute path", stage.name);
        }
        assert!(STAGES.iter().any(|stage| stage.arguments.ends_with(PAGE)));
    }
}
