//! [`Report`]: scores as an HTML page in one file, nothing fetched, no scripts.
//!
//! Each section is one score: a table of it beside its baselines with 99 % intervals, a histogram, and the features that score
//! best and worst, with their pictures. The page follows the reader's choice of light or dark and fits a phone.

use std::fmt::Write as _;

use activation_view::{Histogram, PAGE_STYLE, escaped, framed};

use crate::{Paired, ScoreRow, ScoreTable, Summary};

const STYLE: &str = "\
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,20rem),1fr));gap:1rem}\
article{border:1px solid var(--line);border-radius:8px;background:var(--soft);padding:.8rem 1rem}\
article h4{margin:0;font-size:.85rem;font-weight:500;color:var(--quiet);display:flex;justify-content:space-between;gap:1rem;overflow-wrap:anywhere}\
article h4 b{color:var(--ink);font-variant-numeric:tabular-nums;white-space:nowrap}article p{margin:.25rem 0 .5rem;overflow-wrap:anywhere}\
.pictures{display:flex;flex-wrap:wrap;gap:5px}.pictures img{height:88px;max-width:100%;border-radius:4px}\
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem .8rem;margin:.5rem 0 0;font-size:.85rem}dt{color:var(--quiet)}\
dd{margin:0;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}.total td,.total th{font-weight:600;border-bottom:0}.total small{font-weight:400}";

/// Bars of a histogram.
const BINS: usize = 25;

/// A page of scores.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// What the page is about.
    pub title: String,
    /// What was scored, with what, on how much: one paragraph each.
    pub introduction: Vec<String>,
    /// One per score.
    pub sections: Vec<Section>,
}

/// One score.
#[derive(Clone, Debug, PartialEq)]
pub struct Section {
    /// Its name.
    pub heading: String,
    /// What it says and cannot say.
    pub note: String,
    /// Digits behind the point.
    pub decimals: usize,
    /// What it runs from and to.
    pub range: [f64; 2],
    /// The means.
    pub table: ScoreTable,
    /// The scores of all features, and those of each baseline, by name; the first is the score.
    pub distributions: Vec<(String, Vec<f64>)>,
    /// The features that score best, best first.
    pub best: Vec<Card>,
    /// Those that score worst, worst first.
    pub worst: Vec<Card>,
}

/// One feature.
#[derive(Clone, Debug, PartialEq)]
pub struct Card {
    /// Its name.
    pub feature: String,
    /// What was said of it.
    pub explanation: String,
    /// Its score.
    pub score: f64,
    /// What else there is to know, as pairs of name and value.
    pub facts: Vec<(String, String)>,
    /// What it reacts to.
    pub pictures: Vec<Picture>,
}

/// A picture within the page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// A URL that holds it: `data:image/…`.
    pub url: String,
    /// What it shows, for those who cannot see it.
    pub description: String,
}

/// Places of the best and the worst of a list of scores.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extremes {
    /// The best, best first.
    pub best: Vec<usize>,
    /// The worst, worst first; none of the best.
    pub worst: Vec<usize>,
}

impl Extremes {
    /// The `n` best and the `n` worst of those that have a score, ties to the lower place; where there are fewer than `2n`, the
    /// best come first.
    pub fn of(scores: &[Option<f64>], n: usize) -> Self {
        let mut order: Vec<(usize, f64)> =
            scores.iter().enumerate().filter_map(|(at, score)| Some((at, (*score)?))).collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let mut worst = order.split_off(n.min(order.len()));
        worst.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
        worst.truncate(n);
        let places = |picked: Vec<(usize, f64)>| picked.into_iter().map(|(at, _)| at).collect();
        Self { best: places(order), worst: places(worst) }
    }
}

impl Report {
    /// The page.
    ///
    /// # Panics
    /// When a picture's URL does not hold the picture: the page would fetch it. When a section's range is empty.
    #[track_caller]
    pub fn html(&self) -> String {
        let mut body = format!("<header><h1>{}</h1>", escaped(&self.title));
        for paragraph in &self.introduction {
            let _ = write!(body, "<p>{}</p>", escaped(paragraph));
        }
        body.push_str("</header><main>\n");
        for section in &self.sections {
            section.write(&mut body);
        }
        body.push_str("</main>\n");
        framed(&self.title, &format!("{PAGE_STYLE}{STYLE}"), &body)
    }
}

impl Section {
    #[track_caller]
    fn write(&self, body: &mut String) {
        let heading = escaped(&self.heading);
        let _ = writeln!(body, "<section><h2>{heading}</h2><p>{}</p>", escaped(&self.note));
        self.write_table(&heading, body);
        if !self.distributions.is_empty() {
            let title = format!("{}: share of features by score", self.heading);
            let mut histogram = Histogram::new(title, self.range, BINS, self.decimals);
            for (name, values) in &self.distributions {
                histogram.set(name, values);
            }
            let _ = writeln!(
                body,
                "<figure>{}<figcaption>Share of features by score; the dashed line is the mean.</figcaption></figure>",
                histogram.svg()
            );
        }
        for (name, cards) in [("Best", &self.best), ("Worst", &self.worst)] {
            if !cards.is_empty() {
                let _ = write!(body, "<h3>{name}</h3><div class=\"cards\">");
                for card in cards {
                    card.write(self.decimals, body);
                }
                body.push_str("</div>\n");
            }
        }
        body.push_str("</section>\n");
    }

