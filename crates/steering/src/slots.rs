//! [`Slots`]: the changes of all rows at one hook point, as tensors.
//!
//! Slot `s` holds the s-th feature of each row, so that one operation serves all rows and slots. Every mode but `orthogonal` makes of an
//! activation `z` the new one `min(a·z + b, c)`:
//!
//! | mode | a | b | c |
//! |---|---|---|---|
//! | clamp | 0 | v | ∞ |
//! | add | 1 | v | ∞ |
//! | scale | v | 0 | ∞ |
//! | ablate | 0 | 0 | ∞ |
//! | cap | 1 | 0 | v |

use std::collections::BTreeMap;

use sae_torch::{TopK, TorchSae};
use sae_types::FeatureId;
use tch::{Kind, Tensor};

use crate::{Change, Mode};

type Changes = BTreeMap<FeatureId, Change>;

/// A feature of a row, if the row has so many.
type Entry = Option<(FeatureId, Change)>;

/// The changes of all rows.
#[derive(Debug)]
pub(crate) struct Slots {
    codes: Option<Codes>,
    directions: Vec<Direction>,
}

/// Changes of activations: `m` features of each row. A row that has fewer has `a = 1`, `b = 0` in the rest.
#[derive(Debug)]
struct Codes {
    /// Latents, `[batch, m]` (i64).
    latents: Tensor,
    numbers: Numbers,
    /// Whether any change depends on the activation: that of `add` does not.
    needs_own: bool,
    /// What tells a pre-activation of what is centred, `[batch, d_in, m]` and `[batch, 1, m]`: rows of the encoder, and its bias.
    /// Zeros where the change does not depend on the activation.
    gate: (Tensor, Tensor),
    /// Rows of the decoder, `[batch, m, d_in]`.
    decoder: Tensor,
}

/// `a - 1`, `a`, `b` and, if any activation is capped, `c`, each `[.., m]`.
#[derive(Debug)]
struct Numbers {
    less: Tensor,
    a: Tensor,
    b: Tensor,
    c: Option<Tensor>,
}

/// A direction of each row, and what the hidden state is to have of it.
#[derive(Debug)]
struct Direction {
    /// `[batch, 1, d_in]`, of length 1.
    unit: Tensor,
    /// `[batch, 1, 1]`.
    value: Tensor,
    /// Whether the row has one, `[batch, 1]` (bool).
    there: Tensor,
}

impl Slots {
    pub(crate) fn new(rows: &[Option<&Changes>], sae: &TorchSae) -> Self {
        let slots = |wanted: fn(Mode) -> bool| -> Vec<Vec<Entry>> {
            let row = |changes: Option<&Changes>| -> Vec<(FeatureId, Change)> {
                let changes = changes.into_iter().flatten();
                changes.filter(|(_, change)| wanted(change.mode)).map(|(&f, &change)| (f, change)).collect()
            };
            let rows: Vec<_> = rows.iter().copied().map(row).collect();
            let most = rows.iter().map(Vec::len).max().unwrap_or(0);
            (0..most).map(|slot| rows.iter().map(|row| row.get(slot).copied()).collect()).collect()
        };
        let codes = slots(|mode| mode != Mode::Orthogonal);
        let directions = slots(|mode| mode == Mode::Orthogonal);
        Self {
            codes: (!codes.is_empty()).then(|| Codes::new(&codes, sae)),
            directions: directions.iter().map(|rows| Direction::new(rows, sae)).collect(),
        }
    }

    /// Whether any activation is changed.
    pub(crate) fn has_codes(&self) -> bool {
        self.codes.is_some()
    }

