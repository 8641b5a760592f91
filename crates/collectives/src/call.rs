//! [`Call`]: what a rank announces to the others before each exchange, so that ranks in different calls are told apart.

use std::fmt;

use crate::{CollectiveError, NumbersMut, Reduction};

/// The 64-bit words of an announcement.
pub(crate) const WORDS: usize = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    AllReduce { element: Element, reduction: Reduction, len: usize },
    AllGather { len: usize },
    Gather { root: usize, len: usize },
    Broadcast { root: usize, len: usize },
    Barrier,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Element {
    F32,
    F64,
    I64,
    U8,
}

impl Element {
    const ALL: [Self; 4] = [Self::F32, Self::F64, Self::I64, Self::U8];

    /// Bytes of one element.
    #[cfg(feature = "mpi")]
    pub(crate) fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F64 | Self::I64 => 8,
            Self::U8 => 1,
        }
    }

    pub(crate) fn of(numbers: &NumbersMut<'_>) -> Self {
        match numbers {
            NumbersMut::F32(_) => Self::F32,
            NumbersMut::F64(_) => Self::F64,
            NumbersMut::I64(_) => Self::I64,
            NumbersMut::U8(_) => Self::U8,
        }
    }
}

const REDUCTIONS: [Reduction; 3] = [Reduction::Sum, Reduction::Max, Reduction::Min];

impl Call {
    /// # Panics
    ///
    /// For a sum of bytes.
    #[track_caller]
    pub(crate) fn all_reduce(numbers: &NumbersMut<'_>, reduction: Reduction) -> Self {
        let element = Element::of(numbers);
        assert!(
            element != Element::U8 || reduction != Reduction::Sum,
            "all_reduce got the sum of u8, which overflows; it takes Max and Min of u8, or a sum of i64"
        );
        Self::AllReduce { element, reduction, len: numbers.len() }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::AllReduce { .. } => "all_reduce",
            Self::AllGather { .. } => "all_gather",
            Self::Gather { .. } => "gather",
            Self::Broadcast { .. } => "broadcast",
            Self::Barrier => "barrier",
        }
    }

    /// Elements of an all-reduce, else bytes that the rank gives.
    pub(crate) fn len(self) -> usize {
        match self {
            Self::AllReduce { len, .. }
            | Self::AllGather { len }
            | Self::Gather { len, .. }
            | Self::Broadcast { len, .. } => len,
            Self::Barrier => 0,
        }
    }

    /// Whether ranks in these two calls can go through with them.
    fn fits(self, other: Self) -> bool {
        match (self, other) {
            (Self::AllGather { .. }, Self::AllGather { .. }) => true,
            (Self::Gather { root, .. }, Self::Gather { root: others, .. })
            | (Self::Broadcast { root, .. }, Self::Broadcast { root: others, .. }) => root == others,
            _ => self == other,
        }
    }

    pub(crate) fn to_words(self) -> [u64; WORDS] {
        let place = |position: Option<usize>| position.unwrap_or_default() as u64;
        let what = match self {
            Self::AllReduce { element, reduction, .. } => {
                let element = place(Element::ALL.iter().position(|each| *each == element));
                let reduction = place(REDUCTIONS.iter().position(|each| *each == reduction));
                1 | element << 8 | reduction << 16
            }
            Self::AllGather { .. } => 2,
            Self::Gather { root, .. } => 3 | (root as u64) << 32,
            Self::Broadcast { root, .. } => 4 | (root as u64) << 32,
            Self::Barrier => 5,
        };
        [what, self.len() as u64]
    }

    /// `None` for words that no [`Call`] has.
    pub(crate) fn from_words(words: [u64; WORDS]) -> Option<Self> {
        let [what, len] = words;
        let len = usize::try_from(len).ok()?;
        let root = (what >> 32) as usize;
        match what & 0xff {
            1 => {
                let element = *Element::ALL.get((what >> 8 & 0xff) as usize)?;
                let reduction = *REDUCTIONS.get((what >> 16 & 0xff) as usize)?;
                Some(Self::AllReduce { element, reduction, len })
            }
            2 => Some(Self::AllGather { len }),
            3 => Some(Self::Gather { root, len }),
            4 => Some(Self::Broadcast { root, len }),
            5 => Some(Self::Barrier),
            _ => None,
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Self::AllReduce { element, reduction, len } => {
                let element = format!("{element:?}").to_lowercase();
                write!(f, " ({reduction:?} of {len} {element})")
            }
            Self::Gather { root, .. } => write!(f, " to rank {root}"),
            Self::Broadcast { root, .. } => write!(f, " from rank {root}"),
            Self::AllGather { .. } | Self::Barrier => Ok(()),
        }
    }
}

/// Whether all ranks' calls fit this rank's. `calls` is in the order of ranks.
pub(crate) fn check(calls: &[Option<Call>], rank: usize, number: u64) -> Result<(), CollectiveError> {
    let own = calls[rank];
    let others: Vec<(usize, String)> = calls
        .iter()
        .enumerate()
        .filter(|(_, call)| !own.zip(**call).is_some_and(|(own, call)| own.fits(call)))
        .map(|(rank, call)| {
            (rank, call.map_or_else(|| "a call of another version".into(), |call| call.to_string()))
        })
        .collect();
    if others.is_empty() {
        return Ok(());
    }
    let call = own.map_or_else(String::new, |call| call.to_string());
    Err(CollectiveError::Mismatch { call, number, others, rank, size: calls.len() })
}

/// # Panics
///
/// If there is no rank `root`.
#[track_caller]
pub(crate) fn check_root(root: usize, size: usize) {
    assert!(root < size, "the root is rank {root}, but there are {size} ranks");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_survive_their_words() {
        let reduce = |element, reduction| Call::AllReduce { element, reduction, len: 1 << 40 };
        let calls = [
            reduce(Element::F32, Reduction::Sum),
            reduce(Element::F64, Reduction::Max),
            reduce(Element::I64, Reduction::Min),
            reduce(Element::U8, Reduction::Max),
            Call::AllGather { len: 7 },
            Call::Gather { root: 70_000, len: 0 },
            Call::Broadcast { root: 3, len: 9 },
            Call::Barrier,
        ];
        for call in calls {
            assert_eq!(Call::from_words(call.to_words()), Some(call));
        }
        assert_eq!(Call::from_words([0, 0]), None);
        assert_eq!(Call::from_words([1 | 9 << 8, 0]), None);
    }

    #[test]
    fn only_calls_that_fit_pass() {
        let reduce = |len| Some(Call::AllReduce { element: Element::F32, reduction: Reduction::Sum, len });
        let gather = |root, len| Some(Call::Gather { root, len });
        assert!(check(&[reduce(4), reduce(4)], 1, 1).is_ok());
        assert!(check(&[gather(1, 0), gather(1, 9)], 0, 1).is_ok());
        assert!(check(&[gather(1, 0), gather(0, 0)], 0, 1).is_err());
        let error = check(&[reduce(4), reduce(4), reduce(5), Some(Call::Barrier), None], 0, 2).unwrap_err();
        let CollectiveError::Mismatch { others, .. } = error else { panic!("{error}") };
        let ranks: Vec<usize> = others.iter().map(|(rank, _)| *rank).collect();
        assert_eq!(ranks, [2, 3, 4]);
        assert_eq!(others[0].1, "all_reduce (Sum of 5 f32)");
    }
}
