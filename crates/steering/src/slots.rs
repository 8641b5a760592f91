//! [`Slots`]: the changes of all rows at one hook point, as tensors.
//!
//! Slot `s` holds the s-th feature of each row, so that one operation serves all rows. Every mode but `orthogonal` makes of an
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

/// The changes of all rows.
#[derive(Debug)]
pub(crate) struct Slots {
    codes: Vec<Slot>,
    directions: Vec<Direction>,
}

/// A feature of each row, each tensor `[batch]`. A row that has none has `a = 1`, `b = 0`.
#[derive(Debug)]
struct Slot {
    /// Latents, i64.
    latents: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    /// Whether the change depends on the activation: that of `add` does not.
    needs_own: bool,
    /// Rows of the encoder `[batch, d_in, 1]` and its bias `[batch, 1]`, zeros where the change does not depend on the activation.
    encoder: Tensor,
    bias: Tensor,
    /// Rows of the decoder, `[batch, 1, d_in]`.
    decoder: Tensor,
}

/// A direction of each row, and what the hidden state is to have of it.
#[derive(Debug)]
struct Direction {
    /// `[batch, 1, d_in]`, of length 1, or 0 for a row that has none.
    unit: Tensor,
    /// `[batch, 1, 1]`.
    value: Tensor,
    /// Whether the row has one, `[batch, 1]` (bool).
    there: Tensor,
}

impl Slots {
    pub(crate) fn new(rows: &[Option<&Changes>], sae: &TorchSae) -> Self {
        let of = |wanted: fn(Mode) -> bool| -> Vec<Vec<(FeatureId, Change)>> {
            let row = |changes: &Option<&Changes>| {
                let changes = changes.iter().flat_map(|changes| changes.iter());
                changes.filter(|(_, change)| wanted(change.mode)).map(|(&f, &change)| (f, change)).collect()
            };
            rows.iter().map(row).collect()
        };
        let (codes, directions) = (of(|mode| mode != Mode::Orthogonal), of(|mode| mode == Mode::Orthogonal));
        let slots = |rows: &[Vec<(FeatureId, Change)>]| rows.iter().map(Vec::len).max().unwrap_or(0);
        let slot = |rows: &[Vec<(FeatureId, Change)>], index: usize| -> Vec<Option<(FeatureId, Change)>> {
            rows.iter().map(|row| row.get(index).copied()).collect()
        };
        Self {
            codes: (0..slots(&codes)).map(|index| Slot::new(&slot(&codes, index), sae)).collect(),
            directions: (0..slots(&directions))
                .map(|index| Direction::new(&slot(&directions, index), sae))
                .collect(),
        }
    }

    /// Whether any activation is changed.
    pub(crate) fn has_codes(&self) -> bool {
        !self.codes.is_empty()
    }

