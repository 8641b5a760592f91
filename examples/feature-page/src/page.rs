//! The HTML: one file, styles and pictures inside, nothing fetched.

use std::fmt::Write;

use activation_view::{data_url, escaped};
use anyhow::Result;
use image::{ImageFormat, RgbImage};
use scoring::{Confidence, Summary};

use crate::naming::Naming;

/// One feature as the page shows it.
pub(crate) struct Card {
    pub(crate) feature: u32,
    /// What was said of it.
    pub(crate) explanation: Option<String>,
    /// Samples it fires in.
    pub(crate) samples: usize,
    /// Largest activation.
    pub(crate) peak: f32,
    /// Concepts with the mean overlap of the feature's masks, best first.
    pub(crate) concepts: Vec<(String, f64)>,
    /// The image and the same image under the feature's heat map.
    pub(crate) pictures: Vec<(RgbImage, RgbImage)>,
}

/// What the page says above the cards.
pub(crate) struct Head {
    pub(crate) model: String,
    pub(crate) sae: String,
    pub(crate) hook: String,
    pub(crate) samples: usize,
    pub(crate) alive: usize,
    pub(crate) width: usize,
    pub(crate) per_concept: usize,
    pub(crate) agreement: Option<Summary>,
    pub(crate) shuffled: Option<Summary>,
    /// Overlap from which on a feature is specific.
    pub(crate) specific: f64,
    pub(crate) naming: Option<Naming>,
}

/// Renders the page.
pub(crate) fn render(head: &Head, cards: &[Card]) -> Result<String> {
    let mut html = String::new();
    let summary = |s: &Option<Summary>| match s {
        None => "none measured".to_owned(),
        Some(Summary { mean, half_width_99: Some(half), .. }) => format!("{mean:.3} ± {half:.3}"),
        Some(Summary { mean, .. }) => format!("{mean:.3}"),
    };
    write!(
        html,
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>\
         <title>Features of {hook}</title><style>{STYLE}</style>\
         <header><h1>What the features of <code>{hook}</code> look at</h1>\
         <p>{model}, sparse autoencoder {sae}, {samples} images. \
         {alive} of {width} features fire on the base tile. Below are the {n} whose masks agree best with what is \
         annotated, at most {per_concept} for each concept. Pictures are lit where the feature is on, with a line around \
         its half-maximum mask; hover to see them plain.</p>\
         <dl><dt>Mean overlap with the best concept</dt><dd>{agreement}</dd>\
         <dt>The same with concepts shuffled between features</dt><dd>{shuffled}</dd>{naming}</dl>\
         <p class=note>Overlap is intersection over union of the half-maximum mask and the concept's pixels, \
         mean over the pictures shown, ± the 99 % interval of the mean over features. \
         The best concept is chosen on the same pictures.</p></header><main>",
        hook = escaped(&head.hook),
        model = escaped(&head.model),
        sae = escaped(&head.sae),
        samples = head.samples,
        alive = head.alive,
        width = head.width,
        n = cards.len(),
        per_concept = head.per_concept,
        agreement = summary(&head.agreement),
        shuffled = summary(&head.shuffled),
        naming = head.naming.as_ref().map_or(String::new(), |naming| naming_rows(naming, head.specific)),
    )?;
    for card in cards {
        let best = card.concepts.first().map_or("no concept", |(name, _)| name);
        write!(
            html,
            "<article id=f{id}><h2>{best}<small>feature {id}</small></h2>{explained}<p>fires in {samples} images, up to \
             {peak:.2}</p><div class=pictures>",
            id = card.feature,
            best = escaped(best),
            explained = card.explanation.as_ref().map_or(String::new(), |explanation| {
                format!("<p class=said>explained as <em>{}</em></p>", escaped(explanation))
            }),
            samples = card.samples,
            peak = card.peak
        )?;
        for (plain, lit) in &card.pictures {
            let (width, height) = plain.dimensions();
            write!(
                html,
                "<span style='aspect-ratio:{width}/{height}'><img alt='' src='{}'><img class=lit alt='' src='{}'></span>",
                data_url(plain, ImageFormat::Jpeg)?,
                data_url(lit, ImageFormat::Jpeg)?
            )?;
        }
        html.push_str("</div><ul>");
        for (name, overlap) in card.concepts.iter().take(4) {
            write!(
                html,
                "<li><span>{}</span><meter min=0 max=1 value={overlap:.3}></meter><b>{overlap:.2}</b></li>",
                escaped(name)
            )?;
        }
        html.push_str("</ul></article>");
    }
    html.push_str("</main></html>\n");
    Ok(html)
}

