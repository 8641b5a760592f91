//! [`ImageAttention`]: attention of the image encoder, within windows or over the whole image, with relative positions.

use torch_nn::tch::{Device, Kind, Tensor};
use torch_nn::{AttentionMask, Linear, Scope, attention};

use super::config::SamVisionConfig;

/// Self-attention of a layer of the image encoder over `[n, rows, columns, width]`.
///
/// A window that reaches beyond the image sees zeros there, whose queries serve nothing, but whose keys and values are the
/// projection's bias. So only what lies in the image is projected, and the bias written beside it.
#[derive(Debug)]
pub(super) struct ImageAttention {
    qkv: Linear,
    /// What the projection makes of a zero: `[3 · width]`.
    outside: Tensor,
    output: Linear,
    positions: Option<RelativePositions>,
    heads: i64,
    head_dim: i64,
    /// Side of a window; `None` for the whole image.
    window: Option<i64>,
}

impl ImageAttention {
    pub(super) fn load(scope: &Scope<'_>, config: &SamVisionConfig, layer: usize) -> Self {
        let (width, heads) = (config.hidden_size as i64, config.num_attention_heads as i64);
        let (side, windowed) = config.extent(layer);
        let (side, head_dim) = (side as i64, width / heads);
        let qkv = scope.sub("qkv");
        let weight = qkv.tensor("weight", &[3 * width, width]);
        let bias = config.qkv_bias.then(|| qkv.tensor("bias", &[3 * width]));
        let outside = bias.as_ref().map_or_else(
            || Tensor::zeros([3 * width], (weight.kind(), weight.device())),
            Tensor::shallow_clone,
        );
        Self {
            qkv: Linear::new(weight, bias),
            outside,
            output: Linear::load(&scope.sub("proj"), width, width, true),
            positions: config.use_rel_pos.then(|| RelativePositions::load(scope, side, head_dim)),
            heads,
            head_dim,
            window: windowed.then_some(side),
        }
    }

    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let size = x.size();
        let (n, rows, cols) = (size[0], size[1], size[2]);
        // Windows down and across; the whole image is one.
        let (height, width) = self.window.map_or((rows, cols), |side| (side, side));
        let (down, across) = ((rows + height - 1) / height, (cols + width - 1) / width);
        let qkv = self.whole_windows(self.qkv.forward_rows(x), down * height, across * width);
        let qkv = qkv
            .reshape([n, down, height, across, width, 3, self.heads, self.head_dim])
            .permute([5, 0, 1, 3, 6, 2, 4, 7])
            .contiguous()
            .view([3, n * down * across * self.heads, height, width, self.head_dim]);
        let (query, key, value) = (qkv.get(0), qkv.get(1), qkv.get(2));
        let mixed = if let Some(positions) = &self.positions {
            positions.attend(&query, &key, &value)
        } else {
            let tokens = |x: &Tensor| x.flatten(1, 2).unsqueeze(0);
            attention(&tokens(&query), &tokens(&key), &tokens(&value), &AttentionMask::Full)
        };
        let mixed = mixed
            .reshape([n, down, across, self.heads, height, width, self.head_dim])
            .permute([0, 1, 4, 2, 5, 3, 6])
            .reshape([n, down * height, across * width, self.heads * self.head_dim]);
        self.output.forward_rows(&mixed.narrow(1, 0, rows).narrow(2, 0, cols))
    }

    /// `[n, rows, columns, 3 · width]`, with rows and columns added that lie outside the image.
    fn whole_windows(&self, qkv: Tensor, rows: i64, cols: i64) -> Tensor {
        let size = qkv.size();
        if size[1..3] == [rows, cols] {
            return qkv;
        }
        let whole = Tensor::empty([size[0], rows, cols, size[3]], (qkv.kind(), qkv.device()));
        let upper = whole.narrow(1, 0, size[1]);
        upper.narrow(2, 0, size[2]).copy_(&qkv);
        upper.narrow(2, size[2], cols - size[2]).copy_(&self.outside);
        whole.narrow(1, size[1], rows - size[1]).copy_(&self.outside);
        whole
    }
}

/// Scores that depend on how many rows and how many columns a key lies from a query, each learnt by itself.
#[derive(Debug)]
struct RelativePositions {
    /// By distance in rows, from the one farthest below: `[2 · side - 1, head_dim]`.
    rows: Tensor,
    /// By distance in columns, from the one farthest to the right: `[2 · side - 1, head_dim]`.
    columns: Tensor,
    side: i64,
}

