//! Steering: features of sparse autoencoders held at a value while the model reads and writes.

use std::collections::BTreeMap;
use std::str::FromStr;

use anyhow::{Result, bail, ensure};
use lmm_hooks::{Hooks, LlavaNext};
use mm_data::hub::{self, RepoKind};
use sae_core::Sae;
use sae_torch::{ErrorTerm, TopK, TorchSae};
use sae_types::{FeatureId, HookPoint};
use tch::{Kind, Tensor};

/// Which features are held at which values, by hook point.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Steering(BTreeMap<HookPoint, BTreeMap<FeatureId, f32>>);

/// What can be steered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Steerable {
    /// The number of features at each hook point.
    features: BTreeMap<HookPoint, usize>,
    /// The largest value that the model's number type has.
    largest: f32,
}

/// The autoencoders of a server, on the model's device.
#[derive(Debug, Default)]
pub(crate) struct Steerer {
    saes: BTreeMap<HookPoint, TorchSae>,
    largest: f32,
}

/// `[HOOK:]FEATURE`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    hook: Option<HookPoint>,
    feature: FeatureId,
}

/// The flag `--steer [HOOK:]FEATURE=VALUE`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SteerFlag {
    target: Target,
    value: f32,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (hook, feature) = match text.rsplit_once(':') {
            Some((hook, feature)) => (Some(hook), feature),
            None => (None, text),
        };
        let hook = hook.map(str::parse).transpose().map_err(|error| format!("{error}"))?;
        let feature = feature.parse().map_err(|_| format!("{feature:?} is no number of a feature"))?;
        Ok(Self { hook, feature: FeatureId(feature) })
    }
}

impl FromStr for SteerFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (target, value) = text.split_once('=').ok_or("expected [HOOK:]FEATURE=VALUE")?;
        let value: f32 = value.parse().map_err(|_| format!("{value:?} is no number"))?;
        if !value.is_finite() {
            return Err(format!("{value} is no value to hold a feature at"));
        }
        Ok(Self { target: target.parse()?, value })
    }
}

impl Steerable {
    /// One hook point with so many features.
    #[cfg(test)]
    pub(crate) fn at(hook: &str, features: usize) -> Self {
        Self { features: BTreeMap::from([(hook.parse().unwrap(), features)]), largest: f32::MAX }
    }

    /// The steering that the flags ask for.
    ///
    /// # Errors
    /// When there is no such feature, one is named twice, or a value is beyond the model's number type.
    pub(crate) fn of_flags(&self, flags: &[SteerFlag]) -> Result<Steering, String> {
        self.steering(flags.iter().map(|flag| (&flag.target, flag.value)))
    }

    /// The steering that a request asks for.
    ///
    /// # Errors
    /// As [`Steerable::of_flags`], and when a key is no feature.
    pub(crate) fn of_request(&self, asked: &BTreeMap<String, f32>) -> Result<Steering, String> {
        if self.features.is_empty() && !asked.is_empty() {
            return Err("this server has no sparse autoencoder to steer by: start it with --sae".to_owned());
        }
        let parsed: Vec<(Target, f32)> =
            asked.iter().map(|(key, &value)| Ok((key.parse()?, value))).collect::<Result<_, String>>()?;
        self.steering(parsed.iter().map(|(target, value)| (target, *value)))
    }

    fn steering<'a>(&self, wanted: impl Iterator<Item = (&'a Target, f32)>) -> Result<Steering, String> {
        let mut steering = Steering::default();
        for (Target { hook, feature }, value) in wanted {
            let known = || self.features.keys().map(HookPoint::as_str).collect::<Vec<_>>().join(", ");
            let found = match hook {
                Some(hook) => self.features.get_key_value(hook),
                None if self.features.len() > 1 => {
                    return Err(format!(
                        "say where feature {feature} is, HOOK:{feature}, one of {}",
                        known()
                    ));
                }
                None => self.features.first_key_value(),
            };
            let Some((hook, &width)) = found else {
                let hook = hook.as_ref().map_or("", HookPoint::as_str);
                return Err(format!("there is no autoencoder at {hook:?}; there are: {}", known()));
            };
            if feature.0 as usize >= width {
                return Err(format!("feature {feature} of {hook}: there are {width}, counted from 0"));
            }
            if value.is_nan() || value.abs() > self.largest {
                return Err(format!(
                    "feature {feature} of {hook} cannot be held at {value:e}: the model's numbers go up to {:e}",
                    self.largest
                ));
            }
            if steering.0.entry(hook.clone()).or_default().insert(*feature, value).is_some() {
                return Err(format!("feature {feature} of {hook} is named twice"));
            }
        }
        Ok(steering)
    }
}

impl Steerer {
    /// Reads every autoencoder below `source`, a folder or Hub id, onto the model's device and in its number type.
    ///
    /// # Errors
    /// When there is none, or one does not fit the model or cannot steer it.
    pub(crate) fn load(source: &str, network: &LlavaNext) -> Result<Self> {
        let root = hub::resolve(source, RepoKind::Model, &["*cfg.json", "*sae.safetensors"])?;
        let mut saes = BTreeMap::new();
        for (hook, folder) in Sae::find(&root)? {
            let sae = Sae::load(&folder)?;
            let width = network.width(&hook)?;
            ensure!(
                sae.d_in() as i64 == width,
                "{} reads vectors of {}, but {hook} of the model gives {width}",
                folder.display(),
                sae.d_in()
            );
            if sae.config().transcode {
                bail!("{} is a transcoder; only autoencoders steer", folder.display());
            }
            if network.is_vision(&hook)? {
                bail!("{hook} is on the vision side, where there are tiles and no tokens to steer");
            }
            let torch = TorchSae::from_sae(&sae, network.device(), network.kind())?;
            tracing::info!(%hook, features = sae.num_latents(), "autoencoder loaded");
            saes.insert(hook, torch);
        }
        let largest = match network.kind() {
            Kind::Half => 65_504.0,
            Kind::BFloat16 => f32::from_bits(0x7F7F_0000),
            _ => f32::MAX,
        };
        Ok(Self { saes, largest })
    }