/// What explanations are worth, beside what needs no explainer.
fn naming_rows(naming: &Naming, specific: f64) -> String {
    let percent =
        |share: Option<f64>| share.map_or("none".to_owned(), |share| format!("{:.1} %", 100.0 * share));
    let interval = naming.exact.wilson(Confidence::P99).map_or(String::new(), |[low, high]| {
        format!(" <small>({:.1} to {:.1})</small>", 100.0 * low, 100.0 * high)
    });
    format!(
        "<dt>Explanations that say exactly the best concept, of the {n} features that overlap it by {specific} or more</dt>\
         <dd>{exact}{interval}</dd>\
         <dt>\u{201c}{answer}\u{201d} for every feature would be right for</dt><dd>{constant}</dd>\
         <dt>The explanation of another feature would be right for</dt><dd>{other}</dd>",
        n = naming.exact.n,
        exact = percent(naming.exact.share()),
        answer = escaped(&naming.constant.0),
        constant = percent(naming.constant.1.share()),
        other = percent(Some(naming.other).filter(|share| !share.is_nan())),
    )
}

const STYLE: &str = "\
:root{color-scheme:light dark;--line:#8884;--soft:#8881}\
body{font:15px/1.45 system-ui,sans-serif;margin:0 auto;max-width:1240px;padding:1.5rem}\
h1{font-size:1.5rem;margin:0}header p{max-width:75ch}code{font-size:.95em}.note{opacity:.7;font-size:.85em}\
dl{display:grid;grid-template-columns:max-content max-content;gap:.2rem 1rem;margin:.5rem 0}\
dd{margin:0;font-weight:600;font-variant-numeric:tabular-nums}\
main{display:grid;grid-template-columns:repeat(auto-fill,minmax(370px,1fr));gap:1rem}\
article{border:1px solid var(--line);border-radius:10px;padding:.8rem 1rem;background:var(--soft)}\
h2{font-size:1.1rem;margin:0;display:flex;justify-content:space-between;align-items:baseline}\
h2 small{font-weight:400;opacity:.65;font-size:.8rem}article p{margin:.1rem 0 .5rem;opacity:.75;font-size:.85rem}\
.pictures{display:flex;flex-wrap:wrap;gap:5px}.pictures span{height:92px;position:relative;border-radius:4px;overflow:hidden}\
.pictures img{position:absolute;inset:0;width:100%;height:100%}.lit:hover{opacity:0}\
ul{list-style:none;margin:.6rem 0 0;padding:0}li{display:grid;grid-template-columns:8rem 1fr 2.5rem;gap:.5rem;align-items:center}\
article .said{opacity:1;font-size:1rem}\
meter{width:100%}b{font-variant-numeric:tabular-nums;text-align:right}";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_outside_cannot_break_out_of_the_page() {
        let head = Head {
            model: "<script>".into(),
            sae: "a'b".into(),
            hook: "model.layers.1".into(),
            samples: 1,
            alive: 1,
            width: 2,
            per_concept: 1,
            agreement: Summary::of([0.5, 0.7]),
            shuffled: None,
            specific: 0.3,
            naming: Some(Naming::of([("<i>", Some("<i>")), ("red", None)].into_iter())),
        };
        let image = RgbImage::new(4, 2);
        let card = Card {
            feature: 1,
            explanation: Some("<u>red".into()),
            samples: 3,
            peak: 1.0,
            concepts: vec![("<b>".into(), 0.5)],
            pictures: vec![(image.clone(), image)],
        };
        let html = render(&head, &[card]).unwrap();
        assert!(!html.contains("<script>") && html.contains("&lt;script&gt;") && html.contains("&lt;b&gt;"));
        assert!(html.contains("0.600 ±") && html.contains("none measured"));
        assert!(html.contains("<em>&lt;u&gt;red</em>") && html.contains("<dd>50.0 % <small>("));
        assert!(!html.contains("http"), "the page must fetch nothing");
    }
}
