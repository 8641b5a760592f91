//! Strict loading, from memory and from hostile files.

use std::path::PathBuf;

use super::*;

fn tensor(shape: &[i64], first: f64) -> Tensor {
    let count: i64 = shape.iter().product();
    (Tensor::arange(count, (Kind::Float, Device::Cpu)) + first).view(shape)
}

fn save(folder: &Path, file: &str, tensors: &[(&str, Tensor)]) {
    Tensor::write_safetensors(tensors, folder.join(file)).unwrap();
}

fn open(folder: &Path) -> Result<Weights, NnError> {
    Weights::open(folder, Device::Cpu, Kind::Float)
}

/// Two shards and their index.
fn sharded(folder: &Path) -> PathBuf {
    save(folder, "a.safetensors", &[("x.weight", tensor(&[2, 3], 0.0)), ("x.bias", tensor(&[2], 5.0))]);
    save(folder, "b.safetensors", &[("y", tensor(&[4], 7.0))]);
    write_index(
        folder,
        r#"{"metadata":{"total_size":1},"weight_map":{"x.weight":"a.safetensors","x.bias":"a.safetensors","y":"b.safetensors"}}"#,
    )
}

fn write_index(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("model.safetensors.index.json");
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn single_and_sharded_folders_give_the_stored_numbers() {
    let single = tempfile::tempdir().unwrap();
    let half = tensor(&[4], 7.0).to_kind(Kind::BFloat16);
    save(single.path(), "model.safetensors", &[("x.weight", tensor(&[2, 3], 0.0)), ("y", half)]);
    let weights = open(single.path()).unwrap();
    assert!(weights.root().sub("x").tensor("weight", &[2, 3]).equal(&tensor(&[2, 3], 0.0)));
    let y = weights.root().tensor("y", &[4]);
    assert_eq!(y.kind(), Kind::Float);
    assert!(y.equal(&tensor(&[4], 7.0)));
    assert_eq!(weights.finish().unwrap().applied, ["x.weight", "y"]);

    let many = tempfile::tempdir().unwrap();
    sharded(many.path());
    let weights = Weights::open(many.path(), Device::Cpu, Kind::Half).unwrap();
    let y = weights.root().tensor("y", &[4]);
    assert_eq!(y.kind(), Kind::Half);
    assert_eq!(weights.names().collect::<Vec<_>>(), ["x.bias", "x.weight", "y"]);
}

#[test]
fn one_tensor_may_be_read_without_the_rounding_of_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let stored = tensor(&[3], 0.1);
    save(folder.path(), "model.safetensors", &[("y", stored.shallow_clone())]);
    let weights = Weights::open(folder.path(), Device::Cpu, Kind::BFloat16).unwrap();
    let rounded = weights.root().tensor("y", &[3]).to_kind(Kind::Float);
    assert!(!rounded.equal(&stored));
    assert!(weights.root().tensor_in("y", &[3], Kind::Float).equal(&stored));
    assert_eq!(weights.finish().unwrap().applied, ["y"]);
    let in_memory = Weights::from_tensors(BTreeMap::from([("y".to_owned(), stored.to_kind(Kind::Half))]));
    assert_eq!(in_memory.root().tensor_in("y", &[3], Kind::Float).kind(), Kind::Float);
}

#[test]
fn an_unaligned_tensor_is_read_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    // The header's length is odd, so that the data starts at an odd address.
    let header = r#"{"y":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}   "#;
    assert_eq!(header.len() % 2, 1);
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend([1.5f32, -2.0].iter().flat_map(|x| x.to_le_bytes()));
    std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    let weights = open(folder.path()).unwrap();
    assert!(weights.root().tensor("y", &[2]).equal(&Tensor::from_slice(&[1.5f32, -2.0])));
}

