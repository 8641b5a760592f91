//! Several data sets as one: order, shares, fingerprints, what bad sources get.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use mm_data::{Choice, Concat, DataError, Dataset, OpenOptions, SourceSpec};

/// A JSONL file of so many texts, each `NAME NUMBER`.
fn texts(root: &Path, name: &str, n: usize) -> String {
    let lines: Vec<String> = (0..n).map(|row| format!("{{\"text\": \"{name} {row}\"}}")).collect();
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, lines.join("\n")).unwrap();
    path.to_str().unwrap().to_owned()
}

fn open(sources: &[String], choice: Choice) -> Result<Concat, DataError> {
    let specs: Vec<SourceSpec> = sources.iter().map(|source| source.parse().unwrap()).collect();
    Concat::open(&specs, &OpenOptions::default(), choice)
}

fn read(set: &Concat) -> Vec<String> {
    (0..set.len()).map(|index| set.get(index).unwrap().text.unwrap()).collect()
}

#[test]
fn records_follow_one_another() {
    let root = tempfile::tempdir().unwrap();
    let [a, b] = [("a.jsonl", 4), ("b.jsonl", 10)].map(|(name, n)| texts(root.path(), name, n));
    let set = open(&[format!("{b}@2"), a.clone(), format!("{b}@30%")], Choice::First).unwrap();
    assert_eq!(
        read(&set),
        [
            "b.jsonl 0",
            "b.jsonl 1",
            "a.jsonl 0",
            "a.jsonl 1",
            "a.jsonl 2",
            "a.jsonl 3",
            "b.jsonl 0",
            "b.jsonl 1",
            "b.jsonl 2",
        ]
    );
    assert_eq!(set.locate(8), (2, 2));
    assert_eq!(
        set.parts().map(|(set, n)| (set.name().to_owned(), n)).collect::<Vec<_>>()[1],
        ("a.jsonl".into(), 4)
    );
    let error = set.unusable(7, std::io::Error::other("x")).to_string();
    assert!(error.ends_with("b.jsonl: record 1"), "{error}");
    let chosen = read(&open(&[format!("{b}@5")], Choice::Seeded(3)).unwrap());
    assert_eq!(chosen.len(), 5);
    assert_ne!(chosen, read(&open(&[format!("{b}@5")], Choice::Seeded(4)).unwrap()));
    assert_eq!(chosen, read(&open(&[format!("{b}@5")], Choice::Seeded(3)).unwrap()));
}

#[test]
fn splits_belong_to_their_source() {
    let root = tempfile::tempdir().unwrap();
    texts(root.path(), "train.jsonl", 2);
    texts(root.path(), "test.jsonl", 3);
    let folder = root.path().to_str().unwrap();
    let set = open(&[format!("{folder}:test"), format!("{folder}:train@1")], Choice::First).unwrap();
    assert_eq!(read(&set), ["test.jsonl 0", "test.jsonl 1", "test.jsonl 2", "train.jsonl 0"]);
    let error = open(&[format!("{folder}:dev")], Choice::First).unwrap_err();
    assert!(error.to_string().ends_with("no split \"dev\": it has test, train"), "{error}");
    let error = open(&[format!("{folder}:train@5%")], Choice::First).unwrap_err();
    assert!(matches!(error, DataError::EmptyShare { records: 2, .. }), "{error}");
}

#[test]
fn fingerprints_cover_sets_order_and_choice() {
    let root = tempfile::tempdir().unwrap();
    let [a, b] = [("a.jsonl", 4), ("b.jsonl", 9)].map(|(name, n)| texts(root.path(), name, n));
    let print = |sources: &[&str], choice| {
        let sources: Vec<String> = sources.iter().map(|&source| source.to_owned()).collect();
        open(&sources, choice).unwrap().fingerprint().to_owned()
    };
    let alone = Dataset::open(Path::new(&a), None).unwrap();
    assert_eq!(print(&[&a], Choice::First), alone.fingerprint());
    assert_eq!(Concat::from(alone).fingerprint(), print(&[&a], Choice::First));
    let third = format!("{b}@3");
    let all = [
        print(&[&a], Choice::First),
        print(&[&a, &b], Choice::First),
        print(&[&b, &a], Choice::First),
        print(&[&third], Choice::First),
        print(&[&third], Choice::Seeded(1)),
        print(&[&third], Choice::Seeded(2)),
    ];
    for (at, one) in all.iter().enumerate() {
        assert!(!all[..at].contains(one), "{at}");
    }
    assert_eq!(all[5], print(&[&third], Choice::Seeded(2)));
}

#[test]
#[should_panic(expected = "record 9 of a data set of 4")]
fn indices_must_be_there() {
    let root = tempfile::tempdir().unwrap();
    let set = Dataset::open(Path::new(&texts(root.path(), "a.jsonl", 4)), None).unwrap();
    Concat::new([(set, vec![0, 9])]);
}
