//! [`ForeignCache`]: a cache folder of msae's or delphi's, memory-mapped.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use sae_types::HookPoint;

use super::delphi::DelphiConfig;
use super::split::ForeignSplit;
use crate::CacheError;

/// Where a run of delphi's has its cache.
const LATENTS: &str = "latents";

/// Whose cache it is. See the [module documentation](crate::foreign) for what that means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Latents are counted from 0 in every split.
    Msae,
    /// Latents are counted from the split's first.
    Delphi,
}

impl Layout {
    /// The position that an entry's token 0 has, where nothing else is said: msae drops BOS before it counts.
    pub const fn first(self) -> u32 {
        match self {
            Self::Msae => 1,
            Self::Delphi => 0,
        }
    }
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Msae => "msae",
            Self::Delphi => "delphi",
        })
    }
}

/// An open cache of msae's or delphi's. Opening checks headers and sizes, not entries.
#[derive(Debug)]
pub struct ForeignCache {
    dir: PathBuf,
    layout: Layout,
    hooks: BTreeMap<HookPoint, ForeignHook>,
}

#[derive(Debug)]
pub(super) struct ForeignHook {
    /// Ascending by first latent, those without latents (of more splits than latents) left out.
    pub(super) splits: Vec<ForeignSplit>,
    pub(super) config: Option<DelphiConfig>,
    /// Files `Rank{r}_…` that msae left behind when a run with several ranks was not joined.
    pub(super) rank_parts: Vec<String>,
    /// Other safetensors files.
    pub(super) strangers: Vec<String>,
}

impl ForeignCache {
    /// Opens the cache at `dir`, which holds a folder per hook point (itself, or in `latents` as delphi's runs have it) or is the
    /// folder of one. `layout` settles whose it is
    /// where the caller knows; otherwise the latents tell, or else `tokens`, `config.json` and the dtype of `locations`.
    ///
    /// # Errors
    /// When there is no split, one is damaged, or nothing tells whose the cache is.
    pub fn open(dir: &Path, layout: Option<Layout>) -> Result<Self, CacheError> {
        let mut hooks = find(dir)?;
        let latents = dir.join(LATENTS);
        if hooks.is_empty() && latents.is_dir() {
            hooks = find(&latents)?;
        }
        if hooks.is_empty() {
            return Err(CacheError::NotForeign { path: dir.to_owned() });
        }
        let splits = || hooks.values().flat_map(|hook| &hook.splits);
        let layout = layout
            .or_else(|| splits().find_map(ForeignSplit::counting))
            .or_else(|| hint(hooks.values()))
            .ok_or_else(|| CacheError::UnknownLayout { path: dir.to_owned() })?;
        Ok(Self { dir: dir.to_owned(), layout, hooks })
    }

    /// Whose it is.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The hook points there are.
    pub fn hooks(&self) -> impl Iterator<Item = &HookPoint> {
        self.hooks.keys()
    }

    /// One past the last latent that a split of `hook` is named after; 0 of an unknown hook point.
    pub fn width(&self, hook: &HookPoint) -> usize {
        self.hooks.get(hook).map_or(0, ForeignHook::width)
    }

    /// How many splits `hook` has.
    pub fn n_splits(&self, hook: &HookPoint) -> usize {
        self.hooks.get(hook).map_or(0, |hook| hook.splits.len())
    }

    /// How many activations all splits hold, zeros counted.
    pub fn len(&self) -> u64 {
        self.hooks.values().flat_map(|hook| &hook.splits).map(|split| split.len() as u64).sum()
    }

