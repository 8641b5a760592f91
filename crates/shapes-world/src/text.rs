//! Captions, questions with their answers, and the words of both.

use std::collections::BTreeSet;

use crate::{Colour, Position, Scene, Shape, Texture};

/// What a reader is told in order to get [`Scene::caption`].
pub const CAPTION_REQUEST: &str = "describe the picture .";

const HOW_MANY: &str = "how many shapes are there ?";
const COUNTS: [&str; crate::MAX_OBJECTS] = ["one", "two", "three", "four"];

/// What a question asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QuestionKind {
    /// `what colour is the circle ?`
    Colour,
    /// `which shape is red ?`
    Shape,
    /// `how many shapes are there ?`
    Count,
    /// `where is the circle ?`
    Position,
}

/// A question with its only right answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// What it asks for.
    pub kind: QuestionKind,
    /// The question, words separated by spaces.
    pub text: String,
    /// The answer, one word.
    pub answer: &'static str,
}

impl Scene {
    /// The objects from left to right: `a red striped circle and an orange solid ring`.
    pub fn caption(&self) -> String {
        let describe = |index: usize| {
            let [colour, texture, shape] = self.objects[index].labels();
            format!("{} {colour} {texture} {shape}", article(colour))
        };
        self.left_to_right().into_iter().map(describe).collect::<Vec<_>>().join(" and ")
    }

    /// Every question that has one answer: colour and position of each shape that occurs once, shape of each
    /// colour that occurs once, and the count. A position is asked for only where [`Scene::position`] tells it.
    pub fn questions(&self) -> Vec<Question> {
        let mut questions = Vec::new();
        for object in &self.objects {
            let alone_in_shape = self.objects.iter().filter(|o| o.shape == object.shape).count() == 1;
            let alone_in_colour = self.objects.iter().filter(|o| o.colour == object.colour).count() == 1;
            if alone_in_shape {
                let text = colour_question(object.shape);
                questions.push(Question { kind: QuestionKind::Colour, text, answer: object.colour.name() });
                if let Some(position) = self.position(object) {
                    let text = position_question(object.shape);
                    questions.push(Question { kind: QuestionKind::Position, text, answer: position.name() });
                }
            }
            if alone_in_colour {
                let text = shape_question(object.colour);
                questions.push(Question { kind: QuestionKind::Shape, text, answer: object.shape.name() });
            }
        }
        if let Some(answer) = self.objects.len().checked_sub(1).and_then(|i| COUNTS.get(i)) {
            questions.push(Question { kind: QuestionKind::Count, text: HOW_MANY.to_owned(), answer });
        }
        questions
    }
}

/// Every word of any caption, question, answer or request, sorted.
pub fn vocabulary() -> Vec<&'static str> {
    const SENTENCES: [&str; 6] =
        ["a an and", CAPTION_REQUEST, "what colour is the ?", "which shape is ?", HOW_MANY, "where is the ?"];
    let mut words: BTreeSet<&str> = SENTENCES.iter().flat_map(|sentence| sentence.split(' ')).collect();
    words.extend(COUNTS);
    words.extend(Shape::ALL.iter().map(|shape| shape.name()));
    words.extend(Colour::ALL.iter().map(|colour| colour.name()));
    words.extend(Texture::ALL.iter().map(|texture| texture.name()));
    words.extend(Position::ALL.iter().map(|position| position.name()));
    words.into_iter().collect()
}

fn article(word: &str) -> &'static str {
    if word.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

fn colour_question(shape: Shape) -> String {
    format!("what colour is the {shape} ?")
}

fn shape_question(colour: Colour) -> String {
    format!("which shape is {colour} ?")
}

fn position_question(shape: Shape) -> String {
    format!("where is the {shape} ?")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Background, Object};

    fn scene(objects: &[(Colour, Shape, u32, u32)]) -> Scene {
        let objects = objects.iter().map(|&(colour, shape, left, top)| Object {
            shape,
            colour,
            texture: Texture::Solid,
            tone: colour.rgb(),
            left,
            top,
            size: 24,
        });
        Scene {
            seed: 0,
            index: 0,
            width: 96,
            height: 96,
            background: Background::DarkPlain,
            grey: 20,
            grading: 0,
            grading_direction: (1, 0),
            objects: objects.collect(),
        }
    }

    #[test]
    fn asks_only_what_has_one_answer() {
        let scene = scene(&[
            (Colour::Red, Shape::Circle, 66, 36),
            (Colour::Red, Shape::Ring, 4, 4),
            (Colour::Orange, Shape::Ring, 36, 68),
        ]);
        assert_eq!(scene.caption(), "a red solid ring and an orange solid ring and a red solid circle");
        let asked: Vec<_> =
            scene.questions().into_iter().map(|q| format!("{} {}", q.text, q.answer)).collect();
        assert_eq!(
            asked,
            [
                "what colour is the circle ? red",
                "where is the circle ? right",
                "which shape is orange ? ring",
                "how many shapes are there ? three"
            ]
        );
    }
}
