//! [`Mask`]: the pixels of one region.

use crate::sample::MaskAnnotation;

const ON: u8 = 255;

/// Pixels `[height, width]`, each on or off.
#[derive(Debug)]
pub(crate) struct Mask {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

impl Mask {
    /// All off.
    pub(crate) fn empty(width: u32, height: u32) -> Self {
        Self { width, height, pixels: vec![0; width as usize * height as usize] }
    }

    /// On where `on` holds, row by row.
    ///
    /// # Panics
    /// When there are not `width * height` of them.
    pub(crate) fn from_rows(width: u32, height: u32, on: impl Iterator<Item = bool>) -> Self {
        let pixels: Vec<u8> = on.map(|on| if on { ON } else { 0 }).collect();
        let expected = width as usize * height as usize;
        assert!(pixels.len() == expected, "{} pixels for a mask of {width} x {height}", pixels.len());
        Self { width, height, pixels }
    }

    pub(crate) fn width(&self) -> u32 {
        self.width
    }

    pub(crate) fn height(&self) -> u32 {
        self.height
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pixels.iter().all(|&pixel| pixel == 0)
    }

    /// Turns on the pixels from `start` up to `end`, counted down the columns as COCO counts them.
    ///
    /// # Panics
    /// When `end` is more than there are.
    pub(crate) fn fill(&mut self, start: usize, end: usize) {
        let (width, height) = (self.width as usize, self.height as usize);
        for position in start..end {
            self.pixels[position % height * width + position / height] = ON;
        }
    }

    /// As a data set keeps it.
    pub(crate) fn annotation(&self, labels: Vec<String>) -> MaskAnnotation {
        MaskAnnotation { labels, png: self.png() }
    }

    fn png(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, self.width, self.height);
        encoder.set_color(png::ColorType::Grayscale);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.set_compression(png::Compression::Fast);
        // Rows mostly repeat the one above.
        encoder.set_filter(png::Filter::Up);
        let mut writer = encoder.write_header().expect("a size that was checked");
        writer.write_image_data(&self.pixels).expect("a vector takes all bytes");
        writer.finish().expect("a vector takes all bytes");
        bytes
    }

    /// The rows as text, `#` on and `.` off, as tests draw them.
    #[cfg(test)]
    pub(crate) fn drawn(&self) -> Vec<String> {
        let rows = self.pixels.chunks(self.width as usize);
        rows.map(|row| row.iter().map(|&pixel| if pixel == ON { '#' } else { '.' }).collect()).collect()
    }
}
