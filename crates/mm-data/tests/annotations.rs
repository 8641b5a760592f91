//! COCO's and ADE20K's annotations: masks equal to pycocotools', labels, and what bad files get.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::error::Error as _;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use mm_data::annotations::{Ade20k, AnnotatedImages, Coco, CocoOptions};
use mm_data::{DataError, MaskAnnotation};
use serde_json::{Value, json};

/// Width, height and the pixels that are on.
fn decoded(mask: &MaskAnnotation) -> (u32, u32, Vec<bool>) {
    let mut reader = png::Decoder::new(Cursor::new(&mask.png)).read_info().unwrap();
    assert_eq!(reader.output_color_type(), (png::ColorType::Grayscale, png::BitDepth::Eight));
    let (width, height) = reader.info().size();
    let mut pixels = vec![1; reader.output_buffer_size().unwrap()];
    reader.next_frame(&mut pixels).unwrap();
    assert!(pixels.iter().all(|&pixel| pixel == 0 || pixel == 255));
    (width, height, pixels.into_iter().map(|pixel| pixel == 255).collect())
}

/// As rows of `#` and `.`.
fn drawn(mask: &MaskAnnotation) -> Vec<String> {
    let (width, _, pixels) = decoded(mask);
    let rows = pixels.chunks(width as usize);
    rows.map(|row| row.iter().map(|&on| if on { '#' } else { '.' }).collect()).collect()
}

#[test]
fn masks_are_those_of_pycocotools() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/coco");
    let file: Value = serde_json::from_slice(&fs::read(fixture.join("instances.json")).unwrap()).unwrap();
    let packed = fs::read(fixture.join("masks.bin")).unwrap();
    let images = tempfile::tempdir().unwrap();
    for image in file["images"].as_array().unwrap() {
        fs::write(images.path().join(image["file_name"].as_str().unwrap()), "pixels").unwrap();
    }
    let mut coco =
        Coco::open(&fixture.join("instances.json"), images.path(), CocoOptions::default()).unwrap();
    assert!(coco.take_strays().is_empty());
    let annotations = file["annotations"].as_array().unwrap();
    let (mut rest, mut compared, mut on) = (&packed[..], 0, 0);
    for (number, image) in file["images"].as_array().unwrap().iter().enumerate() {
        let size = ["width", "height"].map(|key| image[key].as_u64().unwrap() as usize);
        let sample = coco.get(number).unwrap();
        assert_eq!(sample.id, Some(image["id"].to_string()));
        assert_eq!(sample.images[0].name.as_deref(), image["file_name"].as_str());
        let mut masks = sample.masks.iter();
        for annotation in annotations.iter().filter(|annotation| annotation["image_id"] == image["id"]) {
            let (bytes, after) = rest.split_at((size[0] * size[1]).div_ceil(8));
            rest = after;
            let expected: Vec<bool> =
                (0..size[0] * size[1]).map(|at| bytes[at / 8] >> (7 - at % 8) & 1 == 1).collect();
            if !expected.contains(&true) {
                continue;
            }
            let mask = masks.next().unwrap();
            let (width, height, pixels) = decoded(mask);
            assert_eq!([width as usize, height as usize], size);
            let wrong = pixels.iter().zip(&expected).filter(|(got, want)| got != want).count();
            assert_eq!(wrong, 0, "{annotation} of {size:?}");
            let name =
                ["dog", "traffic light", "potted plant"][annotation["id"].as_u64().unwrap() as usize % 3];
            assert_eq!(mask.labels, [name]);
            compared += 1;
            on += pixels.iter().filter(|&&on| on).count();
        }
        assert!(masks.next().is_none());
    }
    assert!(rest.is_empty() && compared > 400 && on > 100_000, "{compared} masks, {on} pixels");
}

