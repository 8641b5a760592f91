//! The sum at the heart of multi-scale deformable attention: each head of each query takes a few samples of each feature map.

use rayon::prelude::*;
use torch_nn::tch::{Device, Kind, Tensor};

/// Queries that one thread takes at a time.
const QUERIES: usize = 64;

/// What the heads of all queries sample, as tensors of one device.
#[derive(Clone, Copy, Debug)]
pub struct Samples<'a> {
    /// `[n, places, heads, head_dim]`: the feature maps one after the other, each row by row.
    pub values: &'a Tensor,
    /// Height and width of each map; together as many places as there are.
    pub shapes: &'a [(i64, i64)],
    /// Where queries are, as shares of each map: points `[n, queries, maps, 2]` (x, y) or boxes `[n, queries, maps, 4]` (centre
    /// x, y, width, height), f32.
    pub reference: &'a Tensor,
    /// `[n, queries, heads, maps, points, 2]`, f32: by how much a sample is off, in cells of its map for points, for boxes in halves
    /// of the box over `points`.
    pub offsets: &'a Tensor,
    /// `[n, queries, heads, maps · points]`, f32: what samples are multiplied by.
    pub weights: &'a Tensor,
}

/// `n`, places, queries, heads, head_dim, maps, points, coordinates.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    n: usize,
    places: usize,
    queries: usize,
    heads: usize,
    head_dim: usize,
    maps: usize,
    points: usize,
    coordinates: usize,
}