    /// The changes for the tokens of a pass, `chosen [batch, tokens]` (bool), flattened to columns.
    pub(crate) fn columns(&self, chosen: &Tensor) -> Columns<'_> {
        let (rows, tokens) = (chosen.size()[0], chosen.size()[1]);
        let options = (Kind::Int64, chosen.device());
        let row_of = Tensor::arange(rows, options).repeat_interleave_self_int(tokens, None, rows * tokens);
        Columns { slots: self, row_of, chosen: chosen.reshape([-1]) }
    }

    /// Changes after TopK with the error kept: `hidden + Σ (z' - z) d` on the chosen tokens. Only where a feature may be on is
    /// anything encoded.
    pub(crate) fn change(&self, sae: &TorchSae, hidden: &Tensor, chosen: &Tensor) -> Tensor {
        if !self.has_codes() {
            return hidden.shallow_clone();
        }
        let own = self.own(sae, hidden, chosen);
        let zero = Tensor::zeros([1, 1], (sae.kind(), hidden.device()));
        let part = |index: usize| {
            let slot = &self.codes[index];
            let own = own.as_ref().map_or(&zero, |own| &own[index]);
            let moved = slot.moved(own, &slot.a.unsqueeze(1), &slot.b.unsqueeze(1), &slot.c.unsqueeze(1));
            moved.where_self(chosen, &zero).unsqueeze(-1) * &slot.decoder
        };
        let sum = (0..self.codes.len()).map(part).reduce(|sum, part| sum + part);
        sum.map_or_else(|| hidden.shallow_clone(), |sum| hidden + sum.to_kind(hidden.kind()))
    }

    /// The activation that each slot's feature has on each token, `[batch, tokens]`, 0 where it is not kept or not chosen; `None`
    /// where all are 0 or of no account.
    fn own(&self, sae: &TorchSae, hidden: &Tensor, chosen: &Tensor) -> Option<Vec<Tensor>> {
        let asking: Vec<&Slot> = self.codes.iter().filter(|slot| slot.needs_own).collect();
        if asking.is_empty() {
            return None;
        }
        let x = hidden.reshape([-1, sae.d_in() as i64]);
        // What is not on before TopK is not on after it, and to know that takes one row of the encoder.
        let centred = sae.centre(&x).reshape(hidden.size());
        let may_be_on =
            |slot: &Slot| (centred.matmul(&slot.encoder).squeeze_dim(-1) + &slot.bias).le(0.0).logical_not();
        let on = asking.into_iter().map(may_be_on).reduce(|one, other| one.logical_or(&other))?;
        let places = on.logical_and(chosen).reshape([-1]).nonzero().squeeze_dim(1);
        if places.size()[0] == 0 {
            return None;
        }
        let codes = sae.encode(&x.index_select(0, &places));
        let columns = self.columns(chosen).at(&places);
        let spread = |slot: &Slot| {
            let zero = Tensor::zeros([x.size()[0]], (sae.kind(), x.device()));
            zero.index_copy(0, &places, &columns.own(slot, &codes)).view(chosen.size().as_slice())
        };
        Some(self.codes.iter().map(spread).collect())
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

impl Slot {
    fn new(rows: &[Option<(FeatureId, Change)>], sae: &TorchSae) -> Self {
        let numbers = |row: &Option<(FeatureId, Change)>| match row {
            None => (1.0, 0.0, f32::INFINITY),
            Some((_, Change { mode, value })) => match mode {
                Mode::Clamp => (0.0, *value, f32::INFINITY),
                Mode::Add | Mode::Orthogonal => (1.0, *value, f32::INFINITY),
                Mode::Scale => (*value, 0.0, f32::INFINITY),
                Mode::Ablate => (0.0, 0.0, f32::INFINITY),
                Mode::Cap => (1.0, 0.0, *value),
            },
        };
        let numbers: Vec<(f32, f32, f32)> = rows.iter().map(numbers).collect();
        let column = |of: fn(&(f32, f32, f32)) -> f32| {
            let column: Vec<f32> = numbers.iter().map(of).collect();
            Tensor::from_slice(&column).to_device(sae.device()).to_kind(sae.kind())
        };
        let depends = |&(a, _, c): &(f32, f32, f32)| a != 1.0 || c.is_finite();
        let depending: Vec<f32> = numbers.iter().map(|row| f32::from(u8::from(depends(row)))).collect();
        let depending = Tensor::from_slice(&depending).to_device(sae.device()).to_kind(sae.kind());
        let latents = latents(rows, sae);
        let encoder = sae.encoder_weight().index_select(0, &latents) * depending.unsqueeze(1);
        let bias = sae.encoder_bias().index_select(0, &latents) * depending;
        let decoder = sae.decoder_weight().index_select(0, &latents);
        Self {
            latents,
            a: column(|row| row.0),
            b: column(|row| row.1),
            c: column(|row| row.2),
            needs_own: numbers.iter().any(depends),
            encoder: encoder.unsqueeze(-1),
            bias: bias.unsqueeze(1),
            decoder: decoder.unsqueeze(1),
        }
    }

    /// `min(a·z + b, c) - z`, written so that a change by nothing is exactly 0.
    fn moved(&self, own: &Tensor, a: &Tensor, b: &Tensor, c: &Tensor) -> Tensor {
        if !self.needs_own {
            return b.shallow_clone();
        }
        ((a - 1.0) * own + b).minimum(&(c - own))
    }
}

impl Direction {
    fn new(rows: &[Option<(FeatureId, Change)>], sae: &TorchSae) -> Self {
        let values: Vec<f32> = rows.iter().map(|row| row.map_or(0.0, |(_, change)| change.value)).collect();
        let there: Vec<bool> = rows.iter().map(Option::is_some).collect();
        let wide = sae.decoder_weight().index_select(0, &latents(rows, sae)).to_kind(Kind::Float);
        let length = wide.norm_scalaropt_dim(2.0, [1], true).clamp_min(f64::from(f32::MIN_POSITIVE));
        Self {
            unit: (wide / length).to_kind(sae.kind()).unsqueeze(1),
            value: Tensor::from_slice(&values).to_device(sae.device()).to_kind(sae.kind()).view([-1, 1, 1]),
            there: Tensor::from_slice(&there).to_device(sae.device()).unsqueeze(1),
        }
    }
}

/// The latents of rows, 0 where there is none.
fn latents(rows: &[Option<(FeatureId, Change)>], sae: &TorchSae) -> Tensor {
    let latents: Vec<i64> =
        rows.iter().map(|row| row.map_or(0, |(feature, _)| i64::from(feature.0))).collect();
    Tensor::from_slice(&latents).to_device(sae.device())
}

/// The changes for tokens in a row, of whichever rows of the batch.
#[derive(Debug)]
pub(crate) struct Columns<'a> {
    slots: &'a Slots,
    /// The row of the batch that each token is of, `[n]` (i64).
    row_of: Tensor,
    /// `[n]` (bool).
    chosen: Tensor,
}

