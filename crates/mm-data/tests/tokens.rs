//! Token files: sparsify's and our own, what is left out, what contradicts itself.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::error::Error;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use mm_data::{
    BadRecordCounter, BadRecords, DataError, Dataset, OpenOptions, RecordError, TokenDtype, TokenFileInfo,
    TokenOptions, TokenWriter,
};

fn options(ctx_len: usize, dtype: Option<TokenDtype>) -> OpenOptions {
    let tokens = TokenOptions { ctx_len: NonZeroUsize::new(ctx_len), dtype };
    OpenOptions { tokens, ..OpenOptions::default() }
}

fn raw(path: &Path, ids: impl IntoIterator<Item = u16>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, ids.into_iter().flat_map(u16::to_le_bytes).collect::<Vec<u8>>()).unwrap();
}

fn written(path: &Path, info: TokenFileInfo, ids: &[u32]) -> TokenFileInfo {
    let mut writer = TokenWriter::create(path, info).unwrap();
    ids.chunks(3).for_each(|ids| writer.push(ids).unwrap());
    assert_eq!(writer.tokens(), ids.len() as u64);
    writer.finish().unwrap()
}

fn tokens(set: &Dataset, index: usize) -> Vec<u32> {
    let sample = set.get(index).unwrap();
    assert!(sample.images.is_empty() && sample.text.is_none());
    sample.tokens.unwrap()
}

#[test]
fn sparsify_files_are_u16_and_lose_their_last_piece() {
    let root = tempfile::tempdir().unwrap();
    raw(&root.path().join("train-00000-of-00002.bin"), 0..10);
    raw(&root.path().join("train-00001-of-00002.bin"), 65_530..=65_535);
    let set = Dataset::open_with(root.path(), &options(4, None)).unwrap();
    assert_eq!(set.len(), 3);
    assert_eq!(tokens(&set, 1), [4, 5, 6, 7]);
    assert_eq!(tokens(&set, 2), [65_530, 65_531, 65_532, 65_533]);
    let place = set.unusable(2, std::io::Error::other("x")).to_string();
    assert!(place.ends_with("train-00001-of-00002.bin: record 0"), "{place}");
    let wide = Dataset::open_with(root.path(), &options(2, Some(TokenDtype::U32))).unwrap();
    assert_eq!(tokens(&wide, 0), [1 << 16, 3 << 16 | 2]);
    assert_eq!(set.n_images(0).unwrap(), 0);
}

#[test]
fn short_and_empty_files() {
    let root = tempfile::tempdir().unwrap();
    raw(&root.path().join("a.bin"), []);
    raw(&root.path().join("b.bin"), 0..3);
    raw(&root.path().join("c.bin"), 0..5);
    let set =
        Dataset::open_with(root.path(), &OpenOptions { split: Some("train".into()), ..options(4, None) });
    assert_eq!(set.unwrap().len(), 1);
    let error = Dataset::open_with(&root.path().join("b.bin"), &options(4, None)).unwrap_err();
    assert!(matches!(error, DataError::Empty { .. }), "{error}");
    // 2048 tokens are a piece where nobody says otherwise.
    raw(&root.path().join("c.bin"), (0..5000).map(|id| id as u16));
    assert_eq!(Dataset::open(&root.path().join("c.bin"), None).unwrap().len(), 2);
}

#[test]
fn our_own_files_say_what_they_are() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("train.bin");
    let info = TokenFileInfo {
        vocab_size: Some(128_320),
        eos: Some(128_009),
        ctx_len: NonZeroUsize::new(4),
        model: Some("llava".into()),
        ..TokenFileInfo::new(TokenDtype::for_vocabulary(128_320))
    };
    let ids: Vec<u32> = (0..10).map(|number| 128_009 + number).collect();
    let info = written(&path, info, &ids);
    assert_eq!((info.tokens, info.dtype, info.sha256.as_ref().unwrap().len()), (10, TokenDtype::U32, 64));
    assert_eq!(TokenFileInfo::load(&path).unwrap(), Some(info));
    let names: Vec<_> = fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert_eq!(fs::read(&path).unwrap().len(), 40);
    let set = Dataset::open(root.path(), Some("train")).unwrap();
    assert_eq!((set.len(), tokens(&set, 1)), (2, ids[4..8].to_vec()));
    // Without BOS in the pieces other lengths may be asked for.
    let set = Dataset::open_with(root.path(), &options(5, None)).unwrap();
    assert_eq!((set.len(), tokens(&set, 1)), (2, ids[5..].to_vec()));
}