    pub(crate) fn steerable(&self) -> Steerable {
        let features = self.saes.iter().map(|(hook, sae)| (hook.clone(), sae.num_latents())).collect();
        Steerable { features, largest: self.largest }
    }

    /// Hooks that hold the features on every real token, of prompt and answer alike. What the autoencoder does not reconstruct
    /// stays as it is.
    pub(crate) fn hooks<'a>(&'a self, steering: &'a Steering) -> Hooks<'a> {
        let mut hooks = Hooks::new();
        for (hook, features) in &steering.0 {
            let Some(sae) = self.saes.get(hook) else { continue };
            hooks = hooks.replace(hook.clone(), move |context, tensor| {
                let steered = sae.splice(&tensor, ErrorTerm::Keep, |codes| held(codes, features));
                steered.where_self(&context.real.unsqueeze(-1), &tensor)
            });
        }
        hooks
    }
}

/// The codes `[n, k]` with each of `features` at its value in every row, whether it was on or not.
fn held(codes: TopK, features: &BTreeMap<FeatureId, f32>) -> TopK {
    let rows = codes.indices.size()[0];
    let TopK { mut indices, mut values } = codes;
    for (feature, &value) in features {
        let latent = i64::from(feature.0);
        let column = |kind: Kind| Tensor::zeros([rows, 1], (kind, values.device()));
        let own = column(Kind::Int64).fill_(latent);
        let at = column(values.kind()).fill_(f64::from(value));
        values = Tensor::cat(&[values.masked_fill(&indices.eq(latent), 0.0), at], 1);
        indices = Tensor::cat(&[indices, own], 1);
    }
    TopK { indices, values }
}

#[cfg(test)]
mod tests {
    use sae_core::{SaeConfig, SaeTensors};
    use tch::Device;

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
        let steerable = |hooks: &[&HookPoint], largest| Steerable {
            features: hooks.iter().map(|&hook| (hook.clone(), 5)).collect(),
            largest,
        };
        let one = steerable(&[&two], f32::MAX);
        let asked = |pairs: &[(&str, f32)]| {
            pairs.iter().map(|&(key, value)| (key.to_owned(), value)).collect::<BTreeMap<_, _>>()
        };
        let steering = one.of_request(&asked(&[("4", 2.0), ("model.layers.2:0", 1.0)])).unwrap();
        let want = BTreeMap::from([(FeatureId(0), 1.0), (FeatureId(4), 2.0)]);
        assert_eq!(steering, Steering(BTreeMap::from([(two.clone(), want)])));
        assert_eq!(one.of_request(&asked(&[])).unwrap(), Steering::default());
        let both = steerable(&[&two, &three], f32::MAX);
        for (steerable, key, reason) in [
            (&one, "5", "there are 5"),
            (&one, "model.layers.9:1", "no autoencoder at \"model.layers.9\""),
            (&one, "x", "no number of a feature"),
            (&both, "1", "one of model.layers.2, model.layers.3"),
            (&Steerable::default(), "1", "--sae"),
        ] {
            let error = steerable.of_request(&asked(&[(key, 1.0)])).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        assert!(one.of_request(&asked(&[("1", f32::INFINITY)])).unwrap_err().contains("inf"));
        let half = steerable(&[&two], 65_504.0);
        assert!(half.of_request(&asked(&[("1", -65_504.0)])).is_ok());
        assert!(half.of_request(&asked(&[("1", 7e4)])).unwrap_err().contains("up to 6.5504e4"));
        let twice = one.of_request(&asked(&[("1", 1.0), ("model.layers.2:1", 2.0)])).unwrap_err();
        assert!(twice.contains("named twice"), "{twice}");
        assert!(Steerable::default().of_flags(&[parse("1=1").unwrap()]).is_err());
    }

    #[test]
    fn a_held_feature_has_its_value_and_the_rest_stays() {
        let directions = vec![1.0, 0.0, 0.0, 1.0, -1.0, 0.0, 0.0, -1.0];
        let tensors = SaeTensors {
            encoder_weight: directions.clone(),
            encoder_bias: vec![0.0; 4],
            decoder_weight: directions,
            decoder_bias: vec![0.0; 2],
            skip_weight: None,
        };
        let sae = Sae::from_parts(SaeConfig::new(2, 4, 1), tensors).unwrap();
        let sae = TorchSae::from_sae(&sae, Device::Cpu, Kind::Float).unwrap();
        // Row 0 has feature 0 at 3, row 1 feature 1 at 2; what k = 1 leaves out is the error, and is kept.
        let x = Tensor::from_slice(&[3.0_f32, -1.0, 0.5, 2.0]).reshape([2, 2]);
        let hold = |features: &[(u32, f32)]| {
            let features = features.iter().map(|&(feature, value)| (FeatureId(feature), value)).collect();
            let steered = sae.splice(&x, ErrorTerm::Keep, |codes| held(codes, &features));
            Vec::<f32>::try_from(steered.reshape([-1])).unwrap()
        };
        assert_eq!(hold(&[]), [3.0, -1.0, 0.5, 2.0]);
        assert_eq!(hold(&[(0, 7.0)]), [7.0, -1.0, 7.5, 2.0]);
        assert_eq!(hold(&[(0, 0.0), (1, -1.0)]), [0.0, -2.0, 0.5, -1.0]);
    }
}