/// A COCO file of an image of 5 x 4 pixels and what `change` makes of it.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new(change: impl FnOnce(&mut Value)) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        let mut file = json!({
            "info": {"year": 2017},
            "images": [
                {"id": 7, "file_name": "a.jpg", "width": 5, "height": 4},
                {"id": 3, "file_name": "b.jpg", "width": 5, "height": 4},
            ],
            "annotations": [
                {"id": 90, "image_id": 3, "category_id": 1, "segmentation": {"counts": [5, 2, 2, 3, 8], "size": [4, 5]}, "iscrowd": 1},
                {"id": 91, "image_id": 7, "category_id": 6, "segmentation": [[0, 0, 3, 0, 3, 2, 0, 2]], "iscrowd": 0},
                {"id": 92, "image_id": 3, "category_id": 6, "segmentation": {"counts": "52216", "size": [4, 5]}},
            ],
            "categories": [
                {"id": 1, "name": "Wall-other-merged", "supercategory": "building"},
                {"id": 6, "name": "spray_can", "supercategory": "wall", "synonyms": ["aerosol_can"]},
            ],
        });
        change(&mut file);
        fs::write(folder.path("set.json"), file.to_string()).unwrap();
        for image in ["a.jpg", "b.jpg"] {
            fs::write(folder.path(image), image).unwrap();
        }
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn open(&self, options: CocoOptions) -> Result<Coco, DataError> {
        Coco::open(&self.path("set.json"), self.0.path(), options)
    }
}

/// An error with its causes.
fn said(error: &DataError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(below) = cause {
        text = format!("{text}: {below}");
        cause = below.source();
    }
    text
}

#[test]
fn annotations_go_to_their_images() {
    let folder = Folder::new(|_| ());
    let coco = folder.open(CocoOptions::default()).unwrap();
    assert_eq!(coco.len(), 2);
    let [first, second] = [0, 1].map(|index| coco.get(index).unwrap());
    assert_eq!((first.id.as_deref(), second.id.as_deref()), (Some("7"), Some("3")));
    assert_eq!(second.images[0].bytes, b"b.jpg");
    assert_eq!(first.masks.len(), 1);
    assert_eq!(drawn(&first.masks[0]), ["###..", "###..", ".....", "....."]);
    assert_eq!(first.masks[0].labels, ["spray can", "aerosol can"]);
    assert_eq!(second.masks[0].labels, ["wall-other-merged", "wall"]);
    // The same runs, plain and compressed.
    for mask in &second.masks {
        assert_eq!(drawn(mask), [".....", ".##..", ".##..", "..#.."]);
    }

    let options = CocoOptions { no_crowds: true, supercategories: true, ..CocoOptions::default() };
    let coco = folder.open(options).unwrap();
    let masks = coco.get(1).unwrap().masks;
    assert_eq!(masks.len(), 1);
    assert_eq!(masks[0].labels, ["spray can", "aerosol can", "wall"]);
}

#[test]
fn bad_annotations_name_themselves() {
    let at = |pointer: &'static str, value: Value| {
        move |file: &mut Value| *file.pointer_mut(pointer).unwrap() = value
    };
    let size = "/annotations/1/segmentation";
    for (change, says) in [
        (at("/annotations/1/category_id", json!(9)), "annotations[1]: there is no category 9 among the 2"),
        (at("/annotations/1/category_id", json!("dog")), "invalid type: string"),
        (at("/annotations/1/category_id", json!(null)), "annotations[1]: no field \"category_id\""),
        (at("/annotations/1/segmentation", json!(null)), "no field \"segmentation\""),
        (at(size, json!({"counts": [20], "size": [5, 4]})), "a mask of 4 x 5 pixels for an image of 5 x 4"),
        (at(size, json!({"counts": [5, 2], "size": [4, 5]})), "cover 7 pixels, but the mask has 20"),
        (at(size, json!({"counts": "52p16", "size": [4, 5]})), "character 2"),
        (at(size, json!([[1, 1, 2, 2]])), "got 4 numbers"),
        (at(size, json!([])), "only a box"),
        (at(size, json!({"counts": [20]})), "segmentation must be polygons"),
        (at("/annotations/1/iscrowd", json!("no")), "iscrowd must be 0 or 1"),
        (at("/images/0/height", json!(0)), "an image of 5 x 0 pixels"),
        (at("/images/0/height", json!(4_000_000_000_u32)), "an image of 5 x 4000000000 pixels"),
        (at("/images/0/file_name", json!(null)), "no field \"file_name\""),
        (at("/images/0/file_name", json!("gone.jpg")), "gone.jpg: No such file"),
    ] {
        let folder = Folder::new(change);
        let coco = folder.open(CocoOptions::default()).unwrap();
        let error = said(&coco.get(0).unwrap_err());
        assert!(error.contains("set.json: record 0: ") && error.contains(says), "{error}");
        assert_eq!(coco.place(0).1, 0);
    }
}