#[test]
fn dropped_writers_leave_nothing_and_ids_must_fit() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("train.bin");
    let info = TokenFileInfo { vocab_size: Some(7), ..TokenFileInfo::new(TokenDtype::U16) };
    let mut writer = TokenWriter::create(&path, info).unwrap();
    writer.push(&[6, 0]).unwrap();
    let error = writer.push(&[1, 7]).unwrap_err().to_string();
    assert!(error.ends_with("train.bin: expected ids below 7, got 7 as token 3"), "{error}");
    drop(writer);
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    let info = TokenFileInfo { vocab_size: Some(65_537), ..TokenFileInfo::new(TokenDtype::U16) };
    let error = TokenWriter::create(&path, info).unwrap_err().to_string();
    assert!(error.contains("65537 ids"), "{error}");
    let mut writer = TokenWriter::create(&path, TokenFileInfo::new(TokenDtype::U16)).unwrap();
    assert!(writer.push(&[65_536]).is_err());
    assert_eq!(TokenDtype::for_vocabulary(65_536), TokenDtype::U16);
    assert_eq!(TokenDtype::for_vocabulary(65_537), TokenDtype::U32);
}

#[test]
fn contradictions_name_file_expected_and_got() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("x.bin");
    let bos = TokenFileInfo {
        bos: Some(1),
        ctx_len: NonZeroUsize::new(4),
        vocab_size: Some(9),
        ..TokenFileInfo::new(TokenDtype::U16)
    };
    written(&path, bos, &[1, 2, 3, 4, 1, 5, 6, 7]);
    let refuse = |options: &OpenOptions, says: [&str; 2]| {
        let error = Dataset::open_with(&path, options).unwrap_err().to_string();
        assert!(error.contains("x.bin: expected") && says.iter().all(|says| error.contains(says)), "{error}");
    };
    refuse(&options(4, Some(TokenDtype::U32)), ["tokens of u32 as asked for", "got tokens of u16"]);
    refuse(&options(8, None), ["pieces of 8", "got pieces of 4"]);
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..14]).unwrap();
    refuse(&options(4, None), ["8 tokens, as", "got 7 tokens"]);
    fs::write(&path, &bytes[..15]).unwrap();
    refuse(&options(4, None), ["a multiple of 2 bytes", "got 15 bytes"]);
    let sidecar: PathBuf = TokenFileInfo::path_for(&path);
    for text in ["{", "{\"dtype\": \"u8\", \"tokens\": 7}", "{\"dtype\": \"u16\", \"tokens\": 7, \"odd\": 1}"]
    {
        fs::write(&sidecar, text).unwrap();
        let error = Dataset::open_with(&path, &options(4, None)).unwrap_err();
        assert!(error.to_string().contains("x.bin.json"), "{error}");
    }
    fs::write(&sidecar, "{\"dtype\": \"u16\", \"tokens\": 7, \"vocab_size\": 5, \"eos\": 5}").unwrap();
    fs::write(&path, &bytes[..14]).unwrap();
    refuse(&options(4, None), ["ids below 5", "got eos 5"]);
}

#[test]
fn an_id_beyond_the_vocabulary_is_a_bad_record() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("x.bin");
    raw(&path, [1, 2, 3, 9, 4, 5]);
    fs::write(TokenFileInfo::path_for(&path), "{\"dtype\": \"u16\", \"tokens\": 6, \"vocab_size\": 9}")
        .unwrap();
    let set = Dataset::open_with(&path, &options(2, None)).unwrap();
    let error = set.get(1).unwrap_err();
    assert!(error.to_string().ends_with("x.bin: record 1"), "{error}");
    let cause = error.source().unwrap().to_string();
    assert_eq!(cause, "token 3 of the file: expected an id below 9, got 9");
    assert!(matches!(
        error,
        DataError::Record { source: RecordError::Token { position: 3, got: 9, vocab_size: 9 }, .. }
    ));
    let mut counter = BadRecordCounter::new(BadRecords::up_to(1));
    assert_eq!((0..3).filter_map(|index| counter.admit(set.get(index)).unwrap()).count(), 2);
    assert_eq!(counter.left_out()[0].row, 1);
}

#[test]
fn fingerprints_follow_content_and_how_it_is_read() {
    let root = tempfile::tempdir().unwrap();
    let print = |name: &str, ids: &[u32], ctx_len: usize| {
        let path = root.path().join(name).join("x.bin");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        raw(&path, ids.iter().map(|&id| id as u16));
        let plain = Dataset::open_with(&path, &options(ctx_len, None)).unwrap().fingerprint().to_owned();
        written(&path, TokenFileInfo::new(TokenDtype::U16), ids);
        // The sidecar's hash is the hash the file would get.
        assert_eq!(Dataset::open_with(&path, &options(ctx_len, None)).unwrap().fingerprint(), plain);
        plain
    };
    let one = print("one", &[1, 2, 3, 4], 2);
    assert_eq!(one, print("two", &[1, 2, 3, 4], 2));
    assert_ne!(one, print("three", &[1, 2, 3, 5], 2));
    assert_ne!(one, print("four", &[1, 2, 3, 4], 4));
}

/// The folder of a token set is that, whatever lies beside it.
#[test]
fn folders_with_lists_of_bad_records() {
    let root = tempfile::tempdir().unwrap();
    raw(&root.path().join("data/train.bin"), 0..4);
    fs::write(root.path().join("run.json"), "{}").unwrap();
    fs::write(root.path().join("bad_records.jsonl"), "{\"row\": 1}\n").unwrap();
    assert_eq!(Dataset::open_with(root.path(), &options(4, None)).unwrap().len(), 1);
}
