//! [`Evaluation`]: the figures of one autoencoder, as JSON and as a table.

use std::fmt;

use sae_core::metrics::{DecoderCosines, Firing};
use serde::{Deserialize, Serialize};

use crate::evaluator::Kinds;
use crate::head::Sums;
use crate::subject::Subject;

/// A latent that fires on more than this share of the tokens is dense.
const DENSE: f64 = 0.1;
/// A latent whose decoder row has a larger cosine with another's is a duplicate.
const DUPLICATE: f32 = 0.9;
/// Which decoder rows are compared, where there are too many to compare all.
const SEED: u64 = 0;
/// Ends of the histogram's bins, in powers of ten: two a decade, from one token in a million.
const FIRST_EXPONENT: i32 = -6;
const BINS_PER_DECADE: i32 = 2;

/// What was measured of one autoencoder; the crate's documentation has the formulas. `None` is what does not exist: a mean over
/// nothing, a share of no variance.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[non_exhaustive]
pub struct Evaluation {
    /// What the caller called it.
    pub name: String,
    /// The hook point it stands in for.
    pub hook: String,
    /// Counted tokens.
    pub tokens: usize,
    /// Counted tokens of images: patches and the newlines between their rows.
    pub tokens_image: usize,
    /// Counted tokens of text.
    pub tokens_text: usize,
    /// Fraction of variance unexplained, centred on the mean of all counted tokens.
    pub fvu: Option<f64>,
    /// The same of image tokens alone, centred on their mean.
    pub fvu_image: Option<f64>,
    /// The same of text tokens alone, centred on their mean.
    pub fvu_text: Option<f64>,
    /// Mean cosine similarity.
    pub cosine: Option<f64>,
    /// Mean `||ŷ|| / ||y||`.
    pub norm_ratio: Option<f64>,
    /// Codes per token.
    pub l0: Option<f64>,
    /// Codes per image token.
    pub l0_image: Option<f64>,
    /// Codes per text token.
    pub l0_text: Option<f64>,
    /// Share of latents that never fired.
    pub dead_share: Option<f64>,
    /// Share of latents that fired on more than a tenth of the tokens.
    pub dense_share: Option<f64>,
    /// How many latents fire how often.
    pub log10_frequency: FrequencyHistogram,
    /// Positions whose next token is a text token.
    pub predicted_tokens: usize,
    /// Cross-entropy of the next token, in nats, of the model as it is.
    pub ce_original: Option<f64>,
    /// The same with the autoencoder's result in place of the activations.
    pub ce_spliced: Option<f64>,
    /// The same with zeros in their place.
    pub ce_zero: Option<f64>,
    /// `(ce_zero - ce_spliced) / (ce_zero - ce_original)`.
    pub ce_recovered: Option<f64>,
    /// Mean `KL(original‖spliced)` of the next token, in nats.
    pub kl: Option<f64>,
    /// Share of latents whose decoder row has a cosine above 0.9 with another's.
    pub duplicate_share: Option<f64>,
    /// Mean over latents of the largest cosine with another's decoder row.
    pub max_cosine_mean: Option<f64>,
    /// How many latents the last two are about: all, or a sample of a wide dictionary.
    pub compared_latents: usize,
}

/// Latents by `log10` of the share of tokens they fire on.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[non_exhaustive]
pub struct FrequencyHistogram {
    /// Ends of the bins, rising; the first bin also takes what lies below.
    pub edges: Vec<f64>,
    /// Latents in each bin, one fewer than `edges`; dead latents are in none.
    pub latents: Vec<u64>,
}

/// What the model did over a number of predictions, without and with an autoencoder.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ModelMeans {
    pub(crate) predictions: usize,
    pub(crate) original: Sums,
    pub(crate) spliced: Sums,
    pub(crate) zero: Sums,
}

