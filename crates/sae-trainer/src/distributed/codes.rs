//! Codes through collectives, and the largest of all ranks' without sending all of them.

use std::cmp::Ordering;

use collectives::{Collective, CollectiveError, NumbersMut, Reduction};
use rayon::prelude::*;
use sae_core::{FeatureId, SparseCodes};

use super::numbers;

/// Bits of an activation that one round of [`largest_in_all`] settles, and how many rounds that makes.
const RADIX_BITS: u32 = 11;
const ROUNDS: u32 = 3;

/// Bytes of the histograms that [`largest_in_all`] sums over the ranks.
pub(super) const HISTOGRAM_BYTES: usize = (ROUNDS as usize * size_of::<i64>()) << RADIX_BITS;

/// The rows of all ranks, in the order of ranks.
pub(super) fn gather(team: &dyn Collective, own: &SparseCodes) -> Result<SparseCodes, CollectiveError> {
    let (n, count) = (own.n_rows(), own.n_codes());
    let mut bytes = Vec::with_capacity(8 + 4 * n + 8 * count);
    bytes.extend((n as u64).to_le_bytes());
    let lengths: Vec<u32> = own.rows().map(|row| row.len() as u32).collect();
    bytes.extend_from_slice(bytemuck::cast_slice(&lengths));
    bytes.extend_from_slice(bytemuck::cast_slice(own.latents()));
    bytes.extend_from_slice(bytemuck::cast_slice(own.values()));
    let mut all = Vec::new();
    let parts = team.all_gather(&bytes, &mut all)?;
    let mut codes = SparseCodes::new(own.num_latents());
    let mut start = 0;
    for part in parts {
        let words: Vec<u32> = numbers(&all[start..start + part]);
        let mut words = words.into_iter();
        start += part;
        let mut take = |count: usize| words.by_ref().take(count).collect::<Vec<u32>>();
        let header = take(2);
        let n = header.first().map_or(0, |&n| n as usize);
        let lengths = take(n);
        let count = lengths.iter().map(|&length| length as usize).sum();
        let (latents, values) = (take(count), take(count));
        let mut at = 0;
        for length in lengths {
            let row = at..at + length as usize;
            at = row.end;
            let row = latents[row.clone()].iter().zip(&values[row]);
            let row = row.map(|(&latent, &value)| (FeatureId(latent), f32::from_bits(value)));
            codes.push_row(row).expect("codes as another rank had them");
        }
    }
    Ok(codes)
}

/// Splits each row: its largest activations, as many as `kept` says, ties to the lower latent, and the others.
pub(super) fn largest(codes: &SparseCodes, kept: &[usize]) -> (SparseCodes, SparseCodes) {
    split_rows(codes, |row, latents, values| {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|&a, &b| descending(values[a], values[b]).then(latents[a].cmp(&latents[b])));
        let mut chosen = vec![false; values.len()];
        order.into_iter().take(kept[row]).for_each(|at| chosen[at] = true);
        chosen
    })
}

/// Splits each row into the codes that `choose(row, latents, values)` marks, and the others.
fn split_rows(
    codes: &SparseCodes,
    mut choose: impl FnMut(usize, &[u32], &[f32]) -> Vec<bool>,
) -> (SparseCodes, SparseCodes) {
    let mut parts = [0, 1].map(|_| SparseCodes::with_capacity(codes.num_latents(), codes.n_rows(), 0));
    for (number, row) in codes.rows().enumerate() {
        let chosen = choose(number, row.latents, row.values);
        for (part, want) in parts.iter_mut().zip([true, false]) {
            let of = row.iter().zip(&chosen).filter(|(_, chosen)| **chosen == want).map(|(code, _)| code);
            part.push_row(of).expect("some codes of a row of codes");
        }
    }
    let [kept, rest] = parts;
    (kept, rest)
}

