//! `resize` against PIL, bit for bit.

use lmm_prep::{Filter, resize};

use crate::support::{json, picture, sha256};

#[test]
fn every_resize_is_pils_to_the_bit() {
    let fixture = json("resize/case.json");
    let cases = fixture["cases"].as_array().unwrap();
    assert!(cases.len() > 400, "{} cases", cases.len());
    for case in cases {
        let number = |value: &serde_json::Value| u32::try_from(value.as_u64().unwrap()).unwrap();
        let source = picture(number(&case["from"][0]), number(&case["from"][1]), number(&case["seed"]));
        let filter = Filter::from_pil(number(&case["filter"])).unwrap();
        let result = resize(&source, number(&case["to"][0]), number(&case["to"][1]), filter);
        assert_eq!(sha256(result.as_raw()), case["sha256"].as_str().unwrap(), "{case}");
    }
}
