//! Where hooks attach: names of modules, and their order in a forward pass.

use lmm_prep::LlavaNextConfig;
use sae_types::HookPoint;

const TOWER_LAYERS: &str = "vision_tower.vision_model.encoder.layers";
const PROJECTOR: &str = "multi_modal_projector";
const EMBEDDINGS: &str = "model.embed_tokens";
const LAYERS: &str = "model.layers";
const NORM: &str = "model.norm";

/// How many names an unknown hook point is answered with.
const SUGGESTIONS: usize = 3;

/// A hook point of one model. Ordered as a forward pass reaches them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Site {
    TowerLayer(usize),
    Projector,
    Embeddings,
    Layer(usize, Part),
    Norm,
}

/// A module of a decoder layer, or the layer as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    InputNorm,
    Attention,
    AttentionNorm,
    Mlp,
    Whole,
}

impl Part {
    const ALL: [Self; 5] = [Self::InputNorm, Self::Attention, Self::AttentionNorm, Self::Mlp, Self::Whole];

    fn suffix(self) -> &'static str {
        match self {
            Self::InputNorm => ".input_layernorm",
            Self::Attention => ".self_attn",
            Self::AttentionNorm => ".post_attention_layernorm",
            Self::Mlp => ".mlp",
            Self::Whole => "",
        }
    }
}

impl Site {
    /// Whether the language model has to run to reach it.
    pub(crate) fn is_vision(self) -> bool {
        self <= Self::Projector
    }

    /// The site of what comes into a layer of the language model; into its final norm, for the number of layers.
    pub(crate) fn before_layer(layer: usize) -> Self {
        layer.checked_sub(1).map_or(Self::Embeddings, |before| Self::Layer(before, Part::Whole))
    }

    /// The layer before which a pass can be taken up to reach this site; `None` on the vision side.
    pub(crate) fn layer_to_reach(self, depth: usize) -> Option<usize> {
        match self {
            Self::TowerLayer(_) | Self::Projector => None,
            Self::Embeddings => Some(0),
            Self::Layer(layer, Part::Whole) => Some(layer + 1),
            Self::Layer(layer, _) => Some(layer),
            Self::Norm => Some(depth),
        }
    }

    /// Its name, always a valid one.
    pub(crate) fn point(self) -> Option<HookPoint> {
        HookPoint::new(self.name()).ok()
    }

    fn name(self) -> String {
        match self {
            Self::TowerLayer(layer) => format!("{TOWER_LAYERS}.{layer}"),
            Self::Projector => PROJECTOR.to_owned(),
            Self::Embeddings => EMBEDDINGS.to_owned(),
            Self::Layer(layer, part) => format!("{LAYERS}.{layer}{}", part.suffix()),
            Self::Norm => NORM.to_owned(),
        }
    }
}

/// The hook points of one model.
#[derive(Debug)]
pub(crate) struct Points {
    tower_layers: usize,
    layers: usize,
}

impl Points {
    pub(crate) fn new(config: &LlavaNextConfig, tower_layers: usize) -> Self {
        Self { tower_layers, layers: config.text_config.num_hidden_layers }
    }

    /// All of them, in the order a forward pass reaches them.
    pub(crate) fn all(&self) -> Vec<HookPoint> {
        self.sites().filter_map(Site::point).collect()
    }

    pub(crate) fn site(&self, point: &HookPoint) -> Option<Site> {
        self.sites().find(|site| site.name() == point.as_str())
    }

    /// The sites whose names a shell pattern matches, as Python's `fnmatch` has it: `*`, which stands for dots too, `?`,
    /// `[0-9]`, `[!0-9]`. Nothing matches a pattern that is malformed.
    pub(crate) fn matching(&self, pattern: &str) -> Vec<Site> {
        // glob gives `**` a meaning of its own, for folders; to fnmatch it is one star.
        let mut stars = pattern.to_owned();
        while stars.contains("**") {
            stars = stars.replace("**", "*");
        }
        let Ok(pattern) = glob::Pattern::new(&stars) else { return Vec::new() };
        self.sites().filter(|site| pattern.matches(&site.name())).collect()
    }

    /// The site whose tensor is what the module at `site` reads; `None` where no hook point holds it.
    pub(crate) fn input(&self, site: Site) -> Option<Site> {
        let before = Site::before_layer;
        match site {
            Site::Layer(layer, Part::Mlp) => Some(Site::Layer(layer, Part::AttentionNorm)),
            Site::Layer(layer, Part::Attention) => Some(Site::Layer(layer, Part::InputNorm)),
            Site::Layer(layer, Part::Whole | Part::InputNorm) => Some(before(layer)),
            Site::Norm => Some(before(self.layers)),
            Site::TowerLayer(layer) => Some(Site::TowerLayer(layer.checked_sub(1)?)),
            // The sum of the layer's input and its attention; the tower's features without class token; token ids.
            Site::Layer(_, Part::AttentionNorm) | Site::Projector | Site::Embeddings => None,
        }
    }

    /// The names nearest to one that does not exist, best first.
    pub(crate) fn nearest(&self, point: &str) -> Vec<HookPoint> {
        let mut all = self.all();
        // A stable sort, so that ties stay in forward order.
        all.sort_by_key(|known| strsim::damerau_levenshtein(known.as_str(), point));
        all.truncate(SUGGESTIONS);
        all
    }

    fn sites(&self) -> impl Iterator<Item = Site> {
        let tower = (0..self.tower_layers).map(Site::TowerLayer);
        let layers = (0..self.layers).flat_map(|layer| Part::ALL.map(|part| Site::Layer(layer, part)));
        tower.chain([Site::Projector, Site::Embeddings]).chain(layers).chain([Site::Norm])
    }
}
