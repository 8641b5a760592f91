//! Polygons to pixels exactly as the COCO API draws them, whose masks and areas everybody compares with.

use super::mask::Mask;
use crate::RecordError;

/// Parts of a pixel that outlines are followed in.
const PARTS: i32 = 5;
/// The part through the middle of a pixel.
const MIDDLE: i32 = PARTS / 2;
/// Coordinates are below this: far outside any image, and few enough steps along an outline.
const MAX_COORDINATE: f64 = (1 << 20) as f64;

/// Turns on what lies inside a polygon, `x, y, x, y, ...` in pixels; by the even-odd rule where it meets itself.
///
/// Corners are rounded to fifths of a pixel and joined by lines of one step per fifth along the longer axis. Where the
/// outline crosses the middle of a column of pixels, the column changes between outside and inside, from the pixel
/// whose middle is at or below the crossing on.
///
/// # Errors
/// When there are fewer than three points, half a point, or coordinates that are no place in an image.
pub(crate) fn fill(mask: &mut Mask, points: &[f64]) -> Result<(), RecordError> {
    if points.len() < 6 || points.len() % 2 == 1 {
        return Err(RecordError::Polygon { got: format!("{} numbers", points.len()) });
    }
    if let Some(wrong) = points.iter().find(|value| value.is_nan() || value.abs() >= MAX_COORDINATE) {
        return Err(RecordError::Polygon { got: format!("the coordinate {wrong}") });
    }
    let corners: Vec<(i32, i32)> =
        points.chunks_exact(2).map(|at| (in_parts(at[0]), in_parts(at[1]))).collect();
    let (width, height) = (mask.width() as usize, mask.height() as usize);
    let mut changes = Vec::new();
    let mut before: Option<(i32, i32)> = None;
    for (&start, &end) in corners.iter().zip(corners.iter().cycle().skip(1)) {
        walk(start, end, |point| {
            changes.extend(before.and_then(|before| crossing(before, point, width, height)));
            before = Some(point);
        });
    }
    changes.sort_unstable();
    for pair in changes.chunks(2) {
        mask.fill(pair[0], pair.get(1).copied().unwrap_or(width * height));
    }
    Ok(())
}

/// Rounds towards 0 where the COCO API does, which differs from rounding down left of and above the image.
fn in_parts(coordinate: f64) -> i32 {
    (coordinate * f64::from(PARTS) + 0.5) as i32
}

/// The points of a line, one per step along its longer axis, from `start` to `end` and both included. The other
/// coordinate is computed from the end that is lower on the longer axis, so that a line has the same points both ways.
fn walk(start: (i32, i32), end: (i32, i32), mut visit: impl FnMut((i32, i32))) {
    let along_x = end.0.abs_diff(start.0) >= end.1.abs_diff(start.1);
    let axes = |point: (i32, i32)| if along_x { point } else { (point.1, point.0) };
    let (start, end) = (axes(start), axes(end));
    let (low, high) = if start.0 > end.0 { (end, start) } else { (start, end) };
    let steps = high.0 - low.0;
    // A line of one point has no slope to speak of.
    let slope = f64::from(high.1 - low.1) / f64::from(steps.max(1));
    for step in 0..=steps {
        let step = if start.0 > end.0 { steps - step } else { step };
        let across = (f64::from(low.1) + slope * f64::from(step) + 0.5) as i32;
        visit(axes((low.0 + step, across)));
    }
}

/// Between two neighbouring points of an outline: the pixel, counted down the columns, at which inside and outside change, if
/// the middle of a column lies between them.
fn crossing(before: (i32, i32), after: (i32, i32), width: usize, height: usize) -> Option<usize> {
    if before.0 == after.0 {
        return None;
    }
    let x = if after.0 < before.0 { after.0 } else { after.0 - 1 };
    if x.rem_euclid(PARTS) != MIDDLE {
        return None;
    }
    let column = usize::try_from((x - MIDDLE) / PARTS).ok().filter(|&column| column < width)?;
    let y = before.1.min(after.1);
    let row = (y - MIDDLE + PARTS - 1).div_euclid(PARTS).clamp(0, height as i32);
    Some(column * height + row as usize)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn drawn(width: u32, height: u32, points: &[f64]) -> Vec<String> {
        let mut mask = Mask::empty(width, height);
        fill(&mut mask, points).unwrap();
        mask.drawn()
    }

    #[test]
    fn a_rectangle_has_the_pixels_between_its_sides() {
        let rectangle = [1.0, 1.0, 4.0, 1.0, 4.0, 3.0, 1.0, 3.0];
        assert_eq!(drawn(6, 4, &rectangle), ["......", ".###..", ".###..", "......"]);
        // Either way round, and beyond the image.
        let back: Vec<f64> = rectangle.chunks(2).rev().flatten().copied().collect();
        assert_eq!(drawn(6, 4, &back), drawn(6, 4, &rectangle));
        assert_eq!(drawn(6, 4, &[-2.0, -5.0, 2.0, -5.0, 2.0, 9.0, -2.0, 9.0]), ["##...."; 4]);
    }

    #[test]
    fn a_triangle() {
        assert_eq!(
            drawn(6, 6, &[0.0, 0.0, 6.0, 0.0, 0.0, 6.0]),
            ["#####.", "####..", "###...", "##....", "#.....", "......"]
        );
    }

    #[test]
    fn what_meets_itself_is_hollow_where_it_overlaps() {
        let twice = [0.0, 0.0, 4.0, 0.0, 4.0, 3.0, 0.0, 3.0, 0.0, 0.0, 2.0, 0.0, 2.0, 2.0, 0.0, 2.0];
        assert_eq!(drawn(4, 3, &twice), ["..##", "..##", "####"]);
    }

    #[test]
    fn what_is_smaller_than_a_pixel_may_have_none() {
        assert_eq!(drawn(2, 2, &[0.6, 0.6, 0.9, 0.6, 0.9, 0.9]), ["..", ".."]);
        assert_eq!(drawn(2, 2, &[1.0, 1.0, 1.0, 1.0, 1.0, 1.0]), ["..", ".."]);
    }

    #[test]
    fn what_is_no_polygon() {
        let mut mask = Mask::empty(4, 4);
        for (points, says) in [
            (&[1.0, 1.0, 2.0, 2.0][..], "4 numbers"),
            (&[1.0, 1.0, 2.0, 2.0, 3.0, 1.0, 2.0], "7 numbers"),
            (&[1.0, 1.0, f64::NAN, 2.0, 3.0, 1.0], "NaN"),
            (&[1.0, 1.0, 2e9, 2.0, 3.0, 1.0], "2000000000"),
        ] {
            let error = fill(&mut mask, points).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        assert!(mask.is_empty());
    }

    proptest! {
        #[test]
        fn the_way_round_does_not_matter(points in prop::collection::vec((0.0..12.0, 0.0..9.0), 3..8)) {
            let forth: Vec<f64> = points.iter().flat_map(|&(x, y)| [x, y]).collect();
            let back: Vec<f64> = points.iter().rev().flat_map(|&(x, y)| [x, y]).collect();
            prop_assert_eq!(drawn(11, 8, &forth), drawn(11, 8, &back));
        }
    }
}
