//! `sae-data coco` and `ade20k`: other people's images and masks to parquet.

use std::fs;
use std::path::Path;
use std::process::Output;

use image::{GrayImage, Luma, Rgb, RgbImage};
use mm_data::{Dataset, MaskAnnotation, Sample};
use serde_json::{Value, json};

use crate::support::{assert_fails, assert_succeeds, entries, run_json, sae_data};

fn picture(path: &Path, width: u32, height: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    RgbImage::from_fn(width, height, |x, y| Rgb([x as u8, y as u8, 7])).save(path).unwrap();
}

fn drawn(mask: &MaskAnnotation) -> Vec<String> {
    let mask = image::load_from_memory(&mask.png).unwrap();
    let mask = mask.as_luma8().unwrap();
    mask.rows().map(|row| row.map(|&Luma([value])| if value == 255 { '#' } else { '.' }).collect()).collect()
}

fn read(folder: &Path) -> Vec<Sample> {
    let set = Dataset::open(folder, Some("test")).unwrap();
    (0..set.len()).map(|index| set.get(index).unwrap()).collect()
}

/// Four images of 6 x 4 pixels: two dogs and a crowd of people; a person; nothing; a dog. The file is `coco.json`, changed by `change`.
fn coco_folder(root: &Path, change: impl FnOnce(&mut Value)) {
    let image = |id: u32| json!({"id": id, "file_name": format!("{id}.png"), "width": 6, "height": 4});
    let square = |left: u32| json!([[left, 1, left + 2, 1, left + 2, 3, left, 3]]);
    let mut file = json!({
        "images": [image(40), image(10), image(30), image(20)],
        "annotations": [
            {"id": 1, "image_id": 10, "category_id": 1, "iscrowd": 0, "segmentation": square(3)},
            {"id": 2, "image_id": 40, "category_id": 18, "iscrowd": 0, "segmentation": square(0)},
            {"id": 3, "image_id": 40, "category_id": 1, "iscrowd": 1, "segmentation": {"counts": [20, 4], "size": [4, 6]}},
            {"id": 4, "image_id": 40, "category_id": 18, "iscrowd": 0, "segmentation": square(2)},
            {"id": 5, "image_id": 20, "category_id": 18, "iscrowd": 0, "segmentation": square(4)},
        ],
        "categories": [{"id": 1, "name": "Person", "supercategory": "person"}, {"id": 18, "name": "dog", "supercategory": "animal"}],
    });
    change(&mut file);
    fs::write(root.join("coco.json"), file.to_string()).unwrap();
    for id in [10, 20, 30, 40] {
        picture(&root.join(format!("images/{id}.png")), 6, 4);
    }
}

fn coco(root: &Path, more: &[&str]) -> Output {
    let [source, images, save] = ["coco.json", "images", "set"].map(|name| root.join(name));
    let paths = [source.to_str().unwrap(), "--image-root", images.to_str().unwrap()];
    let save = ["--save-dir", save.to_str().unwrap()];
    sae_data(&[&["coco"], &paths[..], &save[..], more].concat()).output().unwrap()
}