#[test]
fn everything_at_fault_is_named_at_once() {
    let folder = tempfile::tempdir().unwrap();
    sharded(folder.path());
    save(folder.path(), "b.safetensors", &[("y", tensor(&[4], 7.0).to_kind(Kind::Int64))]);
    let weights = open(folder.path()).unwrap();
    let root = weights.root();
    assert_eq!(root.tensor("gone", &[1 << 20, 1 << 20]).size(), [1 << 20, 1 << 20]);
    let _ = root.sub("x").tensor("weight", &[3, 2]);
    let _ = root.tensor("y", &[4]);
    let error = weights.finish().unwrap_err();
    let text = error.to_string();
    let NnError::Weights { missing, mismatched, unused, .. } = error else { panic!("{text}") };
    assert_eq!(missing, ["gone"]);
    assert_eq!(mismatched.iter().map(|m| m.name.as_str()).collect::<Vec<_>>(), ["x.weight", "y"]);
    assert_eq!(unused, ["x.bias"]);
    for part in ["gone", "x.weight", "[3, 2]", "[2, 3]", "I64", "x.bias", "a.safetensors"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }

    // The account starts anew, and skipped tensors are not unused.
    let _ = root.tensor("x.weight", &[2, 3]);
    root.skip("x.bias");
    root.skip("y");
    assert_eq!(weights.finish().unwrap().skipped, ["x.bias", "y"]);
}

#[test]
fn skipping_goes_by_whole_segments_and_derived_buffers_are_known() {
    let names = ["layers.1.w", "layers.10.w", "layers.1.self_attn.rotary_emb.inv_freq"];
    let tensors = names.map(|name| (name.to_owned(), tensor(&[1], 0.0)));
    let weights = Weights::from_tensors(BTreeMap::from(tensors));
    weights.root().sub("layers").skip("1");
    let NnError::Weights { unused, .. } = weights.finish().unwrap_err() else { panic!() };
    assert_eq!(unused, ["layers.10.w"]);
}

#[test]
fn what_a_load_asks_for_is_listed_with_shapes() {
    let asked = Weights::asked_for(|scope| {
        let _ = (scope.sub("x").tensor("weight", &[2, 3]), scope.quantised("y", [4, 5]));
        scope.skip("z");
    });
    assert_eq!(asked, BTreeMap::from([("x.weight".to_owned(), vec![2, 3]), ("y".to_owned(), vec![4, 5])]));
}

#[test]
fn renaming_reaches_lookups_and_may_not_collide() {
    let folder = tempfile::tempdir().unwrap();
    sharded(folder.path());
    let weights = open(folder.path()).unwrap().rename(|name| name.replace("x.", "z.")).unwrap();
    assert!(weights.root().tensor("z.bias", &[2]).equal(&tensor(&[2], 5.0)));
    let error = open(folder.path()).unwrap().rename(|_| "same".to_owned()).unwrap_err();
    assert!(matches!(error, NnError::Duplicate { .. }), "{error}");
}