/// The codes by group of latents, numbered from `first` on: group `i` ends at `prefixes[i]`. This rank's latents may be in any of them.
pub(super) fn groups(codes: &SparseCodes, prefixes: &[usize], first: usize) -> Vec<SparseCodes> {
    let mut start = 0;
    prefixes
        .iter()
        .map(|&end| {
            let group = start..end;
            start = end;
            let within = |_, latents: &[u32], _: &[f32]| {
                latents.iter().map(|&latent| group.contains(&(first + latent as usize))).collect()
            };
            split_rows(codes, within).0
        })
        .collect()
}

fn descending(a: f32, b: f32) -> Ordering {
    b.total_cmp(&a)
}

/// How many of its values of a row each of `size` ranks tells at first, where the `count` largest of all are wanted: about twice its share.
pub(super) fn told(count: usize, size: usize) -> usize {
    (2 * count.div_ceil(size) + 8).min(count)
}

/// How many codes of each row of `own` are among the `counts[i]` largest of the same row of all ranks, for each `i`; `counts` descend.
/// Ties go to the lower rank, which has the lower latents.
///
/// Of the largest count `c`, each rank tells some, see [`told`]. The `c`-th largest value told is a bound: a rank then tells the
/// rest of its values that reach it, of which there are few.
pub(super) fn kept_per_row(
    team: &dyn Collective,
    own: &SparseCodes,
    counts: &[usize],
) -> Result<Vec<Vec<usize>>, CollectiveError> {
    let (n, size, rank) = (own.n_rows(), team.size(), team.rank());
    let count = counts.first().copied().unwrap_or(0);
    let told = told(count, size);
    let mut sorted: Vec<Vec<f32>> = own.rows().map(|row| row.values.to_vec()).collect();
    sorted.par_iter_mut().for_each(|row| row.sort_by(|a, b| descending(*a, *b)));

    let mut first = vec![0.0_f32; n * told];
    for (to, row) in first.chunks_mut(told.max(1)).zip(&sorted) {
        for (to, value) in to.iter_mut().zip(row) {
            *to = *value;
        }
    }
    let mut all = Vec::new();
    team.all_gather(bytemuck::cast_slice(&first), &mut all)?;
    let firsts: Vec<f32> = numbers(&all);
    // What ranks told of a row, each descending.
    let mut known: Vec<Vec<Vec<f32>>> = (0..n)
        .into_par_iter()
        .map(|row| {
            let of = |rank: usize| {
                let values = firsts[(rank * n + row) * told..][..told].iter().copied();
                values.take_while(|value| *value > 0.0).collect()
            };
            (0..size).map(of).collect()
        })
        .collect();

    let mut more: Vec<u32> = Vec::new();
    for (row, (values, known)) in sorted.iter().zip(&known).enumerate() {
        let untold = values.get(told..).unwrap_or_default();
        if untold.is_empty() {
            continue;
        }
        let mut told: Vec<f32> = known.concat();
        let bound = if told.len() >= count {
            *told.select_nth_unstable_by(count - 1, |a, b| descending(*a, *b)).1
        } else {
            0.0
        };
        let reaching = untold.iter().take_while(|value| **value >= bound);
        more.extend(reaching.flat_map(|value| [row as u32, value.to_bits()]));
    }
    let parts = team.all_gather(bytemuck::cast_slice(&more), &mut all)?;
    let words: Vec<u32> = numbers(&all);
    let mut words = words.as_slice();
    for (other, bytes) in parts.into_iter().enumerate() {
        let (of_rank, rest) = words.split_at(bytes / 4);
        words = rest;
        for pair in of_rank.chunks_exact(2) {
            known[pair[0] as usize][other].push(f32::from_bits(pair[1]));
        }
    }

    let kept = |count: usize| {
        let rows = sorted.par_iter().zip(&known);
        rows.map(|(values, known)| {
            let position = |at: usize| {
                let value = values[at];
                let before = known.iter().enumerate().map(|(other, values)| match other.cmp(&rank) {
                    Ordering::Less => values.partition_point(|other| *other >= value),
                    Ordering::Equal => at,
                    Ordering::Greater => values.partition_point(|other| *other > value),
                });
                before.sum::<usize>()
            };
            (0..values.len()).take_while(|&at| position(at) < count).count()
        })
        .collect()
    };
    Ok(counts.iter().map(|&count| kept(count)).collect())
}

