//! [`Coco`]: the COCO API's JSON, of instances, stuff or panoptic segments, and what is written like it (LVIS).

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Deserializer};

use super::label_map::LabelMap;
use super::labels::{self, Classes};
use super::mask::Mask;
use super::{AnnotatedImages, check_size, polygon, run_lengths};
use crate::fingerprint::Fingerprint;
use crate::json_index::{self, Place};
use crate::sample::{MaskAnnotation, Sample};
use crate::{DataError, RecordError, json};

/// How [`Coco`] reads annotations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CocoOptions {
    /// Leave out regions marked `iscrowd`, which show many of a kind that nobody told apart.
    pub no_crowds: bool,
    /// Give each category the name of its supercategory as a further label.
    pub supercategories: bool,
    /// Where the PNG files of panoptic segments are; `None` for the folder named as the JSON file, as COCO has it.
    pub panoptic_root: Option<PathBuf>,
}

/// The images a COCO file lists, and its regions as masks, one per object.
///
/// Read are polygons, run lengths, compressed or not, and panoptic segments, whose PNG files say where they are. A
/// category's labels are its name, lower-case with spaces for underscores; the same without the endings `-merged`,
/// `-other` and `-stuff` that COCO gives kinds of ground; and its `synonyms`, which LVIS has.
///
/// In memory are the places of images and annotations in the file, some 40 bytes for each annotation (35 MB for the 860,000 of
/// `instances_train2017.json`), and one image.
///
/// ```
/// use mm_data::annotations::{AnnotatedImages, Coco, CocoOptions};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let (json, images) = (folder.path().join("instances.json"), folder.path());
/// # std::fs::write(images.join("9.jpg"), "pixels")?;
/// std::fs::write(&json, r#"{
///     "images": [{"id": 9, "file_name": "9.jpg", "width": 5, "height": 4}],
///     "annotations": [{"image_id": 9, "category_id": 18, "segmentation": [[0, 0, 5, 0, 0, 4]]}],
///     "categories": [{"id": 18, "name": "dog"}]
/// }"#)?;
/// let sample = Coco::open(&json, images, CocoOptions::default())?.get(0)?;
/// assert_eq!(sample.id.as_deref(), Some("9"));
/// assert_eq!(sample.masks[0].labels, ["dog"]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Coco {
    path: PathBuf,
    handle: Mutex<File>,
    image_root: PathBuf,
    panoptic_root: PathBuf,
    no_crowds: bool,
    images: Vec<Place>,
    annotations: Vec<Place>,
    /// Numbers of an image and one of its annotations, ascending.
    pairs: Vec<(usize, usize)>,
    classes: Classes,
    strays: Vec<DataError>,
    fingerprint: String,
}

#[derive(Deserialize)]
struct Category {
    id: u64,
    name: String,
    supercategory: Option<String>,
    #[serde(default)]
    synonyms: Vec<String>,
}

#[derive(Deserialize)]
struct Image {
    id: u64,
    file_name: Option<String>,
    coco_url: Option<String>,
    width: u32,
    height: u32,
}

#[derive(Deserialize)]
struct Id {
    id: u64,
}

#[derive(Deserialize)]
struct Owner {
    image_id: u64,
}

#[derive(Deserialize)]
struct Annotation {
    category_id: Option<u64>,
    #[serde(default, deserialize_with = "flag")]
    iscrowd: bool,
    segmentation: Option<Segmentation>,
    /// The PNG, of panoptic segments.
    file_name: Option<String>,
    segments_info: Option<Vec<Segment>>,
}

#[derive(Deserialize)]
struct Segment {
    id: u32,
    category_id: u64,
    #[serde(default, deserialize_with = "flag")]
    iscrowd: bool,
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "segmentation must be polygons, [[x, y, x, y, ...], ...], or run lengths, {\"counts\": ..., \"size\": [height, width]}"
)]
enum Segmentation {
    Polygons(Vec<Vec<f64>>),
    Runs { counts: Counts, size: [u32; 2] },
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "counts must be a list of numbers or a text")]
enum Counts {
    Plain(Vec<u32>),
    Compressed(String),
}

/// A number as COCO has it, or a truth value.
fn flag<'de, D: Deserializer<'de>>(value: D) -> Result<bool, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "iscrowd must be 0 or 1")]
    enum Flag {
        Truth(bool),
        Number(u8),
    }
    Ok(match Flag::deserialize(value)? {
        Flag::Truth(on) => on,
        Flag::Number(number) => number != 0,
    })
}

fn parse<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, RecordError> {
    serde_json::from_slice(text)
        .map_err(|error| if error.is_data() { RecordError::Layout(error) } else { RecordError::Json(error) })
}

