//! Models and data sets from the Hugging Face Hub, kept in the cache Python's `huggingface_hub` uses.
//!
//! Heeded variables: `HF_HOME` and `HF_HUB_CACHE` (where the cache is), `HF_ENDPOINT` (a mirror), `HF_TOKEN` (else the
//! token file in `HF_HOME`), `HF_HUB_OFFLINE` (the cache only).

use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use glob::Pattern;
use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use crate::{DataError, Dataset, OpenOptions, files};

/// What kind of repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepoKind {
    /// Models and SAEs.
    Model,
    /// Data sets.
    Dataset,
}

/// Where to download from and keep what was downloaded.
#[derive(Clone, PartialEq, Eq)]
pub struct Hub {
    /// The Hub's address.
    pub endpoint: String,
    /// The cache folder, `~/.cache/huggingface/hub` as a rule.
    pub cache: PathBuf,
    /// The access token.
    pub token: Option<String>,
    /// Whether to keep to the cache.
    pub offline: bool,
}

/// Downloads what of a repository matches `patterns`; see [`Hub::snapshot`].
///
/// # Errors
/// As [`Hub::snapshot`].
pub fn snapshot(
    repository: &str,
    kind: RepoKind,
    revision: &str,
    patterns: &[&str],
) -> Result<PathBuf, DataError> {
    Hub::from_env().snapshot(repository, kind, revision, patterns)
}

/// A local path as it is, else a Hub repository's snapshot; see [`Hub::resolve`].
///
/// # Errors
/// As [`Hub::resolve`].
pub fn resolve(argument: &str, kind: RepoKind, patterns: &[&str]) -> Result<PathBuf, DataError> {
    Hub::from_env().resolve(argument, kind, patterns)
}

/// Opens a data set at a local path, else on the Hub; see [`Hub::open_dataset`].
///
/// # Errors
/// As [`Hub::open_dataset`].
pub fn open_dataset(argument: &str, options: &OpenOptions) -> Result<Dataset, DataError> {
    Hub::from_env().open_dataset(argument, options)
}

impl std::fmt::Debug for Hub {
    /// Keeps the token to itself.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { endpoint, cache, offline, .. } = self;
        write!(f, "Hub {{ endpoint: {endpoint:?}, cache: {cache:?}, offline: {offline} }}")
    }
}