/// Scores that are made at once, per thread and at the least: 8 MiB in f32. Of 64 x 64 patches that is eight rows of
/// queries of one head, of windows of 14 x 14 it is 54 heads.
const SCORES_PER_THREAD: i64 = 1 << 19;
const LEAST_SCORES: i64 = 1 << 21;
/// The same on a GPU, whatever its kind: half a gibibyte in f32.
const SCORES_ON_GPU: i64 = 1 << 27;

impl RelativePositions {
    fn load(scope: &Scope<'_>, side: i64, head_dim: i64) -> Self {
        let distances = |name: &str| scope.tensor(name, &[2 * side - 1, head_dim]);
        Self { rows: distances("rel_pos_h"), columns: distances("rel_pos_w"), side }
    }

    /// Scores of every query for every key row and for every key column, `[planes, row, column, side]` each.
    fn scores(&self, query: &Tensor) -> [Tensor; 2] {
        let side = self.side;
        let places = Tensor::arange(side, (Kind::Int64, query.device()));
        let distance: Tensor = places.view([side, 1]) - places.view([1, side]) + (side - 1);
        let distance = distance.view(-1);
        let table = |distances: &Tensor| distances.index_select(0, &distance).view([side, side, -1]);
        let of =
            |equation, table: Tensor| Tensor::einsum(equation, &[query, &table], None::<i64>).contiguous();
        [of("prwc,rkc->prwk", table(&self.rows)), of("prwc,wkc->prwk", table(&self.columns))]
    }

    /// Attention of `[planes, side, side, head_dim]`, a plane being one head of one window; the same shape.
    ///
    /// The bias of a score is the sum of a query's score for the key's row and one for its column. Written out it is as large
    /// as the scores themselves (768 MiB in f32 for 12 heads of 64 x 64 patches), so that it is made for some planes, or some
    /// rows of queries, at a time, and read while it is in the cache.
    fn attend(&self, query: &Tensor, key: &Tensor, value: &Tensor) -> Tensor {
        let size = query.size();
        let (planes, side, head_dim) = (size[0], self.side, size[3]);
        let tokens = side * side;
        let biases = self.scores(query);
        // The cut through rows does not depend on the number of threads: a kernel's arithmetic may depend on the cut.
        let (of_one, of_all) = match query.device() {
            Device::Cpu => (LEAST_SCORES, SCORES_PER_THREAD * i64::from(torch_nn::tch::get_num_threads())),
            _ => (SCORES_ON_GPU, SCORES_ON_GPU),
        };
        let rows_at_once = (of_one / (side * tokens)).clamp(1, side);
        if rows_at_once < side && query.device() == Device::Cpu && query.kind() == Kind::Float {
            return attend_by_rows(query, key, value, &biases, rows_at_once);
        }
        let planes_at_once = (of_all.max(of_one) / (rows_at_once * side * tokens)).clamp(1, planes);
        let mixed = query.empty_like();
        for plane in (0..planes).step_by(planes_at_once as usize) {
            let count = planes_at_once.min(planes - plane);
            let all = |x: &Tensor| x.narrow(0, plane, count).view([1, count, tokens, head_dim]);
            let (key, value) = (all(key), all(value));
            for row in (0..side).step_by(rows_at_once as usize) {
                let rows = rows_at_once.min(side - row);
                let part = |x: &Tensor| x.narrow(0, plane, count).narrow(1, row, rows);
                let [by_row, by_column] = &biases;
                let bias = part(by_row).unsqueeze(-1) + part(by_column).unsqueeze(-2);
                let bias = AttentionMask::Added(bias.view([1, count, rows * side, tokens]));
                let query = part(query).reshape([1, count, rows * side, head_dim]);
                let seen = attention(&query, &key, &value, &bias);
                part(&mixed).copy_(&seen.reshape([count, rows, side, head_dim]));
            }
        }
        mixed
    }
}