#[test]
fn bad_files_say_what_is_wanted() {
    let without = |key: &'static str| move |file: &mut Value| drop(file.as_object_mut().unwrap().remove(key));
    for (key, says) in [
        (
            "images",
            "a list \"images\" that is not empty, got none among the lists \"annotations\", \"categories\"",
        ),
        ("annotations", "image_info_*.json of test images has none"),
        ("categories", "captions_*.json has none"),
    ] {
        let error = said(&Folder::new(without(key)).open(CocoOptions::default()).unwrap_err());
        assert!(error.contains("set.json: expected ") && error.contains(says), "{error}");
        let emptied = Folder::new(|file| file[key] = json!([]));
        let error = said(&emptied.open(CocoOptions::default()).unwrap_err());
        assert!(error.contains(&format!("\"{key}\" that is not empty")), "{error}");
    }
    let nameless = Folder::new(|file| file["categories"][1] = json!({"id": 6}));
    let error = said(&nameless.open(CocoOptions::default()).unwrap_err());
    assert!(
        error.contains("categories[1]: not laid out as COCO's files are: missing field `name`"),
        "{error}"
    );

    let strays = Folder::new(|file| {
        file["annotations"][0]["image_id"] = json!(4);
        file["annotations"][2].as_object_mut().unwrap().remove("image_id");
    });
    let mut coco = strays.open(CocoOptions::default()).unwrap();
    let errors: Vec<String> = coco.take_strays().iter().map(said).collect();
    assert!(errors[0].contains("annotations[0]: there is no image 4 among the 2"), "{errors:?}");
    assert!(errors[1].contains("annotations[2]") && errors[1].contains("image_id"), "{errors:?}");
    assert_eq!((errors.len(), coco.take_strays().len()), (2, 0));
    assert_eq!((coco.get(0).unwrap().masks.len(), coco.get(1).unwrap().masks.len()), (1, 0));
}

fn write_png(path: &Path, color: png::ColorType, (width, height): (u32, u32), data: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut encoder = png::Encoder::new(fs::File::create(path).unwrap(), width, height);
    encoder.set_color(color);
    encoder.write_header().unwrap().write_image_data(data).unwrap();
}