    /// The changes for the tokens of a pass, `chosen [batch, tokens]` (bool), token after token.
    pub(crate) fn columns(&self, chosen: &Tensor) -> Columns<'_> {
        let row_of = rows_of(chosen);
        Columns { codes: self.codes.as_ref(), row_of, chosen: chosen.reshape([-1]) }
    }

    /// Changes after TopK with the error kept: `hidden + Σ (z' - z) d` on the chosen tokens.
    pub(crate) fn change(&self, sae: &TorchSae, hidden: &Tensor, chosen: &Tensor) -> Tensor {
        let Some(codes) = &self.codes else { return hidden.shallow_clone() };
        let moved = codes.numbers.moved(codes.own(sae, hidden, chosen).as_ref());
        let zero = Tensor::zeros([1], (sae.kind(), hidden.device()));
        let moved = moved.where_self(&chosen.unsqueeze(-1), &zero);
        hidden + moved.bmm(&codes.decoder).to_kind(hidden.kind())
    }

    /// Replaces what the chosen tokens have in each direction.
    pub(crate) fn redirect(&self, sae: &TorchSae, hidden: Tensor, chosen: &Tensor) -> Tensor {
        let mut hidden = hidden;
        for Direction { unit, value, there } in &self.directions {
            let wide = hidden.to_kind(sae.kind());
            let along = (&wide * unit).sum_dim_intlist(-1, true, sae.kind());
            let change = (value - along) * unit;
            let off = chosen.logical_and(there).logical_not().unsqueeze(-1);
            hidden = &hidden + change.masked_fill(&off, 0.0).to_kind(hidden.kind());
        }
        hidden
    }
}

/// The row of the batch that each token is of, `[batch · tokens]` (i64).
fn rows_of(tokens: &Tensor) -> Tensor {
    let (rows, width) = (tokens.size()[0], tokens.size()[1]);
    let rows_in_order = Tensor::arange(rows, (Kind::Int64, tokens.device()));
    rows_in_order.repeat_interleave_self_int(width, None, rows * width)
}

impl Codes {
    /// `slots[s][row]`.
    fn new(slots: &[Vec<Entry>], sae: &TorchSae) -> Self {
        let numbers = |row: &Entry| match row {
            None => (1.0, 0.0, f32::INFINITY),
            Some((_, Change { mode, value })) => match mode {
                Mode::Clamp => (0.0, *value, f32::INFINITY),
                Mode::Add | Mode::Orthogonal => (1.0, *value, f32::INFINITY),
                Mode::Scale => (*value, 0.0, f32::INFINITY),
                Mode::Ablate => (0.0, 0.0, f32::INFINITY),
                Mode::Cap => (1.0, 0.0, *value),
            },
        };
        let (slots_in_all, batch) = (slots.len(), slots[0].len());
        let entries = || (0..batch).flat_map(|row| slots.iter().map(move |slot| slot[row]));
        let shape = [batch as i64, 1, slots_in_all as i64];
        let each: Vec<(f32, f32, f32)> = entries().map(|entry| numbers(&entry)).collect();
        let column = |of: fn(&(f32, f32, f32)) -> f32| {
            let column: Vec<f32> = each.iter().map(of).collect();
            Tensor::from_slice(&column).view(shape).to_device(sae.device()).to_kind(sae.kind())
        };
        let depends = |&(a, _, c): &(f32, f32, f32)| a != 1.0 || c.is_finite();
        let depending: Vec<f32> = each.iter().map(|row| f32::from(u8::from(depends(row)))).collect();
        let depending =
            Tensor::from_slice(&depending).view(shape).to_device(sae.device()).to_kind(sae.kind());
        let latents: Vec<i64> =
            entries().map(|entry| entry.map_or(0, |(feature, _)| i64::from(feature.0))).collect();
        let latents = Tensor::from_slice(&latents).to_device(sae.device());
        let of_latents = |rows: &Tensor| rows.index_select(0, &latents).view([shape[0], shape[2], -1]);
        let encoder = of_latents(sae.encoder_weight()).transpose(1, 2) * &depending;
        let bias = sae.encoder_bias().index_select(0, &latents).view(shape) * &depending;
        let a = column(|row| row.0);
        Self {
            numbers: Numbers {
                less: &a - 1.0,
                a,
                b: column(|row| row.1),
                c: each.iter().any(|row| row.2.is_finite()).then(|| column(|row| row.2)),
            },
            needs_own: each.iter().any(depends),
            gate: (encoder, bias),
            decoder: of_latents(sae.decoder_weight()),
            latents: latents.view([shape[0], shape[2]]),
        }
    }