impl Coco {
    /// Opens `instances_*.json`, `panoptic_*.json` or another file of that layout; paths of images are relative to
    /// `image_root`.
    ///
    /// # Errors
    /// When the file cannot be read or lacks one of the lists `images`, `annotations` and `categories`, or a category is bad.
    pub fn open(path: &Path, image_root: &Path, options: CocoOptions) -> Result<Self, DataError> {
        let handle = File::open(path).map_err(DataError::io("open", path))?;
        let mut lists = json_index::lists(BufReader::with_capacity(1 << 20, &handle), path)?;
        let keys: Vec<String> = lists.keys().map(|key| format!("{key:?}")).collect();
        let mut list = |key: &'static str, expected: &'static str| {
            lists.remove(key).filter(|places| !places.is_empty()).ok_or_else(|| DataError::AnnotationLayout {
                path: path.to_owned(),
                expected,
                got: format!("none among the lists {}", keys.join(", ")),
            })
        };
        let images = list("images", "a list \"images\" that is not empty")?;
        let annotations = list(
            "annotations",
            "a list \"annotations\" that is not empty, as in instances_*.json and panoptic_*.json (image_info_*.json of test images has none)",
        )?;
        let categories = list(
            "categories",
            "a list \"categories\" that is not empty, as in instances_*.json and panoptic_*.json (captions_*.json has none)",
        )?;
        let mut fingerprint = Fingerprint::new("coco");
        fingerprint.content(&path.file_name().unwrap_or_default().to_string_lossy(), path)?;
        let mut coco = Self {
            path: path.to_owned(),
            handle: Mutex::new(handle),
            image_root: image_root.to_owned(),
            panoptic_root: options.panoptic_root.unwrap_or_else(|| path.with_extension("")),
            no_crowds: options.no_crowds,
            images,
            annotations,
            pairs: Vec::new(),
            classes: Classes::new(),
            strays: Vec::new(),
            fingerprint: fingerprint.finish(),
        };
        coco.classes = coco.read_categories(&categories, options.supercategories)?;
        coco.assign()?;
        Ok(coco)
    }

    fn read(&self, place: Place) -> Result<Vec<u8>, DataError> {
        json_index::read(&self.handle, place).map_err(DataError::io("read", &self.path))
    }

    fn bad(&self, row: usize) -> impl FnOnce(RecordError) -> DataError {
        let path = self.path.clone();
        move |source| DataError::Record { path, row, source }
    }

    fn read_categories(&self, places: &[Place], supercategories: bool) -> Result<Classes, DataError> {
        let mut named = Vec::with_capacity(places.len());
        for (row, &place) in places.iter().enumerate() {
            let text = self.read(place)?;
            let category: Category =
                parse(&text).map_err(RecordError::of("categories", row)).map_err(self.bad(row))?;
            let mut names = Vec::new();
            let further = category.supercategory.filter(|_| supercategories);
            for name in [category.name].into_iter().chain(category.synonyms).chain(further) {
                let plain = without_endings(&name).to_owned();
                names.extend([name, plain]);
            }
            named.push((category.id, names));
        }
        Ok(labels::classes(named))
    }

    /// Finds whose each annotation is.
    fn assign(&mut self) -> Result<(), DataError> {
        let mut by_id = Vec::with_capacity(self.images.len());
        for (row, &place) in self.images.iter().enumerate() {
            // A bad entry is met again when it is read.
            if let Ok(Id { id }) = parse(&self.read(place)?) {
                by_id.push((id, row));
            }
        }
        by_id.sort_unstable();
        let mut pairs = Vec::with_capacity(self.annotations.len());
        let mut strays = Vec::new();
        for (row, &place) in self.annotations.iter().enumerate() {
            let owner = parse(&self.read(place)?).and_then(|Owner { image_id }| {
                let at = by_id.partition_point(|&(id, _)| id < image_id);
                let found = by_id.get(at).filter(|&&(id, _)| id == image_id);
                let missing = || RecordError::UnknownId { what: "image", id: image_id, known: by_id.len() };
                found.map(|&(_, image)| image).ok_or_else(missing)
            });
            match owner {
                Ok(image) => pairs.push((image, row)),
                Err(source) => strays.push(self.bad(row)(RecordError::of("annotations", row)(source))),
            }
        }
        pairs.sort_unstable();
        (self.pairs, self.strays) = (pairs, strays);
        Ok(())
    }

    /// The numbers of an image's annotations.
    fn rows_of(&self, image: usize) -> impl Iterator<Item = usize> {
        let first = self.pairs.partition_point(|&(owner, _)| owner < image);
        self.pairs[first..].iter().take_while(move |&&(owner, _)| owner == image).map(|&(_, row)| row)
    }

    fn sample(&self, image: &[u8], annotations: &[(usize, Vec<u8>)]) -> Result<Sample, RecordError> {
        let image: Image = parse(image)?;
        check_size(image.width, image.height)?;
        let name = image.file().ok_or(RecordError::Missing { field: "file_name" })?;
        let encoded = json::read_image(&self.image_root, &name)?;
        let mut masks = Vec::new();
        for (row, text) in annotations {
            let found = parse(text).and_then(|annotation| self.masks(annotation, &image));
            masks.extend(found.map_err(RecordError::of("annotations", *row))?);
        }
        Ok(Sample { id: Some(image.id.to_string()), images: vec![encoded], masks, ..Sample::default() })
    }

