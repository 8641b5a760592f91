//! [`Steerer`]: the autoencoders that a model is steered by.

use std::collections::BTreeMap;
use std::path::PathBuf;

use lmm_hooks::LlavaNext;
use sae_core::Sae;
use sae_torch::TorchSae;
use sae_types::{FeatureId, HookPoint};
use tch::Kind;

use crate::{Change, Plan, Steering, SteeringError, Target};

/// Autoencoders on a model's device.
#[derive(Debug, Default)]
pub struct Steerer {
    pub(crate) saes: BTreeMap<HookPoint, TorchSae>,
    steerable: Steerable,
}

/// What can be steered: hook points, how many features each has, and how large a value may be. It holds no tensor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Steerable {
    features: BTreeMap<HookPoint, usize>,
    largest: f32,
}

impl Steerer {
    /// Reads the autoencoders in `folders`, by hook point, onto the model's device, as `kind`.
    ///
    /// # Errors
    /// When one cannot be read, does not fit the model, or cannot steer it.
    pub fn load(
        folders: &BTreeMap<HookPoint, PathBuf>,
        network: &LlavaNext,
        kind: Kind,
    ) -> Result<Self, SteeringError> {
        let mut saes = BTreeMap::new();
        for (hook, folder) in folders {
            let read = |source| SteeringError::Read { folder: folder.clone(), source: Box::new(source) };
            saes.insert(hook.clone(), Sae::load(folder).map_err(read)?);
        }
        Self::new(&saes, network, kind)
    }

    /// Puts autoencoders on the model's device, as `kind`.
    ///
    /// # Errors
    /// When one does not fit the model, or cannot steer it.
    pub fn new(
        saes: &BTreeMap<HookPoint, Sae>,
        network: &LlavaNext,
        kind: Kind,
    ) -> Result<Self, SteeringError> {
        let model = |source| SteeringError::Model { source: Box::new(source) };
        let mut steerer = Self::default();
        steerer.steerable.largest = match network.kind() {
            Kind::Half => 65_504.0,
            Kind::BFloat16 => f32::from_bits(0x7F7F_0000),
            _ => f32::MAX,
        };
        for (hook, sae) in saes {
            let expected = network.width(hook).map_err(model)?;
            if sae.d_in() as i64 != expected {
                return Err(SteeringError::Width { hook: hook.clone(), expected, got: sae.d_in() });
            }
            if sae.config().transcode {
                return Err(SteeringError::Transcoder { hook: hook.clone() });
            }
            if network.is_vision(hook).map_err(model)? {
                return Err(SteeringError::Vision { hook: hook.clone() });
            }
            let torch = TorchSae::from_sae(sae, network.device(), kind)
                .map_err(|source| SteeringError::Place { hook: hook.clone(), source: Box::new(source) })?;
            steerer.steerable.features.insert(hook.clone(), sae.num_latents());
            steerer.saes.insert(hook.clone(), torch);
        }
        Ok(steerer)
    }

    /// What can be steered.
    pub fn steerable(&self) -> &Steerable {
        &self.steerable
    }

    /// The autoencoder at a hook point.
    pub fn sae(&self, hook: &HookPoint) -> Option<&TorchSae> {
        self.saes.get(hook)
    }

    /// Steers each row of a batch by the plan of its number.
    ///
    /// # Errors
    /// When a plan asks for what is not there, or the rows differ in error term or stage.
    pub fn steering(&self, plans: &[Plan]) -> Result<Steering<'_>, SteeringError> {
        for plan in plans {
            self.steerable.check(plan)?;
        }
        Steering::new(self, plans)
    }
}

impl Steerable {
    /// Hook points with so many features, and the largest value there is.
    pub fn new(features: BTreeMap<HookPoint, usize>, largest: f32) -> Self {
        Self { features, largest }
    }

    /// How many features each hook point has.
    pub fn features(&self) -> &BTreeMap<HookPoint, usize> {
        &self.features
    }

    /// The feature that a target names.
    ///
    /// # Errors
    /// When there is none, or it may be one of several.
    pub fn resolve(&self, target: &Target) -> Result<(HookPoint, FeatureId), SteeringError> {
        let Target { hook, feature } = target;
        let hook = match hook {
            Some(hook) => hook,
            None if self.features.len() > 1 => {
                return Err(SteeringError::Ambiguous { feature: *feature, known: self.known() });
            }
            None => self.features.keys().next().ok_or(SteeringError::NoAutoencoder)?,
        };
        self.check_feature(hook, *feature)?;
        Ok((hook.clone(), *feature))
    }

