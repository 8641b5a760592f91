//! Parquet in and out: round trips, foreign schemas, layouts, splits, damage.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow_array::builder::{Int64Builder, ListBuilder, StringBuilder, StructBuilder};
use arrow_array::{ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray, StructArray};
use arrow_schema::{DataType, Field as ArrowField, Fields};
use mm_data::{
    DataError, Dataset, EncodedImage, Field, ImageColumn, MaskAnnotation, OpenOptions, ParquetWriter,
    RecordError, Role, Sample, Turn,
};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader, SerializedFileReader};

/// A sample with all fields, its sizes varying with `number`.
fn sample(number: usize) -> Sample {
    let image =
        EncodedImage { name: Some(format!("{number}.png")), bytes: vec![number as u8; 10 + number % 7] };
    let turn = |role, text: String| Turn { role, text };
    let mask =
        MaskAnnotation { labels: vec!["circle".into(), format!("c{number}")], png: vec![9; number % 4] };
    Sample {
        id: Some(format!("s{number}")),
        images: vec![image],
        conversations: vec![turn(Role::User, format!("q{number}")), turn(Role::Assistant, "a".into())],
        caption: Some(format!("caption {number}")),
        masks: vec![mask; number % 3],
        ..Sample::default()
    }
}

fn write(path: &Path, samples: impl IntoIterator<Item = Sample>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut writer = ParquetWriter::create(path, ImageColumn::Single).unwrap();
    for sample in samples {
        writer.push(sample).unwrap();
    }
    writer.finish().unwrap();
}

fn write_columns(path: &Path, columns: Vec<(&str, ArrayRef)>) {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut writer = ArrowWriter::try_new(fs::File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += ": ";
        text += &error.to_string();
        cause = error.source();
    }
    text
}

#[test]
fn round_trip_over_row_groups_in_any_order() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("data/train-00000-of-00001.parquet");
    // More than two row groups of the writer.
    write(&file, (0..600).map(sample));
    assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1);
    let set = Dataset::open(root.path(), None).unwrap();
    assert_eq!(set.len(), 600);
    for index in mm_data::shuffled_order(600, 3).into_iter().chain(0..600) {
        assert_eq!(set.get(index as usize).unwrap(), sample(index as usize));
    }
    for index in (0..600).rev().step_by(17) {
        assert_eq!(set.get(index).unwrap(), sample(index));
    }
}

#[test]
fn threads_share_a_data_set() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("x.parquet");
    write(&file, (0..300).map(sample));
    let set = Dataset::open(&file, Some("whatever")).unwrap();
    std::thread::scope(|scope| {
        for rank in 0..12 {
            let set = &set;
            scope.spawn(move || {
                for index in mm_data::shard(300, rank, 12) {
                    assert_eq!(set.get(index).unwrap(), sample(index));
                }
            });
        }
    });
}

#[test]
fn empty_fields_survive() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("x.parquet");
    let bare = Sample::default();
    write(&file, [bare.clone(), sample(5), bare.clone()]);
    let set = Dataset::open(&file, None).unwrap();
    assert_eq!(
        [set.get(0).unwrap(), set.get(1).unwrap(), set.get(2).unwrap()],
        [bare.clone(), sample(5), bare]
    );
}

#[test]
fn several_images_need_a_list() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("x.parquet");
    let mut two = sample(1);
    two.images.push(EncodedImage { name: None, bytes: vec![1, 2] });
    let mut single = ParquetWriter::create(&file, ImageColumn::Single).unwrap();
    assert!(matches!(single.push(two.clone()), Err(DataError::ImageCount { row: 0, got: 2 })));
    drop(single);
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);

    let mut list = ParquetWriter::create(&file, ImageColumn::List).unwrap();
    let none = Sample { images: Vec::new(), ..sample(2) };
    for sample in [two.clone(), none.clone()] {
        list.push(sample).unwrap();
    }
    list.finish().unwrap();
    let set = Dataset::open(&file, None).unwrap();
    assert_eq!([set.get(0).unwrap(), set.get(1).unwrap()], [two, none]);
}