#[test]
fn unsound_folders_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    assert!(matches!(open(folder).unwrap_err(), NnError::NoWeights { .. }));

    for (text, part) in [
        (r#"{"weight_map":{"x":"../a.safetensors"}}"#, "plain name"),
        (r#"{"weight_map":{"x":"/etc/passwd"}}"#, "plain name"),
        (r#"{"weight_map":{"x":".."}}"#, "plain name"),
        (r#"{"weight_map":{"x":""}}"#, "plain name"),
        (r#"{"weight_map":{"x":"c.safetensors"}}"#, "no such file"),
        (r#"{"weight_map":{"y":"a.safetensors"}}"#, "does not hold it"),
        (r#"{"weight_map":["x"]}"#, "no index"),
        (r#"{"weight_map"#, "no index"),
    ] {
        sharded(folder);
        write_index(folder, text);
        let error = open(folder).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("model.safetensors.index.json"), "{text}: {error}");
    }

    sharded(folder);
    save(folder, "b.safetensors", &[("y", tensor(&[4], 7.0)), ("x.bias", tensor(&[2], 5.0))]);
    assert!(matches!(open(folder).unwrap_err(), NnError::Duplicate { name, .. } if name == "x.bias"));
}

#[test]
fn damaged_files_are_errors_that_name_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    save(folder.path(), "model.safetensors", &[("x", tensor(&[64], 0.0))]);
    let sound = std::fs::read(&path).unwrap();
    let header = |text: &str| {
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text.as_bytes());
        bytes.extend([0; 16]);
        bytes
    };
    let mut cases: Vec<Vec<u8>> =
        (0..sound.len()).step_by(7).map(|length| sound[..length].to_vec()).collect();
    cases.push([u64::MAX.to_le_bytes().as_slice(), &sound[8..]].concat());
    cases.push([sound.as_slice(), b"more"].concat());
    cases.push(header(r#"{"x":{"dtype":"F32","shape":[4],"data_offsets":[8,24]}}"#));
    cases.push(header(r#"{"x":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}}"#));
    cases.push(header(r#"{"x":{"dtype":"F32","shape":[5],"data_offsets":[0,16]}}"#));
    cases.push(header(r#"{"x":{"dtype":"F32","shape":[4611686018427387905,4],"data_offsets":[0,16]}}"#));
    cases.push(header(r#"{"x":{"dtype":"F31","shape":[4],"data_offsets":[0,16]}}"#));
    cases.push(header("not json"));
    for bytes in cases {
        std::fs::write(&path, &bytes).unwrap();
        let error = open(folder.path()).unwrap_err();
        let named = error.to_string().contains("model.safetensors");
        let known = matches!(error, NnError::Safetensors { .. } | NnError::Read { .. });
        assert!(named && known, "{} bytes: {error:?}", bytes.len());
    }
}

#[test]
fn tensors_in_memory_keep_their_gradients() {
    let parameter = tensor(&[2, 3], 1.0).set_requires_grad(true);
    let low = parameter.to_kind(Kind::BFloat16);
    let weights = Weights::from_tensors(BTreeMap::from([("w".to_owned(), low)]));
    weights.root().tensor("w", &[2, 3]).to_kind(Kind::Float).sum(Kind::Float).backward();
    weights.finish().unwrap();
    assert!(parameter.grad().equal(&Tensor::ones([2, 3], (Kind::Float, Device::Cpu))));
}

#[test]
fn a_matrix_in_8_bits_comes_of_what_is_stored_and_is_accounted_for() {
    let folder = tempfile::tempdir().unwrap();
    let stored = (tensor(&[4, 6], 0.0) * 0.37).sin();
    let (good, bad) = (stored.shallow_clone(), &stored / 0.0);
    save(folder.path(), "model.safetensors", &[("x.weight", good), ("y.weight", bad)]);
    let weights = Weights::open(folder.path(), Device::Cpu, Kind::BFloat16).unwrap();
    let root = weights.root();
    let matrix = root.sub("x").quantised("weight", [4, 6]);
    root.skip("y");
    let quantisation = weights.finish().unwrap().quantisation;
    let [own] = &quantisation.matrices[..] else { panic!("{quantisation:?}") };
    assert_eq!((own.name.as_str(), own.bytes_before, own.bytes_after), ("x.weight", 48, 24 + 16));
    // As if the dtype were f32: bf16 numbers, off by up to 1/256, would have other codes.
    let (direct, error) = QuantisedMatrix::new(&stored, Kind::BFloat16);
    assert!(matrix.dequantised().equal(&direct.dequantised()));
    assert_eq!(own.relative_error, error);

    let _ = (root.quantised("x.weight", [6, 4]), root.quantised("z", [1 << 40, 1 << 20]));
    let _ = root.quantised("y.weight", [4, 6]);
    let Err(NnError::Weights { missing, mismatched, .. }) = weights.finish() else { panic!("passed") };
    assert_eq!(missing, ["z"]);
    let got: Vec<_> = mismatched.iter().map(|tensor| (tensor.name.as_str(), tensor.got.as_str())).collect();
    assert!(got[0].0 == "x.weight" && got[0].1.starts_with("[4, 6]"), "{got:?}");
    assert_eq!(got[1], ("y.weight", "numbers that are not finite"));
}