impl Evaluation {
    pub(crate) fn new(subject: &Subject<'_>, firing: &Firing, kinds: [&Kinds; 2], model: ModelMeans) -> Self {
        let [image, text] = kinds;
        let mut whole = image.reconstruction.clone();
        whole.merge(&text.reconstruction);
        let l0 = |kind: &Kinds| ratio(kind.codes as f64, kind.reconstruction.rows() as f64);
        let mean = |sum: f64| ratio(sum, model.predictions as f64);
        let [ce_original, ce_spliced, ce_zero] =
            [model.original, model.spliced, model.zero].map(|sums| mean(sums.cross_entropy));
        let cosines = DecoderCosines::new(subject.sae.decoder_weight(), SEED);
        let edges: Vec<f64> = (FIRST_EXPONENT * BINS_PER_DECADE..=0)
            .map(|edge| f64::from(edge) / f64::from(BINS_PER_DECADE))
            .collect();
        Self {
            name: subject.name.clone(),
            hook: subject.output.as_str().to_owned(),
            tokens: whole.rows(),
            tokens_image: image.reconstruction.rows(),
            tokens_text: text.reconstruction.rows(),
            fvu: whole.fvu().and_then(finite),
            fvu_image: image.reconstruction.fvu().and_then(finite),
            fvu_text: text.reconstruction.fvu().and_then(finite),
            cosine: whole.cosine().and_then(finite),
            norm_ratio: whole.norm_ratio().and_then(finite),
            l0: firing.l0(),
            l0_image: l0(image),
            l0_text: l0(text),
            dead_share: firing.dead_share(),
            dense_share: firing.dense_share(DENSE),
            log10_frequency: FrequencyHistogram { latents: firing.log10_histogram(&edges), edges },
            predicted_tokens: model.predictions,
            ce_original,
            ce_spliced,
            ce_zero,
            ce_recovered: ce_zero
                .zip(ce_spliced)
                .zip(ce_original)
                .and_then(|((zero, spliced), original)| ratio(zero - spliced, zero - original)),
            kl: mean(model.spliced.divergence),
            duplicate_share: cosines.share_above(DUPLICATE),
            max_cosine_mean: cosines.mean(),
            compared_latents: cosines.latents(),
        }
    }

    /// The figures in the order of a table, with their names.
    fn figures(&self) -> [(&'static str, Figure); 22] {
        use Figure::{Count, Number};
        [
            ("tokens", Count(self.tokens)),
            ("tokens_image", Count(self.tokens_image)),
            ("tokens_text", Count(self.tokens_text)),
            ("fvu", Number(self.fvu)),
            ("fvu_image", Number(self.fvu_image)),
            ("fvu_text", Number(self.fvu_text)),
            ("cosine", Number(self.cosine)),
            ("norm_ratio", Number(self.norm_ratio)),
            ("l0", Number(self.l0)),
            ("l0_image", Number(self.l0_image)),
            ("l0_text", Number(self.l0_text)),
            ("dead_share", Number(self.dead_share)),
            ("dense_share", Number(self.dense_share)),
            ("predicted_tokens", Count(self.predicted_tokens)),
            ("ce_original", Number(self.ce_original)),
            ("ce_spliced", Number(self.ce_spliced)),
            ("ce_zero", Number(self.ce_zero)),
            ("ce_recovered", Number(self.ce_recovered)),
            ("kl", Number(self.kl)),
            ("duplicate_share", Number(self.duplicate_share)),
            ("max_cosine_mean", Number(self.max_cosine_mean)),
            ("compared_latents", Count(self.compared_latents)),
        ]
    }
}

impl fmt::Display for Evaluation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Table(std::slice::from_ref(self)).fmt(f)
    }
}

/// Evaluations side by side for people: a column for each, a line for each figure.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a>(pub &'a [Evaluation]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |evaluation: &Evaluation| evaluation.name.chars().count().max(12);
        write!(f, "{:<16}", "")?;
        for evaluation in self.0 {
            write!(f, "  {:>1$}", evaluation.name, width(evaluation))?;
        }
        let columns: Vec<_> = self.0.iter().map(Evaluation::figures).collect();
        let lines = columns.first().map_or(0, |figures| figures.len());
        for line in 0..lines {
            write!(f, "\n{:<16}", columns[0][line].0)?;
            for (evaluation, figures) in self.0.iter().zip(&columns) {
                write!(f, "  {:>1$}", figures[line].1.to_string(), width(evaluation))?;
            }
        }
        Ok(())
    }
}

enum Figure {
    Count(usize),
    Number(Option<f64>),
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Number(Some(number)) => write!(f, "{number:.5}"),
            Self::Number(None) => f.write_str("-"),
        }
    }
}

fn finite(number: f64) -> Option<f64> {
    number.is_finite().then_some(number)
}

/// `a / b`, where that is a number; never -0, which a table would show.
fn ratio(a: f64, b: f64) -> Option<f64> {
    finite(a / b + 0.0)
}