#[test]
fn only_the_columns_asked_for_are_written() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("x.parquet");
    let mut two = sample(1);
    two.images.push(EncodedImage { name: None, bytes: vec![1, 2] });
    for (fields, images, expected, features) in [
        (
            vec![Field::Images],
            ImageColumn::List,
            Sample { id: two.id.clone(), images: two.images.clone(), ..Sample::default() },
            r#"{"id":{"_type":"Value","dtype":"string"},"images":[{"_type":"Image"}]}"#,
        ),
        (
            vec![Field::Text],
            ImageColumn::Single,
            Sample { id: two.id.clone(), text: Some("words".into()), ..Sample::default() },
            r#"{"id":{"_type":"Value","dtype":"string"},"text":{"_type":"Value","dtype":"string"}}"#,
        ),
    ] {
        let mut writer = ParquetWriter::with_fields(&file, images, &fields).unwrap();
        writer.push(Sample { text: Some("words".into()), ..two.clone() }).unwrap();
        writer.finish().unwrap();
        let options = OpenOptions { fields: fields.clone(), ..OpenOptions::default() };
        assert_eq!(Dataset::open_with(&file, &options).unwrap().get(0).unwrap(), expected);
        let absent = OpenOptions { fields: vec![Field::Masks], ..OpenOptions::default() };
        let error = Dataset::open_with(&file, &absent).unwrap_err();
        assert!(matches!(error, DataError::NoColumns { .. }), "{error}");
        let reader = SerializedFileReader::new(fs::File::open(&file).unwrap()).unwrap();
        let metadata = reader.metadata().file_metadata().key_value_metadata().unwrap();
        let written =
            metadata.iter().find(|entry| entry.key == "huggingface").unwrap().value.clone().unwrap();
        let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(json(&written)["info"]["features"], json(features));
    }
}

#[test]
#[should_panic(expected = "asked for twice")]
fn a_column_twice() {
    let _ =
        ParquetWriter::with_fields(Path::new("x.parquet"), ImageColumn::Single, &[Field::Text, Field::Text]);
}

#[test]
fn only_the_fields_asked_for() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("x.parquet");
    write(&file, [sample(4)]);
    let options = OpenOptions { fields: vec![Field::Caption], ..OpenOptions::default() };
    let set = Dataset::open_with(&file, &options).unwrap();
    let expected = Sample { id: sample(4).id, caption: sample(4).caption, ..Sample::default() };
    assert_eq!(set.get(0).unwrap(), expected);
}

