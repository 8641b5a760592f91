//! The figures of docs/scaling.md are those that the example `scaling` prints.

#[path = "../../examples/scaling.rs"]
#[expect(dead_code, reason = "its main")]
mod example;

#[test]
fn the_documentation_has_the_examples_tables() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/scaling.md");
    let text = std::fs::read_to_string(path).unwrap();
    for table in example::tables() {
        assert!(
            text.contains(&table),
            "docs/scaling.md lacks what `cargo run -p sae-trainer --example scaling` prints:\n{table}"
        );
    }
}
