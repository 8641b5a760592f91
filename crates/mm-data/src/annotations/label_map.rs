//! [`LabelMap`]: a PNG whose pixels are numbers of classes or segments.

use std::collections::BTreeSet;
use std::io::Cursor;
use std::path::Path;

use png::{BitDepth, ColorType};

use super::check_size;
use super::mask::Mask;
use crate::RecordError;

/// A number per pixel `[height, width]`.
#[derive(Debug)]
pub(crate) struct LabelMap {
    width: u32,
    height: u32,
    values: Vec<u32>,
}

impl LabelMap {
    /// Reads 8- or 16-bit grey as it is, a palette's numbers, and RGB as `R + 256 G + 65536 B`.
    ///
    /// # Errors
    /// When the file cannot be read, is no PNG, or has pixels of another kind.
    pub(crate) fn read(path: &Path) -> Result<Self, RecordError> {
        let bytes =
            std::fs::read(path).map_err(|source| RecordError::Image { path: path.to_owned(), source })?;
        let damaged = |source| RecordError::LabelMap { path: path.to_owned(), source };
        let mut reader = png::Decoder::new(Cursor::new(bytes)).read_info().map_err(damaged)?;
        let (width, height) = reader.info().size();
        check_size(width, height)?;
        let too_large = RecordError::ImageSize { width, height, max: super::MAX_PIXELS };
        let mut buffer = vec![0_u8; reader.output_buffer_size().ok_or(too_large)?];
        let frame = reader.next_frame(&mut buffer).map_err(damaged)?;
        let values = match (frame.color_type, frame.bit_depth) {
            (ColorType::Grayscale | ColorType::Indexed, BitDepth::Eight) => {
                buffer.into_iter().map(u32::from).collect()
            }
            (ColorType::Grayscale, BitDepth::Sixteen) => {
                buffer.chunks_exact(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).collect()
            }
            (ColorType::Rgb, BitDepth::Eight) => {
                buffer.chunks_exact(3).map(|rgb| u32::from_le_bytes([rgb[0], rgb[1], rgb[2], 0])).collect()
            }
            (color, depth) => {
                let got = format!("{color:?} of {} bits", depth as u8);
                return Err(RecordError::LabelMapPixels { path: path.to_owned(), got });
            }
        };
        Ok(Self { width, height, values })
    }

    /// Width and height.
    pub(crate) fn size(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    /// The numbers there are.
    pub(crate) fn values(&self) -> BTreeSet<u32> {
        let mut found = BTreeSet::new();
        let mut last = None;
        for &value in &self.values {
            // Neighbours are mostly equal.
            if last.replace(value) != Some(value) {
                found.insert(value);
            }
        }
        found
    }

    /// Where a number stands.
    pub(crate) fn mask(&self, value: u32) -> Mask {
        Mask::from_rows(self.width, self.height, self.values.iter().map(|&at| at == value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(color: ColorType, depth: BitDepth, data: &[u8]) -> Result<LabelMap, RecordError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("map.png");
        let mut encoder = png::Encoder::new(std::fs::File::create(&path).unwrap(), 2, 2);
        encoder.set_color(color);
        encoder.set_depth(depth);
        if color == ColorType::Indexed {
            encoder.set_palette(vec![200; 3 * 8]);
        }
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(data).unwrap();
        writer.finish().unwrap();
        LabelMap::read(&path)
    }

    #[test]
    fn numbers_of_every_kind() {
        for color in [ColorType::Grayscale, ColorType::Indexed] {
            let map = written(color, BitDepth::Eight, &[7, 0, 7, 3]).unwrap();
            assert_eq!(map.values, [7, 0, 7, 3]);
            assert_eq!(map.values(), BTreeSet::from([0, 3, 7]));
            assert_eq!(map.mask(7).drawn(), ["#.", "#."]);
            assert!(map.mask(1).is_empty());
        }
        let map = written(ColorType::Grayscale, BitDepth::Sixteen, &[1, 2, 0, 0, 0, 9, 0, 0]).unwrap();
        assert_eq!(map.values, [258, 0, 9, 0]);
        let map = written(ColorType::Rgb, BitDepth::Eight, &[1, 2, 3, 0, 0, 0, 5, 0, 0, 0, 1, 0]).unwrap();
        assert_eq!(map.values, [1 + 2 * 256 + 3 * 65536, 0, 5, 256]);
    }

    #[test]
    fn what_holds_no_numbers() {
        let error = written(ColorType::Rgba, BitDepth::Eight, &[0; 16]).unwrap_err().to_string();
        assert!(error.contains("map.png") && error.contains("Rgba of 8 bits"), "{error}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("map.png");
        let error = LabelMap::read(&path).unwrap_err();
        assert!(matches!(error, RecordError::Image { .. }));
        std::fs::write(&path, "no PNG").unwrap();
        assert!(matches!(LabelMap::read(&path).unwrap_err(), RecordError::LabelMap { .. }));
    }
}