#[test]
fn the_same_samples_give_the_same_bytes() {
    let root = tempfile::tempdir().unwrap();
    let [one, two] = ["one", "two"].map(|name| root.path().join(name).join("x.parquet"));
    for file in [&one, &two] {
        write(file, (0..40).map(sample));
    }
    assert_eq!(fs::read(&one).unwrap(), fs::read(&two).unwrap());
    let text = String::from_utf8_lossy(&fs::read(&one).unwrap()).into_owned();
    assert!(text.contains(r#""image":{"_type":"Image"}"#), "the footer says which columns are images");
}

#[test]
fn splits_of_a_folder() {
    let root = tempfile::tempdir().unwrap();
    write(&root.path().join("data/train-00000-of-00002.parquet"), [sample(0)]);
    write(&root.path().join("data/train-00001-of-00002.parquet"), [sample(1), sample(2)]);
    write(&root.path().join("data/validation-00000-of-00001.parquet"), [sample(3)]);
    write(&root.path().join(".cache/train-00000-of-00001.parquet"), [sample(4)]);
    let train = Dataset::open(root.path(), Some("train")).unwrap();
    assert_eq!(train.len(), 3);
    assert_eq!(train.get(1).unwrap(), sample(1));
    assert_eq!(train.split(), Some("train"));
    assert_eq!(Dataset::open(root.path(), Some("validation")).unwrap().get(0).unwrap(), sample(3));
    let error = Dataset::open(root.path(), Some("test")).unwrap_err();
    assert!(error.to_string().ends_with("no split \"test\": it has train, validation"), "{error}");
    let error = Dataset::open(root.path(), None).unwrap_err();
    assert!(matches!(error, DataError::SeveralSplits { .. }), "{error}");
}

#[test]
fn files_that_say_no_split_are_train() {
    let root = tempfile::tempdir().unwrap();
    write(&root.path().join("cats.parquet"), [sample(0)]);
    write(&root.path().join("dogs.parquet"), [sample(1)]);
    assert_eq!(Dataset::open(root.path(), Some("train")).unwrap().len(), 2);
    assert_eq!(Dataset::open(root.path(), Some("dogs")).unwrap().len(), 1);
    assert!(matches!(Dataset::open(root.path(), Some("test")), Err(DataError::MissingSplit { .. })));
}

#[cfg(unix)]
#[test]
fn a_hub_snapshot_is_links() {
    let root = tempfile::tempdir().unwrap();
    write(&root.path().join("blobs/0f1e"), [sample(7)]);
    let snapshot = root.path().join("datasets--a--b/snapshots/c0ffee");
    fs::create_dir_all(snapshot.join("data")).unwrap();
    std::os::unix::fs::symlink(
        root.path().join("blobs/0f1e"),
        snapshot.join("data/test-00000-of-00001.parquet"),
    )
    .unwrap();
    let set = Dataset::open(&snapshot, Some("test")).unwrap();
    assert_eq!((set.get(0).unwrap(), set.name()), (sample(7), "a/b"));
}

#[test]
fn fingerprints_follow_content_not_place() {
    let root = tempfile::tempdir().unwrap();
    let print = |folder: &str, n: usize, split: &str| {
        let folder = root.path().join(folder);
        write(&folder.join(format!("{split}-00000-of-00001.parquet")), (0..n).map(sample));
        Dataset::open(&folder, Some(split)).unwrap().fingerprint().to_owned()
    };
    let one = print("one", 10, "train");
    assert_eq!(one.len(), 64);
    assert_eq!(one, print("two", 10, "train"));
    assert_ne!(one, print("three", 11, "train"));
    assert_ne!(one, print("four", 10, "test"));
}

/// `id` numbers, `images` as plain bytes, `messages` whose content comes in parts.
#[test]
fn chat_template_columns() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("x.parquet");
    let part_fields = Fields::from(vec![
        ArrowField::new("index", DataType::Int64, true),
        ArrowField::new("text", DataType::Utf8, true),
        ArrowField::new("type", DataType::Utf8, true),
    ]);
    let part = StructBuilder::from_fields(part_fields.clone(), 2);
    let parts = DataType::List(Arc::new(ArrowField::new("item", DataType::Struct(part_fields), true)));
    let turn_fields = Fields::from(vec![
        ArrowField::new("content", parts, true),
        ArrowField::new("role", DataType::Utf8, true),
    ]);
    let content: ListBuilder<StructBuilder> = ListBuilder::new(part);
    let turn = StructBuilder::new(turn_fields, vec![Box::new(content), Box::new(StringBuilder::new())]);
    let mut turns = ListBuilder::new(turn);
    for (role, said) in [
        ("user", vec![("image", None), ("text", Some("what is it ?"))]),
        ("assistant", vec![("text", Some("a cat"))]),
    ] {
        let turn = turns.values();
        let content: &mut ListBuilder<StructBuilder> = turn.field_builder(0).unwrap();
        for (kind, text) in said {
            let part = content.values();
            part.field_builder::<Int64Builder>(0).unwrap().append_null();
            part.field_builder::<StringBuilder>(1).unwrap().append_option(text);
            part.field_builder::<StringBuilder>(2).unwrap().append_value(kind);
            part.append(true);
        }
        content.append(true);
        turn.field_builder::<StringBuilder>(1).unwrap().append_value(role);
        turn.append(true);
    }
    turns.append(true);
    write_columns(
        &file,
        vec![
            ("id", Arc::new(Int64Array::from(vec![33]))),
            ("image", Arc::new(BinaryArray::from_vec(vec![b"png"]))),
            ("messages", Arc::new(turns.finish())),
        ],
    );
    let sample = Dataset::open(&file, None).unwrap().get(0).unwrap();
    assert_eq!(sample.id.as_deref(), Some("33"));
    assert_eq!(sample.images, [EncodedImage { name: None, bytes: b"png".to_vec() }]);
    assert_eq!(
        sample.conversations,
        [
            Turn { role: Role::User, text: "<image>\nwhat is it ?".into() },
            Turn { role: Role::Assistant, text: "a cat".into() }
        ]
    );
}

/// pandas and polars write the whole table as one row group and embed their own Arrow types.
#[test]
fn one_large_row_group_of_large_strings() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("x.parquet");
    let captions: arrow_array::LargeStringArray = (0..5000).map(|i| Some(format!("caption {i}"))).collect();
    let batch = RecordBatch::try_from_iter([("text", Arc::new(captions) as ArrayRef)]).unwrap();
    let properties = WriterProperties::builder()
        .set_max_row_group_size(1 << 20)
        .set_offset_index_disabled(true)
        .set_data_page_row_count_limit(64)
        .build();
    let file_handle = fs::File::create(&file).unwrap();
    let mut writer = ArrowWriter::try_new(file_handle, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let set = Dataset::open(&file, None).unwrap();
    for index in [0, 4999, 1, 17, 18, 2500, 2499, 63, 64, 4999] {
        assert_eq!(set.get(index).unwrap().caption, Some(format!("caption {index}")));
    }
}

#[test]
fn a_bad_record_is_named_and_the_rest_reads_on() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("x.parquet");
    let bytes: BinaryArray = [Some(b"png".as_slice()), None].into_iter().collect();
    let paths = StringArray::from(vec![None, Some("cat.jpg")]);
    let fields = Fields::from(vec![
        ArrowField::new("bytes", DataType::Binary, true),
        ArrowField::new("path", DataType::Utf8, true),
    ]);
    let images = StructArray::new(fields, vec![Arc::new(bytes), Arc::new(paths)], None);
    write_columns(&file, vec![("image", Arc::new(images))]);
    let set = Dataset::open(&file, None).unwrap();
    let error = set.get(1).unwrap_err();
    assert!(matches!(error, DataError::Record { row: 1, source: RecordError::ImageBytes { .. }, .. }));
    let text = error_chain(&error);
    assert!(
        text.contains("x.parquet: record 1: the image has no bytes, only the path \"cat.jpg\""),
        "{text}"
    );
    assert_eq!(set.get(0).unwrap().images[0].bytes, b"png");
    let unusable = error_chain(&set.unusable(0, std::io::Error::other("not a PNG")));
    assert!(unusable.ends_with("x.parquet: record 0: unusable: not a PNG"), "{unusable}");
}