#[test]
fn panoptic_segments() {
    let folder = Folder::new(|file| {
        let segments = json!([
            {"id": 513, "category_id": 1, "iscrowd": 0},
            {"id": 65536, "category_id": 6, "iscrowd": 1},
        ]);
        file["annotations"] = json!([{"image_id": 7, "file_name": "a.png", "segments_info": segments}]);
    });
    // 513 is R 1, G 2; 65536 is B 1; the rest is nobody's.
    let pixel = |at: u32| match at {
        0..=6 => [1, 2, 0],
        18.. => [0, 0, 1],
        _ => [0, 0, 0],
    };
    let pixels: Vec<u8> = (0..20).flat_map(pixel).collect();
    write_png(&folder.path("set/a.png"), png::ColorType::Rgb, (5, 4), &pixels);
    let coco = folder.open(CocoOptions::default()).unwrap();
    let masks = coco.get(0).unwrap().masks;
    assert_eq!(drawn(&masks[0]), ["#####", "##...", ".....", "....."]);
    assert_eq!(drawn(&masks[1]), [".....", ".....", ".....", "...##"]);
    assert_eq!(masks[0].labels, ["wall-other-merged", "wall"]);
    assert!(coco.get(1).unwrap().masks.is_empty());
    let alone = CocoOptions { no_crowds: true, ..CocoOptions::default() };
    assert_eq!(folder.open(alone).unwrap().get(0).unwrap().masks, masks[..1]);

    write_png(&folder.path("other/a.png"), png::ColorType::Rgb, (5, 4), &[1, 2, 0].repeat(20));
    let other = CocoOptions { panoptic_root: Some(folder.path("other")), ..CocoOptions::default() };
    let error = said(&folder.open(other.clone()).unwrap().get(0).unwrap_err());
    assert!(error.contains("annotations[0]: segment 65536 is not in a.png"), "{error}");
    write_png(&folder.path("other/a.png"), png::ColorType::Rgb, (4, 5), &pixels);
    let error = said(&folder.open(other).unwrap().get(0).unwrap_err());
    assert!(error.contains("a mask of 4 x 5 pixels for an image of 5 x 4"), "{error}");
}

#[test]
fn classes_of_ade20k() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    let error = said(&Ade20k::open(root.path(), "validation").unwrap_err());
    assert!(error.contains("ADEChallengeData2016.zip") && error.contains("images/validation"), "{error}");
    fs::write(path("index_ade20k.pkl"), "").unwrap();
    let error = said(&Ade20k::open(root.path(), "validation").unwrap_err());
    assert!(error.contains("the full ADE20K, whose names are in a pickle"), "{error}");

    fs::create_dir_all(path("images/validation")).unwrap();
    for name in ["ADE_val_00000001.jpg", "ADE_val_00000002.jpg", "ADE_val_00000003.jpg"] {
        fs::write(path("images/validation").join(name), name).unwrap();
    }
    let map = |number: u32| path(&format!("annotations/validation/ADE_val_0000000{number}.png"));
    let grey = png::ColorType::Grayscale;
    write_png(&map(1), grey, (3, 2), &[2, 2, 0, 1, 2, 1]);
    write_png(&map(2), grey, (3, 2), &[0, 0, 0, 0, 0, 9]);
    let error = said(&Ade20k::open(root.path(), "validation").unwrap_err());
    assert!(
        error.contains("cannot read the names of classes in") && error.contains("objectInfo150.txt"),
        "{error}"
    );
    fs::write(path("objectInfo150.txt"), "Idx\tRatio\tName\n1\t0.2\twall\n2\t0.1\tbuilding, edifice \n")
        .unwrap();

    let set = Ade20k::open(root.path(), "validation").unwrap();
    assert_eq!(set.len(), 3);
    let sample = set.get(0).unwrap();
    assert_eq!(sample.id.as_deref(), Some("ADE_val_00000001"));
    assert_eq!(sample.images[0].bytes, b"ADE_val_00000001.jpg");
    assert_eq!(sample.masks.len(), 2);
    assert_eq!(
        (&sample.masks[0].labels[..], drawn(&sample.masks[0])),
        (&["wall".to_owned()][..], vec!["...".into(), "#.#".into()])
    );
    assert_eq!(sample.masks[1].labels, ["building", "edifice"]);
    assert_eq!(drawn(&sample.masks[1]), ["##.", ".#."]);
    let error = said(&set.get(1).unwrap_err());
    assert!(error.contains("00000002.jpg: record 1: there is no class 9 among the 2"), "{error}");
    let error = said(&set.get(2).unwrap_err());
    assert!(error.contains("00000003.png: No such file"), "{error}");

    let before = set.fingerprint().to_owned();
    write_png(&map(3), grey, (3, 2), &[0; 6]);
    let set = Ade20k::open(root.path(), "validation").unwrap();
    assert_ne!(set.fingerprint(), before);
    assert!(set.get(2).unwrap().masks.is_empty());
}
