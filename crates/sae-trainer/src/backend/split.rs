//! Cutting codes into the disjoint sets of a [`Chain`].

use sae_core::SparseCodes;

use crate::config::Selection;
use crate::objective::Chain;

/// `codes` by set: those among the k by Matryoshka group, then the others.
pub(crate) fn split(codes: &SparseCodes, chain: &Chain) -> Vec<SparseCodes> {
    let (among_k, others) = match (chain.multi_topk, chain.selection) {
        (false, _) => (codes.clone(), None),
        (true, Selection::TopK) => {
            let (kept, rest) = codes.largest_per_row(chain.k);
            (kept, Some(rest))
        }
        (true, Selection::BatchTopK) => {
            let (kept, rest) = codes.largest_in_all(chain.k * codes.n_rows());
            (kept, Some(rest))
        }
    };
    let mut sets = if chain.prefixes.len() == 1 { vec![among_k] } else { among_k.split_at(&chain.prefixes) };
    sets.extend(others);
    sets
}