    /// A plan with the changes that targets name, all of them there.
    ///
    /// # Errors
    /// When a target is not there, one is named twice, or the plan cannot be followed ([`Steerable::check`]).
    pub fn plan<'t>(
        &self,
        mut plan: Plan,
        changes: impl IntoIterator<Item = (&'t Target, Change)>,
    ) -> Result<Plan, SteeringError> {
        for (target, change) in changes {
            let (hook, feature) = self.resolve(target)?;
            if plan.insert(hook.clone(), feature, change).is_some() {
                return Err(SteeringError::Twice { hook, feature });
            }
        }
        self.check(&plan)?;
        Ok(plan)
    }

    /// Whether all that a plan asks for is there.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self, plan: &Plan) -> Result<(), SteeringError> {
        if plan.is_nowhere() && !plan.is_empty() {
            return Err(SteeringError::Nowhere { place: plan.place, time: plan.time });
        }
        for (hook, feature, change) in plan.all() {
            self.check_feature(hook, feature)?;
            let value = change.value;
            if value.is_nan() || value.abs() > self.largest {
                let (hook, largest) = (hook.clone(), self.largest);
                return Err(SteeringError::Value { hook, feature, value, largest });
            }
        }
        Ok(())
    }

    fn check_feature(&self, hook: &HookPoint, feature: FeatureId) -> Result<(), SteeringError> {
        let Some(&width) = self.features.get(hook) else {
            return Err(if self.features.is_empty() {
                SteeringError::NoAutoencoder
            } else {
                SteeringError::UnknownHook { hook: hook.clone(), known: self.known() }
            });
        };
        if feature.index() >= width {
            return Err(SteeringError::UnknownFeature { hook: hook.clone(), feature, width });
        }
        Ok(())
    }

    fn known(&self) -> Vec<HookPoint> {
        self.features.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Mode, When, Where};

    #[test]
    fn what_is_not_there_is_named() {
        let [two, three] = [2, 3].map(HookPoint::layer);
        let of = |hooks: &[&HookPoint], largest| {
            Steerable::new(hooks.iter().map(|&hook| (hook.clone(), 5)).collect(), largest)
        };
        let (one, both) = (of(&[&two], f32::MAX), of(&[&two, &three], 65_504.0));
        for (steerable, target, says) in [
            (&one, "5", "there are 5"),
            (&one, "model.layers.9:1", "no autoencoder at \"model.layers.9\"; there are: model.layers.2"),
            (&both, "1", "one of model.layers.2, model.layers.3"),
            (&Steerable::default(), "1", "no sparse autoencoder"),
        ] {
            let error = steerable.resolve(&target.parse().unwrap()).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        assert_eq!(one.resolve(&"4".parse().unwrap()).unwrap(), (two.clone(), FeatureId(4)));
        assert_eq!(both.resolve(&"model.layers.3:0".parse().unwrap()).unwrap(), (three, FeatureId(0)));
        let at = |value| Plan::default().with(two.clone(), FeatureId(1), Change { mode: Mode::Clamp, value });
        assert!(both.check(&at(-65_504.0)).is_ok());
        assert!(both.check(&at(7e4)).unwrap_err().to_string().contains("up to 6.5504e4"));
        assert!(one.check(&at(f32::INFINITY)).is_err() && one.check(&at(f32::NAN)).is_err());
        let targets = ["4", "model.layers.2:0"].map(|target| target.parse().unwrap());
        let clamp = |value| Change { mode: Mode::Clamp, value };
        let plan = one.plan(Plan::default(), targets.iter().zip([clamp(1.0), clamp(2.0)])).unwrap();
        let wanted = Plan::default().with(two.clone(), FeatureId(0), clamp(2.0));
        assert_eq!(plan, wanted.with(two.clone(), FeatureId(4), clamp(1.0)));
        let twice = ["1", "model.layers.2:1"].map(|target| target.parse().unwrap());
        let error = one.plan(Plan::default(), twice.iter().map(|target| (target, clamp(1.0)))).unwrap_err();
        assert_eq!(error.to_string(), "feature 1 of model.layers.2 is named twice");
        let plan = Plan { place: Where::Image, time: When::Decoding, ..at(1.0) };
        assert!(one.check(&plan).unwrap_err().to_string().contains("both image and decoding"));
    }
}
