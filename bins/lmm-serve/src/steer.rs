//! Steering as flags and requests ask for it: features held at a value while the model reads and writes.

use std::collections::BTreeMap;
use std::str::FromStr;

use anyhow::Result;
use lmm_hooks::LlavaNext;
use model_kit::SaeFolders;
use steering::{Change, Mode, Plan, Steerable, Steerer, Target};

/// The flag `--steer [HOOK:]FEATURE=VALUE`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SteerFlag {
    target: Target,
    value: f32,
}

impl FromStr for SteerFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (target, value) = text.split_once('=').ok_or("expected [HOOK:]FEATURE=VALUE")?;
        let value: f32 = value.parse().map_err(|_| format!("{value:?} is no number"))?;
        if !value.is_finite() {
            return Err(format!("{value} is no value to hold a feature at"));
        }
        Ok(Self { target: target.parse().map_err(text_of)?, value })
    }
}

fn text_of(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// The steering that the flags ask for.
///
/// # Errors
/// When there is no such feature, one is named twice, or a value is beyond the model's number type.
pub(crate) fn of_flags(steerable: &Steerable, flags: &[SteerFlag]) -> Result<Plan, String> {
    plan(steerable, flags.iter().map(|flag| (&flag.target, flag.value)))
}

/// The steering that a request asks for.
///
/// # Errors
/// As [`of_flags`], and when a key is no feature.
pub(crate) fn of_request(steerable: &Steerable, asked: &BTreeMap<String, f32>) -> Result<Plan, String> {
    if steerable.features().is_empty() && !asked.is_empty() {
        return Err("this server has no sparse autoencoder to steer by: start it with --sae".to_owned());
    }
    let parsed: Vec<(Target, f32)> = asked
        .iter()
        .map(|(key, &value)| Ok((key.parse().map_err(text_of)?, value)))
        .collect::<Result<_, String>>()?;
    plan(steerable, parsed.iter().map(|(target, value)| (target, *value)))
}

fn plan<'a>(steerable: &Steerable, wanted: impl Iterator<Item = (&'a Target, f32)>) -> Result<Plan, String> {
    let changes = wanted.map(|(target, value)| (target, Change { mode: Mode::Clamp, value }));
    steerable.plan(Plan::default(), changes).map_err(text_of)
}

/// Reads every autoencoder below `source`, a folder or Hub id, onto the model's device and in its number type.
///
/// # Errors
/// When there is none, or one does not fit the model or cannot steer it.
pub(crate) fn load(source: &str, network: &LlavaNext) -> Result<Steerer> {
    let steerer = Steerer::load(SaeFolders::find(source)?.folders(), network, network.kind())?;
    for (hook, features) in steerer.steerable().features() {
        tracing::info!(%hook, features, "autoencoder loaded");
    }
    Ok(steerer)
}

#[cfg(test)]
mod tests {
    use steering::{FeatureId, HookPoint};

    use super::*;

    fn parse(text: &str) -> Result<SteerFlag, String> {
        text.parse()
    }

    #[test]
    fn flags() {
        let flag = parse("model.layers.2:17=-8.5").unwrap();
        assert_eq!(
            (flag.target.hook, flag.target.feature.0, flag.value),
            ("model.layers.2".parse().ok(), 17, -8.5)
        );
        assert_eq!(parse("3=1").unwrap().target, Target { hook: None, feature: FeatureId(3) });
        for wrong in ["3", "x=1", "3=much", "3=inf", "3=NaN", ":3=1", "a b:3=1", "-1=1", ""] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn features_are_checked() {
        let [two, three] = [2, 3].map(HookPoint::layer);
        let steerable = |hooks: &[&HookPoint], largest| {
            Steerable::new(hooks.iter().map(|&hook| (hook.clone(), 5)).collect(), largest)
        };
        let one = steerable(&[&two], f32::MAX);
        let asked = |pairs: &[(&str, f32)]| {
            pairs.iter().map(|&(key, value)| (key.to_owned(), value)).collect::<BTreeMap<_, _>>()
        };
        let plan = of_request(&one, &asked(&[("4", 2.0), ("model.layers.2:0", 1.0)])).unwrap();
        let clamp = |value| Change { mode: Mode::Clamp, value };
        let want = Plan::default().with(two.clone(), FeatureId(0), clamp(1.0)).with(
            two.clone(),
            FeatureId(4),
            clamp(2.0),
        );
        assert_eq!(plan, want);
        assert_eq!(of_request(&one, &asked(&[])).unwrap(), Plan::default());
        let both = steerable(&[&two, &three], f32::MAX);
        for (steerable, key, reason) in [
            (&one, "5", "there are 5"),
            (&one, "x", "no number of a feature"),
            (&both, "1", "one of model.layers.2, model.layers.3"),
            (&Steerable::default(), "1", "--sae"),
        ] {
            let error = of_request(steerable, &asked(&[(key, 1.0)])).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        assert!(of_request(&one, &asked(&[("1", f32::INFINITY)])).unwrap_err().contains("inf"));
        let twice = of_request(&one, &asked(&[("1", 1.0), ("model.layers.2:1", 2.0)])).unwrap_err();
        assert!(twice.contains("named twice"), "{twice}");
        assert!(of_flags(&Steerable::default(), &[parse("1=1").unwrap()]).is_err());
    }
}