    fn masks(&self, annotation: Annotation, image: &Image) -> Result<Vec<MaskAnnotation>, RecordError> {
        if let Some(segments) = annotation.segments_info {
            let name = annotation.file_name.ok_or(RecordError::Missing { field: "file_name" })?;
            return self.segments(&segments, &name, image);
        }
        let category = annotation.category_id.ok_or(RecordError::Missing { field: "category_id" })?;
        let labels = self.labels(category)?;
        let segmentation = annotation.segmentation.ok_or(RecordError::Missing { field: "segmentation" })?;
        if annotation.iscrowd && self.no_crowds {
            return Ok(Vec::new());
        }
        let mask = region(&segmentation, image)?;
        Ok(if mask.is_empty() { Vec::new() } else { vec![mask.annotation(labels)] })
    }

    fn segments(
        &self,
        segments: &[Segment],
        name: &str,
        image: &Image,
    ) -> Result<Vec<MaskAnnotation>, RecordError> {
        let map = LabelMap::read(&self.panoptic_root.join(name))?;
        image.check(map.size())?;
        let present = map.values();
        let mut masks = Vec::with_capacity(segments.len());
        for segment in segments {
            let labels = self.labels(segment.category_id)?;
            if !present.contains(&segment.id) {
                return Err(RecordError::Segment { id: segment.id, png: name.to_owned() });
            }
            if !(segment.iscrowd && self.no_crowds) {
                masks.push(map.mask(segment.id).annotation(labels));
            }
        }
        Ok(masks)
    }

    fn labels(&self, category: u64) -> Result<Vec<String>, RecordError> {
        let known = self.classes.len();
        let unknown = || RecordError::UnknownId { what: "category", id: category, known };
        self.classes.get(&category).cloned().ok_or_else(unknown)
    }
}

impl Image {
    /// LVIS, whose images are those of COCO's training and validation, has addresses in place of names.
    fn file(&self) -> Option<String> {
        let of_url = || {
            let mut parts = self.coco_url.as_ref()?.rsplit('/');
            let name = parts.next()?;
            Some(format!("{}/{name}", parts.next()?))
        };
        self.file_name.clone().or_else(of_url)
    }

    fn check(&self, got: (u32, u32)) -> Result<(), RecordError> {
        let expected = (self.width, self.height);
        if got == expected { Ok(()) } else { Err(RecordError::MaskSize { expected, got }) }
    }
}

fn region(segmentation: &Segmentation, image: &Image) -> Result<Mask, RecordError> {
    let mut mask = Mask::empty(image.width, image.height);
    match segmentation {
        Segmentation::Polygons(polygons) if polygons.is_empty() => {
            return Err(RecordError::Polygon { got: "none, so that there is only a box".to_owned() });
        }
        Segmentation::Polygons(polygons) => {
            polygons.iter().try_for_each(|points| polygon::fill(&mut mask, points))?;
        }
        Segmentation::Runs { counts, size: [height, width] } => {
            image.check((*width, *height))?;
            match counts {
                Counts::Plain(counts) => run_lengths::fill(&mut mask, counts)?,
                Counts::Compressed(text) => run_lengths::fill(&mut mask, &run_lengths::decompress(text)?)?,
            }
        }
    }
    Ok(mask)
}

/// `wall` of `wall-other-merged`.
fn without_endings(name: &str) -> &str {
    let ending = ["-merged", "-other", "-stuff"].into_iter().find_map(|ending| name.strip_suffix(ending));
    ending.map_or(name, without_endings)
}

impl AnnotatedImages for Coco {
    fn len(&self) -> usize {
        self.images.len()
    }

    fn get(&self, index: usize) -> Result<Sample, DataError> {
        assert!(index < self.len(), "image {index} of {}", self.len());
        let image = self.read(self.images[index])?;
        let annotations = self.rows_of(index).map(|row| Ok((row, self.read(self.annotations[row])?)));
        let annotations = annotations.collect::<Result<Vec<_>, DataError>>()?;
        self.sample(&image, &annotations).map_err(self.bad(index))
    }

    fn place(&self, index: usize) -> (PathBuf, usize) {
        assert!(index < self.len(), "image {index} of {}", self.len());
        (self.path.clone(), index)
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn take_strays(&mut self) -> Vec<DataError> {
        std::mem::take(&mut self.strays)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_of_stuff() {
        assert_eq!(without_endings("wall-other-merged"), "wall");
        assert_eq!(without_endings("furniture-stuff"), "furniture");
        assert_eq!(without_endings("wall-brick"), "wall-brick");
        assert_eq!(without_endings("dog"), "dog");
    }

    #[test]
    fn files_of_images() {
        let image = |text: &str| parse::<Image>(text.as_bytes()).unwrap().file();
        let lvis = r#"{"id": 1, "width": 2, "height": 2, "coco_url": "http://images.cocodataset.org/train2017/07.jpg"}"#;
        assert_eq!(image(lvis).as_deref(), Some("train2017/07.jpg"));
        let named = r#"{"id": 1, "width": 2, "height": 2, "coco_url": "a/b/c", "file_name": "x/y.jpg"}"#;
        assert_eq!(image(named).as_deref(), Some("x/y.jpg"));
        assert_eq!(image(r#"{"id": 1, "width": 2, "height": 2}"#), None);
    }
}
