//! [`Windows`]: which place of a map goes where when it is cut into windows, and who may see whom there.

use torch_nn::tch::{Device, Kind, Tensor};

use super::{indices, next_multiple};

/// What is added to the scores of places that the shift brought together.
const APART: f32 = -100.0;

/// A map of `height` by `width` places cut into square windows, filled up with zeros to whole ones, and shifted: the map is
/// first rolled by `shift` places up and to the left.
#[derive(Debug)]
pub(super) struct Windows {
    /// For each place of each window its place in the map; the number of places in the map for one outside.
    gather: Tensor,
    /// For each place of the map its place among all windows' places.
    scatter: Tensor,
    /// Whether windows have places outside the map.
    has_outside: bool,
    /// `[windows, 1, places, places]`, 0 or [`APART`]; with a shift only.
    mask: Option<Tensor>,
    count: i64,
    places: i64,
}

impl Windows {
    pub(super) fn new(height: i64, width: i64, side: i64, shift: i64, kind: Kind, device: Device) -> Self {
        let (rows, columns) = (next_multiple(height, side), next_multiple(width, side));
        let places = side * side;
        let count = rows * columns / places;
        let mut gather = Vec::with_capacity((rows * columns) as usize);
        let mut scatter = vec![0; (height * width) as usize];
        let mut regions = Vec::with_capacity((rows * columns) as usize);
        // Of an axis of `length` rolled places: those of whole windows, those before, and those after the seam.
        let region = |place: i64, length: i64| match place {
            _ if place < length - side => 0,
            _ if place < length - shift => 1,
            _ => 2_i64,
        };
        for window in 0..count {
            let (top, left) = (window / (columns / side) * side, window % (columns / side) * side);
            for place in 0..places {
                let (row, column) = (top + place / side, left + place % side);
                regions.push(3 * region(row, rows) + region(column, columns));
                let (row, column) = ((row + shift) % rows, (column + shift) % columns);
                if row < height && column < width {
                    scatter[(row * width + column) as usize] = gather.len() as i64;
                    gather.push(row * width + column);
                } else {
                    gather.push(height * width);
                }
            }
        }
        let mask = (shift > 0).then(|| {
            let regions = indices(&regions, device).view([count, places]);
            let apart = regions.unsqueeze(1).not_equal_tensor(&regions.unsqueeze(2)).to_kind(kind);
            (apart * f64::from(APART)).unsqueeze(1)
        });
        Self {
            gather: indices(&gather, device),
            scatter: indices(&scatter, device),
            has_outside: rows * columns > height * width,
            mask,
            count,
            places,
        }
    }

    /// Cuts `[n, height · width, channels]` into `[n · windows, places, channels]`.
    pub(super) fn cut(&self, map: &Tensor) -> Tensor {
        let size = map.size();
        let outside = || Tensor::zeros([size[0], 1, size[2]], (map.kind(), map.device()));
        let places = if self.has_outside { Tensor::cat(&[map, &outside()], 1) } else { map.shallow_clone() };
        places.index_select(1, &self.gather).view([-1, self.places, size[2]])
    }

    /// Puts `[n · windows, places, channels]` together to `[n, height · width, channels]`.
    pub(super) fn join(&self, windows: &Tensor) -> Tensor {
        let channels = windows.size()[2];
        windows.reshape([-1, self.count * self.places, channels]).index_select(1, &self.scatter)
    }

    /// What is added to the scores of `n` maps' windows, given what is for every window: from `bias [1, heads, places, places]`
    /// to `[1 or n · windows, heads, places, places]`.
    pub(super) fn scores(&self, bias: &Tensor, n: i64) -> Tensor {
        match &self.mask {
            None => bias.shallow_clone(),
            Some(mask) if n == 1 => bias + mask,
            Some(mask) => (bias + mask).repeat([n, 1, 1, 1]),
        }
    }
}

/// For each pair of places of a window of `side` by `side` its row in the table of biases: where the first lies, seen from the
/// second.
pub(super) fn relative_places(side: i64) -> Vec<i64> {
    let across = 2 * side - 1;
    let places = 0..side * side;
    places
        .clone()
        .flat_map(|to| places.clone().map(move |from| (to, from)))
        .map(|(to, from)| {
            let down = to / side - from / side + side - 1;
            down * across + to % side - from % side + side - 1
        })
        .collect()
}
