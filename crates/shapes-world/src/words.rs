//! The attributes of a scene and the words for them.

/// A word that names none of an attribute's values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{word:?} is no {attribute}: expected one of {}", known.join(", "))]
pub struct UnknownWord {
    /// What was given.
    pub word: String,
    /// The attribute it was read as, such as `colour`.
    pub attribute: &'static str,
    /// The words there are.
    pub known: Vec<&'static str>,
}

macro_rules! attribute {
    ($(#[$doc:meta])* $name:ident, $label:literal: $($(#[$value_doc:meta])* $value:ident = $word:literal),+ $(,)?) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$value_doc])* $value),+
        }

        impl $name {
            /// Every value, in a fixed order.
            pub const ALL: &'static [Self] = &[$(Self::$value),+];

            /// The word for it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$value => $word),+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }

        impl std::str::FromStr for $name {
            type Err = UnknownWord;

            fn from_str(word: &str) -> Result<Self, UnknownWord> {
                Self::ALL.iter().copied().find(|value| value.name() == word).ok_or_else(|| UnknownWord {
                    word: word.to_owned(),
                    attribute: $label,
                    known: Self::ALL.iter().map(|value| value.name()).collect(),
                })
            }
        }
    };
}

attribute! {
    /// The outline of an object.
    Shape, "shape":
    /// A disc.
    Circle = "circle",
    /// A square with level edges.
    Square = "square",
    /// An isosceles triangle pointing up.
    Triangle = "triangle",
    /// A plus sign.
    Cross = "cross",
    /// A disc with a round hole of a little over half its diameter.
    Ring = "ring",
}

attribute! {
    /// The colour of an object.
    Colour, "colour":
    /// Red.
    Red = "red",
    /// Green.
    Green = "green",
    /// Blue.
    Blue = "blue",
    /// Yellow.
    Yellow = "yellow",
    /// Purple.
    Purple = "purple",
    /// Orange.
    Orange = "orange",
}

attribute! {
    /// How an object is filled; the second tone is a darker one of the same hue.
    Texture, "texture":
    /// One tone.
    Solid = "solid",
    /// Diagonal stripes of both tones.
    Striped = "striped",
    /// Dark dots.
    Dotted = "dotted",
    /// Squares of both tones in turn.
    Checkered = "checkered",
}

attribute! {
    /// How much room an object takes, where that is plain to see. Not part of any text.
    Extent, "extent":
    /// A side of at least [`Extent::LARGE`] pixels.
    Large = "large",
    /// A side of at most [`Extent::SMALL`] pixels.
    Small = "small",
}

attribute! {
    /// What an object stands on. Not part of any text.
    Background, "background":
    /// One light grey.
    LightPlain = "light plain",
    /// Light greys, graded.
    LightGraded = "light graded",
    /// One dark grey.
    DarkPlain = "dark plain",
    /// Dark greys, graded.
    DarkGraded = "dark graded",
}

attribute! {
    /// Where an object stands, by thirds of the canvas.
    Position, "position":
    /// Left third, middle row.
    Left = "left",
    /// Right third, middle row.
    Right = "right",
    /// Top third, middle column.
    Top = "top",
    /// Bottom third, middle column.
    Bottom = "bottom",
    /// Middle row and column.
    Centre = "centre",
}

impl Extent {
    /// The shortest side of a large object, in pixels.
    pub const LARGE: u32 = 35;
    /// The longest side of a small object, in pixels.
    pub const SMALL: u32 = 29;
}

impl Colour {
    /// Red, green and blue of the colour's plain tone.
    pub const fn rgb(self) -> [u8; 3] {
        match self {
            Self::Red => [216, 32, 40],
            Self::Green => [40, 168, 64],
            Self::Blue => [40, 84, 224],
            Self::Yellow => [244, 220, 36],
            Self::Purple => [152, 52, 196],
            Self::Orange => [248, 136, 20],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_read_back_and_unknown_ones_list_the_known() {
        for &shape in Shape::ALL {
            assert_eq!(shape.name().parse(), Ok(shape));
        }
        assert_eq!(
            "mauve".parse::<Colour>().unwrap_err().to_string(),
            "\"mauve\" is no colour: expected one of red, green, blue, yellow, purple, orange"
        );
    }
}
