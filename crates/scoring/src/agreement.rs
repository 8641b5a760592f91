//! Overlap of two masks.

use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

/// How two masks of one picture overlap, in pixels. Add several up for the overlap over a set of pictures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agreement {
    /// Pixels in both masks.
    pub intersection: u64,
    /// Pixels in either mask.
    pub union: u64,
}

impl Agreement {
    /// Counts the overlap of two masks of the same picture, row by row, `[height * width]` each.
    ///
    /// # Panics
    /// When the masks differ in length.
    #[track_caller]
    pub fn of(a: &[bool], b: &[bool]) -> Self {
        assert_eq!(a.len(), b.len(), "masks of different pictures: {} and {} pixels", a.len(), b.len());
        let mut counted = Self::default();
        for (&a, &b) in a.iter().zip(b) {
            counted.intersection += u64::from(a & b);
            counted.union += u64::from(a | b);
        }
        counted
    }

    /// Intersection over union, 0 to 1; `None` where both masks are empty, for nothing can be said then.
    pub fn iou(self) -> Option<f64> {
        (self.union > 0).then(|| self.intersection as f64 / self.union as f64)
    }
}

impl AddAssign for Agreement {
    fn add_assign(&mut self, other: Self) {
        self.intersection += other.intersection;
        self.union += other.union;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_of_equal_disjoint_and_empty_masks() {
        let (full, none) = ([true; 6], [false; 6]);
        let half = [true, true, true, false, false, false];
        assert_eq!(Agreement::of(&full, &full).iou(), Some(1.0));
        assert_eq!(Agreement::of(&full, &half).iou(), Some(0.5));
        assert_eq!(Agreement::of(&full, &none).iou(), Some(0.0));
        assert_eq!(Agreement::of(&none, &none).iou(), None);
        let mut sum = Agreement::of(&full, &half);
        sum += Agreement::of(&none, &none);
        assert_eq!(sum, Agreement { intersection: 3, union: 6 });
    }

    #[test]
    #[should_panic(expected = "masks of different pictures")]
    fn masks_of_different_pictures_are_a_mistake() {
        Agreement::of(&[true], &[true, false]);
    }
}