/// Attention of large planes of f32 on a CPU, some rows of queries of one plane at a time, by [`Linear::forward_rows`], whose
/// products are so much faster that the scores may as well be written out.
fn attend_by_rows(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    biases: &[Tensor; 2],
    rows_at_once: i64,
) -> Tensor {
    let size = query.size();
    let (planes, side, head_dim) = (size[0], size[1], size[3]);
    let tokens = side * side;
    let query = query * (head_dim as f64).powf(-0.5);
    let mixed = query.empty_like();
    for plane in 0..planes {
        let keys = Linear::new(key.get(plane).view([tokens, head_dim]), None);
        let values = Linear::new(value.get(plane).view([tokens, head_dim]).tr().contiguous(), None);
        for row in (0..side).step_by(rows_at_once as usize) {
            let rows = rows_at_once.min(side - row);
            let part = |x: &Tensor| x.get(plane).narrow(0, row, rows);
            let scores = keys.forward_rows(&part(&query).view([rows * side, head_dim]));
            let mut scores = scores.view([rows, side, side, side]);
            scores += part(&biases[0]).unsqueeze(-1);
            scores += part(&biases[1]).unsqueeze(-2);
            let shares = scores.view([rows * side, tokens]).softmax(-1, Kind::Float);
            part(&mixed).copy_(&values.forward_rows(&shares).view([rows, side, head_dim]));
        }
    }
    mixed
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use torch_nn::Weights;

    use super::*;

    fn wave(shape: &[i64], pace: f64) -> Tensor {
        let count: i64 = shape.iter().product();
        (Tensor::arange(count, (Kind::Float, Device::Cpu)) * pace).sin().view(shape)
    }

    fn config(window: usize, global: bool, bare: bool) -> SamVisionConfig {
        SamVisionConfig {
            qkv_bias: !bare,
            use_rel_pos: !bare,
            hidden_size: 8,
            num_attention_heads: 2,
            image_size: 16 * 7,
            window_size: window,
            global_attn_indexes: if global { vec![0] } else { Vec::new() },
            ..SamVisionConfig::default()
        }
    }

    /// The formula, one query and one key at a time, in f64: zeros around the image, projected like everything else.
    fn by_hand(tensors: &BTreeMap<String, Tensor>, x: &Tensor, side: i64, heads: i64) -> Tensor {
        let (n, rows, cols, width) = x.size4().unwrap();
        let head_dim = width / heads;
        // What a configuration goes without is 0.
        let wide = |name: &str| match tensors.get(name) {
            Some(tensor) => tensor.to_kind(Kind::Double),
            None if name == "qkv.bias" => Tensor::zeros([3 * width], (Kind::Double, Device::Cpu)),
            None => Tensor::zeros([2 * side - 1, head_dim], (Kind::Double, Device::Cpu)),
        };
        let project = |row: Tensor| wide("qkv.weight").matmul(&row) + wide("qkv.bias");
        let out = Tensor::zeros([n, rows, cols, width], (Kind::Double, Device::Cpu));
        for (image, y, x_at) in
            (0..n).flat_map(|i| (0..rows).flat_map(move |y| (0..cols).map(move |x| (i, y, x))))
        {
            let (top, left) = (y / side * side, x_at / side * side);
            let token = |y: i64, x_at: i64| {
                let inside = y < rows && x_at < cols;
                let row = if inside {
                    x.get(image).get(y).get(x_at).to_kind(Kind::Double)
                } else {
                    Tensor::zeros([width], (Kind::Double, Device::Cpu))
                };
                project(row).view([3, heads, head_dim])
            };
            let query = token(y, x_at).get(0);
            for head in 0..heads {
                let query = query.get(head);
                let (mut scores, mut values) = (Vec::new(), Vec::new());
                for (ky, kx) in (top..top + side).flat_map(|ky| (left..left + side).map(move |kx| (ky, kx))) {
                    let token = token(ky, kx);
                    let rows = wide("rel_pos_h").get(y - ky + side - 1);
                    let cols = wide("rel_pos_w").get(x_at - kx + side - 1);
                    let score = token.get(1).get(head) / (head_dim as f64).sqrt() + rows + cols;
                    scores.push(query.dot(&score));
                    values.push(token.get(2).get(head));
                }
                let shares = Tensor::stack(&scores, 0).softmax(-1, Kind::Double);
                let mixed = shares.matmul(&Tensor::stack(&values, 0));
                out.get(image).get(y).get(x_at).narrow(0, head * head_dim, head_dim).copy_(&mixed);
            }
        }
        out.matmul(&wide("proj.weight").tr()) + wide("proj.bias")
    }

    #[test]
    fn windows_positions_and_padding_are_those_of_the_formula() {
        let x = wave(&[2, 7, 7, 8], 0.731);
        let cases =
            [(3, false), (4, false), (7, false), (3, true)].map(|(window, global)| (window, global, false));
        for (window, global, bare) in cases.into_iter().chain([(3, false, true), (3, true, true)]) {
            let config = config(window, global, bare);
            let (side, windowed) = config.extent(0);
            assert_eq!((side, windowed), if global { (7, false) } else { (window, true) });
            let side = side as i64;
            let shapes: [(&str, &[i64]); 6] = [
                ("qkv.weight", &[24, 8]),
                ("qkv.bias", &[24]),
                ("proj.weight", &[8, 8]),
                ("proj.bias", &[8]),
                ("rel_pos_h", &[2 * side - 1, 4]),
                ("rel_pos_w", &[2 * side - 1, 4]),
            ];
            let tensors: BTreeMap<String, Tensor> = shapes
                .iter()
                .zip(1..)
                .filter(|((name, _), _)| !bare || !(name.starts_with("rel_pos") || *name == "qkv.bias"))
                .map(|((name, shape), seed)| ((*name).to_owned(), wave(shape, 0.9 + 0.37 * f64::from(seed))))
                .collect();
            let expected = by_hand(&tensors, &x, side, 2);
            let weights = Weights::from_tensors(tensors);
            let layer = ImageAttention::load(&weights.root(), &config, 0);
            weights.finish().unwrap();
            let error = (layer.forward(&x).to_kind(Kind::Double) - expected).abs().max();
            assert!(
                error.double_value(&[]) < 1e-5,
                "window {window}, global {global}, bare {bare}: {error:?}"
            );
        }
    }

    /// Of tables and of queries, keys and values `[planes, side, side, 4]`.
    fn case(planes: i64, side: i64, kind: Kind) -> (RelativePositions, [Tensor; 3]) {
        let wave = |shape: &[i64], pace| wave(shape, pace).to_kind(kind);
        let positions = RelativePositions {
            rows: wave(&[2 * side - 1, 4], 1.3),
            columns: wave(&[2 * side - 1, 4], 1.7),
            side,
        };
        let shape = [planes, side, side, 4];
        (positions, [wave(&shape, 0.61), wave(&shape, 0.87), wave(&shape, 0.53)])
    }

    /// The formula for some queries of a plane, in f64: each has its score for a key's row from the table of rows, by how far the key
    /// lies below it, and one for its column.
    fn by_table(positions: &RelativePositions, of: &[Tensor; 3], plane: i64, queries: &[i64]) -> Tensor {
        let side = positions.side;
        let wide = |x: &Tensor| x.to_kind(Kind::Double);
        let [query, key, value] = of.each_ref().map(|x| wide(&x.get(plane)).view([side * side, 4]));
        let mixed = queries.iter().map(|&at| {
            let one = query.get(at);
            let distances = |step: &dyn Fn(i64) -> i64| -> Vec<i64> {
                (0..side * side).map(|key| step(at) - step(key) + side - 1).collect()
            };
            let bias = |table: &Tensor, step: &dyn Fn(i64) -> i64| {
                wide(table).matmul(&one).index_select(0, &Tensor::from_slice(&distances(step)))
            };
            let scores = key.matmul(&one) / 2.0
                + bias(&positions.rows, &|place| place / side)
                + bias(&positions.columns, &|place| place % side);
            value.tr().matmul(&scores.softmax(0, Kind::Double))
        });
        Tensor::stack(&mixed.collect::<Vec<_>>(), 0)
    }

    fn assert_by_table(positions: &RelativePositions, of: &[Tensor; 3], got: &Tensor, within: f64) {
        let (planes, side) = (got.size()[0], positions.side);
        assert_eq!(got.size(), of[0].size());
        let tokens = side * side;
        // Corners, and both sides of every cut there may be.
        let queries: Vec<i64> = [0, side - 1]
            .into_iter()
            .chain((0..tokens).step_by(61))
            .chain([tokens - side, tokens - 1])
            .collect();
        for plane in [0, planes / 2, planes - 1] {
            let expected = by_table(positions, of, plane, &queries);
            let got = got.get(plane).view([tokens, 4]).to_kind(Kind::Double);
            let error = (got.index_select(0, &Tensor::from_slice(&queries)) - expected).abs().max();
            assert!(error.double_value(&[]) < within, "side {side}, plane {plane}: {error:?}");
        }
    }

    #[test]
    fn cutting_the_bias_up_changes_nothing() {
        // 2,200 planes of 7 x 7 are more than fit at once; 64 x 64 patches are cut through their rows, the last cut shorter.
        let cases = [(2_200, 7), (2, 64), (1, 60)].map(|(planes, side)| (planes, side, Kind::Float, 1e-5));
        // What is not f32 is cut on another way.
        let others =
            [(2, 64, Kind::Double, 1e-12), (1, 60, Kind::Double, 1e-12), (1, 64, Kind::BFloat16, 0.02)];
        for (planes, side, kind, within) in cases.into_iter().chain(others) {
            let (positions, of) = case(planes, side, kind);
            let got = positions.attend(&of[0], &of[1], &of[2]);
            assert_eq!(got.kind(), kind);
            assert_by_table(&positions, &of, &got, within);
        }
    }

    #[test]
    fn rows_of_queries_do_not_depend_on_how_many_come_at_once() {
        // 16 rows of 16 go through `Linear::forward_rows`' fast way, the others do not.
        let (positions, of) = case(3, 16, Kind::Float);
        let biases = positions.scores(&of[0]);
        for rows_at_once in [1, 3, 16] {
            let got = attend_by_rows(&of[0], &of[1], &of[2], &biases, rows_at_once);
            assert_by_table(&positions, &of, &got, 1e-5);
        }
    }
}
