//! Layers against their formulas, written out.

use tch::{Device, Kind, Tensor};

use crate::{
    Activation, AttentionMask, Linear, RmsNorm, Rope, RopeScaling, Weights, attention, merge_heads,
    split_heads,
};

const OPTIONS: (Kind, Device) = (Kind::Float, Device::Cpu);

/// Numbers without a pattern, the same on every run.
fn numbers(shape: &[i64], seed: f64) -> Tensor {
    let count: i64 = shape.iter().product();
    ((Tensor::arange(count, (Kind::Double, Device::Cpu)) * 12.9898 + seed).sin() * 43758.547)
        .frac()
        .to_kind(Kind::Float)
        .view(shape)
}

#[track_caller]
fn assert_close(got: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(got.size(), expected.size());
    let error = (got.to_kind(Kind::Double) - expected.to_kind(Kind::Double)).abs().max().double_value(&[]);
    assert!(error <= tolerance, "off by {error:e}, more than {tolerance:e}");
}

#[test]
fn many_rows_are_multiplied_as_few_are() {
    let (weight, bias) = (numbers(&[24, 40], 1.0), numbers(&[24], 2.0));
    // Too few rows, enough of them, and as many that are no multiple of 16; contiguous and not.
    for shape in [[3, 7, 40], [2, 192, 40], [3, 101, 40]] {
        let x = numbers(&shape, 3.0);
        let turned = numbers(&[shape[1], shape[0], 40], 4.0).transpose(0, 1);
        for bias in [None, Some(bias.shallow_clone())] {
            let layer = Linear::new(weight.shallow_clone(), bias);
            for x in [&x, &turned] {
                assert_close(&layer.forward_rows(x), &layer.forward(x), 1e-5);
            }
        }
    }
    let halves = Linear::new(weight.to_kind(Kind::BFloat16), None);
    let x = numbers(&[512, 40], 5.0);
    assert!(halves.forward_rows(&x).equal(&halves.forward(&x)));
}

fn naive(query: &Tensor, key: &Tensor, value: &Tensor, allowed: &Tensor) -> Tensor {
    let groups = query.size()[1] / key.size()[1];
    let wide = |x: &Tensor| x.to_kind(Kind::Double);
    let repeat = |x: &Tensor| wide(x).repeat_interleave_self_int(groups, 1, None);
    let scores = wide(query).matmul(&repeat(key).transpose(-1, -2)) / (query.size()[3] as f64).sqrt();
    let scores = scores.masked_fill(&allowed.logical_not(), f64::NEG_INFINITY);
    scores.softmax(-1, Kind::Double).matmul(&repeat(value))
}

#[test]
fn attention_equals_its_formula_for_every_mask_and_grouping() {
    let all = Tensor::ones([1, 1, 5, 5], (Kind::Bool, Device::Cpu));
    let below = all.tril(0);
    let band = below.logical_and(&all.triu(-1));
    for key_heads in [1, 2, 4] {
        let query = numbers(&[2, 4, 5, 6], 1.0);
        let (key, value) = (numbers(&[2, key_heads, 5, 6], 2.0), numbers(&[2, key_heads, 5, 6], 3.0));
        for (mask, allowed) in [
            (AttentionMask::Full, &all),
            (AttentionMask::Causal, &below),
            (AttentionMask::Allowed(below.shallow_clone()), &below),
            (AttentionMask::Allowed(band.shallow_clone()), &band),
        ] {
            assert_close(
                &attention(&query, &key, &value, &mask),
                &naive(&query, &key, &value, allowed),
                1e-6,
            );
        }
        // What is added weighs; a very low score is as good as none.
        let low = Tensor::zeros([1, 1, 5, 5], OPTIONS).masked_fill(&band.logical_not(), -1e9);
        let got = attention(&query, &key, &value, &AttentionMask::Added(low));
        assert_close(&got, &naive(&query, &key, &value, &band), 1e-6);
        // One query sees all keys, causal or not.
        let last = query.narrow(2, 4, 1);
        let got = attention(&last, &key, &value, &AttentionMask::Causal);
        assert_close(&got, &naive(&last, &key, &value, &all.narrow(2, 4, 1)), 1e-6);
    }
}

#[test]
#[should_panic(expected = "3 key heads cannot serve 4 query heads")]
fn heads_that_do_not_divide_are_a_mistake() {
    let (query, key) = (numbers(&[1, 4, 2, 2], 1.0), numbers(&[1, 3, 2, 2], 1.0));
    let _ = attention(&query, &key, &key, &AttentionMask::Full);
}