    fn write_table(&self, heading: &str, body: &mut String) {
        let _ = write!(
            body,
            "<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"{heading}: means\"><table><thead><tr>\
             <th scope=\"col\">Concept</th><th scope=\"col\">Score</th>"
        );
        for name in &self.table.baselines {
            let _ = write!(body, "<th scope=\"col\">{}</th>", escaped(name));
        }
        body.push_str(
            "<th scope=\"col\">Features</th><th scope=\"col\">Unable</th><th scope=\"col\">No score</th></tr></thead><tbody>",
        );
        for row in &self.table.concepts {
            let name = row.concept.as_deref().map_or("without a label".to_owned(), escaped);
            self.write_row(row, &name, "", body);
        }
        self.write_row(&self.table.total, "all", " class=\"total\"", body);
        body.push_str(
            "</tbody></table></div><p class=\"note\">Means over features ± half the 99 % interval. Below each baseline: the \
             mean difference to it, feature by feature, and how many times as high the score is, with its 99 % interval. \
             Unable: the explainer had nothing to say. No score: there was nothing to go by, or it failed.</p>\n",
        );
    }

    fn write_row(&self, row: &ScoreRow, name: &str, class: &str, body: &mut String) {
        let _ = write!(
            body,
            "<tr{class}><th scope=\"row\">{name}</th><td>{}</td>",
            self.mean(row.score.as_ref())
        );
        for baseline in &row.baselines {
            let beside = baseline.paired.as_ref().map_or_else(String::new, |paired| self.beside(paired));
            let _ = write!(body, "<td>{}{beside}</td>", self.mean(baseline.score.as_ref()));
        }
        // What does not occur needs no explanation.
        let unable = row.unable_share().filter(|&share| share > 0.0);
        let unable =
            unable.map_or_else(String::new, |share| format!("<small>{:.1} %</small>", 100.0 * share));
        let failed =
            if row.failed > 0 { format!("<small>{} failed</small>", row.failed) } else { String::new() };
        let _ = write!(
            body,
            "<td>{}</td><td>{}{unable}</td><td>{}{failed}</td></tr>",
            row.features,
            row.unable,
            row.undefined + row.failed
        );
    }

    fn mean(&self, summary: Option<&Summary>) -> String {
        let decimals = self.decimals;
        match summary {
            None => "none".to_owned(),
            Some(Summary { mean, half_width_99: Some(half), .. }) => {
                format!("{mean:.decimals$} ± {half:.decimals$}")
            }
            Some(Summary { mean, .. }) => format!("{mean:.decimals$}"),
        }
    }

    fn beside(&self, paired: &Paired) -> String {
        let sign = if paired.difference.mean < 0.0 { "" } else { "+" };
        let mut text = format!("<small>{sign}{}</small>", self.mean(Some(&paired.difference)));
        if let Some(ratio) = paired.ratio {
            let interval = paired
                .ratio_interval_99
                .map_or("no bounds".to_owned(), |[low, high]| format!("{low:.1} to {high:.1}"));
            let _ = write!(text, "<small>{ratio:.1} times ({interval})</small>");
        }
        text
    }
}

impl Card {
    #[track_caller]
    fn write(&self, decimals: usize, body: &mut String) {
        let _ = write!(
            body,
            "<article><h4>{} <b>{:.decimals$}</b></h4><p>{}</p>",
            escaped(&self.feature),
            self.score,
            escaped(&self.explanation)
        );
        if !self.pictures.is_empty() {
            body.push_str("<div class=\"pictures\">");
            for Picture { url, description } in &self.pictures {
                assert!(url.starts_with("data:image/"), "a page that fetches nothing cannot show {url:.40}");
                let description = escaped(description);
                let _ = write!(
                    body,
                    "<img src=\"{}\" alt=\"{description}\" title=\"{description}\">",
                    escaped(url)
                );
            }
            body.push_str("</div>");
        }
        if !self.facts.is_empty() {
            body.push_str("<dl>");
            for (name, value) in &self.facts {
                let _ = write!(body, "<dt>{}</dt><dd>{}</dd>", escaped(name), escaped(value));
            }
            body.push_str("</dl>");
        }
        body.push_str("</article>");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extremes_do_not_share_features() {
        let scores = [Some(0.5), None, Some(0.9), Some(0.1), Some(0.5), Some(0.1)];
        let of = |n| {
            let extremes = Extremes::of(&scores, n);
            (extremes.best, extremes.worst)
        };
        assert_eq!(of(2), (vec![2, 0], vec![3, 5]));
        assert_eq!(of(3), (vec![2, 0, 4], vec![3, 5]));
        assert_eq!(of(9), (vec![2, 0, 4, 3, 5], vec![]));
        assert_eq!(of(0), (vec![], vec![]));
    }
}