#[test]
fn coco_becomes_a_data_set_with_masks() {
    let root = tempfile::tempdir().unwrap();
    coco_folder(root.path(), |_| ());
    let output = coco(root.path(), &["--shard-size", "2"]);
    assert_succeeds(&output);
    assert!(String::from_utf8_lossy(&output.stderr).contains("coco: 4 images in"));
    let folder = root.path().join("set");
    assert_eq!(entries(&folder), ["README.md", "data", "run.json"]);
    assert_eq!(entries(&folder.join("data")).len(), 2);
    let samples = read(&folder);
    let ids: Vec<_> = samples.iter().map(|sample| sample.id.as_deref().unwrap()).collect();
    assert_eq!(ids, ["40", "10", "20"]);
    assert_eq!(samples[0].images[0].name.as_deref(), Some("40.png"));
    assert_eq!(samples[0].images[0].bytes, fs::read(root.path().join("images/40.png")).unwrap());
    let labels: Vec<_> = samples[0].masks.iter().map(|mask| mask.labels.join("/")).collect();
    assert_eq!(labels, ["dog", "person", "dog"]);
    assert_eq!(drawn(&samples[0].masks[0]), ["......", "##....", "##....", "......"]);
    assert_eq!(drawn(&samples[0].masks[1]), [".....#"; 4]);
    assert_eq!(drawn(&samples[0].masks[2]), ["......", "..##..", "..##..", "......"]);
    assert_eq!(drawn(&samples[1].masks[0]), ["......", "...##.", "...##.", "......"]);
    let run = run_json(&folder);
    for (what, n) in
        [("records", 3), ("masks", 5), ("images without masks", 1), ("files", 2), ("bad records", 0)]
    {
        assert_eq!(run["counts"][what], n, "{what}");
    }
    assert_eq!(run["inputs"][0]["sha256"].as_str().unwrap().len(), 64);
    let card = fs::read_to_string(folder.join("README.md")).unwrap();
    assert!(card.contains("| dog | 3 |\n| person | 2 |"), "{card}");
}

#[test]
fn coco_in_part() {
    let root = tempfile::tempdir().unwrap();
    coco_folder(root.path(), |_| ());
    let folder = root.path().join("set");
    let flags = ["--no-crowds", "--keep-unannotated", "--supercategories", "--overwrite"];
    assert_succeeds(&coco(root.path(), &flags));
    let samples = read(&folder);
    let counts: Vec<usize> = samples.iter().map(|sample| sample.masks.len()).collect();
    assert_eq!(counts, [2, 1, 0, 1]);
    assert_eq!(samples[0].masks[0].labels, ["dog", "animal"]);
    assert_eq!(samples[1].masks[0].labels, ["person"]);

    let ids = |seed: &str| {
        let part = ["--max-examples", "2", "--keep-unannotated", "--seed", seed, "--overwrite"];
        assert_succeeds(&coco(root.path(), &part));
        read(&folder).into_iter().map(|sample| sample.id.unwrap()).collect::<Vec<_>>()
    };
    let one = ids("1");
    assert_eq!((one.len(), &one), (2, &ids("1")));
    assert!((2..9).any(|seed| ids(&seed.to_string()) != one));
}

