//! What annotated things are called.

use std::collections::{BTreeMap, BTreeSet};

/// The labels of each class, its own name first.
pub(crate) type Classes = BTreeMap<u64, Vec<String>>;

/// Labels from the names of classes, the first of which is the class's own. A further name that is another class's own
/// stays with that one: ADE20K also calls a toilet a stool.
pub(crate) fn classes(named: impl IntoIterator<Item = (u64, Vec<String>)>) -> Classes {
    let plain = |names: Vec<String>| names.iter().map(|name| label(name)).collect::<Vec<_>>();
    let mut classes: Classes = named.into_iter().map(|(id, names)| (id, plain(names))).collect();
    let own: BTreeSet<String> = classes.values().filter_map(|labels| labels.first().cloned()).collect();
    for labels in classes.values_mut() {
        let mut kept: Vec<String> = Vec::with_capacity(labels.len());
        for label in labels.drain(..) {
            let is_free = kept.is_empty() || !own.contains(&label);
            if is_free && !label.is_empty() && !kept.contains(&label) {
                kept.push(label);
            }
        }
        *labels = kept;
    }
    classes
}

/// Lower case, with single spaces between words and for underscores.
fn label(name: &str) -> String {
    let lower = name.to_lowercase();
    let words = lower.split(|letter: char| letter.is_whitespace() || letter == '_');
    words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_labels() {
        for (name, expected) in [
            ("Traffic  Light", "traffic light"),
            ("aerosol_can", "aerosol can"),
            (" bed ", "bed"),
            ("T-shirt", "t-shirt"),
        ] {
            assert_eq!(label(name), expected);
        }
    }

    #[test]
    fn a_further_name_yields_to_a_class_of_that_name() {
        let named = |id, names: &str| (id, names.split(", ").map(str::to_owned).collect());
        let found = classes([
            named(1, "toilet, can, Stool, throne, can"),
            named(2, "stool"),
            named(3, "earth, ground"),
            named(4, "land, ground, "),
        ]);
        assert_eq!(found[&1], ["toilet", "can", "throne"]);
        assert_eq!(found[&2], ["stool"]);
        assert_eq!(found[&3], ["earth", "ground"]);
        assert_eq!(found[&4], ["land", "ground"]);
    }
}
