//! Sine embeddings of places: of a feature map's cells, of boxes, and of tokens within a phrase.

use std::f64::consts::TAU;

use torch_nn::tch::{Device, Kind, Tensor};

/// What angles are divided by, `[width]`: `temperature^(2 ⌊i / 2⌋ / width)`.
fn periods(width: i64, temperature: f64, device: Device) -> Tensor {
    let pairs = Tensor::arange(width, (Kind::Float, device)).divide_scalar_mode(2, "floor");
    Tensor::pow_scalar(temperature, &(pairs * 2.0 / width as f64))
}

/// Sines of the even and cosines of the odd entries of `[.., width]`, in turns.
fn waves(angles: &Tensor) -> Tensor {
    let mut shape = angles.size();
    let width = shape.pop().unwrap_or(0);
    shape.extend([width / 2, 2]);
    let pairs = angles.view(&shape[..]);
    let (even, odd) = (pairs.select(-1, 0).sin(), pairs.select(-1, 1).cos());
    Tensor::stack(&[even, odd], -1).flatten(-2, -1)
}

/// Embeddings of `values [n, m, k]` (f32), each of which becomes `width` numbers, `[n, m, k · width]`: the angles are the values
/// in turns. transformers' `get_sine_pos_embed` with temperature 10000 and `exchange_xy` off.
pub(super) fn of_values(values: &Tensor, width: i64) -> Tensor {
    let angles = values.unsqueeze(-1) * TAU / periods(width, 10_000.0, values.device());
    waves(&angles).flatten(-2, -1)
}

/// Embeddings of `boxes [n, m, 4]` (f32; x, y, width, height), y before x, `[n, m, 4 · width]`.
pub(super) fn of_boxes(boxes: &Tensor, width: i64) -> Tensor {
    let order = Tensor::from_slice(&[1_i64, 0, 2, 3]).to_device(boxes.device());
    of_values(&boxes.index_select(-1, &order), width)
}

/// Embeddings of the cells of a map, `[n, height · width, d_model]` f32, where `mask [n, height, width]` (bool) says which are
/// image: rows, then columns, each counted as a share of those of the image.
pub(super) fn of_cells(mask: &Tensor, d_model: i64, temperature: f64) -> Tensor {
    let half = d_model / 2;
    let periods = periods(half, temperature, mask.device());
    let along = |axis: i64| {
        let count = mask.cumsum(axis, Kind::Float);
        let length = count.size()[axis as usize];
        let share = &count / (count.narrow(axis, length - 1, 1) + 1e-6) * TAU;
        waves(&(share.unsqueeze(-1) / &periods))
    };
    Tensor::cat(&[along(1), along(2)], 3).flatten(1, 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_by_hand() {
        let mask = Tensor::from_slice(&[true, true, false]).view([1, 1, 3]);
        let got = of_cells(&mask, 8, 20.0);
        assert_eq!(got.size(), [1, 3, 8]);
        let slow = 20_f64.powf(0.5);
        // Nothing of the last column is image.
        for (column, row_share, column_share) in [(0, 1.0, 0.5), (1, 1.0, 1.0), (2, 0.0, 1.0)] {
            let (row, angle): (f64, f64) = (row_share * TAU, column_share * TAU);
            let wanted = [
                row.sin(),
                row.cos(),
                (row / slow).sin(),
                (row / slow).cos(),
                angle.sin(),
                angle.cos(),
                (angle / slow).sin(),
                (angle / slow).cos(),
            ];
            for (index, wanted) in wanted.into_iter().enumerate() {
                let got = got.double_value(&[0, column, index as i64]);
                assert!((got - wanted).abs() < 1e-4, "{column} {index}: {got} for {wanted}");
            }
        }
    }

    #[test]
    fn boxes_have_y_first() {
        let boxes = Tensor::from_slice(&[0.1_f32, 0.2, 0.3, 0.4]).view([1, 1, 4]);
        let got: Vec<f64> = Vec::try_from(of_boxes(&boxes, 2).flatten(0, -1).to_kind(Kind::Double)).unwrap();
        for (got, value) in got.chunks(2).zip([0.2, 0.1, 0.3, 0.4]) {
            let angle: f64 = value * TAU;
            assert!((got[0] - angle.sin()).abs() < 1e-6 && (got[1] - angle.cos()).abs() < 1e-6);
        }
    }
}