    /// The activation that each feature has on each token, `[batch, tokens, m]`, 0 where it is not kept or not chosen; `None` where
    /// all are 0 or of no account. Only what may be on, which one row of the encoder tells, is looked for among what is kept.
    fn own(&self, sae: &TorchSae, hidden: &Tensor, chosen: &Tensor) -> Option<Tensor> {
        if !self.needs_own {
            return None;
        }
        let (batch, tokens) = (hidden.size()[0], hidden.size()[1]);
        let (encoder, bias) = &self.gate;
        let x = hidden.reshape([-1, sae.d_in() as i64]);
        if tokens == 1 {
            return Some(sae.kept(&x, &self.latents).unsqueeze(1));
        }
        // Centred as the encoder does it: with the centre in a bias of 16 bits, features near 0 would be on for one and off for
        // the other.
        let centred = sae.centre(&x).view(hidden.size().as_slice());
        let pre = bias.baddbmm(&centred, encoder, 1.0, 1.0);
        let on = pre.le(0.0).logical_not().any_dim(-1, false);
        let places = on.logical_and(chosen).reshape([-1]).nonzero().squeeze_dim(1);
        if places.size()[0] == 0 {
            return None;
        }
        let latents = self.latents.index_select(0, &rows_of(chosen).index_select(0, &places));
        let kept = sae.kept(&x.index_select(0, &places), &latents);
        let zero = Tensor::zeros([batch * tokens, latents.size()[1]], (sae.kind(), x.device()));
        Some(zero.index_copy(0, &places, &kept).view([batch, tokens, -1]))
    }
}

impl Numbers {
    /// `min(a·z + b, c) - z` of activations `own`, or of 0, written so that a change by nothing is exactly 0.
    fn moved(&self, own: Option<&Tensor>) -> Tensor {
        let moved = own.map_or_else(|| self.b.shallow_clone(), |own| &self.less * own + &self.b);
        match (&self.c, own) {
            (None, _) => moved,
            (Some(c), None) => moved.minimum(c),
            (Some(c), Some(own)) => moved.minimum(&(c - own)),
        }
    }

    /// `min(a·z + b, c)`.
    fn new_value(&self, old: &Tensor) -> Tensor {
        let new = &self.a * old + &self.b;
        self.c.as_ref().map_or_else(|| new.shallow_clone(), |c| new.minimum(c))
    }

    /// Those of some rows, `[n, m]`.
    fn of_rows(&self, rows: &Tensor) -> Self {
        let of = |tensor: &Tensor| tensor.squeeze_dim(1).index_select(0, rows);
        Self { less: of(&self.less), a: of(&self.a), b: of(&self.b), c: self.c.as_ref().map(of) }
    }
}

impl Direction {
    fn new(rows: &[Entry], sae: &TorchSae) -> Self {
        let values: Vec<f32> = rows.iter().map(|row| row.map_or(0.0, |(_, change)| change.value)).collect();
        let there: Vec<bool> = rows.iter().map(Option::is_some).collect();
        let latents: Vec<i64> =
            rows.iter().map(|row| row.map_or(0, |(feature, _)| i64::from(feature.0))).collect();
        let latents = Tensor::from_slice(&latents).to_device(sae.device());
        let wide = sae.decoder_weight().index_select(0, &latents).to_kind(Kind::Float);
        let length = wide.norm_scalaropt_dim(2.0, [1], true).clamp_min(f64::from(f32::MIN_POSITIVE));
        Self {
            unit: (wide / length).to_kind(sae.kind()).unsqueeze(1),
            value: Tensor::from_slice(&values).to_device(sae.device()).to_kind(sae.kind()).view([-1, 1, 1]),
            there: Tensor::from_slice(&there).to_device(sae.device()).unsqueeze(1),
        }
    }
}

/// The changes for tokens, of whichever rows of the batch.
#[derive(Debug)]
pub(crate) struct Columns<'a> {
    codes: Option<&'a Codes>,
    /// The row of the batch that each token is of, `[n]` (i64).
    row_of: Tensor,
    /// `[n]` (bool).
    chosen: Tensor,
}