impl Hub {
    /// As the environment has it.
    pub fn from_env() -> Self {
        Self::from_variables(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let home = variable("HF_HOME").map_or_else(
            || std::env::home_dir().unwrap_or_else(|| PathBuf::from(".")).join(".cache/huggingface"),
            PathBuf::from,
        );
        let token = variable("HF_TOKEN").or_else(|| std::fs::read_to_string(home.join("token")).ok());
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let offline = variable("HF_HUB_OFFLINE")
            .is_some_and(|value| ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str()));
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            cache: variable("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from),
            token: token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()),
            offline,
        }
    }

    /// Downloads every file of a repository that one of `patterns` matches (`*` stands for slashes too; no patterns
    /// stand for all files) and is not in the cache yet. Returns the snapshot's folder.
    ///
    /// Without an answer from the Hub, what the cache has of that revision is taken, with a warning.
    ///
    /// # Errors
    /// When the Hub or the repository does not answer or lacks such files, or writing fails.
    ///
    /// # Panics
    /// When a pattern is malformed.
    pub fn snapshot(
        &self,
        repository: &str,
        kind: RepoKind,
        revision: &str,
        patterns: &[&str],
    ) -> Result<PathBuf, DataError> {
        let compiled: Vec<Pattern> =
            patterns.iter().map(|pattern| Pattern::new(pattern).expect("a pattern in glob syntax")).collect();
        let keep = |name: &str| patterns.is_empty() || compiled.iter().any(|pattern| pattern.matches(name));
        self.download(repository, kind, revision, patterns, &keep)
    }

    /// A local path as it is; else, for `owner/name` or `owner/name@revision`, the Hub's snapshot.
    ///
    /// # Errors
    /// When it is neither, and as [`Hub::snapshot`].
    ///
    /// # Panics
    /// As [`Hub::snapshot`].
    pub fn resolve(&self, argument: &str, kind: RepoKind, patterns: &[&str]) -> Result<PathBuf, DataError> {
        match Target::of(argument)? {
            Target::Local(path) => Ok(path),
            Target::Hub { repository, revision } => self.snapshot(repository, kind, revision, patterns),
        }
    }

    /// Opens a data set at a local path, else the Hub's of that id; of the latter only files that can be of the
    /// split asked for are downloaded.
    ///
    /// # Errors
    /// As [`Hub::resolve`] and [`Dataset::open_with`].
    pub fn open_dataset(&self, argument: &str, options: &OpenOptions) -> Result<Dataset, DataError> {
        let folder = match Target::of(argument)? {
            Target::Local(path) => path,
            Target::Hub { repository, revision } => {
                let split = options.split.as_deref();
                let keep = |name: &str| files::may_be_of_split(name, split);
                let wanted = ["*.parquet", "*.json", "*.jsonl", "*.bin", "*.png", "*.jpg"];
                self.download(repository, RepoKind::Dataset, revision, &wanted, &keep)?
            }
        };
        Dataset::open_with(&folder, options)
    }

    fn download(
        &self,
        repository: &str,
        kind: RepoKind,
        revision: &str,
        wanted: &[&str],
        keep: &dyn Fn(&str) -> bool,
    ) -> Result<PathBuf, DataError> {
        let cache = Cache::new(self.cache.clone());
        let kind = match kind {
            RepoKind::Model => RepoType::Model,
            RepoKind::Dataset => RepoType::Dataset,
        };
        let at = |revision: &str| Repo::with_revision(repository.to_owned(), kind, revision.to_owned());
        let cached = || cached_snapshot(&cache, &at(revision));
        if self.offline {
            return cached().ok_or_else(|| DataError::Offline {
                repository: repository.to_owned(),
                revision: revision.to_owned(),
                cache: self.cache.clone(),
            });
        }
        let failed = |action: String| {
            move |source| DataError::Hub {
                action,
                repository: repository.to_owned(),
                endpoint: self.endpoint.clone(),
                source: Box::new(source),
            }
        };
        let api = self.api().map_err(failed("connect for a download".to_owned()))?;
        let info = match api.repo(at(revision)).info() {
            Ok(info) => info,
            Err(error) => {
                // An answer such as "not found" counts; no answer at all leaves the cache.
                let answered = error.to_string().contains("http status: 4");
                if let Some(folder) = cached().filter(|_| !answered) {
                    tracing::warn!("no answer from {} ({error}): taking {}", self.endpoint, folder.display());
                    return Ok(folder);
                }
                return Err(failed(format!("read the file list at {revision}"))(error));
            }
        };
        let names: Vec<String> = info
            .siblings
            .into_iter()
            .map(|file| file.rfilename)
            .filter(|name| is_below(name) && keep(name))
            .collect();
        if names.is_empty() {
            return Err(DataError::NoHubFiles {
                repository: repository.to_owned(),
                patterns: wanted.iter().map(|&pattern| pattern.to_owned()).collect(),
            });
        }
        // By commit, so that a push in the meantime cannot mix two versions.
        let pinned = api.repo(at(&info.sha));
        let folder = cache.repo(at(revision)).pointer_path(&info.sha);
        for name in names {
            if !folder.join(&name).exists() {
                fetch(&pinned, &name).map_err(failed(format!("download {name}")))?;
            }
        }
        cache
            .repo(at(revision))
            .create_ref(&info.sha)
            .map_err(DataError::io("note the revision in", &self.cache))?;
        Ok(folder)
    }

    fn api(&self) -> Result<Api, ApiError> {
        ApiBuilder::from_cache(Cache::new(self.cache.clone()))
            .with_endpoint(self.endpoint.clone())
            .with_token(self.token.clone())
            .with_progress(false)
            .with_retries(5)
            .with_user_agent("lmm-sae", env!("CARGO_PKG_VERSION"))
            .build()
    }
}

/// Downloads one file, waiting while another process does.
fn fetch(repository: &ApiRepo, name: &str) -> Result<PathBuf, ApiError> {
    loop {
        match repository.download_with_progress(name, LogProgress::new()) {
            // The lock falls when its holder ends, however it ends.
            Err(ApiError::LockAcquisition(lock)) => {
                tracing::info!("another process downloads {name} (it holds {}): waiting", lock.display());
            }
            done => return done,
        }
    }
}