impl Samples<'_> {
    /// The weighted sums, `[n, queries, heads · head_dim]`, in the dtype of the values. Samples lie between the centres of
    /// cells, bilinearly; outside a map there are zeros.
    ///
    /// On a CPU, in f32 and without gradients, a kernel of this crate does it, with the same result for any number of threads;
    /// elsewhere libtorch's `grid_sampler_2d`, as in transformers' `MultiScaleDeformableAttention`.
    ///
    /// # Panics
    /// When shapes do not fit.
    #[track_caller]
    pub fn sum(&self) -> Tensor {
        let sizes = self.sizes();
        let all = [self.values, self.reference, self.offsets, self.weights];
        let plain = |x: &&Tensor| x.device() == Device::Cpu && x.kind() == Kind::Float && !x.requires_grad();
        if all.iter().all(plain) { self.on_cpu(sizes) } else { self.by_libtorch(sizes) }
    }

    #[track_caller]
    fn sizes(&self) -> Sizes {
        let lengths = |x: &Tensor| x.size().iter().map(|&length| length as usize).collect::<Vec<_>>();
        let (values, reference) = (lengths(self.values), lengths(self.reference));
        let (offsets, weights) = (lengths(self.offsets), lengths(self.weights));
        let cells: i64 = self.shapes.iter().map(|(height, width)| height * width).sum();
        let (&[n, places, heads, head_dim], &[_, queries, maps, coordinates], &[.., points, 2]) =
            (&values[..], &reference[..], &offsets[..])
        else {
            panic!("values {values:?}, reference {reference:?}, offsets {offsets:?}");
        };
        let fits = cells as usize == places
            && maps == self.shapes.len()
            && matches!(coordinates, 2 | 4)
            && reference == [n, queries, maps, coordinates]
            && offsets == [n, queries, heads, maps, points, 2]
            && weights == [n, queries, heads, maps * points];
        assert!(
            fits,
            "values {values:?} of maps {:?}, reference {reference:?}, offsets {offsets:?}, weights {weights:?}",
            self.shapes
        );
        Sizes { n, places, queries, heads, head_dim, maps, points, coordinates }
    }

    fn by_libtorch(&self, sizes: Sizes) -> Tensor {
        let whole = |sizes: &[usize]| sizes.iter().map(|&length| length as i64).collect::<Vec<_>>();
        let Sizes { n, queries, heads, head_dim, maps, points, coordinates, .. } = sizes;
        // [n, queries, 1, maps, 1, 2]
        let centre = self.reference.narrow(-1, 0, 2).unsqueeze(2).unsqueeze(4);
        let places = if coordinates == 2 {
            let cells: Vec<f32> = self.shapes.iter().flat_map(|&(h, w)| [w as f32, h as f32]).collect();
            let cells = Tensor::from_slice(&cells).view([1, 1, 1, maps as i64, 1, 2]);
            centre + self.offsets / cells.to_device(self.offsets.device())
        } else {
            let size = self.reference.narrow(-1, 2, 2).unsqueeze(2).unsqueeze(4);
            centre + self.offsets / points as f64 * size * 0.5
        };
        let places = places * 2.0 - 1.0;
        let by_map = self.weights.view(&whole(&[n, queries, heads, maps, points])[..]);
        let lengths: Vec<i64> = self.shapes.iter().map(|(height, width)| height * width).collect();
        let mut sum: Option<Tensor> = None;
        let values = self.values.split_with_sizes(&lengths[..], 1);
        for (map, (&(height, width), values)) in self.shapes.iter().zip(values).enumerate() {
            let image = values.flatten(2, 3).transpose(1, 2).reshape([
                (n * heads) as i64,
                head_dim as i64,
                height,
                width,
            ]);
            let grid = places.select(3, map as i64).transpose(1, 2).flatten(0, 1);
            // [n · heads, head_dim, queries, points]
            let samples = image.to_kind(grid.kind()).grid_sampler_2d(&grid, 0, 0, false);
            let weights = by_map.select(3, map as i64).transpose(1, 2).flatten(0, 1).unsqueeze(1);
            let part = (samples * weights).sum_dim_intlist(-1, false, None);
            sum = Some(sum.map_or_else(|| part.shallow_clone(), |sum| sum + &part));
        }
        let sum = sum.expect("there is a map");
        let sum = sum.view(&whole(&[n, heads * head_dim, queries])[..]).transpose(1, 2);
        sum.contiguous().to_kind(self.values.kind())
    }

    fn on_cpu(&self, sizes: Sizes) -> Tensor {
        let flat = |x: &Tensor| Vec::<f32>::try_from(x.reshape([-1])).expect("a tensor of f32 on the CPU");
        let (values, references) = (flat(self.values), flat(self.reference));
        let (offsets, weights) = (flat(self.offsets), flat(self.weights));
        let Sizes { n, places, queries, heads, head_dim, maps, points, coordinates } = sizes;
        let width = heads * head_dim;
        let mut starts = Vec::with_capacity(maps);
        let mut start = 0;
        for &(rows, columns) in self.shapes {
            starts.push((start, rows as usize, columns as usize));
            start += (rows * columns) as usize;
        }
        let mut out = vec![0.0_f32; n * queries * width];
        out.par_chunks_mut(QUERIES * width).enumerate().for_each(|(chunk, sums)| {
            for (row, sums) in sums.chunks_exact_mut(width).enumerate() {
                let query = chunk * QUERIES + row;
                let values = &values[query / queries * places * width..][..places * width];
                for (index, &(start, rows, columns)) in starts.iter().enumerate() {
                    let map = Map {
                        cells: &values[start * width..][..rows * columns * width],
                        rows,
                        columns,
                        width,
                    };
                    let reference = &references[(query * maps + index) * coordinates..][..coordinates];
                    let centre = [reference[0] * columns as f32 - 0.5, reference[1] * rows as f32 - 0.5];
                    let unit = match *reference {
                        [_, _, box_width, box_height] => [
                            box_width * columns as f32 * 0.5 / points as f32,
                            box_height * rows as f32 * 0.5 / points as f32,
                        ],
                        _ => [1.0, 1.0],
                    };
                    for (head, sum) in sums.chunks_exact_mut(head_dim).enumerate() {
                        let first = ((query * heads + head) * maps + index) * points;
                        for sample in first..first + points {
                            let x = centre[0] + offsets[2 * sample] * unit[0];
                            let y = centre[1] + offsets[2 * sample + 1] * unit[1];
                            map.add(sum, head * head_dim, x, y, weights[sample]);
                        }
                    }
                }
            }
        });
        Tensor::from_slice(&out).view([n as i64, queries as i64, width as i64])
    }
}

/// One feature map, `[rows, columns, width]`.
#[derive(Clone, Copy)]
struct Map<'a> {
    cells: &'a [f32],
    rows: usize,
    columns: usize,
    width: usize,
}