    /// Whether no split holds any.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn entries(&self) -> &BTreeMap<HookPoint, ForeignHook> {
        &self.hooks
    }

    #[cfg(test)]
    pub(crate) fn of_bytes(
        layout: Option<Layout>,
        splits: Vec<(Range<usize>, crate::mmap::Bytes)>,
    ) -> Result<Self, CacheError> {
        let open = |(latents, bytes)| ForeignSplit::of_bytes(Path::new("split"), bytes, latents);
        let splits = splits.into_iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let layout = layout.or_else(|| splits.iter().find_map(ForeignSplit::counting));
        let hook = ForeignHook { splits, config: None, rank_parts: Vec::new(), strangers: Vec::new() };
        let dir = PathBuf::from("cache");
        let layout = layout
            .or_else(|| hint([&hook].into_iter()))
            .ok_or_else(|| CacheError::UnknownLayout { path: dir.clone() })?;
        Ok(Self { dir, layout, hooks: BTreeMap::from([(HookPoint::layer(0), hook)]) })
    }
}

impl ForeignHook {
    fn open(folder: &Path) -> Result<Self, CacheError> {
        let mut hook = Self {
            splits: Vec::new(),
            config: DelphiConfig::read(folder)?,
            rank_parts: Vec::new(),
            strangers: Vec::new(),
        };
        for path in children(folder)? {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let Some(stem) = name.strip_suffix(".safetensors") else { continue };
            if let Some(latents) = split_latents(stem) {
                if !latents.is_empty() {
                    hook.splits.push(ForeignSplit::open(&path, latents)?);
                }
            } else if stem.starts_with("Rank") {
                hook.rank_parts.push(name);
            } else {
                hook.strangers.push(name);
            }
        }
        hook.splits.sort_by_key(|split| (split.latents().start, split.latents().end));
        Ok(hook)
    }

    pub(super) fn width(&self) -> usize {
        self.splits.iter().map(|split| split.latents().end).max().unwrap_or(0)
    }
}

/// The hook points in `dir`, or the one it is the folder of.
fn find(dir: &Path) -> Result<BTreeMap<HookPoint, ForeignHook>, CacheError> {
    let mut hooks = BTreeMap::new();
    let whole = std::path::absolute(dir).map_err(CacheError::io("find", dir))?;
    let mut folders: Vec<PathBuf> = vec![whole];
    folders.extend(children(dir)?.into_iter().filter(|path| path.is_dir()));
    for folder in folders {
        let name = folder.file_name().and_then(|name| name.to_str());
        let Some(hook) = name.and_then(|name| HookPoint::new(name).ok()) else { continue };
        let found = ForeignHook::open(&folder)?;
        if !found.splits.is_empty() || !found.rank_parts.is_empty() {
            hooks.insert(hook, found);
        }
    }
    Ok(hooks)
}

/// What the other differences tell, where all hook points tell the same.
fn hint<'a>(hooks: impl Iterator<Item = &'a ForeignHook>) -> Option<Layout> {
    use safetensors::tensor::Dtype;
    let mut told = None;
    for hook in hooks {
        for split in &hook.splits {
            let wide = split.location_dtype() == Dtype::I64;
            let signs = [split.tokens().is_some(), hook.config.is_some(), !wide];
            let layout = match signs {
                [false, false, false] => Layout::Msae,
                // Older versions of delphi wrote I64; nothing of msae's has tokens.
                [true, _, _] | [_, _, true] => Layout::Delphi,
                [false, true, false] => return None,
            };
            if *told.get_or_insert(layout) != layout {
                return None;
            }
        }
    }
    told
}

/// `first_last`, as the latents `first .. last + 1`.
fn split_latents(stem: &str) -> Option<Range<usize>> {
    let (start, last) = stem.split_once('_')?;
    let digits =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u32>().ok())?;
    let start = digits(start)? as usize;
    // torch names a split without latents after the one before its first.
    let end = if last == "-1" { 0 } else { digits(last).filter(|&last| last < u32::MAX)? as usize + 1 };
    (start <= end).then_some(start..end)
}

fn children(folder: &Path) -> Result<Vec<PathBuf>, CacheError> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(CacheError::io("read", folder))? {
        paths.push(entry.map_err(CacheError::io("read", folder))?.path());
    }
    paths.sort_unstable();
    Ok(paths)
}
