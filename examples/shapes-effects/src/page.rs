//! The page: scenes with their answers, steered and unsteered, and what the answers rest on.

use activation_view::{Edges, Page};
use anyhow::{Context, Result};

use crate::ask::{Features, Question};
use crate::attribution::Attribution;
use crate::steering::{Share, Steering};

/// Scenes shown.
const SCENES: usize = 24;

/// Renders the page.
pub(crate) fn html(
    questions: &[Question],
    features: &Features,
    steering: &Steering,
    attribution: &Attribution,
) -> Result<String> {
    let concept = &questions.first().context("there is no question")?.baseline;
    let mut page = Page::new("What features do to answers");
    let note = format!(
        "Feature {} of {} is explained as {concept}. Held at {} on all tokens it makes {} of the answers {concept}; {} features drawn at \
         random, each held at the same value, make {}. Of the three features that an answer rests on most, by one pass, {} lie \
         on what was asked about, of features drawn at random among those that are on {}. The first {SCENES} of {} scenes:",
        features.named,
        features.hook,
        steering.strength,
        percent(&steering.named),
        features.random.len(),
        percent(&steering.random),
        percent(&attribution.strongest),
        percent(&attribution.random),
        questions.len()
    );
    page.section("Measured", &note);
    for (number, (question, seen)) in (0..).zip(questions.iter().zip(&attribution.seen)).take(SCENES) {
        let (original, steered) =
            steering.answers.get(&number).with_context(|| format!("question {number} was not steered"))?;
        let note = format!("{}, and steered {}", original.trim(), steered.trim());
        let mut pictures = vec![(seen.picture.clone(), format!("scene {}", question.sample))];
        for (feature, effect, grid) in &seen.strongest {
            let painted = grid.overlay(&seen.picture, Edges::Bilinear);
            pictures.push((painted, format!("feature {feature}: {effect:+.2}")));
        }
        page.section(&question.prompt, &note).pictures(&pictures)?;
    }
    Ok(page.html())
}

fn percent(share: &Share) -> String {
    let of = |value: f64| format!("{:.0}", 100.0 * value);
    match (share.share, share.interval_99) {
        (Some(value), Some([low, high])) => {
            format!("{} % (99 % interval {} to {}, n {})", of(value), of(low), of(high), share.n)
        }
        (Some(value), None) => format!("{} % (of {})", of(value), share.n),
        (None, _) => "none".to_owned(),
    }
}
