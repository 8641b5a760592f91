//! [`ByLatent`]: codes in the order of their latents instead of their rows.

use std::ops::Range;

use sae_types::SparseCodes;

/// Compressed columns of [`SparseCodes`]: for each latent that is on, ascending, the rows it is on in, ascending.
#[derive(Debug, Default)]
pub(super) struct ByLatent {
    /// Latents that are on.
    pub(super) latents: Vec<u32>,
    /// `[latents + 1]` ends within `rows` and `codes`.
    ends: Vec<usize>,
    /// Rows, relative to the first of those given.
    pub(super) rows: Vec<u32>,
    /// Where each stands in [`SparseCodes::values`].
    pub(super) codes: Vec<usize>,
    /// Per latent of the dictionary: how many codes it has, then where its next one goes.
    places: Vec<usize>,
}

impl ByLatent {
    /// Sorts the codes of `rows`, by counting: linear in codes and latents.
    pub(super) fn sort(&mut self, codes: &SparseCodes, rows: Range<usize>) {
        let all = codes.offsets()[rows.start]..codes.offsets()[rows.end];
        self.places.clear();
        self.places.resize(codes.num_latents(), 0);
        for &latent in &codes.latents()[all.clone()] {
            self.places[latent as usize] += 1;
        }
        self.latents.clear();
        self.ends.clear();
        self.ends.push(0);
        let mut end = 0;
        for (latent, place) in self.places.iter_mut().enumerate() {
            if *place > 0 {
                let start = end;
                end += *place;
                *place = start;
                self.latents.push(latent as u32);
                self.ends.push(end);
            }
        }
        self.rows.resize(end, 0);
        self.codes.resize(end, 0);
        for row in rows.clone() {
            for code in codes.offsets()[row]..codes.offsets()[row + 1] {
                let place = &mut self.places[codes.latents()[code] as usize];
                self.rows[*place] = (row - rows.start) as u32;
                self.codes[*place] = code;
                *place += 1;
            }
        }
    }

    /// Where the codes of the `index`-th latent stand.
    pub(super) fn range(&self, index: usize) -> Range<usize> {
        self.ends[index]..self.ends[index + 1]
    }
}