impl Columns<'_> {
    /// Of some of the tokens.
    pub(crate) fn at(&self, places: &Tensor) -> Self {
        let of = |tensor: &Tensor| tensor.index_select(0, places);
        Self { slots: self.slots, row_of: of(&self.row_of), chosen: of(&self.chosen) }
    }

    fn by_token(&self, of_row: &Tensor) -> Tensor {
        of_row.index_select(0, &self.row_of)
    }

    /// The activation that a slot's feature has among `codes` `[n, k]`, `[n]`.
    fn own(&self, slot: &Slot, codes: &TopK) -> Tensor {
        let other = codes.indices.ne_tensor(&self.by_token(&slot.latents).unsqueeze(1));
        codes.values.masked_fill(&other, 0.0).sum_dim_intlist(1, false, codes.values.kind())
    }

    /// What the changes of `codes` `[n, k]` add to what they stand for, `[n, d_in]`.
    pub(crate) fn difference(&self, sae: &TorchSae, codes: &TopK) -> Tensor {
        let n = self.row_of.size()[0];
        let zero = Tensor::zeros([n, sae.d_in() as i64], (sae.kind(), sae.device()));
        self.slots.codes.iter().fold(zero, |sum, slot| {
            let [a, b, c] = [&slot.a, &slot.b, &slot.c].map(|of_row| self.by_token(of_row));
            let moved = slot.moved(&self.own(slot, codes), &a, &b, &c);
            let moved = moved.masked_fill(&self.chosen.logical_not(), 0.0);
            sum + moved.unsqueeze(1) * self.by_token(&slot.decoder.squeeze_dim(1))
        })
    }

    /// Changes activations before TopK, `[rows, num_latents]` of the tokens from `start` on.
    pub(crate) fn edit(&self, mut dense: Tensor, start: i64) -> Tensor {
        let n = dense.size()[0];
        let here = |of_row: &Tensor| of_row.index_select(0, &self.row_of.narrow(0, start, n)).unsqueeze(1);
        let chosen = self.chosen.narrow(0, start, n).unsqueeze(1);
        for slot in &self.slots.codes {
            let latents = here(&slot.latents);
            let old = dense.gather(1, &latents, false);
            let new = (here(&slot.a) * &old + here(&slot.b)).minimum(&here(&slot.c));
            let _ = dense.scatter_(1, &latents, &new.where_self(&chosen, &old));
        }
        dense
    }
}