/// The codes of `own` that are among the `limit` largest of all ranks together, and the others. Ties go to the lower rank, then to the
/// lower row, then to the lower latent.
///
/// The smallest that is kept is found by its bits, from the highest, with histograms.
pub(super) fn largest_in_all(
    team: &dyn Collective,
    own: &SparseCodes,
    limit: usize,
) -> Result<(SparseCodes, SparseCodes), CollectiveError> {
    // Bits of positive floats ascend as they do.
    let bits = |value: f32| value.to_bits();
    let mut above = 0_i64;
    let mut prefix = 0_u32;
    let mut shift = RADIX_BITS * ROUNDS;
    let mut of_prefix = 0;
    for _ in 0..ROUNDS {
        shift -= RADIX_BITS;
        let mut histogram = vec![0_i64; 1 << RADIX_BITS];
        for &value in own.values() {
            let bits = u64::from(bits(value));
            if bits >> (shift + RADIX_BITS) == u64::from(prefix) {
                histogram[(bits >> shift) as usize & ((1 << RADIX_BITS) - 1)] += 1;
            }
        }
        team.all_reduce(NumbersMut::I64(&mut histogram), Reduction::Sum)?;
        let mut chosen = 0;
        for (digit, &values) in histogram.iter().enumerate().rev() {
            chosen = digit;
            of_prefix = values;
            if above + values >= limit as i64 {
                break;
            }
            if digit > 0 {
                above += values;
            }
        }
        prefix = (prefix << RADIX_BITS) | chosen as u32;
    }
    // All above the value are kept, and of those equal to it what is left, rank by rank.
    let ties = own.values().iter().filter(|value| bits(**value) == prefix).count();
    let mut all = Vec::new();
    team.all_gather(&(ties as u64).to_le_bytes(), &mut all)?;
    let ties_of: Vec<u64> = numbers(&all);
    let before: u64 = ties_of[..team.rank()].iter().sum();
    let room = (limit as i64 - above).clamp(0, of_prefix.max(0)) as u64;
    let mut quota = room.saturating_sub(before);
    Ok(split_rows(own, |_, _, values| {
        values
            .iter()
            .map(|&value| match bits(value).cmp(&prefix) {
                Ordering::Greater => true,
                Ordering::Less => false,
                Ordering::Equal => {
                    let within = quota > 0;
                    quota = quota.saturating_sub(1);
                    within
                }
            })
            .collect()
    }))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use collectives::{Threads, share};
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Rows with up to `width` codes each; few different values, so that there are ties.
    fn codes(width: usize, rows: usize, seed: u64) -> SparseCodes {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut codes = SparseCodes::new(width);
        for _ in 0..rows {
            let row: Vec<_> = (0..width as u32)
                .filter_map(|latent| {
                    let value = random.random_range(0..20_u32) as f32 / 4.0;
                    (value > 0.0).then_some((FeatureId(latent), value))
                })
                .collect();
            codes.push_row(row).unwrap();
        }
        codes
    }

    fn on_ranks<T: Send>(size: usize, work: impl Fn(&Threads) -> T + Sync) -> Vec<T> {
        let team = Threads::team(size);
        thread::scope(|scope| {
            let running: Vec<_> = team.iter().map(|rank| scope.spawn(|| work(rank))).collect();
            running.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    /// Latents `range` of `codes`, numbered from 0.
    fn shard(codes: &SparseCodes, range: &std::ops::Range<usize>) -> SparseCodes {
        let mut own = SparseCodes::new(range.len());
        for row in codes.rows() {
            let within = row.iter().filter(|(latent, _)| range.contains(&latent.index()));
            own.push_row(within.map(|(latent, value)| (FeatureId(latent.0 - range.start as u32), value)))
                .unwrap();
        }
        own
    }

    /// Puts shards together again.
    fn join(shards: &[SparseCodes], width: usize) -> SparseCodes {
        let mut codes = SparseCodes::new(width);
        for row in 0..shards[0].n_rows() {
            let mut first = 0;
            let mut all = Vec::new();
            for shard in shards {
                all.extend(shard.row(row).iter().map(|(latent, value)| (FeatureId(latent.0 + first), value)));
                first += shard.num_latents() as u32;
            }
            codes.push_row(all).unwrap();
        }
        codes
    }

    #[test]
    fn rows_of_all_ranks_come_in_order() {
        let whole = codes(30, 7, 1);
        let cuts = [0, 3, 3, 7];
        let got =
            on_ranks(3, |rank| gather(rank, &whole.slice(cuts[rank.rank()]..cuts[rank.rank() + 1])).unwrap());
        assert!(got.iter().all(|codes| *codes == whole));
    }

    #[test]
    fn the_largest_of_each_row_are_found_over_shards() {
        for (width, size, counts) in
            [(60, 2, [12, 3]), (60, 3, [40, 10]), (24, 4, [24, 6]), (200, 3, [16, 16])]
        {
            let whole = codes(width, 20, width as u64);
            let parts = on_ranks(size, |rank| {
                let range = share(width, rank.rank(), size);
                let own = shard(&whole, &range).largest_per_row(counts[0]).0;
                let kept = kept_per_row(rank, &own, &counts).unwrap();
                [largest(&own, &kept[0]).0, largest(&own, &kept[1]).0]
            });
            for (index, count) in counts.into_iter().enumerate() {
                let shards: Vec<_> = parts.iter().map(|part| part[index].clone()).collect();
                assert_eq!(
                    join(&shards, width),
                    whole.largest_per_row(count).0,
                    "{count} of {width} on {size}"
                );
            }
        }
    }

    #[test]
    fn one_rank_that_has_all_the_largest_tells_them_in_the_second_round() {
        let mut whole = SparseCodes::new(90);
        for row in 0..4 {
            let value = |latent: u32| if latent < 30 { 100.0 + (latent + row) as f32 } else { 1.0 };
            whole.push_row((0..90).map(|latent| (FeatureId(latent), value(latent)))).unwrap();
        }
        let parts = on_ranks(3, |rank| {
            let own = shard(&whole, &share(90, rank.rank(), 3));
            let kept = kept_per_row(rank, &own, &[28]).unwrap();
            largest(&own, &kept[0]).0
        });
        assert_eq!(join(&parts, 90), whole.largest_per_row(28).0);
    }

    #[test]
    fn the_largest_of_all_rows_are_found_over_ranks() {
        let whole = codes(40, 30, 9);
        for limit in [0, 1, 7, 100, 555, whole.n_codes(), whole.n_codes() + 10] {
            let parts = on_ranks(3, |rank| {
                let rows = share(30, rank.rank(), 3);
                largest_in_all(rank, &whole.slice(rows), limit).unwrap()
            });
            let mut kept = SparseCodes::new(40);
            for (part, _) in &parts {
                kept.append(part);
            }
            assert_eq!(kept, whole.largest_in_all(limit).0, "{limit}");
            let rest: usize = parts.iter().map(|(_, rest)| rest.n_codes()).sum();
            assert_eq!(rest + kept.n_codes(), whole.n_codes());
        }
    }

    #[test]
    fn groups_are_numbered_over_all_ranks() {
        let whole = codes(12, 5, 4);
        let range = 5..9;
        let cut = groups(&shard(&whole, &range), &[3, 6, 12], range.start);
        let counts: Vec<usize> = cut.iter().map(SparseCodes::n_codes).collect();
        let within = |from, to| {
            let codes = whole.latents().iter();
            codes.filter(|latent| (from..to).contains(&(**latent as usize))).count()
        };
        assert_eq!(counts, [0, within(5, 6), within(6, 9)]);
    }
}