#[test]
fn heads_split_and_merge() {
    let x = numbers(&[2, 3, 8], 1.0);
    let heads = split_heads(&x, 4);
    assert_eq!(heads.size(), [2, 2, 3, 4]);
    assert_eq!(heads.double_value(&[1, 1, 2, 0]), x.double_value(&[1, 2, 4]));
    assert!(merge_heads(&heads).equal(&x));
}

#[test]
fn rms_norm_casts_back_before_the_weight() {
    let weight = numbers(&[8], 4.0).to_kind(Kind::BFloat16);
    let weights = Weights::from_tensors([("weight".to_owned(), weight.shallow_clone())].into());
    let norm = RmsNorm::load(&weights.root(), 8, 1e-5);
    let x = numbers(&[3, 8], 5.0).to_kind(Kind::BFloat16);
    let wide = x.to_kind(Kind::Float);
    let mean = (&wide * &wide).mean_dim(1, true, Kind::Float);
    let expected = &weight * (&wide * (mean + 1e-5).rsqrt()).to_kind(Kind::BFloat16);
    let got = norm.forward(&x);
    assert_eq!(got.kind(), Kind::BFloat16);
    assert!(got.equal(&expected));
}

#[test]
fn rotation_is_by_the_angle_and_keeps_lengths() {
    let rope = Rope::new(4, 100.0, RopeScaling::None, Device::Cpu);
    let positions = Tensor::from_slice(&[0i64, 1, 7]).unsqueeze(0);
    let x = numbers(&[1, 2, 3, 4], 6.0);
    let got = rope.table(&positions).rotate(&x);
    for (token, position) in [0.0f64, 1.0, 7.0].into_iter().enumerate() {
        for (pair, frequency) in [1.0f64, 0.1].into_iter().enumerate() {
            let (token, pair) = (token as i64, pair as i64);
            let (sin, cos) = (position * frequency).sin_cos();
            let (a, b) = (x.double_value(&[0, 1, token, pair]), x.double_value(&[0, 1, token, pair + 2]));
            assert!((got.double_value(&[0, 1, token, pair]) - (a * cos - b * sin)).abs() < 1e-6);
            assert!((got.double_value(&[0, 1, token, pair + 2]) - (b * cos + a * sin)).abs() < 1e-6);
        }
    }
}

#[test]
fn scaled_frequencies_follow_their_formulas() {
    let angles = |scaling| {
        let rope = Rope::new(16, 10_000.0, scaling, Device::Cpu);
        // At position 1 and for pairs (1, 0) the rotated second half is the sine of the frequency.
        let unit =
            Tensor::cat(&[Tensor::ones([8], OPTIONS), Tensor::zeros([8], OPTIONS)], 0).view([1, 1, 1, 16]);
        let one = Tensor::from_slice(&[1i64]).unsqueeze(0);
        rope.table(&one).rotate(&unit).view([16]).narrow(0, 8, 8)
    };
    let frequency = |pair: i32| 10_000f64.powf(-f64::from(pair) / 8.0);
    let expect = |scale: &dyn Fn(f64) -> f64| {
        Tensor::from_slice(&(0..8).map(|pair| scale(frequency(pair)).sin()).collect::<Vec<_>>())
    };
    assert_close(&angles(RopeScaling::None), &expect(&|f| f), 1e-7);
    assert_close(&angles(RopeScaling::Linear { factor: 4.0 }), &expect(&|f| f / 4.0), 1e-7);
    let (factor, low, high, context) = (8.0, 1.0, 4.0, 256.0);
    let llama = |f: f64| {
        let turns = context * f / std::f64::consts::TAU;
        let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
        (1.0 - smooth) * f / factor + smooth * f
    };
    let scaling = RopeScaling::Llama3 {
        factor,
        low_freq_factor: low,
        high_freq_factor: high,
        original_max_position_embeddings: context,
    };
    assert_close(&angles(scaling), &expect(&llama), 1e-7);
}

#[test]
fn activations_equal_their_formulas() {
    let x = Tensor::from_slice(&[-3.0f64, -0.5, 0.0, 0.7, 2.5]);
    let silu = &x * x.sigmoid();
    let quick: Tensor = &x * (&x * 1.702).sigmoid();
    let erf: Tensor = &x * 0.5 * ((&x / 2f64.sqrt()).erf() + 1.0);
    let inner: Tensor = (&x + &x * &x * &x * 0.044_715) * (2.0 / std::f64::consts::PI).sqrt();
    let tanh: Tensor = &x * 0.5 * (inner.tanh() + 1.0);
    for (activation, expected) in [
        (Activation::Silu, silu),
        (Activation::QuickGelu, quick),
        (Activation::Gelu, erf),
        (Activation::GeluTanh, tanh),
        (Activation::Relu, x.clamp_min(0.0)),
    ] {
        assert_close(&activation.forward(&x), &expected, 1e-12);
    }
}
