//! Windows by hand, and what the backbone promises of its stages.

use torch_nn::Weights;
use torch_nn::tch::Device;

use super::*;

fn map(height: i64, width: i64) -> Tensor {
    (Tensor::arange(height * width, (Kind::Float, Device::Cpu)) + 1.0).view([1, height * width, 1])
}

fn cut(windows: &Windows, map: &Tensor) -> Vec<Vec<f32>> {
    Vec::try_from(windows.cut(map).squeeze_dim(2)).unwrap()
}

#[test]
fn windows_are_cut_row_by_row_and_filled_up() {
    let windows = Windows::new(2, 3, 2, 0, Kind::Float, Device::Cpu);
    assert_eq!(cut(&windows, &map(2, 3)), [[1.0, 2.0, 4.0, 5.0], [3.0, 0.0, 6.0, 0.0]]);
    let bias = Tensor::ones([1, 2, 4, 4], (Kind::Float, Device::Cpu));
    assert!(windows.scores(&bias, 3).equal(&bias));
    assert!(windows.join(&windows.cut(&map(2, 3))).equal(&map(2, 3)));
}

#[test]
fn a_shift_rolls_the_map_and_keeps_its_ends_apart() {
    // Rolled by one: rows 4 5 6 | 1 2 3 of columns 5 6 4 | 2 3 1, filled up to a fourth column before rolling.
    let windows = Windows::new(2, 3, 2, 1, Kind::Float, Device::Cpu);
    assert_eq!(cut(&windows, &map(2, 3)), [[5.0, 6.0, 2.0, 3.0], [0.0, 4.0, 0.0, 1.0]]);
    assert!(windows.join(&windows.cut(&map(2, 3))).equal(&map(2, 3)));
    let bias = Tensor::zeros([1, 1, 4, 4], (Kind::Float, Device::Cpu));
    let scores = windows.scores(&bias, 2);
    assert_eq!(scores.size(), [4, 1, 4, 4]);
    // The first window's rows come from both ends of the map; the second's columns do, too.
    let first: Vec<Vec<f32>> = Vec::try_from(scores.get(0).squeeze_dim(0)).unwrap();
    assert_eq!(first[0], [0.0, 0.0, -100.0, -100.0]);
    let second: Vec<Vec<f32>> = Vec::try_from(scores.get(1).squeeze_dim(0)).unwrap();
    assert_eq!(second[3], [-100.0, -100.0, -100.0, 0.0]);
    assert!(scores.get(2).equal(&scores.get(0)) && scores.get(3).equal(&scores.get(1)));
}

#[test]
fn relative_places_of_a_small_window() {
    // Rows and columns of the table count from -1 to 1: the middle, 4, is a place seen from itself.
    let places = relative_places(2);
    assert_eq!(places[..4], [4, 3, 1, 0]);
    assert_eq!(places[4 * 3..], [8, 7, 5, 4]);
}

fn config() -> SwinConfig {
    let mut config = SwinConfig::default();
    (config.embed_dim, config.depths, config.num_heads) = (4, vec![2, 1, 2], vec![1, 2, 4]);
    (config.patch_size, config.window_size, config.out_indices) = (2, 3, vec![0, 2, 3]);
    config
}

fn random(config: &SwinConfig) -> Weights {
    let tensor =
        |(name, shape): (String, Vec<i64>)| (name, Tensor::randn(shape, (Kind::Float, Device::Cpu)) * 0.3);
    let shapes = Weights::asked_for(|scope| drop(Swin::load(scope, config)));
    Weights::from_tensors(shapes.into_iter().map(tensor).collect())
}

#[test]
fn maps_halve_and_earlier_stages_do_not_depend_on_later_ones() {
    torch_nn::tch::manual_seed(1);
    let whole = config();
    let weights = random(&whole);
    let pixels = Tensor::randn([2, 3, 21, 14], (Kind::Float, Device::Cpu));
    let maps = Swin::load(&weights.root(), &whole).forward(&pixels);
    weights.finish().unwrap();
    let sizes: Vec<Vec<i64>> = maps.iter().map(Tensor::size).collect();
    assert_eq!(sizes, [vec![2, 4, 11, 7], vec![2, 8, 6, 4], vec![2, 16, 3, 2]]);

    let mut part = config();
    part.out_indices = vec![0, 2];
    let first = Swin::load(&weights.root(), &part).forward(&pixels);
    weights.root().skip("hidden_states_norms.stage3");
    let report = weights.finish().unwrap();
    assert!(report.skipped.iter().any(|name| name.starts_with("encoder.layers.2")), "{report:?}");
    assert!(first.len() == 2 && first[0].equal(&maps[0]) && first[1].equal(&maps[1]));
}

#[test]
fn images_of_a_batch_do_not_see_each_other() {
    torch_nn::tch::manual_seed(2);
    let weights = random(&config());
    let swin = Swin::load(&weights.root(), &config());
    let pixels = Tensor::randn([2, 3, 16, 18], (Kind::Float, Device::Cpu));
    let both = swin.forward(&pixels);
    for image in 0..2 {
        let alone = swin.forward(&pixels.narrow(0, image, 1));
        for (both, alone) in both.iter().zip(&alone) {
            let off = (both.narrow(0, image, 1) - alone).abs().max().double_value(&[]);
            assert!(off < 1e-5, "off by {off}");
        }
    }
}