impl Map<'_> {
    /// Adds `weight` times the values at (`x`, `y`), in cells from the centre of the first, to `sum`, beginning with channel
    /// `first`.
    fn add(&self, sum: &mut [f32], first: usize, x: f32, y: f32, weight: f32) {
        // Written so that what is not a number lies outside.
        if !(x > -1.0 && y > -1.0 && x < self.columns as f32 && y < self.rows as f32) {
            return;
        }
        // Above -1, adding 1 makes truncation rounding down.
        let (column, row) = ((x + 1.0) as isize - 1, (y + 1.0) as isize - 1);
        let (right, down) = (x - column as f32, y - row as f32);
        let (upper, lower) = (weight * (1.0 - down), weight * down);
        let parts = [upper * (1.0 - right), upper * right, lower * (1.0 - right), lower * right];
        let inside =
            row >= 0 && column >= 0 && row as usize + 1 < self.rows && column as usize + 1 < self.columns;
        if inside {
            let at = (row as usize * self.columns + column as usize) * self.width + first;
            let below = at + self.columns * self.width;
            let n = sum.len();
            let (a, b) = (&self.cells[at..][..n], &self.cells[at + self.width..][..n]);
            let (c, d) = (&self.cells[below..][..n], &self.cells[below + self.width..][..n]);
            for (index, sum) in sum.iter_mut().enumerate() {
                *sum += parts[0] * a[index] + parts[1] * b[index] + parts[2] * c[index] + parts[3] * d[index];
            }
            return;
        }
        for (corner, part) in parts.into_iter().enumerate() {
            let (row, column) = (row + (corner / 2) as isize, column + (corner % 2) as isize);
            if (0..self.rows as isize).contains(&row) && (0..self.columns as isize).contains(&column) {
                let at = (row as usize * self.columns + column as usize) * self.width + first;
                for (sum, value) in sum.iter_mut().zip(&self.cells[at..]) {
                    *sum += part * value;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: (Kind, Device) = (Kind::Float, Device::Cpu);

    fn random(coordinates: i64, n: i64, heads: i64, head_dim: i64) -> [Tensor; 4] {
        let reference = Tensor::rand([n, 70, 3, coordinates], OPTIONS) * 1.2 - 0.1;
        let offsets = Tensor::randn([n, 70, heads, 3, 2, 2], OPTIONS) * 3.0;
        let weights = Tensor::randn([n, 70, heads, 6], OPTIONS).softmax(-1, None);
        [Tensor::randn([n, 5 * 7 + 6 + 1, heads, head_dim], OPTIONS), reference, offsets, weights]
    }

    #[test]
    fn kernel_and_libtorch_agree() {
        torch_nn::tch::manual_seed(4);
        for (coordinates, n, heads, head_dim) in [(2, 1, 1, 1), (2, 2, 3, 5), (4, 2, 2, 32), (4, 1, 4, 8)] {
            let [values, reference, offsets, weights] = random(coordinates, n, heads, head_dim);
            let samples = Samples {
                values: &values,
                shapes: &[(5, 7), (2, 3), (1, 1)],
                reference: &reference,
                offsets: &offsets,
                weights: &weights,
            };
            let (kernel, libtorch) = (samples.on_cpu(samples.sizes()), samples.by_libtorch(samples.sizes()));
            assert_eq!(kernel.size(), [n, 70, heads * head_dim]);
            let off = (&kernel - &libtorch).abs().max().double_value(&[]);
            let scale = libtorch.abs().max().double_value(&[]);
            assert!(scale > 0.1 && off < 2e-6 * scale.max(1.0), "{coordinates}: {off:.1e} of {scale}");
            assert!(samples.sum().equal(&kernel));
        }
    }

    #[test]
    fn samples_by_hand() {
        // A map of 2 x 2 with the values 1 2 / 3 4, sampled once at its centre, at a cell's, and outside.
        let values = Tensor::from_slice(&[1.0_f32, 2.0, 3.0, 4.0]).view([1, 4, 1, 1]);
        let reference = Tensor::from_slice(&[0.5_f32, 0.5, 0.25, 0.75, 0.5, 1.5]).view([1, 3, 1, 2]);
        let offsets = Tensor::zeros([1, 3, 1, 1, 1, 2], OPTIONS);
        let weights = Tensor::full([1, 3, 1, 1], 2.0, OPTIONS);
        let samples = Samples {
            values: &values,
            shapes: &[(2, 2)],
            reference: &reference,
            offsets: &offsets,
            weights: &weights,
        };
        let got: Vec<f32> = Vec::try_from(samples.sum().flatten(0, -1)).unwrap();
        assert_eq!(got, [5.0, 6.0, 0.0]);
    }

    #[test]
    fn gradients_go_through_libtorch() {
        torch_nn::tch::manual_seed(5);
        let [values, reference, offsets, weights] = random(2, 1, 2, 4);
        let values = values.set_requires_grad(true);
        let samples = Samples {
            values: &values,
            shapes: &[(5, 7), (2, 3), (1, 1)],
            reference: &reference,
            offsets: &offsets,
            weights: &weights,
        };
        samples.sum().sum(Kind::Float).backward();
        assert!(values.grad().abs().sum(Kind::Float).double_value(&[]) > 1.0);
    }

    #[test]
    #[should_panic(expected = "weights [1, 70, 2, 5]")]
    fn shapes_that_do_not_fit_are_named() {
        let [values, reference, offsets, weights] = random(2, 1, 2, 4);
        let weights = weights.narrow(-1, 0, 5);
        let shapes = [(5, 7), (2, 3), (1, 1)];
        let samples = Samples {
            values: &values,
            shapes: &shapes,
            reference: &reference,
            offsets: &offsets,
            weights: &weights,
        };
        let _ = samples.sum();
    }
}