#[test]
fn columns_of_impossible_types_or_none() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("x.parquet");
    write_columns(&file, vec![("image", Arc::new(Int64Array::from(vec![1])))]);
    let error = Dataset::open(&file, None).unwrap_err();
    assert!(error.to_string().contains("column \"image\" has type Int64, expected bytes"), "{error}");
    write_columns(&file, vec![("pixels", Arc::new(Int64Array::from(vec![1])))]);
    let error = Dataset::open(&file, None).unwrap_err();
    assert!(error.to_string().ends_with("it has pixels"), "{error}");
}

#[test]
fn damaged_and_missing_files() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("x.parquet");
    write(&file, (0..200).map(sample));
    let whole = fs::read(&file).unwrap();
    for keep in [0, 3, 11, whole.len() / 2, whole.len() - 1] {
        fs::write(&file, &whole[..keep]).unwrap();
        let error = Dataset::open(&file, None).unwrap_err();
        assert!(
            matches!(error, DataError::Parquet { .. }) && error.to_string().contains("x.parquet"),
            "{error}"
        );
    }
    // The footer whole, the data not.
    let mut holed = whole.clone();
    holed[4..whole.len() / 3].fill(0xA5);
    fs::write(&file, &holed).unwrap();
    let set = Dataset::open(&file, None).unwrap();
    let failures = (0..200).filter_map(|index| set.get(index).err()).collect::<Vec<_>>();
    assert!(!failures.is_empty());
    assert!(failures.iter().all(|error| error.to_string().contains("x.parquet")));

    let error = Dataset::open(&root.path().join("nowhere"), None).unwrap_err();
    assert!(error.to_string().ends_with("nowhere does not exist"), "{error}");
    write(&file, []);
    let error = Dataset::open(&file, None).unwrap_err();
    assert!(matches!(error, DataError::Empty { .. }), "{error}");
    let bare = tempfile::tempdir().unwrap();
    let error = Dataset::open(bare.path(), None).unwrap_err();
    assert!(matches!(error, DataError::NoData { .. }), "{error}");
}

#[cfg(target_os = "linux")]
#[test]
fn writing_where_nothing_can_be_written() {
    let error = ParquetWriter::create(Path::new("/proc/x.parquet"), ImageColumn::Single).unwrap_err();
    assert!(error.to_string().contains("/proc/"), "{error}");
}