impl Columns<'_> {
    /// Of some of the tokens.
    pub(crate) fn at(&self, places: &Tensor) -> Self {
        let of = |tensor: &Tensor| tensor.index_select(0, places);
        Self { codes: self.codes, row_of: of(&self.row_of), chosen: of(&self.chosen) }
    }

    /// What the changes of `kept` `[n, k]` add to what they stand for, `[n, d_in]`. These are columns of all tokens, row after row.
    pub(crate) fn difference(&self, sae: &TorchSae, kept: &TopK) -> Tensor {
        let Some(codes) = self.codes else {
            return Tensor::zeros([self.row_of.size()[0], sae.d_in() as i64], (sae.kind(), sae.device()));
        };
        let latents = codes.latents.index_select(0, &self.row_of);
        let of_slot = |slot: i64| {
            let others = kept.indices.ne_tensor(&latents.narrow(1, slot, 1));
            kept.values.masked_fill(&others, 0.0).sum_dim_intlist(1, true, sae.kind())
        };
        let own = Tensor::cat(&(0..latents.size()[1]).map(of_slot).collect::<Vec<_>>(), 1);
        let moved = codes.numbers.of_rows(&self.row_of).moved(Some(&own));
        let moved = moved.masked_fill(&self.chosen.logical_not().unsqueeze(1), 0.0);
        // Row by row of the batch: a row of the decoder for each token would be `[n, m, d_in]`.
        let [batch, m] = [codes.latents.size()[0], codes.latents.size()[1]];
        moved.view([batch, -1, m]).bmm(&codes.decoder).view([-1, sae.d_in() as i64])
    }

    /// Changes activations before TopK, `[rows, num_latents]` of the tokens from `start` on.
    pub(crate) fn edit(&self, mut dense: Tensor, start: i64) -> Tensor {
        let Some(codes) = self.codes else { return dense };
        let n = dense.size()[0];
        let rows = self.row_of.narrow(0, start, n);
        let latents = codes.latents.index_select(0, &rows);
        let numbers = codes.numbers.of_rows(&rows);
        let chosen = self.chosen.narrow(0, start, n).unsqueeze(1);
        // One by one: a row with fewer features than others has latent 0 in the rest, which may be its own as well.
        for slot in 0..latents.size()[1] {
            let of = |tensor: &Tensor| tensor.narrow(1, slot, 1);
            let old = dense.gather(1, &of(&latents), false);
            let numbers = Numbers {
                less: of(&numbers.less),
                a: of(&numbers.a),
                b: of(&numbers.b),
                c: numbers.c.as_ref().map(of),
            };
            let _ = dense.scatter_(1, &of(&latents), &numbers.new_value(&old).where_self(&chosen, &old));
        }
        dense
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use sae_core::{Sae, SaeConfig, SaeTensors};
    use tch::Device;

    use super::*;

    /// With a centre far from 0, as models' hidden states have it, a gate in 16 bits is open wherever the encoder keeps a feature.
    #[test]
    fn the_gate_is_open_where_the_encoder_keeps() {
        tch::set_num_threads(1);
        let (d_in, latents) = (16, 40);
        let mut random = ChaCha8Rng::seed_from_u64(6);
        let mut draw = |n: usize, scale: f32| -> Vec<f32> {
            (0..n).map(|_| scale * random.random_range(-1.0..1.0)).collect()
        };
        let centre: Vec<f32> = draw(d_in, 1.0).into_iter().map(|number| 30.0 + number).collect();
        let tensors = SaeTensors {
            encoder_weight: draw(latents * d_in, 1.0),
            encoder_bias: draw(latents, 0.1),
            decoder_weight: draw(latents * d_in, 1.0),
            decoder_bias: centre.clone(),
            skip_weight: None,
        };
        let sae = Sae::from_parts(SaeConfig::new(d_in, latents, latents / 2), tensors).unwrap();
        let sae = TorchSae::from_sae(&sae, Device::Cpu, Kind::BFloat16).unwrap();
        let tokens = 50;
        let x: Vec<f32> = draw(tokens * d_in, 0.5)
            .iter()
            .zip(centre.iter().cycle())
            .map(|(number, c)| number + c)
            .collect();
        let hidden = Tensor::from_slice(&x).view([1, tokens as i64, d_in as i64]).to_kind(Kind::BFloat16);
        let codes = sae.encode(&hidden.get(0));
        let everywhere = Tensor::ones([1, tokens as i64], (Kind::Bool, Device::Cpu));
        for latent in 0..latents as u32 {
            let changes = Changes::from([(FeatureId(latent), Change { mode: Mode::Ablate, value: 0.0 })]);
            let slots = Slots::new(&[Some(&changes)], &sae);
            let own = slots.codes.as_ref().unwrap().own(&sae, &hidden, &everywhere);
            let none = || Tensor::zeros([tokens as i64], (Kind::BFloat16, Device::Cpu));
            let own = own.unwrap_or_else(none);
            let is_own = codes.indices.eq(i64::from(latent)).to_kind(Kind::BFloat16);
            let kept = (is_own * &codes.values).sum_dim_intlist(1, false, Kind::Float);
            let missed = own.squeeze().eq(0.0).logical_and(&kept.gt(0.05)).any();
            assert!(missed.int64_value(&[]) == 0, "latent {latent}: {own} {kept}");
        }
    }
}