#[test]
fn bad_images_and_annotations_are_listed() {
    let root = tempfile::tempdir().unwrap();
    coco_folder(root.path(), |file| {
        file["annotations"][0]["category_id"] = json!(99);
        file["annotations"][4]["image_id"] = json!(77);
    });
    fs::remove_file(root.path().join("images/30.png")).unwrap();
    assert_fails(&coco(root.path(), &[]), 1, "annotations[4]");
    assert_eq!(entries(root.path()), ["coco.json", "images"]);
    assert_fails(
        &coco(root.path(), &["--max-bad", "1"]),
        1,
        "2 bad records, at most 1 are allowed (--max-bad)",
    );
    assert_succeeds(&coco(root.path(), &["--max-bad", "3"]));
    let folder = root.path().join("set");
    assert_eq!(read(&folder).len(), 1);
    let list = fs::read_to_string(folder.join("bad_records.jsonl")).unwrap();
    let reasons: Vec<String> = list
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["reason"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(reasons[0], "annotations[4]: there is no image 77 among the 4 that are listed");
    assert_eq!(reasons[1], "annotations[0]: there is no category 99 among the 2 that are listed");
    assert!(reasons[2].contains("30.png: No such file"), "{reasons:?}");
    assert_eq!(run_json(&folder)["counts"]["bad records"], 3);

    picture(&root.path().join("images/40.png"), 4, 6);
    let resized = coco(root.path(), &["--max-bad", "2", "--overwrite"]);
    assert_fails(&resized, 1, "the image has 4 x 6 pixels, by the annotations 6 x 4: was it resized?");
}

#[test]
fn coco_without_anything_to_score() {
    let root = tempfile::tempdir().unwrap();
    coco_folder(root.path(), |file| drop(file.as_object_mut().unwrap().remove("annotations")));
    assert_fails(&coco(root.path(), &[]), 1, "image_info_*.json of test images has none");
    coco_folder(root.path(), |file| {
        let annotations = file["annotations"].as_array_mut().unwrap();
        annotations.retain(|annotation| annotation["iscrowd"] == 1);
    });
    assert_fails(&coco(root.path(), &["--no-crowds"]), 1, "has an annotated region");
    assert_eq!(entries(root.path()), ["coco.json", "images"]);
    fs::rename(root.path().join("images"), root.path().join("elsewhere")).unwrap();
    assert_fails(&coco(root.path(), &[]), 2, "--image-root");
    let help = sae_data(&["coco", "--help"]).output().unwrap();
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    assert!(help.contains("Examples") && help.contains("--no-crowds"), "{help}");
}

#[test]
fn panoptic_coco() {
    let root = tempfile::tempdir().unwrap();
    coco_folder(root.path(), |file| {
        let segments =
            json!([{"id": 258, "category_id": 18, "iscrowd": 0}, {"id": 3, "category_id": 1, "iscrowd": 0}]);
        file["annotations"] = json!([{"image_id": 20, "file_name": "20.png", "segments_info": segments}]);
    });
    fs::create_dir(root.path().join("coco")).unwrap();
    let map = RgbImage::from_fn(6, 4, |x, y| {
        Rgb(if y == 0 { [2, 1, 0] } else { [if x > 3 { 3 } else { 0 }, 0, 0] })
    });
    map.save(root.path().join("coco/20.png")).unwrap();
    assert_succeeds(&coco(root.path(), &[]));
    let samples = read(&root.path().join("set"));
    assert_eq!((samples.len(), samples[0].id.as_deref()), (1, Some("20")));
    assert_eq!(drawn(&samples[0].masks[0]), ["######", "......", "......", "......"]);
    assert_eq!(drawn(&samples[0].masks[1]), ["......", "....##", "....##", "....##"]);
    assert_eq!(samples[0].masks[1].labels, ["person"]);
}

#[test]
fn ade20k_becomes_a_data_set_with_masks() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    let ade20k = |more: &[&str]| {
        let [source, save] = ["ade", "set"].map(path);
        let paths = [source.to_str().unwrap(), "--save-dir", save.to_str().unwrap()];
        sae_data(&[&["ade20k"], &paths[..], more].concat()).output().unwrap()
    };
    fs::create_dir(path("ade")).unwrap();
    assert_fails(&ade20k(&[]), 1, "ADEChallengeData2016.zip");
    fs::create_dir_all(path("ade/annotations/validation")).unwrap();
    for (number, class) in [(1, 3), (2, 0), (3, 200)] {
        picture(&path(&format!("ade/images/validation/ADE_val_{number}.png")), 3, 2);
        let map =
            GrayImage::from_fn(3, 2, |x, _| Luma([if x == 0 { 2 * u8::from(class > 0) } else { class }]));
        map.save(path(&format!("ade/annotations/validation/ADE_val_{number}.png"))).unwrap();
    }
    fs::write(path("ade/objectInfo150.txt"), "Idx\tName\n2\tbuilding, edifice\n3\tsky\n").unwrap();
    assert_fails(&ade20k(&[]), 1, "there is no class 200 among the 2");
    assert_fails(&ade20k(&["--source-split", "training"]), 1, "images/training");
    assert_succeeds(&ade20k(&["--max-bad", "1"]));
    let samples = read(&path("set"));
    assert_eq!((samples.len(), samples[0].id.as_deref()), (1, Some("ADE_val_1")));
    let labels: Vec<_> = samples[0].masks.iter().map(|mask| mask.labels.join("/")).collect();
    assert_eq!(labels, ["building/edifice", "sky"]);
    assert_eq!(drawn(&samples[0].masks[0]), ["#.."; 2]);
    assert_eq!(drawn(&samples[0].masks[1]), [".##"; 2]);
    let run = run_json(&path("set"));
    assert_eq!(run["counts"]["images without masks"], 1);
    assert_eq!(run["counts"]["bad records"], 1);
}