fn cached_snapshot(cache: &Cache, repo: &Repo) -> Option<PathBuf> {
    let reference = cache.path().join(repo.folder_name()).join("refs").join(repo.revision());
    let commit = std::fs::read_to_string(reference).unwrap_or_else(|_| repo.revision().to_owned());
    Some(cache.repo(repo.clone()).pointer_path(commit.trim())).filter(|folder| folder.is_dir())
}

/// Whether a file name from outside stays below the folder it is joined to.
fn is_below(name: &str) -> bool {
    !name.is_empty() && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}

/// What an argument that may name a local path or a Hub repository names.
enum Target<'a> {
    Local(PathBuf),
    Hub { repository: &'a str, revision: &'a str },
}

impl<'a> Target<'a> {
    fn of(argument: &'a str) -> Result<Self, DataError> {
        if Path::new(argument).exists() {
            return Ok(Self::Local(argument.into()));
        }
        let (repository, revision) = argument.split_once('@').unwrap_or((argument, "main"));
        let part = |part: &str| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        };
        if repository.split('/').count() <= 2 && repository.split('/').all(part) && !revision.is_empty() {
            Ok(Self::Hub { repository, revision })
        } else {
            Err(DataError::Unresolved { argument: argument.to_owned() })
        }
    }
}

/// Says in the log what is being downloaded and, every ten seconds, how far it is.
struct LogProgress {
    name: String,
    size: usize,
    done: usize,
    last: Instant,
}

impl LogProgress {
    fn new() -> Self {
        Self { name: String::new(), size: 0, done: 0, last: Instant::now() }
    }
}

const MIB: f64 = 1024.0 * 1024.0;

impl Progress for LogProgress {
    fn init(&mut self, size: usize, filename: &str) {
        // Called again on every attempt.
        if self.name.is_empty() {
            tracing::info!("downloading {filename} ({:.1} MiB)", size as f64 / MIB);
        }
        (self.name, self.size, self.done) = (filename.to_owned(), size, 0);
    }

    fn update(&mut self, size: usize) {
        self.done += size;
        if self.last.elapsed() >= Duration::from_secs(10) {
            self.last = Instant::now();
            tracing::info!(
                "{}: {:.1} of {:.1} MiB",
                self.name,
                self.done as f64 / MIB,
                self.size as f64 / MIB
            );
        }
    }

    fn finish(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables() {
        let hub = Hub::from_variables(|name| match name {
            "HF_HOME" => Some("/big/hf".to_owned()),
            "HF_ENDPOINT" => Some("https://mirror.example/".to_owned()),
            "HF_TOKEN" => Some("hf_secret".to_owned()),
            _ => None,
        });
        assert_eq!(hub.cache, Path::new("/big/hf/hub"));
        assert_eq!(hub.endpoint, "https://mirror.example");
        assert_eq!(hub.token.as_deref(), Some("hf_secret"));
        assert!(!hub.offline);

        let hub = Hub::from_variables(|name| match name {
            "HF_HUB_CACHE" => Some("/cache".to_owned()),
            "HF_HUB_OFFLINE" => Some("1".to_owned()),
            "HF_HOME" => Some("/nowhere".to_owned()),
            _ => None,
        });
        assert_eq!((hub.cache.as_path(), hub.token, hub.offline), (Path::new("/cache"), None, true));
    }

    #[test]
    fn targets() {
        assert!(matches!(Target::of("."), Ok(Target::Local(_))));
        let target = Target::of("llava-hf/llama3-llava-next-8b-hf@v1.0/x");
        assert!(matches!(
            target,
            Ok(Target::Hub { repository: "llava-hf/llama3-llava-next-8b-hf", revision: "v1.0/x" })
        ));
        let pull_request = Target::of("openai/clip-vit-base-patch32@refs/pr/15");
        assert!(matches!(
            pull_request,
            Ok(Target::Hub { repository: "openai/clip-vit-base-patch32", revision: "refs/pr/15" })
        ));
        for argument in ["./nowhere", "/nowhere/x", "a/b/c", "../x", "a//b", "", "a b", "x@"] {
            assert!(matches!(Target::of(argument), Err(DataError::Unresolved { .. })), "{argument}");
        }
    }

    #[test]
    fn names_that_leave_the_folder() {
        assert!(is_below("data/train.parquet"));
        assert!(!is_below("../x") && !is_below("/etc/passwd") && !is_below("a/../../x") && !is_below(""));
    }
}
