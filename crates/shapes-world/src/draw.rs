//! Pixels: the image, the masks and the label map of a scene.

use std::collections::BTreeMap;

use image::{GrayImage, Luma, Rgb, RgbImage};

use crate::scene::{Draw, Stream};
use crate::{Object, Scene, Shape, Texture};

/// The darker tone is this many 64ths of the lighter.
const DARK_TONE: u32 = 38;

impl Scene {
    /// Draws the scene.
    pub fn render(&self) -> RgbImage {
        let mut noise = vec![0; self.width as usize * self.height as usize];
        Draw::new(self.seed, self.index, Stream::Noise).fill(&mut noise);
        // Two nibbles make a triangular distribution of -7 to 7.
        let noise = |x: u32, y: u32| {
            let byte = noise[(y * self.width + x) as usize];
            (i32::from(byte & 15) + i32::from(byte >> 4) - 15) / 2
        };
        let noisy = |channel: u8, noise: i32| (i32::from(channel) + noise).clamp(0, 255) as u8;
        let mut image = RgbImage::from_fn(self.width, self.height, |x, y| {
            Rgb([noisy(self.background_grey(x, y), noise(x, y)); 3])
        });
        for object in &self.objects {
            for (x, y) in self.pixels(object) {
                let tone = object.tone_at(x - object.left, y - object.top);
                image.put_pixel(x, y, Rgb(tone.map(|channel| noisy(channel, noise(x, y)))));
            }
        }
        image
    }

    /// White where object `object` is seen, black elsewhere.
    ///
    /// # Panics
    /// When there is no such object.
    #[track_caller]
    pub fn mask(&self, object: usize) -> GrayImage {
        let mut mask = GrayImage::new(self.width, self.height);
        for (x, y) in self.pixels(&self.objects[object]) {
            mask.put_pixel(x, y, Luma([255]));
        }
        mask
    }

    /// For every colour, texture and shape in the scene: white where an object so described is seen.
    pub fn masks_by_label(&self) -> BTreeMap<&'static str, GrayImage> {
        let mut masks = BTreeMap::new();
        for object in &self.objects {
            for label in object.labels() {
                let mask = masks.entry(label).or_insert_with(|| GrayImage::new(self.width, self.height));
                for (x, y) in self.pixels(object) {
                    mask.put_pixel(x, y, Luma([255]));
                }
            }
        }
        masks
    }

    /// Which object each pixel shows: 0 for the background, else 1 + the object's index.
    pub fn label_map(&self) -> GrayImage {
        let mut labels = GrayImage::new(self.width, self.height);
        for (index, object) in self.objects.iter().enumerate() {
            for (x, y) in self.pixels(object) {
                labels.put_pixel(x, y, Luma([1 + index as u8]));
            }
        }
        labels
    }

    /// The pixels of an object, row by row.
    fn pixels<'a>(&self, object: &'a Object) -> impl Iterator<Item = (u32, u32)> + use<'a> {
        let right = (object.left + object.size).min(self.width);
        let bottom = (object.top + object.size).min(self.height);
        (object.top..bottom).flat_map(move |y| {
            (object.left..right)
                .filter(move |&x| object.covers(x - object.left, y - object.top))
                .map(move |x| (x, y))
        })
    }

    fn background_grey(&self, x: u32, y: u32) -> u8 {
        let (across, down) = self.grading_direction;
        let along = across * x + down * y;
        let length = across * (self.width - 1) + down * (self.height - 1);
        self.grey + (u32::from(self.grading) * along / length) as u8
    }
}

impl Object {
    /// Whether the pixel `(x, y)`, counted from the upper left of the bounding square, belongs to the shape.
    fn covers(&self, x: u32, y: u32) -> bool {
        // The pixel's centre from the square's, in half pixels: odd or even as the size, at most size - 1.
        let size = self.size as i32;
        let (u, v) = (2 * x as i32 + 1 - size, 2 * y as i32 + 1 - size);
        let radius_squared = u * u + v * v;
        match self.shape {
            Shape::Circle => radius_squared <= size * size,
            Shape::Square => true,
            Shape::Triangle => 2 * u.abs() <= v + size,
            Shape::Cross => 3 * u.abs() <= size || 3 * v.abs() <= size,
            // The hole's radius is 0.55 of the ring's.
            Shape::Ring => {
                let outer = size * size;
                radius_squared <= outer && 10_000 * radius_squared >= 3_025 * outer
            }
        }
    }

    /// The tone of the pixel `(x, y)`, counted as in [`Object::covers`].
    fn tone_at(&self, x: u32, y: u32) -> [u8; 3] {
        let dark = match self.texture {
            Texture::Solid => false,
            Texture::Striped => (x + y) % 7 >= 4,
            // Discs of 5 pixels on a grid of 7.
            Texture::Dotted => {
                let (u, v) = ((x % 7) as i32 - 3, (y % 7) as i32 - 3);
                u * u + v * v <= 4
            }
            Texture::Checkered => (x / 5 + y / 5) % 2 == 1,
        };
        if dark { self.tone.map(|channel| (u32::from(channel) * DARK_TONE / 64) as u8) } else { self.tone }
    }
}
