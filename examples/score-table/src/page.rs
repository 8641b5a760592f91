//! The page.

use std::fmt::Write as _;

use activation_view::{PAGE_STYLE, escaped, framed};
use scoring::{ScoreTable, Summary};

use crate::read::{Row, Scores};

const TITLE: &str = "Every feature, every score";

/// Green where the explanation is the truth.
const STYLE: &str = "\
td.text,th.text{text-align:left;white-space:normal;min-width:9rem}.exact{color:#18794e;font-weight:600}\
@media (prefers-color-scheme:dark){.exact{color:#4cc38a}}";

/// A page in one file.
pub(crate) fn html(scores: &Scores) -> String {
    let mut body = format!("<header><h1>{TITLE}</h1>");
    let specific: Vec<&Row> = scores.rows.iter().filter(|row| row.truth.is_some()).collect();
    let exact = specific.iter().filter(|row| is_exact(row)).count();
    let _ = write!(
        body,
        "<p>{} explained features. {} of them stand for one concept by the data set's masks and come first; {exact} of these are explained \
         as exactly that (<span class=\"exact\">green</span>).</p></header><main><section><h2>Means</h2><div class=\"scroll\" tabindex=\"0\" \
         role=\"region\" aria-label=\"means\"><table><thead><tr><th scope=\"col\">Score</th><th scope=\"col\">Features</th>\
         <th scope=\"col\">Mean</th><th scope=\"col\" class=\"text\">Beside</th></tr></thead><tbody>",
        scores.rows.len(),
        specific.len()
    );
    for (name, table, decimals) in &scores.tables {
        write_mean(name, table, *decimals, &mut body);
    }
    body.push_str(
        "</tbody></table></div><p class=\"note\">Means over features ± half the 99 % interval.</p></section><section><h2>Features</h2>\
         <div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"features\"><table><thead><tr><th scope=\"col\">Feature</th>\
         <th scope=\"col\" class=\"text\">Explanation</th><th scope=\"col\" class=\"text\">Truth</th><th scope=\"col\">Overlap</th>\
         <th scope=\"col\">Another's</th><th scope=\"col\">CLIP margin</th><th scope=\"col\">Judge</th>\
         <th scope=\"col\">Alike</th></tr></thead><tbody>\n",
    );
    for row in &scores.rows {
        write_row(row, &mut body);
    }
    body.push_str(
        "</tbody></table></div><p class=\"note\">Truth: the concept whose masks the feature overlaps most, and by how much, if by 0.3 or more. \
         Another's: the overlap with what another feature's explanation names. CLIP margin: the score of where the feature is on less that of \
         the rest of the image. Judge: balanced accuracy at telling the right region from a wrong one, 0.5 by chance. Alike: monosemanticity.</p>\
         </section></main>\n",
    );
    framed(TITLE, &format!("{PAGE_STYLE}{STYLE}"), &body)
}

fn is_exact(row: &Row) -> bool {
    row.truth.as_ref().is_some_and(|(concept, _)| *concept == row.explanation)
}

fn write_mean(name: &str, table: &ScoreTable, decimals: usize, body: &mut String) {
    let mean = |summary: Option<&Summary>| match summary {
        None => "none".to_owned(),
        Some(Summary { mean, half_width_99: Some(half), .. }) => {
            format!("{mean:.decimals$} ± {half:.decimals$}")
        }
        Some(Summary { mean, .. }) => format!("{mean:.decimals$}"),
    };
    let beside: Vec<String> = table
        .baselines
        .iter()
        .zip(&table.total.baselines)
        .map(|(name, baseline)| format!("{} {}", escaped(name), mean(baseline.score.as_ref())))
        .collect();
    let n = table.total.score.map_or(0, |score| score.n);
    let _ = write!(
        body,
        "<tr><th scope=\"row\">{name}</th><td>{n}</td><td>{}</td><td class=\"text\">{}</td></tr>",
        mean(table.total.score.as_ref()),
        beside.join("<br>")
    );
}

fn write_row(row: &Row, body: &mut String) {
    let number = |value: Option<f64>, decimals: usize| {
        value.map_or_else(|| "–".to_owned(), |value| format!("{value:.decimals$}"))
    };
    let class = if is_exact(row) { " exact" } else { "" };
    let truth = row
        .truth
        .as_ref()
        .map_or_else(|| "–".to_owned(), |(concept, overlap)| format!("{} ({overlap:.2})", escaped(concept)));
    let _ = writeln!(
        body,
        "<tr><th scope=\"row\">{}</th><td class=\"text{class}\">{}</td><td class=\"text\">{truth}</td><td>{}</td><td>{}</td><td>{}</td>\
         <td>{}</td><td>{}</td></tr>",
        escaped(&row.feature),
        escaped(&row.explanation),
        number(row.iou, 2),
        number(row.permuted, 2),
        number(row.clip, 1),
        number(row.fuzz, 2),
        number(row.monosemanticity, 2)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(explanation: &str, truth: Option<&str>) -> Row {
        Row {
            feature: "model.layers.2_feature1".to_owned(),
            explanation: explanation.to_owned(),
            truth: truth.map(|concept| (concept.to_owned(), 0.5)),
            iou: Some(0.25),
            permuted: None,
            clip: Some(-1.5),
            fuzz: Some(0.75),
            monosemanticity: None,
        }
    }

    #[test]
    fn the_page_says_which_explanations_are_true() {
        let rows = vec![row("red", Some("red")), row("<b>", Some("blue")), row("red", None)];
        let tables = vec![("overlap", ScoreTable::of(vec!["permuted".to_owned()], &[]), 3)];
        let page = html(&Scores { rows, tables });
        assert!(
            page.contains("2 of them stand for one concept by") && page.contains("1 of these are explained")
        );
        assert_eq!(page.matches("text exact").count(), 1);
        assert!(page.contains("&lt;b&gt;") && !page.contains("<b>"));
    }
}
