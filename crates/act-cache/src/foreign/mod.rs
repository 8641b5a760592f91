//! The caches of msae and delphi: opened and judged ([`ForeignCache`]), imported ([`import`]), written ([`export_msae`],
//! [`export_delphi`]) and compared with a native one ([`compare`]).
//!
//! Both are folders `<hook point>/{first}_{last}.safetensors`, bounds from `torch.linspace(0, width, n_splits + 1).long()`:
//!
//! | | msae (60265c3) | delphi (eai-delphi 0.1.3) |
//! |---|---|---|
//! | `locations` `[n, 3]` | I64, (sample, token, latent) | U16, or U32 where a sample or latent is above 65,535 |
//! | latent counts from | 0 | the first of the split |
//! | token counts from | the token after BOS | the row of `tokens`, which delphi cuts BOS out of by default |
//! | `activations` `[n]` | the autoencoder's dtype | F16 |
//! | `tokens` `[samples, length]` | none | I64, the same in every split |
//! | `config.json` | none | in every hook point's folder |
//! | last latent of a split | never there (`features < end`) | there |
//!
//! Entries ascend by (sample, token, latent), unless msae joined them from several ranks. Latents that both countings explain are told by the
//! other differences; where those contradict each other the caller must say.
//!
//! Imported activations keep their values. What these formats do not say (the base tile, the lengths of msae's samples,
//! k, the model) comes from [`ImportOptions`].

mod boundaries;
mod cache;
mod compare;
mod delphi;
mod export;
mod findings;
mod import;
mod samples;
mod split;

pub use cache::{ForeignCache, Layout};
pub use compare::{Comparison, compare};
pub use export::{DelphiOptions, Exported, MissingTokens, MsaeOptions, export_delphi, export_msae};
pub use import::{ImportOptions, Imported, LastLatents, import};
