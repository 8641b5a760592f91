//! [`Cache::drift`]: whether the data set is still the one the cache was made of.

use std::fmt::Display;

use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use sae_types::SampleId;

use crate::finding::{Finding, Severity};
use crate::manifest::SAMPLES_FILE;
use crate::{Cache, DatasetSource, SampleRecord};

/// How many samples a finding names.
const NAMED: usize = 5;

/// What a data set says today of a sample.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DatasetSample {
    /// Its name, as in [`SampleRecord::id`].
    pub id: Option<String>,
    /// The hash of its image, as in [`SampleRecord::image_sha256`].
    pub image_sha256: Option<String>,
}

/// How a sample of the cache fares in the data set.
enum Difference {
    Gone,
    Unreadable(String),
    Image,
    Id,
}

impl Cache {
    /// What differs between the data set the cache was made of and `now`: its fingerprint, its size and, for each sample of
    /// the cache, what `read` says of it. Samples are read on all threads of the current rayon pool; the findings do not
    /// depend on their number. A cache that keeps neither names nor images of its samples is compared by
    /// fingerprint and size.
    pub fn drift<E: Display>(
        &self,
        now: &DatasetSource,
        read: impl Fn(SampleId) -> Result<DatasetSample, E> + Sync,
    ) -> Vec<Finding> {
        let then = &self.manifest().dataset;
        let mut findings = Vec::new();
        let mut warn = |place: &str, problem: String, advice: &str| {
            let (severity, place, advice) = (Severity::Warning, place.to_owned(), advice.to_owned());
            findings.push(Finding { severity, place, problem, advice });
        };
        if then.fingerprint != now.fingerprint {
            let problem =
                format!("was {:?} when the cache was made, is {:?}", then.fingerprint, now.fingerprint);
            warn(
                "dataset.fingerprint",
                problem,
                "see below whether the samples differ; if so, make the cache anew",
            );
        }
        if then.n_samples != 0 && then.n_samples != now.n_samples {
            let problem = format!("{} when the cache was made, {} now", then.n_samples, now.n_samples);
            warn("dataset.n_samples", problem, "open the data set and split that the manifest names");
        }
        let differences: Vec<(SampleId, Difference)> = self
            .samples()
            .par_iter()
            .filter_map(|record| Some((record.sample, difference(record, now, &read)?)))
            .collect();
        let mut tell = |severity, what: &str, is: fn(&Difference) -> bool, advice: &str| {
            let mut of_kind = differences.iter().filter(|(_, difference)| is(difference)).peekable();
            let Some((_, first)) = of_kind.peek() else { return };
            let cause =
                if let Difference::Unreadable(cause) = first { format!(" ({cause})") } else { String::new() };
            let samples: Vec<String> = of_kind.map(|(sample, _)| sample.to_string()).collect();
            let named = samples[..samples.len().min(NAMED)].join(", ");
            let more = if samples.len() > NAMED { ", ..." } else { "" };
            let problem =
                format!("{} of {} samples {what}: {named}{more}{cause}", samples.len(), self.samples().len());
            findings.push(Finding {
                severity,
                place: SAMPLES_FILE.to_owned(),
                problem,
                advice: advice.to_owned(),
            });
        };
        let anew = "make the cache anew, or open the data set it was made of";
        tell(Severity::Error, "are not in the data set", |d| matches!(d, Difference::Gone), anew);
        tell(Severity::Error, "cannot be read", |d| matches!(d, Difference::Unreadable(_)), anew);
        tell(Severity::Error, "show another image", |d| matches!(d, Difference::Image), anew);
        let renamed = "the images are those of the cache: only names of samples changed";
        tell(Severity::Warning, "have another id", |d| matches!(d, Difference::Id), renamed);
        findings
    }
}

fn difference<E: Display>(
    then: &SampleRecord,
    now: &DatasetSource,
    read: impl Fn(SampleId) -> Result<DatasetSample, E>,
) -> Option<Difference> {
    if u64::from(then.sample.0) >= now.n_samples {
        return Some(Difference::Gone);
    }
    if then.id.is_none() && then.image_sha256.is_none() {
        return None;
    }
    let now = match read(then.sample) {
        Ok(now) => now,
        Err(cause) => return Some(Difference::Unreadable(cause.to_string())),
    };
    if then.image_sha256.is_some() && then.image_sha256 != now.image_sha256 {
        return Some(Difference::Image);
    }
    (then.id.is_some() && then.id != now.id).then_some(Difference::Id)
}
