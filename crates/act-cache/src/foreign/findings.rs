//! [`ForeignCache::findings`]: what is odd about a foreign cache.

use sae_types::HookPoint;
use safetensors::tensor::Dtype;

use super::cache::ForeignHook;
use super::split::ForeignSplit;
use super::{ForeignCache, Layout};
use crate::{Finding, Severity};

/// What one pass over a split found.
#[derive(Default)]
struct Survey {
    zeros: u64,
    /// Entries that cannot be used, with the first of them.
    bad: u64,
    first_bad: Option<(usize, String)>,
    lasts: u64,
    ordered: bool,
}

impl ForeignCache {
    /// Reads every entry and says what a user should know: whose the cache is and why, latents that are missing, entries that
    /// cannot be used, splits that differ from each other, what is not there. Nothing stops it.
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (name, hook) in self.entries() {
            self.judge(name, hook, &mut findings);
        }
        findings
    }

    fn judge(&self, name: &HookPoint, hook: &ForeignHook, findings: &mut Vec<Finding>) {
        let mut say = |severity, place: &str, problem: String, advice: &str| {
            let (place, advice) = (place.to_owned(), advice.to_owned());
            findings.push(Finding { severity, place, problem, advice });
        };
        use Severity::{Error, Note, Warning};
        let place = name.as_str();
        let counted = hook.splits.iter().find_map(ForeignSplit::counting);
        let (problem, advice) = match (counted, self.layout()) {
            (None, Layout::Msae) => {
                ("nothing in the latents tells how they are counted", "taken for msae's, from 0")
            }
            (None, Layout::Delphi) => (
                "nothing in the latents tells how they are counted",
                "taken for delphi's, from each split's first",
            ),
            (Some(Layout::Msae), _) => ("latents are counted from 0", "as msae does"),
            (Some(Layout::Delphi), _) => ("latents are counted from each split's first", "as delphi does"),
        };
        say(Note, place, problem.to_owned(), advice);
        if counted.is_some_and(|counted| counted != self.layout()) {
            let problem =
                format!("the cache was opened as {}'s, but its latents tell otherwise", self.layout());
            say(Error, place, problem, "open it without saying whose it is");
        }
        if !hook.rank_parts.is_empty() {
            let problem = format!("msae left parts of single ranks behind: {}", hook.rank_parts.join(", "));
            say(
                Warning,
                place,
                problem,
                "they were never joined (msae joins ranks 0 to 9 only): cache again, or join them",
            );
        }
        if !hook.strangers.is_empty() {
            let problem = format!("these files are no splits: {}", hook.strangers.join(", "));
            say(Note, place, problem, "they are not read");
        }

        let mut next = 0;
        for split in &hook.splits {
            let latents = split.latents();
            if latents.start > next {
                let problem = format!("no split holds latents {next} to {}", latents.start - 1);
                say(Error, place, problem, "a file is missing: copy the cache again");
            } else if latents.start < next {
                let problem = format!("latents from {} are in the split before as well", latents.start);
                say(Error, &file(name, split), problem, "remove the file that does not belong here");
            }
            next = next.max(latents.end);
        }

        let mut dtypes: Vec<String> = hook
            .splits
            .iter()
            .map(|split| {
                format!("{:?} locations, {} activations", split.location_dtype(), split.activation_dtype())
            })
            .collect();
        dtypes.sort_unstable();
        dtypes.dedup();
        // delphi chooses between U16 and U32 for each split.
        let mixed_values =
            hook.splits.windows(2).any(|pair| pair[0].activation_dtype() != pair[1].activation_dtype());
        let wide = |split: &ForeignSplit| split.location_dtype() == Dtype::I64;
        let mixed_places = hook.splits.windows(2).any(|pair| wide(&pair[0]) != wide(&pair[1]));
        if mixed_values || mixed_places {
            say(
                Warning,
                place,
                format!("splits differ: {}", dtypes.join("; ")),
                "they come from different runs",
            );
        }

        let shapes: Vec<_> =
            hook.splits.iter().map(|split| split.tokens().map(|grid| (grid.rows, grid.cols))).collect();
        if shapes.windows(2).any(|pair| pair[0] != pair[1]) {
            say(
                Error,
                place,
                "splits have different token ids".to_owned(),
                "they come from different runs: cache again",
            );
        } else if shapes.first().is_some_and(Option::is_none) && self.layout() == Layout::Delphi {
            say(Warning, place, "there are no token ids".to_owned(), "delphi cannot show text without them");
        }
        if hook.config.is_none() && self.layout() == Layout::Delphi {
            say(
                Warning,
                place,
                "config.json is missing".to_owned(),
                "delphi does not open the cache without it",
            );
        }

        let mut lasts = 0;
        for split in &hook.splits {
            let survey = self.survey(split);
            lasts += survey.lasts;
            let place = file(name, split);
            if let Some((entry, problem)) = survey.first_bad {
                let problem =
                    format!("{} entries cannot be used, the first is {entry}: {problem}", survey.bad);
                say(
                    Error,
                    &place,
                    problem,
                    "the file is damaged, or its name or its latents are not what they seem",
                );
            }
            if survey.zeros > 0 {
                say(
                    Note,
                    &place,
                    format!("{} activations are zero", survey.zeros),
                    "an import leaves them out",
                );
            }
            if !survey.ordered {
                let problem = "entries do not ascend by sample and token".to_owned();
                say(Note, &place, problem, "several ranks were joined; an import sorts them");
            }
        }
        if self.layout() == Layout::Msae && lasts == 0 {
            let problem =
                format!("the last latent of none of the {} splits is ever active", hook.splits.len());
            say(Warning, place, problem, "msae loses these latents: an import lists them as lost");
        }
    }

    fn survey(&self, split: &ForeignSplit) -> Survey {
        let mut survey = Survey { ordered: true, ..Survey::default() };
        let last = split.latents().end - 1;
        let mut before = (0, 0);
        for i in 0..split.len() {
            match split.entry(i, self.layout(), 0) {
                Ok(entry) => {
                    survey.zeros += u64::from(entry.value == 0.0);
                    survey.lasts += u64::from(entry.latent as usize == last && entry.value != 0.0);
                    survey.ordered &= before <= (entry.sample, entry.token);
                    before = (entry.sample, entry.token);
                }
                Err(problem) => {
                    survey.bad += 1;
                    survey.first_bad.get_or_insert((i, problem));
                }
            }
        }
        survey
    }
}

fn file(name: &HookPoint, split: &ForeignSplit) -> String {
    let file = split.path().file_name().unwrap_or_default();
    format!("{name}/{}", file.to_string_lossy())
}
